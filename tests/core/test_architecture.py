"""Import directions: every file has a rank, nothing points back, there are no circles, and the core is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pvlr

PACKAGE = Path(pvlr.__file__).parent
HEAVY = (
    "open_clip", "torchvision", "torchmetrics", "jsonargparse", "tensorboard", "PIL", "timm", "transformers",
    "torch._dynamo",
)  # fmt: skip
# From the bottom to the top: a file imports files of its own rank and of lower ones, by the longest name that fits.
RANKS = (
    ("pvlr", "pvlr.console", "pvlr.files", "pvlr.memory", "pvlr.packages", "pvlr.runs"),
    ("pvlr.core.arguments", "pvlr.core.labels", "pvlr.core.protocols", "pvlr.core.shapes"),
    ("pvlr.core.block", "pvlr.core.functional", "pvlr.core.metrics.masks"),
    ("pvlr.core.adapter", "pvlr.core.attention", "pvlr.core.base", "pvlr.core.losses", "pvlr.core.mixture"),
    ("pvlr.core.fusion", "pvlr.core.head", "pvlr.core.prompts", "pvlr.core.residual", "pvlr.core.semantic"),
    ("pvlr.core.metrics",),
    ("pvlr.core.towers",),
    ("pvlr.core.models",),
    ("pvlr.core",),
    ("pvlr.data", "pvlr.data.readers", "pvlr.data.scenes"),
    ("pvlr.inference",),
    ("pvlr.train",),
    ("pvlr.cli", "pvlr.__main__"),
    ("examples", "tests"),
)
# The data layer knows checks of arguments, shapes, labels and a tower's output, but no block and no model.
OPEN_TO_DATA = ("pvlr.core.arguments", "pvlr.core.shapes", "pvlr.core.labels", "pvlr.core.protocols")
MOST_FILES = 17  # Of a folder, its `__init__` among them.
MOST_LINES, MOST_PARAMETERS = 60, 8
# Each keyword of these is an option of a command line, or of a layout of files.
OPTIONS = {
    "train", "evaluate_run", "tag_bulk", "read_table", "read_rows", "tag", "evaluate", "doubtful", "export",
    "write_program",
}  # fmt: skip


def imports(source: str, module: str, is_package: bool = False) -> set[str]:
    """All modules a source imports, at the top or inside functions, relative imports resolved, names included."""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
    return found


def rank_of(module: str) -> int | None:
    """The rank of a file, or of a name in one; None for what is not ours. A room's own files have the room's."""
    fits = [
        (len(name), level)
        for level, names in enumerate(RANKS)
        for name in names
        if f"{module}.".startswith(f"{name}.") and (name != "pvlr" or module.count(".") == 0)
    ]
    return max(fits)[1] if fits else None


def violations(files: dict[str, str]) -> list[str]:
    """Imports against the direction, as ``module -> imported``; ``files``: module name to source."""
    wrong = []
    for module, source in sorted(files.items()):
        is_package = any(other.startswith(f"{module}.") for other in files)
        own = rank_of(module)
        assert own is not None, f"{module} has no rank"
        for name in sorted(imports(source, module, is_package)):
            if name == "pvlr" or not name.startswith(("pvlr.", "examples", "tests")):
                continue
            other = rank_of(name)
            back = other is None or other > own
            if module.startswith("pvlr.data.") and name.startswith("pvlr.core"):
                # `from pvlr.core import LabelSet` would load every block for one name.
                back = not f"{name}.".startswith(tuple(f"{open_}." for open_ in OPEN_TO_DATA))
            if back:
                wrong.append(f"{module} -> {name}")
    return wrong


def circles(files: dict[str, str]) -> list[list[str]]:
    """Files that import each other, at the top or inside functions, over however many others."""
    graph = {
        module: {
            max((found for found in files if f"{name}.".startswith(f"{found}.")), key=len, default="")
            for name in imports(source, module, any(other.startswith(f"{module}.") for other in files))
        }
        - {module, ""}
        for module, source in files.items()
    }
    # What imports nothing that is left, and what nothing that is left imports, is in no circle.
    while free := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in free}
    while free := graph.keys() - {other for others in graph.values() for other in others}:
        graph = {module: others for module, others in graph.items() if module not in free}
    return [sorted(graph)] if graph else []


def package_files() -> dict[str, str]:
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["pvlr", *path.relative_to(PACKAGE).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return files


def test_imports_flow_one_way() -> None:
    files = package_files()
    assert {"pvlr", "pvlr.core", "pvlr.core.functional", "pvlr.data", "pvlr.inference", "pvlr.train"} <= set(files)
    assert violations({name: source for name, source in files.items() if name != "pvlr"}) == []
    assert circles({name: source for name, source in files.items() if name != "pvlr"}) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("pvlr.core.head", "import pvlr.train.loop", "pvlr.core.head -> pvlr.train.loop"),
        ("pvlr.core.head", "from pvlr import data", "pvlr.core.head -> pvlr.data"),
        ("pvlr.core.head", "from ..data import batch", "pvlr.core.head -> pvlr.data"),
        ("pvlr.core.head", "def f():\n    from pvlr.data.batch import Batch", "pvlr.core.head -> pvlr.data.batch"),
        ("pvlr.core.head", "from pvlr.core.models.network import PVLR", "pvlr.core.head -> pvlr.core.models.network"),
        ("pvlr.core.head", "from .towers import load_towers", "pvlr.core.head -> pvlr.core.towers"),
        ("pvlr.core.head", "from pvlr.core import expect", "pvlr.core.head -> pvlr.core"),
        ("pvlr.core.functional", "from pvlr.core.attention import x", "pvlr.core.functional -> pvlr.core.attention"),
        ("pvlr.core.models.network", "from pvlr.inference import tags", "pvlr.core.models.network -> pvlr.inference"),
        ("pvlr.data.batch", "from pvlr.train import loop", "pvlr.data.batch -> pvlr.train"),
        ("pvlr.data.batch", "from pvlr.core.block import Block", "pvlr.data.batch -> pvlr.core.block"),
        ("pvlr.data.batch", "from pvlr.core import LabelSet", "pvlr.data.batch -> pvlr.core"),
        ("pvlr.inference.tags", "from pvlr.train import loop", "pvlr.inference.tags -> pvlr.train"),
        ("pvlr.train.loop", "import examples.train_voc", "pvlr.train.loop -> examples.train_voc"),
        ("pvlr", "from pvlr.core import PVLR", "pvlr -> pvlr.core"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, source: str, wrong: str) -> None:
    assert wrong in violations({module: source, f"{module}_beside": ""} if module != "pvlr" else {module: source})


def test_imports_along_the_direction_are_allowed() -> None:
    allowed = {
        "pvlr.data.batch": "from pvlr.core.labels import LabelSet\nfrom pvlr.core.shapes import expect\nimport torch",
        "pvlr.train.loop": "from pvlr.core.models.network import PVLR\nfrom . import config",
        "pvlr.core.head": "from pvlr.core.functional import gate\nfrom .shapes import expect",
        "pvlr.core": "from pvlr.core.head import SimilarityHead",
        "pvlr.core.models.network": "from pvlr.core.head import SimilarityHead\nfrom ..towers import load_towers",
    }
    assert violations(allowed) == []


def test_files_that_import_each_other_are_found() -> None:
    files = {
        "pvlr.a": "def f():\n    from pvlr.b import g",
        "pvlr.b": "from pvlr.c import h",
        "pvlr.c": "import pvlr.a",
        "pvlr.d": "from pvlr.a import f",
        "pvlr.e": "",
    }
    assert circles(files) == [["pvlr.a", "pvlr.b", "pvlr.c"]]
    assert circles(files | {"pvlr.c": "import pvlr.e"}) == []


def test_a_file_without_a_rank_is_found() -> None:
    with pytest.raises(AssertionError, match=r"pvlr\.new has no rank"):
        violations({"pvlr.new": ""})


def test_no_folder_holds_more_files_than_a_reader_overlooks() -> None:
    folders = [path for path in (PACKAGE, *PACKAGE.rglob("*")) if path.is_dir() and any(path.glob("*.py"))]
    assert {str(path): found for path in folders if (found := len(list(path.glob("*.py")))) > MOST_FILES} == {}


def large_functions(files: dict[str, str]) -> list[str]:
    """Functions of more lines than a screen (their docstring does not count), or of more parameters than one keeps."""
    found = []
    for module, source in sorted(files.items()):
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            given = node.args
            names = [
                x.arg for x in (*given.posonlyargs, *given.args, *given.kwonlyargs) if x.arg not in ("self", "cls")
            ]
            if lines > MOST_LINES:
                found.append(f"{module}.{node.name}: {lines} lines")
            if len(names) > MOST_PARAMETERS and node.name not in OPTIONS:
                found.append(f"{module}.{node.name}: {len(names)} parameters")
    return found


def test_a_function_is_read_on_one_screen() -> None:
    assert large_functions(package_files()) == []
    many = ", ".join(f"x{n}" for n in range(9))
    assert large_functions({"m": f"def f({many}):\n    pass"}) == ["m.f: 9 parameters"]
    assert large_functions({"m": "def f():\n" + "    x = 1\n" * 61}) == ["m.f: 61 lines"]


def loaded_by(statement: str) -> list[str]:
    """Heavy modules loaded after a statement ran in an interpreter of its own."""
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout)


def test_importing_the_core_loads_no_heavy_package() -> None:
    assert loaded_by("import pvlr, pvlr.core") == []


def test_a_heavy_package_is_found() -> None:
    assert loaded_by("import pvlr.core, PIL") == ["PIL"]


def asserts(files: dict[str, str]) -> list[str]:
    """Places of ``assert`` statements: ``python -O`` drops them, and with them the check."""
    return [
        f"{module}:{node.lineno}"
        for module, source in sorted(files.items())
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert)
    ]


def test_no_check_of_the_library_vanishes_under_python_o() -> None:
    assert asserts(package_files()) == []
    assert asserts({"x": "def f(a):\n    assert a\n    return a"}) == ["x:2"]
