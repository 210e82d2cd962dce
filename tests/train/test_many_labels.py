"""A run with thousands of labels: its log stays short, and files have all of it."""

import csv
import json
from pathlib import Path

import pytest
from helpers.training_toys import tiny_options, write_voc
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvlr.cli.command import command
from pvlr.train import VOCData, train
from pvlr.train.monitoring.views import MOST_CURVES, _shortened

COUNT = 5000


def test_the_log_of_five_thousand_labels_is_short_and_the_files_have_all(
    tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_voc(tmp_path / "voc", train=8, test=4)
    names = ["red", "green", "blue", *(f"label_{number}" for number in range(COUNT - 3))]
    (folder / "labels.json").unlink()
    (tmp_path / "names.txt").write_text("\n".join(names))
    more = {"model__learn": "false", "model__base": "[pooled]", "loop__epochs": 1, "run__tensorboard": "true"}
    options = tiny_options(tmp_path / "voc", tower, tmp_path / "run", **more, data__labels=json.dumps(names))
    assert command(train, options, data=VOCData) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 150
    assert len(said) < 15_000
    assert f"and 4,960 labels with more positives, all in {tmp_path / 'run' / 'labels.csv'}" in said
    assert "and 4,957 more in run.json" in said
    head, *rows = csv.reader((tmp_path / "run" / "labels.csv").read_text().splitlines())
    assert head == ["label", "train", "test"]
    assert [row[0] for row in rows] == names
    assert sum(int(row[1]) for row in rows[:3]) > 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(record["results"]["PVLR"]["ap"]) == COUNT
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    texts = [tag for tag in board.Tags()["tensors"] if tag.endswith("text_summary")]
    assert len(texts) == 2
    for tag in texts:
        assert len(board.Tensors(tag)[0].tensor_proto.string_val[0]) < 20_000, tag


def test_lists_are_cut_wherever_they_are() -> None:
    assert _shortened({"a": list(range(45)), "b": [[1] * 41], "c": "x" * 99}) == {
        "a": [*range(40), "and 5 more"],
        "b": [[*[1] * 40, "and 1 more"]],
        "c": "x" * 99,
    }
    assert MOST_CURVES < COUNT
