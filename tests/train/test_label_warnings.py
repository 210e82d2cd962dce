"""Labels that look wrong, as a run tells of them: before training, and with the result."""

import json
import re
from pathlib import Path

import pytest
from helpers.training_toys import LABELS, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.train import train
from pvlr.train.data_config import VOCData


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Pictures whose training split has no blue, and a copy of a training picture in the test split."""
    folder = write_voc(tmp_path / "voc", train=24, test=6)
    for number in range(24):
        path = folder / "Annotations" / f"{number:06d}.xml"
        path.write_text(path.read_text().replace("<object><name>blue</name></object>", ""))
    copy = folder / "JPEGImages" / "000024.jpg"
    copy.write_bytes((folder / "JPEGImages" / "000003.jpg").read_bytes())
    return tmp_path / "voc"


def test_they_are_printed_once_before_training_and_told_with_the_result(
    voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(train, tiny_options(voc, tower, tmp_path / "run", loop__epochs=1), data=VOCData) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    start = lines.index("positives of each label")
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == ["label", *LABELS]
    assert re.search(r"^blue +0 +[1-9]", said, re.MULTILINE)
    (missing,) = [line for line in lines if "without a positive in train" in line and line.startswith("warning: ")]
    assert missing == "warning: labels without a positive in train: 'blue'"
    (copied,) = [line for line in lines if "of the same content" in line]
    assert "000003.jpg (train) and " in copied
    assert copied.endswith("000024.jpg (test)")
    assert lines.index(missing) < next(number for number, line in enumerate(lines) if line.startswith("epoch"))
    assert lines.count("labels without a positive in training, which count in these figures: blue") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["untrained"] == ["blue"]


def test_they_are_refused_in_one_line_that_names_the_option(
    voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_options(voc, tower, tmp_path / "run", data__on_bad_labels="refuse")
    assert command(train, options, data=VOCData) == 2
    assert capsys.readouterr().err == (
        "error: labels without a positive in train: 'blue' (and 1 more); data.on_bad_labels 'warn' trains on these "
        "labels all the same\n"
    )


def test_a_run_on_good_labels_tells_of_none(tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path / "voc", train=24, test=6)
    options = tiny_options(tmp_path / "voc", tower, tmp_path / "run", loop__epochs=1)
    assert command(train, [*options, "--data.on_bad_labels=refuse"], data=VOCData) == 0
    said = capsys.readouterr().out
    assert "warning" not in said
    assert "which count in these figures" not in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["untrained"] == []
    # Neither answer changes the run: one that was refused elsewhere may go on.
    assert command(train, [*options, "--data.on_bad_labels=warn"], data=VOCData) == 0
