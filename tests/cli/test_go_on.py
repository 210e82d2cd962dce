"""Commands that `pvlr` prints to go on with: they are those of a shell, and they work from where the user stands."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.training_toys import tiny_options, write_voc

from pvlr import console
from pvlr.cli import command as module
from pvlr.cli.main import main
from pvlr.console import pvlr_command, started_as
from pvlr.train.stop import Interrupted


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs with a python and a pvlr."""
    folder.mkdir(parents=True)
    for name in ("python", "pvlr"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder / "pvlr"


def test_the_command_is_the_shortest_that_a_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = installed(tmp_path / "venv" / "bin", monkeypatch)
    monkeypatch.setenv("PATH", str(program.parent))
    assert pvlr_command() == ["pvlr"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert pvlr_command() == ["venv/bin/pvlr"]
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert pvlr_command() == [str(program)]
    program.unlink()
    assert pvlr_command() == [sys.executable, "-m", "pvlr"]


@pytest.mark.parametrize(
    ("argv0", "processes", "words"),
    [
        ("/x/bin/pvlr", "1", ["pvlr"]),
        ("/x/site-packages/pvlr/__main__.py", "1", ["pvlr"]),
        ("/x/bin/pvlr", "2", ["torchrun", "--nproc-per-node", "2", "-m", "pvlr"]),
        ("/x/pvlr/__main__.py", "4", ["torchrun", "--nproc-per-node", "4", "-m", "pvlr"]),
        ("examples/train_voc.py", "1", ["python", "examples/train_voc.py"]),
        ("examples/train_voc.py", "2", ["torchrun", "--nproc-per-node", "2", "examples/train_voc.py"]),
    ],
)
def test_a_program_is_started_again_as_it_was(
    argv0: str, processes: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "pvlr_command", lambda: ["pvlr"])
    monkeypatch.setattr(sys, "argv", [argv0, "--x"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert started_as() == words


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["train", "voc", "--config", "quickstart"], "train voc --config quickstart --run.resume=auto"),
        (["train", "table", "--data.separator", "; "], "train table --data.separator '; ' --run.resume=auto"),
        (["study", "--config", "ablation_voc"], "study --config ablation_voc"),
        (["study", "coco", "--config=ablation_coco"], "study coco --config=ablation_coco"),
    ],
)
def test_words_before_the_options_are_kept(
    words: list[str], again: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> int:
        raise Interrupted("at step 3", signal.SIGINT)

    monkeypatch.setattr(module, "_run", stopped)
    monkeypatch.setattr(module, "started_as", lambda: ["pvlr"])
    assert main(words) == 130
    assert capsys.readouterr().err == f"interrupted at step 3\ngo on with: pvlr {again}\n"


def test_the_printed_command_goes_on(tower: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", train=24, test=6)
    (tmp_path / "x.yaml").write_text("loop:\n  evaluate_every: 6\n")
    more = {"loop__epochs": 12, "loop__batch_size": 2, "data__workers": 0}
    options = [*tiny_options(tmp_path / "voc", tower, Path("my run"), **more), "--config", "x.yaml"]
    # From another folder than the package's, where it is found as it is here.
    places = os.pathsep.join(filter(None, (str(Path(console.__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": places}
    process = subprocess.Popen(
        [sys.executable, "-m", "pvlr", "train", "voc", *options],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    metrics = tmp_path / "my run" / "metrics.jsonl"
    for _ in range(20000):
        if process.poll() is not None or (metrics.is_file() and metrics.read_text().count('"train"') >= 5):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    (again,) = re.findall(r"^go on with: (.*)$", err, re.MULTILINE)
    assert shlex.split(again)[-1] == "--run.resume=auto"
    assert " train voc --data.root=" in again
    done = subprocess.run(again, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on from step" in done.stdout
