"""The example scripts and their configurations, as a user runs them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.tower_models import write_folder
from helpers.training_toys import tiny_options, write_voc

import pvlr
from pvlr.cli.command import command
from pvlr.cli.main import main
from pvlr.cli.train import KINDS
from pvlr.train import train
from pvlr.train.data_config import COCOData, NUSWideData, TableData, VOCData

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STUDIES = ("ablation_", "choice_")
"""What the names of studies begin with, which are tested beside `pvlr study`."""
RECIPES = Path(pvlr.__file__).parent / "recipes"
CONFIGS = [path for path in sorted(RECIPES.glob("*.yaml")) if not path.name.startswith(STUDIES)]


# Each script is its kind of data; a configuration names its script in its first line.
DATA = {"voc": VOCData, "coco": COCOData, "nuswide": NUSWideData, "table": TableData}


def kind_of(path: Path) -> str:
    return re.match(r"# pvlr train (\w+) ", path.read_text())[1]  # type: ignore[index]


def printed(options: list[str], capsys: pytest.CaptureFixture[str], kind: str = "voc") -> str:
    with pytest.raises(SystemExit) as end:
        command(train, options, data=DATA[kind])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_configurations_are_found() -> None:
    assert {"quickstart.yaml", "voc07_vit_b16.yaml"} <= {path.name for path in CONFIGS}
    assert {kind_of(path) for path in CONFIGS} == set(DATA)
    for kind, data in DATA.items():
        assert f'script("train", "{kind}")' in (EXAMPLES / f"train_{kind}.py").read_text()
        assert KINDS[kind] is data


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_parse_and_begin_with_their_command(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = path.read_text().splitlines()[0]
    assert first == f"# pvlr train {kind_of(path)} --config {path.stem}"
    resolved = yaml.safe_load(printed(["--config", str(path), "--print_config"], capsys, kind_of(path)))
    for section, fields in yaml.safe_load(path.read_text()).items():
        for name, value in fields.items():
            assert resolved[section][name] == value, f"{section}.{name}"


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=lambda path: path.name if path else "defaults")
def test_printed_configuration_is_a_fixed_point(
    path: Path | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if path is None else ["--config", str(path)]
    kind = "voc" if path is None else kind_of(path)
    first = printed([*given, "--print_config"], capsys, kind)
    (tmp_path / "printed.yaml").write_text(first)
    assert printed(["--config", str(tmp_path / "printed.yaml"), "--print_config"], capsys, kind) == first


def test_options_override_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    quickstart = str(RECIPES / "quickstart.yaml")
    options = ["--config", quickstart, "--optimizer.lr", "1e-4", "--loop.epochs", "2", "--tower.train", "1"]
    options += ["--loop.eval_batch_size", "50"]
    resolved = yaml.safe_load(printed([*options, "--print_config"], capsys))
    assert (resolved["optimizer"]["lr"], resolved["loop"]["epochs"], resolved["tower"]["train"]) == (1e-4, 2, 1)
    assert resolved["loop"]["eval_batch_size"] == 50
    # What is not overridden is the file's, and what neither names the default.
    assert (resolved["loop"]["evaluate_every"], resolved["loop"]["batch_size"]) == (2, 32)


@pytest.mark.parametrize("kind", DATA)
def test_help_explains_every_option(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", kind, "--help", "all"]) == 0
    said = capsys.readouterr().out
    described = said[said.index("\n  --") :]
    blocks = [block for block in described.split("\n  --") if block.startswith(("data", "tower", "model", "lo", "opt"))]
    assert len(blocks) > 40
    for block in blocks:
        words = " ".join(block.split())
        name = words.split()[0]
        explained = words.split("(default:")[0].removeprefix(name)
        assert len(explained.split()) > 2, name


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    write_folder(folder / "tower", "vit")
    write_voc(folder / "voc", train=8, test=4)
    command_line = [sys.executable, str(EXAMPLES / "train_voc.py")]
    options = tiny_options(folder / "voc", folder / "tower", folder / "run", run__tensorboard="true")
    done = subprocess.run([*command_line, *options], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert f"tensorboard --logdir {folder / 'run'}" in done.stdout
    assert list((folder / "run" / "tensorboard").glob("events.*"))
    (folder / "said.txt").write_text(done.stdout)
    return folder


def test_the_command_that_a_run_ends_with_tags_a_picture(run_folder: Path) -> None:
    picture = run_folder / "voc/VOCdevkit/VOC2007/JPEGImages/000000.jpg"
    (said,) = re.findall(r"^tag yours: (.*)$", (run_folder / "said.txt").read_text(), re.MULTILINE)
    command_line = shlex.split(said.replace("PICTURE.jpg", str(picture)))
    done = subprocess.run([*command_line, "--top", "2"], capture_output=True, text=True, timeout=400)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{picture}: (\w+ \d\.\d{{3}}, )\w+ \d\.\d{{3}}\n", done.stdout)
