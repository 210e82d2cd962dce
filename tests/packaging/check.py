"""Build the package, install it where there is nothing else, and use it: ``python tests/packaging/check.py``.

The wheel alone, then with each extra, goes into an empty environment of its own, with a smoke test of what the extra is
for and of what it must not bring. About 6 GB and two minutes each, nearly all of it torch; what it needs is fetched.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

ENTRY = "pvlr = pvlr.cli.main:main"

BLOCK = """
import torch
from pvlr.core import DualModalAttention, SimilarityHead
out = DualModalAttention(dim=8, heads=2)(torch.randn(5, 8), torch.randn(3, 7, 8))
if SimilarityHead()(out.patches, out.labels).shape != (3, 5): raise SystemExit("wrong shape")
"""
PICTURE = """
import io
from PIL import Image
from pvlr.data.readers.rows import read_rows
if read_rows([{"image": Image.new("RGB", (4, 4)), "labels": ["cat"]}], name="x")[0].image.shape != (3, 4, 4):
    raise SystemExit("wrong shape")
"""
TOWERS = """
import torch
from pvlr.core import PVLR, LabelSet, PVLRConfig, load_towers
towers = load_towers("pvlr:scenes-clip")
model = PVLR(PVLRConfig(), LabelSet(("red_circle", "blue_square")), towers.text, towers.image).eval()
with torch.no_grad():
    if model(torch.zeros(1, 3, 128, 128)).logits.shape != (1, 2): raise SystemExit("wrong shape")
"""
COMMAND = """
import subprocess
import sys
from pathlib import Path
def pvlr(*words):
    return subprocess.run([str(Path(sys.executable).with_name("pvlr")), *words], capture_output=True, text=True)
