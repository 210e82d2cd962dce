"""Runs that are stopped by signals or killed, and go on as if they had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.training_toys import rows_of, tiny_options, write_voc

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
