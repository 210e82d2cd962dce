"""Which way imports flow: ``train → data → core``, nothing points back, and the core is light."""

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
LAYERS = ("core", "data", "train")
# The data layer knows shapes, labels and what a tower's output looks like, but no block and no model.
OPEN_TO_DATA = ("shapes", "labels", "protocols")
# The core's own layers: a file imports only from lines above its own (`model` and what comes later, from all).
CORE_ORDER = (
    {"arguments", "block", "labels", "protocols", "shapes"},
    {"functional", "masked"},
    {"attention", "calibration", "losses", "metrics"},
    {"fusion", "head", "prompts", "report"},
)


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


def violations(files: dict[str, str]) -> list[str]:
    """Imports against the direction, as ``module -> imported``; ``files``: module name to source."""
    wrong = []
    for module, source in sorted(files.items()):
        is_package = any(other.startswith(f"{module}.") for other in files)
        layer = next((name for name in LAYERS if f"{module}.".startswith(f"pvlr.{name}.")), None)
        for name in sorted(imports(source, module, is_package)):
            to = next((other for other in LAYERS if f"{name}.".startswith(f"pvlr.{other}.")), None)
            if layer is None:
                back = to is not None  # The package itself loads none of its parts.
            elif to is None:
                back = name.split(".")[0] in ("examples", "tests")
            else:
                back = LAYERS.index(to) > LAYERS.index(layer)
                if layer == "data" and to == "core":
                    inside = name.split(".")[2:3]
                    # `from pvlr.core import LabelSet` would load every block for one name.
                    back = not inside or inside[0] not in OPEN_TO_DATA
                if layer == to == "core":
                    back = against_order(module, name)
            if back:
                wrong.append(f"{module} -> {name}")
    return wrong


def against_order(module: str, name: str) -> bool:
    own, other = (path.split(".")[2:3] for path in (module, name))
    rank = {part: level for level, parts in enumerate(CORE_ORDER) for part in parts}
    if not own or own[0] not in rank:
        return False
    if not other:
        return True  # A file of the core that imports `pvlr.core` imports itself.
    return rank.get(other[0], len(CORE_ORDER)) > rank[own[0]]


def package_files() -> dict[str, str]:
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["pvlr", *path.relative_to(PACKAGE).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return files


def test_imports_flow_one_way() -> None:
    files = package_files()
    assert {"pvlr", "pvlr.core", "pvlr.core.functional", "pvlr.data", "pvlr.train"} <= set(files)
    assert violations(files) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("pvlr.core.head", "import pvlr.train.loop", "pvlr.core.head -> pvlr.train.loop"),
        ("pvlr.core.head", "from pvlr import data", "pvlr.core.head -> pvlr.data"),
        ("pvlr.core.head", "from ..data import voc", "pvlr.core.head -> pvlr.data"),
        ("pvlr.core.head", "def f():\n    from pvlr.data.voc import VOC", "pvlr.core.head -> pvlr.data.voc"),
        ("pvlr.core.head", "from pvlr.core.model import PVLR", "pvlr.core.head -> pvlr.core.model"),
        ("pvlr.core.head", "from .towers import load_towers", "pvlr.core.head -> pvlr.core.towers"),
        ("pvlr.core.head", "from pvlr.core import expect", "pvlr.core.head -> pvlr.core"),
        ("pvlr.core.functional", "from pvlr.core.attention import x", "pvlr.core.functional -> pvlr.core.attention"),
        ("pvlr.data.voc", "from pvlr.train import loop", "pvlr.data.voc -> pvlr.train"),
        ("pvlr.data.voc", "from pvlr.core.model import PVLR", "pvlr.data.voc -> pvlr.core.model"),
        ("pvlr.data.voc", "from pvlr.core import LabelSet", "pvlr.data.voc -> pvlr.core"),
        ("pvlr.train.loop", "import examples.train_voc", "pvlr.train.loop -> examples.train_voc"),
        ("pvlr", "from pvlr.core import PVLR", "pvlr -> pvlr.core"),
    ],
)
def test_that_test_can_fail(module: str, source: str, wrong: str) -> None:
    assert wrong in violations({module: source, f"{module}_beside": ""})


def test_and_passes_what_is_allowed() -> None:
    allowed = {
        "pvlr.data.voc": "from pvlr.core.labels import LabelSet\nfrom pvlr.core.shapes import expect\nimport torch",
        "pvlr.train.loop": "from pvlr.core.model import PVLR\nfrom pvlr.data.voc import VOC\nfrom . import config",
        "pvlr.core.head": "from pvlr.core.functional import gate\nfrom .shapes import expect",
        "pvlr.core": "from pvlr.core.head import SimilarityHead",
        "pvlr.core.model": "from pvlr.core.head import SimilarityHead\nfrom .towers import load_towers",
    }
    assert violations(allowed) == []


def loaded_by(statement: str) -> list[str]:
    """Heavy modules loaded after a statement ran in an interpreter of its own."""
    code = f"import sys\n{statement}\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ast.literal_eval(done.stdout)


def test_importing_the_core_loads_no_heavy_package() -> None:
    assert loaded_by("import pvlr, pvlr.core") == []


def test_and_that_test_can_fail() -> None:
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


def long_files(root: Path, most: int = 480) -> list[str]:
    """Source files much over 400 lines: too long to be read in one sitting."""
    files = (path for folder in ("pvlr", "tests", "examples", "docs") for path in (root / folder).rglob("*.py"))
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return [f"{path.relative_to(root)}: {size}" for path, size in sorted(sizes.items()) if size > most]


def test_no_file_is_much_over_four_hundred_lines(tmp_path: Path) -> None:
    assert long_files(PACKAGE.parent) == []
    (tmp_path / "pvlr").mkdir()
    (tmp_path / "pvlr" / "long.py").write_text("x = 1\n" * 481)
    assert long_files(tmp_path) == ["pvlr/long.py: 481"]
