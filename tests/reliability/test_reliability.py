"""The short versions of the two tables, and torchrun itself."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from equality import LIMIT, LIMIT_WITH_BATCH_NORM, WITH_BATCH_NORM, row
from helpers.processes import free_port
from jobs import Job, difference, finished, options_of, rows_of, same, write_inputs
from kill import kill

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_voc.py"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    assert kill(tmp_path, 4, data__workers=1) == []


@pytest.mark.parametrize(
    ("way", "workers", "more"),
    [
        ((2, 4, 4), (1, 0), {}),
        ((1, 16, 1), (0, 1), {"tower__features": "cache", "tower__feature_views": 2}),
        ((2, 16, 1), (0, 0), WITH_BATCH_NORM),
    ],
    ids=["processes and accumulation", "cached features", "batch norm over processes"],
)
def test_the_same_steps_taken_in_another_way_are_the_same(
    way: tuple[int, int, int], workers: tuple[int, int], more: dict[str, object], inputs: Path
) -> None:
    *_, apart, _, gone_on, moved = row(inputs, way, workers, **more)
    limit = LIMIT_WITH_BATCH_NORM if more is WITH_BATCH_NORM else LIMIT
    assert apart <= limit  # type: ignore[operator]
    assert "the same bits" in str(gone_on)
    assert moved <= limit  # type: ignore[operator]


def torchrun(options: list[str], processes: int = 2) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*launcher, f"--master-port={free_port()}", str(SCRIPT), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_torchrun_stops_at_sigterm_and_its_run_goes_on_alone(inputs: Path, tmp_path: Path) -> None:
    # A rate at which the rounding of sums in another order does not grow from step to step.
    more = {"loop__epochs": 20, "optimizer__kind": "sgd", "optimizer__lr": 0.005, "run__baselines": "true"}
    whole, run = tmp_path / "whole", tmp_path / "run"
    finished(options_of(inputs, whole, **more), whole)
    process = torchrun(options_of(inputs, run, **more))
    while not (run / "metrics.jsonl").is_file() or len(rows_of(run)) < 8:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert err.count("interrupted at step") == 1, err
    assert re.search(r"go on with: torchrun --nproc-per-node 2 \S+train_voc\.py .*--run\.resume=auto", err)
    assert out.count("images, 3 labels") == 2, "one process speaks"
    finished([*options_of(inputs, run, **more), "--run.resume=require"], run)
    assert difference(run, whole) <= 1e-6
    steps = [[(row["kind"], row["step"]) for row in rows_of(one)] for one in (run, whole)]
    assert steps[0] == steps[1]


def test_torchrun_ends_with_one_message_when_a_process_is_killed(inputs: Path, tmp_path: Path) -> None:
    process = torchrun(options_of(inputs, tmp_path / "run", loop__epochs=300))
    while not (tmp_path / "run" / "metrics.jsonl").is_file() or len(rows_of(tmp_path / "run")) < 8:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("error: another process of this run has ended or does not answer") == 1, err
    assert "Signal 9 (SIGKILL)" in err, "torchrun tells which"


def test_what_one_process_refuses_ends_all_with_one_message(inputs: Path, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    run = tmp_path / "run"
    options = options_of(tmp_path, run, loop__epochs=300)
    job = Job(options, run, processes=2)
    job.wait_for_steps(4)
    for picture in (tmp_path / "voc/VOCdevkit/VOC2007/JPEGImages").iterdir():
        picture.write_bytes(b"broken meanwhile")
    assert set(job.wait(60)) == {2}
    said = [line for line in job.log.read_text().splitlines() if "error: " in line]
    assert len(said) == 1, said
    assert re.search(r"JPEGImages/\d+\.jpg: expected a picture \(.*\), found something else", said[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"loop__batch_size": 1}, "error: loop.batch_size: expected an image for each of 2 processes, got 1"),
        ({"data__root": "/nowhere"}, "error: /nowhere: expected a folder that holds VOCdevkit/VOC2007, or the folders"),
        ({"loop__epochs": 0}, "error: loop.epochs: expected a whole number of at least 1, got 0"),
        ({"optimizer__lr": 1e30, "optimizer__clip_norm": 0}, "expected a finite"),
    ],
    ids=["batch", "first process", "all processes", "not finite"],
)
def test_refusals_of_several_processes_are_one_line(
    more: dict[str, object], message: str, inputs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = Job(options_of(inputs, run, **more), run, processes=2)
    assert set(job.wait(60)) == {2}
    said = job.log.read_text()
    assert said.count("error: ") == 1, said
    assert message in said
    assert "Traceback" not in said
    if "finite" in message:
        # What was saved before is whole: the same command comes to the same step.
        again = Job(options_of(inputs, run, **more), run, processes=2)
        assert set(again.wait(60)) == {2}
        assert again.log.read_text().count(said[said.index("error: ") :]) == 2


def test_the_comparison_itself_sees_a_difference(inputs: Path, tmp_path: Path) -> None:
    runs = [tmp_path / name for name in ("one", "other")]
    for run, rate in zip(runs, (0.01, 0.0100001), strict=True):
        finished(options_of(inputs, run, optimizer__lr=rate, loop__epochs=1), run)
    assert same(runs[0], runs[0])
    assert not same(*runs)
    assert difference(*runs) > 0


def test_batch_norm_over_processes_is_not_compiled(inputs: Path, tmp_path: Path) -> None:
    tower = {"tower__name": f"local-dir:{inputs / 'resnet'}", "tower__train": "all", "loop__compile": "true"}
    run = tmp_path / "run"
    job = Job(options_of(inputs, run, **tower), run, processes=2)
    assert set(job.wait(120)) == {2}
    said = job.log.read_text()
    assert "error: loop.compile: expected false with 2 processes and a trained tower with batch norm" in said
    assert said.count("error: ") == 1, said
