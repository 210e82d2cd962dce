"""What is told of a run, where, and only once."""

import json
from pathlib import Path

import pytest
import torch

from pvlr.core.labels import LabelSet
from pvlr.core.metrics import multilabel_report
from pvlr.train.monitor import Monitor, results_table

REPORT = multilabel_report(
    torch.tensor([[0.9, 0.2], [0.1, 0.2]]), torch.tensor([[1, 0], [0, 0]]), labels=LabelSet(("cat", "dog"))
)


def tell(monitor: Monitor, steps: range) -> None:
    for step in steps:
        monitor.step(step=step, loss=1.0 / step, gradient_norm=1.0, rates={"layers": 0.1}, images=4, seconds=0.5)


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


def test_lines_for_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path)
    with monitor.epoch(0, 3, 0, 2):
        tell(monitor, range(1, 3))
    monitor.evaluation(step=2, epoch=1, report=REPORT)
    monitor.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3  loss 0.7500  lr 1.0e-01  8 images/s",
        "epoch 1  mAP 100.00  CF1 100.00  OF1 100.00",
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_curves_and_ap_of_present_labels(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = Monitor(tmp_path, tensorboard=True, quiet=True)
    tell(monitor, range(1, 4))
    monitor.evaluation(step=3, epoch=1, report=REPORT)
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "train/gradient_norm", "train/images_per_second", "lr/layers"} <= names
    assert {"test/mAP", "test/CF1", "test/OF1", "ap/cat"} <= names
    assert "ap/dog" not in names
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_table_says_what_is_not_defined() -> None:
    nothing = multilabel_report(torch.tensor([[0.9]]), torch.tensor([[0]]))
    lines = results_table({"a method": (REPORT, 12.0), "b": (nothing, 0.0)}).splitlines()
    assert lines[0].split() == ["method", "mAP", "CF1", "OF1", "seconds"]
    assert lines[1].split() == ["a", "method", "100.00", "100.00", "100.00", "12.0"]
    assert lines[2].split() == ["b", "–", "–", "–", "0.0"]
    assert len({len(line) for line in lines}) == 1
