"""Runs that are stopped by signals or killed, and go on as if they had not been."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.training_toys import rows_of, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.core.models.state import PretrainedError
from pvlr.inference.recognizer import Recognizer
from pvlr.runs import RunInUseError, hold_run, state_of_run
from pvlr.train import VOCData, train
from pvlr.train.checkpoint import Checkpoints

SCRIPT = Path(__file__).resolve().parents[3] / "examples" / "train_voc.py"


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, train=24, test=6)
    return root


# As on a system whose signals do not tell who sent them.
WITHOUT_SENDER = """
import runpy, signal, sys
del signal.sigwaitinfo
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(options: list[str], *before: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *before, str(SCRIPT), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # A group of its own, which a signal can be sent to.
    )


def wait_for_steps(process: "subprocess.Popen[str]", folder: Path, steps: int) -> None:
    metrics = folder / "metrics.jsonl"
    for _ in range(20000):
        if metrics.is_file() and metrics.read_text().count('"train"') >= steps:
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended before step {steps}: {process.communicate()}")
        time.sleep(0.01)
    pytest.fail(f"the run did not come to step {steps}")


@pytest.fixture(scope="module")
def long_options(tower: Path, voc: Path) -> Any:
    def options(folder: Path) -> list[str]:
        more = {"loop__epochs": 12, "loop__batch_size": 2, "loop__accumulate": 2, "data__workers": 1}
        return tiny_options(voc, tower, folder, **more, loop__evaluate_every=6, loop__ema=0.9, optimizer__lr=0.01)

    return options


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, long_options: Any) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(long_options(folder))
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, (out, err)
    return folder


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_run_goes_on_to_the_same_weights(
    number: signal.Signals, code: int, uninterrupted: Path, long_options: Any, tmp_path: Path
) -> None:
    options = long_options(tmp_path)
    process = start(options)
    wait_for_steps(process, tmp_path, 15)  # In the third epoch of 6 steps.
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == code, err
    found = Checkpoints(tmp_path / "checkpoints").load()
    assert found is not None
    if number != signal.SIGKILL:
        assert f"interrupted at step {found[1]['step']} of 72, saved as {found[0]}" in err
        assert f"go on with: python {SCRIPT} --data.root" in err
        assert "Traceback" not in err
        assert err.rstrip().endswith("--run.resume=auto")
    process = start([*options, "--run.resume=require"])
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, (out, err)
    assert f"going on from step {found[1]['step']} " in out
    assert (tmp_path / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert rows_of(tmp_path) == rows_of(uninterrupted)


@pytest.mark.parametrize("before", [(), ("-c", WITHOUT_SENDER)], ids=["sigwaitinfo", "own group"])
def test_a_signal_to_the_whole_group_loses_nothing(
    before: tuple[str, ...], uninterrupted: Path, long_options: Any, tmp_path: Path
) -> None:
    options = long_options(tmp_path)
    process = start(options, *before)
    wait_for_steps(process, tmp_path, 15)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    assert "Traceback" not in err
    found = Checkpoints(tmp_path / "checkpoints").load()
    assert found is not None
    assert f"interrupted at step {found[1]['step']} of 72, saved as {found[0]}" in err
    process = start([*options, "--run.resume=require"])
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, (out, err)
    assert (tmp_path / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
    assert rows_of(tmp_path) == rows_of(uninterrupted)


def test_a_killed_run_is_lost_and_says_so_to_whoever_looks_next(
    tmp_path: Path, long_options: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    options = long_options(folder)
    process = start(options)
    wait_for_steps(process, folder, 8)
    assert state_of_run(folder) == "running"
    with pytest.raises(RunInUseError, match="found one at work"):
        hold_run(folder)
    process.kill()
    process.communicate()
    for _ in range(200):  # Workers that read pictures end by themselves, a moment later.
        if state_of_run(folder) == "lost":
            break
        time.sleep(0.1)
    assert (state_of_run(folder), json.loads((folder / "run.json").read_text())["status"]) == ("lost", "running")
    lock = hold_run(folder)  # As another process does.
    assert command(train, options, data=VOCData) == 2
    lock.release()
    assert capsys.readouterr().err == (
        f"error: run.folder: expected a folder that no other process trains in, found one at work in {folder}; wait "
        "until it ends, or choose another folder\n"
    )
    assert state_of_run(folder) == "lost"
    lost = "the run in it was lost, as by a kill or a power failure, and has to be resumed first"
    with pytest.raises(PretrainedError, match=f"found no such file; {lost}$"):
        Recognizer.from_pretrained(folder)
    again = start(options)
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert re.search(r"^going on from step \d+ of the run in .*, whose last process was lost$", out, re.MULTILINE)
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], [one["status"] for one in record["earlier"]]) == ("finished", ["lost"])
    assert state_of_run(folder) == "finished"


def test_a_run_that_is_stopped_or_fails_says_so(tmp_path: Path, long_options: Any) -> None:
    folder = tmp_path / "run"
    process = start(long_options(folder))
    wait_for_steps(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert state_of_run(folder) == "stopped"
    with pytest.raises(PretrainedError, match=r"; the run in it was stopped and has to be resumed first$"):
        Recognizer.from_pretrained(folder)
    options = [*long_options(folder), "--optimizer.lr=1e30", "--run.resume=never", f"--run.folder={tmp_path / 'other'}"]
    process = start(options)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    assert state_of_run(tmp_path / "other") == "failed"


def test_a_model_of_a_run_that_was_prolonged_and_lost_is_loaded_with_a_warning(
    tmp_path: Path, tower: Path, voc: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert command(train, tiny_options(voc, tower, tmp_path / "run", loop__epochs=1), data=VOCData) == 0
    Recognizer.from_pretrained(tmp_path / "run")
    assert caplog.messages == []
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "status": "running"}))
    Recognizer.from_pretrained(tmp_path / "run")
    assert "the run in it was lost, as by a kill or a power failure" in caplog.messages[0]


def test_the_state_is_read_from_record_and_lock(tmp_path: Path) -> None:
    assert state_of_run(tmp_path) is None
    for content in ("{", "[]", "{}"):
        (tmp_path / "run.json").write_text(content)
        assert state_of_run(tmp_path) is None
    (tmp_path / "run.json").write_text('{"status": "running"}')
    assert state_of_run(tmp_path) == "lost"
    lock = hold_run(tmp_path)
    assert state_of_run(tmp_path) == "running"
    with pytest.raises(RunInUseError, match=r"^run\.folder: expected a folder that no other process trains in"):
        hold_run(tmp_path)
    lock.release()
    assert state_of_run(tmp_path) == "lost"
    with pytest.raises(RunInUseError, match=r"^run\.folder: expected a folder to write to, but "):
        hold_run(tmp_path / "run.json")  # No folder.