"""
REFUSED = f"""{COMMAND}
if "evaluate" not in pvlr("--help").stdout: raise SystemExit("no help")
done = pvlr("tag", "x.jpg")
if (done.returncode, done.stdout) != (2, ""): raise SystemExit("expected exit code 2")
if not done.stderr.endswith("pip install 'pvlr[train]'\\n"): raise SystemExit(f"no hint: {{done.stderr}}")
"""
TRAINED = f"""{COMMAND}
words = "--data.root data --data.obtain scenes --data.scenes.train 8 --data.scenes.val 1 --data.scenes.test 8"
words += " --data.workers 0 --tower.name pvlr:scenes-clip --loop.epochs 1 --loop.batch-size 4 --run.folder run"
done = pvlr("train", "voc", *words.split(), "--data.train_split", "train")
if done.returncode != 0: raise SystemExit(done.stderr)
if "tag yours:" not in done.stdout: raise SystemExit(done.stdout)
if "quickstart" not in pvlr("recipes").stdout: raise SystemExit("no recipes")
done = pvlr("tag", "--run", "run", "data/VOCdevkit/VOC2007/JPEGImages", "--top", "1")
if done.returncode != 0: raise SystemExit(done.stderr)
"""
SENTENCES = """
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from pvlr.core import KnowledgePrompter, LabelSet, PromptBank, encode_knowledge
from pvlr.core.towers.text.sentence_encoders import load_sentence_transformer
tokens = Tokenizer(WordLevel({"cat": 0, "dog": 1, "[UNK]": 2}, unk_token="[UNK]"))
tokens.pre_tokenizer = Whitespace()
SentenceTransformer(modules=[StaticEmbedding(tokens, embedding_dim=6)], device="cpu").save("encoder")
vectors = encode_knowledge(PromptBank(LabelSet(("cat", "dog"))), load_sentence_transformer("encoder"))
if KnowledgePrompter(dim=8, heads=2, source_dim=6)(vectors)[0].shape != (2, 8): raise SystemExit("wrong shape")
"""
HF = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from helpers.hf_text_models import write_hf_tower
from pvlr.core import load_towers
write_hf_tower(Path("tower"), "roberta-base")
if load_towers("local-dir:tower").text.encode(["a cat."]).shape[0] != 1: raise SystemExit("wrong shape")
"""
PHOTOS = """
from PIL import Image
from pvlr.inference.recognizer import Recognizer
found = Recognizer.open(tower="pvlr:photos", labels="cat, dog").tag(Image.new("RGB", (40, 30)), threshold=0.0)
if len(found) != 2: raise SystemExit("wrong number")
"""
ONNX = """
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.export import write_program
model = Recognizer.from_pretrained("run").model
for precision in ("float32", "float16", "int8"):
    print(write_program(Path(precision), model, kind="onnx", labels="input", precision=precision).difference)
"""
DEMO = """
from pvlr.cli.demo import build
from pvlr.inference.recognizer import Recognizer
build(Recognizer.from_pretrained("run"))
"""
RAY = """
import pyarrow.dataset
from pvlr.inference.ray import tag_bulk
tag_bulk(run="run", pictures="data/VOCdevkit/VOC2007/JPEGImages", out="tags", workers=1, part_size=10)
found = pyarrow.dataset.dataset([str(path) for path in Path("tags").glob("*.parquet")]).count_rows()
if found != 17: raise SystemExit(f"expected 17 pictures, found {found}")
"""
NOTEBOOK = """
import nbformat
from nbclient import NotebookClient
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import pvlr.train; print(6 * 7)")])
NotebookClient(notebook, kernel_name="python3").execute()
if notebook.cells[0].outputs[0].text.split()[-1] != "42": raise SystemExit("wrong output")
"""
PLOT = """
from pvlr.train.evaluation.study_report import write_report
cell = {"group": "methods", "row": "PVLR", "mAP": 0.5, "CF1": 0.5, "OF1": 0.5, "parameters": 1, "seconds": 2.0,
    "inference": 1e-5}
write_report(Path(), [cell])
if not Path("report.png").is_file(): raise SystemExit("no figure")
"""
HEIC = """
import io
from PIL import Image
from pillow_heif import from_pillow
from pvlr.data.images import decode_rgb
file = io.BytesIO()
from_pillow(Image.new("RGB", (64, 48))).save(file)
if decode_rgb(file).size != (64, 48): raise SystemExit("wrong size")
"""
VIDEO = """
import av
from PIL import Image
from pvlr.data.video import key_frames
with av.open("x.mp4", "w") as file:
    stream = file.add_stream("mpeg4", rate=5)
    stream.width, stream.height = 64, 48
    for picture in [Image.new("RGB", (64, 48))] * 5 + [None]:
        file.mux(stream.encode(None if picture is None else av.VideoFrame.from_image(picture)))
if [frame.picture.size for frame in key_frames("x.mp4")] != [(64, 48)]: raise SystemExit("wrong frames")
"""
WORKBOOK = """
import openpyxl
from pathlib import Path
from pvlr.data.readers.table import read_table
book = openpyxl.Workbook()
for row in (("file", "labels"), ("1.jpg", "cat")): book.active.append(row)
book.save("x.xlsx")
if read_table(Path(), "x.xlsx", check_files=False).labels.names != ("cat",): raise SystemExit("wrong labels")
"""
TESTS = f"""
import sys, pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-n", "1", {str(ROOT / "tests" / "core" / "test_fusion.py")!r}]))
"""
TOOLS = """
import subprocess, sys
for tool in ("ruff", "mypy", "build"): subprocess.run([sys.executable, "-m", tool, "--version"], check=True)
"""
PAGES = f"""
import os, subprocess, sys
words = [sys.executable, "-m", "mkdocs", "build", "-f", {str(ROOT / "mkdocs.yml")!r}, "-d", os.path.abspath("site")]
subprocess.run(words, check=True, env={{**os.environ, "NO_MKDOCS_2_WARNING": "1"}})
"""
EVERY = "import gradio, matplotlib, mypy, onnxruntime, pytest, ray, torchvision"
# What each extra is for, in an environment with it alone, and what it must not bring.
SMOKE = {
    "": (BLOCK + REFUSED, ("PIL", "torchvision", "open_clip", "jsonargparse")),
    "data": (PICTURE, ("open_clip", "jsonargparse")),
    "clip": (TOWERS, ("jsonargparse", "tensorboard")),
    "sentence": (SENTENCES, ("open_clip", "torchvision")),
    "train": (TRAINED, ("pytest", "sentence_transformers", "matplotlib", "gradio", "ray", "onnx")),
    "hf": (HF, ("jsonargparse", "tensorboard", "sentence_transformers")),
    "photos": (PHOTOS, ("pytest", "gradio", "ray", "onnx")),
    "onnx": (TRAINED + ONNX, ("pytest", "gradio", "ray")),
    "demo": (TRAINED + DEMO, ("pytest", "ray", "onnx")),
    "ray": (TRAINED + RAY, ("pytest", "gradio", "onnx")),
    "plot": (TRAINED + PLOT, ("pytest", "gradio", "ray", "onnx")),
    "heic": (HEIC, ("open_clip", "jsonargparse")),
    "video": (VIDEO, ("open_clip", "jsonargparse")),
    "xlsx": (WORKBOOK, ("open_clip", "jsonargparse")),
    "notebook": (NOTEBOOK, ("pytest", "gradio", "ray", "onnx")),
    "test": (TESTS, ("ruff", "gradio", "ray", "onnx")),
    "dev": (TOOLS, ("gradio", "ray", "onnx")),
    "docs": (PAGES, ("pytest", "gradio", "ray", "onnx")),
    "all": (EVERY, ("mkdocs",)),
}


