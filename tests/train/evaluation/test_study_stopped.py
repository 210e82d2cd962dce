"""A study over several processes that is stopped: none of them is left, and it says how to go on."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.tower_models import write_folder
from helpers.training_toys import write_voc


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Start a study of one short cell and two that would not end, and wait until both are in training."""
    write_folder(tmp_path / "tower", "vit")
    write_voc(tmp_path / "voc", train=9, test=6)
    told = {
        "data": {"root": str(tmp_path / "voc"), "workers": 1},
        "tower": {"name": f"local-dir:{tmp_path / 'tower'}"},
        **{name: {} for name in ("loss", "optimizer", "schedule")},
        "model": {"heads": 4, "feedforward": 16, "adapter_width": 16},
        "loop": {"epochs": 100_000, "batch_size": 4, "evaluate_every": 0, "device": "cpu"},
        "study": {
            "folder": str(tmp_path / "study"),
            "rows": {"a": {"short": {"loop.epochs": 1}, "one": {}, "two": {"model.direction": "none"}}},
            "seeds": [0],
            "processes": 2,
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
    words = [sys.executable, "-m", "pvlr", "study", "voc", f"--config={tmp_path / 'study.yaml'}"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path
    )
    try:
        wait_for_both(process, tmp_path / "study")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        for stream in (process.stdout, process.stderr):
            stream.close()  # type: ignore[union-attr]
        process.wait()


def wait_for_both(process: "subprocess.Popen[str]", folder: Path) -> None:
    for _ in range(2000):
        metrics = list((folder / "running").glob("*/metrics.jsonl"))
        if len(metrics) == 2 and all(path.stat().st_size for path in metrics):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("the two cells were not trained")


def below(pid: int) -> list[int]:
    """All processes that a process started, and those that these started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [one for child in children for one in (int(child), *below(int(child)))]


def are_gone(pids: list[int], seconds: float) -> bool:
    """Whether all have ended; one that nobody has waited for counts as ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(is_there(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes_and_the_command_to_go_on_is_told(
    start: "subprocess.Popen[str]", number: signal.Signals, tmp_path: Path
) -> None:
    started = below(start.pid)
    assert len(started) >= 2
    if number == signal.SIGINT:
        os.killpg(start.pid, number)  # As a terminal does.
    else:
        start.send_signal(number)
    _, err = start.communicate(timeout=60)
    assert start.returncode == 128 + number, err
    interrupted, again = err.splitlines()[-2:]
    assert interrupted == "interrupted with 2 of 2 cells to train; those that are finished stay"
    words = shlex.split(again.removeprefix("go on with: "))
    assert words[words.index("study") :][:2] == ["study", "voc"]
    assert are_gone(started, 5), "an orphan is left"
    (cell,) = (tmp_path / "study" / "cells").glob("*.json")
    assert json.loads(cell.read_text())["row"] == "short"


def test_no_process_outlives_a_study_that_is_killed(start: "subprocess.Popen[str]") -> None:
    started = below(start.pid)
    start.kill()
    start.wait()
    assert are_gone(started, 30), "an orphan is left"


def test_a_process_that_is_killed_ends_the_study_in_a_sentence(start: "subprocess.Popen[str]") -> None:
    started = below(start.pid)
    trained = [pid for pid in started if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(trained[0], signal.SIGKILL)
    _, err = start.communicate(timeout=60)
    assert start.returncode == 2, err
    message = r"error: study\.processes: expected processes that train to their end, found one that was killed, .*"
    assert re.fullmatch(message, err.splitlines()[-1])
    assert are_gone(started, 30), "an orphan is left"
