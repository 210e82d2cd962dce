"""The monitor: each row and line in its place, and only once."""

import json
from pathlib import Path

import pytest
import torch
from helpers.training_toys import events_of
from torch import nn

from pvlr.core.labels import LabelSet
from pvlr.core.metrics.report import multilabel_report
from pvlr.train.monitoring import monitor as monitor_module
from pvlr.train.monitoring.monitor import Monitor, StepResult, label_table, results_table

REPORT = multilabel_report(
    torch.tensor([[0.9, 0.2], [0.1, 0.2]]), torch.tensor([[1, 0], [0, 0]]), labels=LabelSet(("cat", "dog"))
)


def tell(monitor: Monitor, steps: range) -> None:
    for step in steps:
        monitor.step(
            step,
            StepResult(loss=1.0 / step, positive=0.25 / step, gradient_norm=1.0, images=4),
            {"layers": 0.1},
            seconds=0.5,
            waiting=0.1,
            model=nn.Linear(1, 1),
        )


def rows_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_on_disk_at_once_and_hold_what_was_told(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, quiet=True)
    tell(monitor, range(1, 2))
    monitor.evaluation(step=1, epoch=1, report=REPORT)
    train, evaluation = rows_of(tmp_path)
    monitor.close()
    assert train == {
        "kind": "train",
        "step": 1,
        "loss": 1.0,
        "loss_positive": 0.25,
        "loss_negative": 0.75,
        "gradient_norm": 1.0,
        "images_per_second": 8.0,
        "lr": {"layers": 0.1},
    }
    assert evaluation["mAP"] == 1.0
    assert evaluation["ap"] == {"cat": 1.0, "dog": None}  # Not NaN, which no JSON parser has to read.


def test_resuming_takes_out_later_steps_and_broken_lines(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, quiet=True)
    tell(monitor, range(1, 6))
    monitor.evaluation(step=3, epoch=1, report=REPORT)
    monitor.evaluation(step=5, epoch=2, report=REPORT)
    monitor.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    monitor = Monitor(tmp_path, step=3, quiet=True)
    assert monitor.has_evaluation(3)
    assert not monitor.has_evaluation(5)
    tell(monitor, range(4, 7))
    monitor.evaluation(step=3, epoch=1, report=REPORT)
    monitor.close()
    assert sorted((row["step"], row["kind"]) for row in rows_of(tmp_path)) == [
        (1, "train"),
        (2, "train"),
        (3, "evaluation"),
        (3, "train"),
        (4, "train"),
        (5, "train"),
        (6, "train"),
    ]


def test_a_new_run_forgets_one_that_never_saved(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, quiet=True)
    tell(monitor, range(1, 3))
    monitor.close()
    Monitor(tmp_path, quiet=True).close()
    assert rows_of(tmp_path) == []


def test_lines_for_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((0.0, 60.0, 100.0, 150.0))
    monkeypatch.setattr(monitor_module.time, "perf_counter", lambda: next(now))
    monitor = Monitor(tmp_path)
    for epoch in range(3):
        with monitor.epoch(epoch, 3, 0, 2):
            tell(monitor, range(2 * epoch + 1, 2 * epoch + 3))
        if epoch != 1:
            monitor.evaluation(step=2 * epoch + 2, epoch=epoch + 1, report=REPORT)
    monitor.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3  loss 0.7500  mAP 100.00  8 images/s  ETA 0:02:00",
        "epoch 2/3  loss 0.2917  8 images/s  ETA 0:00:50",
        "epoch 3/3  loss 0.1833  mAP 100.00  8 images/s",
    ]


def test_what_is_left_is_foretold_from_this_process_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((0.0, 10.0))
    monkeypatch.setattr(monitor_module.time, "perf_counter", lambda: next(now))
    monitor = Monitor(tmp_path, step=3)
    monitor.evaluation(step=3, epoch=1, report=REPORT)  # Which the process before did not come to.
    with monitor.epoch(1, 10, 3, 4):  # One step of 10 seconds; 8 epochs of 4 steps are left.
        tell(monitor, range(8, 9))
    monitor.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "epoch 1  mAP 100.00"
    assert second == "epoch  2/10  loss 0.1250  8 images/s  ETA 0:05:20"


def test_a_quiet_monitor_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path, quiet=True)
    with monitor.epoch(0, 3, 0, 2):
        tell(monitor, range(1, 3))
    monitor.evaluation(step=2, epoch=1, report=REPORT)
    monitor.close()
    assert capsys.readouterr() == ("", "")


def test_tensorboard_is_told_of_some_steps_and_of_present_labels(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=True, log_every=3, quiet=True)
    tell(monitor, range(1, 8))
    monitor.evaluation(step=7, epoch=1, report=REPORT)
    monitor.evaluation(step=7, epoch=1, report=REPORT)
    monitor.close()
    told = events_of(tmp_path / "tensorboard")
    assert [step for tag, step in told if tag == "train/loss"] == [1, 3, 6]
    names = {tag for tag, _ in told}
    assert {"train/loss_positive", "train/loss_negative", "train/gradient_norm", "lr/layers"} <= names
    assert {"speed/images_per_second", "speed/waiting_percent", "memory/process_MiB"} <= names
    assert {"test/mAP", "test/CF1", "test/OF1", "ap/cat"} <= names
    assert "ap/dog" not in names
    assert told.count(("test/mAP", 7)) == 1


def test_an_evaluation_is_in_the_files_before_it_counts_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run killed between the two tells it anew; the other way round it would be missing."""
    monitor = Monitor(tmp_path, tensorboard=True, quiet=True)
    monkeypatch.setattr(monitor, "_write", lambda row: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        monitor.evaluation(step=2, epoch=1, report=REPORT)
    assert ("test/mAP", 2) in events_of(tmp_path / "tensorboard")
    again = Monitor(tmp_path, step=2, tensorboard=True, quiet=True)
    assert not again.has_evaluation(2)
    again.evaluation(step=2, epoch=1, report=REPORT)
    again.close()
    monitor.close()
    assert events_of(tmp_path / "tensorboard").count(("test/mAP", 2)) == 1


def test_labels_are_ranked_and_long_lists_cut_in_the_middle() -> None:
    lines = label_table({f"label {number}": number / 100 for number in range(100)}, most=4).splitlines()
    assert lines[1:] == [
        "label 99  99.00",
        "label 98  98.00",
        "… 96 more in run.json",
        "label 1    1.00",
        "label 0    0.00",
    ]


def test_table_says_what_is_not_defined() -> None:
    nothing = multilabel_report(torch.tensor([[0.9]]), torch.tensor([[0]]))
    lines = results_table({"a method": (REPORT, 12.0), "b": (nothing, 0.0)}).splitlines()
    assert lines[0].split() == ["method", "mAP", "CF1", "OF1", "seconds"]
    assert lines[1].split() == ["a", "method", "100.00", "100.00", "100.00", "12.0"]
    assert lines[2].split() == ["b", "–", "–", "–", "0.0"]
    assert len({len(line) for line in lines}) == 1