def build(folder: Path) -> tuple[Path, Path]:
    """Build the wheel and the source archive."""
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT))
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def look_into(wheel: Path, source: Path) -> None:
    """Check that the wheel holds the package and nothing else, and the archive also the files that its tests need."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (scripts,) = (file.read(name).decode() for name in names if name.endswith(".dist-info/entry_points.txt"))
    strange = [name for name in names if not name.startswith(("pvlr/", "pvlr-"))]
    tracked = run("git", "-C", str(ROOT), "ls-files", "pvlr").split()
    missing = [name for name in tracked if name not in names]
    require(
        not strange and not missing, f"{wheel.name}: expected the package alone, found {strange}, missing {missing}"
    )
    recipes = [name for name in names if name.startswith("pvlr/recipes/")]
    require(len(recipes) >= 10, f"{wheel.name}: expected recipes, found {recipes}")
    require(ENTRY in scripts, f"{wheel.name}: expected the command {ENTRY}, found {scripts}")
    with tarfile.open(source) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {"README.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py", "examples/train_voc.py"}
    require(needed <= held, f"{source.name}: expected {sorted(needed)}, missing {sorted(needed - held)}")


def install(wheel: Path, folder: Path, constraints: Path, extra: str) -> None:
    """Install one extra (or none) into an empty environment, and use it."""
    code, absent = SMOKE[extra]
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints), what)
    # From a folder of its own, with an isolated interpreter: what is imported is what was installed.
    run(python, "-I", "-W", "error::DeprecationWarning:pvlr", "-c", code, folder=folder)
    look = f"import importlib.util as u; print([name for name in {absent!r} if u.find_spec(name)])"
    found = run(python, "-I", "-c", look).strip()
    require(found == "[]", f"extra {extra or 'none'}: expected without {', '.join(absent)}, found {found}")
    print(f"extra {extra or '(none)':<8} installed, imported, used", flush=True)


def run(*words: str, folder: Path = ROOT) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    require(done.returncode == 0, f"{' '.join(words[:6])} …: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"error: {message}")


def main() -> None:
    known = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--floors", action="store_true", help="with the oldest versions allowed, of floors.txt")
    parser.add_argument("--extras", nargs="*", default=known, metavar="EXTRA", help="which extras (default: all)")
    parser.add_argument("--only-build", action="store_true", help="build and look into the files, install nothing")
    given = parser.parse_args()
    constraints = ROOT / ("tests/packaging/floors.txt" if given.floors else "constraints.txt")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel, source = build(folder / "dist")
        look_into(wheel, source)
        print(f"{wheel.name} {wheel.stat().st_size:,} bytes, {source.name} {source.stat().st_size:,} bytes", flush=True)
        if not given.only_build:
            for extra in ("", *given.extras):
                with tempfile.TemporaryDirectory(dir=folder) as apart:
                    install(wheel, Path(apart), constraints, extra)


if __name__ == "__main__":
    main()
