"""TensorBoard's files: each value once, whatever was there before, and what viewers read of them."""

import io
from pathlib import Path

import pytest
import torch
from helpers.training_toys import events_of
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.util import tensor_util

from pvlr.train.monitoring.board import Board


def tell(board: Board, steps: range, evaluated: int) -> None:
    for step in steps:
        board.scalars({"train/loss": 1.0 / step, "lr/layers": 0.1}, step=step)
    board.picture("pictures/predictions", Image.new("RGB", (4, 4)), step=evaluated)
    board.histogram("gates/share", torch.rand(9), step=evaluated)
    board.scalars({"test/mAP": 0.5}, step=evaluated)


def begin(folder: Path, step: int = 0, evaluated: tuple[int, ...] = ()) -> Board:
    board = Board(folder, step=step, evaluated=evaluated)
    board.about(
        {"configuration": "text"}, {"loop.epochs": 3, "model.direction": "both", "data.flip": True}, ["test/mAP"]
    )
    board.charts({"training": {"loss": "train/loss.*"}})
    if step == 0:
        board.scalars({"start/x": 1.0}, step=0)
    return board


ABOUT = ["_hparams_/experiment", "_hparams_/session_start_info", "custom_scalars__config__", "run/configuration"]


def test_a_run_that_goes_on_tells_nothing_twice_and_loses_nothing(tmp_path: Path) -> None:
    whole = begin(tmp_path / "whole")
    tell(whole, range(1, 4), 3)
    tell(whole, range(4, 7), 6)
    whole.finished(6)
    whole.close()

    first = begin(tmp_path / "stopped")
    tell(first, range(1, 4), 3)
    tell(first, range(4, 6), 5)  # Killed before it saved step 4 and 5; of a configuration that evaluates there.
    first.close()
    [file] = (tmp_path / "stopped").glob("events.*")
    file.write_bytes(file.read_bytes()[:-7])  # While it was writing.
    second = begin(tmp_path / "stopped", step=3, evaluated=(3,))
    tell(second, range(4, 7), 6)
    second.finished(6)
    second.close()
    told = events_of(tmp_path / "stopped")
    assert sorted(told) == sorted(events_of(tmp_path / "whole"))
    assert len(set(told)) == len(told)
    assert all(any(tag.startswith(about) for tag, _ in told) for about in ABOUT)


def test_an_evaluation_that_was_not_told_to_its_end_is_taken_out(tmp_path: Path) -> None:
    first = begin(tmp_path)
    tell(first, range(1, 4), 3)
    first.close()
    begin(tmp_path, step=3).close()
    told = events_of(tmp_path)
    assert ("train/loss", 3) in told
    assert not {tag for tag, _ in told} & {"pictures/predictions", "gates/share", "test/mAP"}


def test_a_new_run_forgets_one_that_never_saved(tmp_path: Path) -> None:
    first = begin(tmp_path)
    tell(first, range(1, 4), 3)
    first.close()
    Board(tmp_path).close()
    assert events_of(tmp_path) == []


def test_numbers_that_are_not_defined_are_left_out(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.scalars({"ap/cat": float("nan"), "ap/dog": 0.5}, step=1)
    board.scalars({"ap/cat": float("nan")}, step=2)
    board.close()
    assert events_of(tmp_path) == [("ap/dog", 1)]


def values_of(folder: Path) -> dict[str, object]:
    [path] = folder.glob("events.*")
    events = map(Event.FromString, RawEventFileLoader(str(path)).Load())
    return {value.tag: value for event in events for value in event.summary.value}


def test_curves_are_precision_and_recall_over_what_is_known(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(50, 3, generator=generator)
    target = torch.randint(2, (50, 3), generator=generator).float()
    known = torch.rand(50, 3, generator=generator) < 0.7
    target[:, 2] = 0.0
    board = Board(tmp_path)
    board.curves("pr", ["a", "b", "absent"], probabilities, target, known, step=1)
    board.close()
    values = values_of(tmp_path)
    assert set(values) == {"pr/a", "pr/b"}
    found = tensor_util.make_ndarray(values["pr/b"].tensor)  # type: ignore[attr-defined]
    precision, recall = found[4], found[5]
    for place in range(0, 127, 9):
        said = (probabilities[:, 1] * 126).floor() >= place
        right = (said & known[:, 1] & (target[:, 1] > 0)).sum().item()
        all_said, present = (said & known[:, 1]).sum().item(), (known[:, 1] & (target[:, 1] > 0)).sum().item()
        assert precision[place] == pytest.approx(right / max(all_said, 1e-7), abs=1e-6)
        assert recall[place] == pytest.approx(right / present, abs=1e-6)


@pytest.mark.parametrize(("kind", "format"), [("png", "PNG"), ("jpeg", "JPEG")])
def test_pictures_are_what_a_browser_shows(tmp_path: Path, kind: str, format: str) -> None:
    board = Board(tmp_path)
    board.picture("a", Image.new("RGB", (8, 6), (200, 10, 10)), step=1, kind=kind)  # type: ignore[arg-type]
    board.close()
    image = values_of(tmp_path)["a"].image  # type: ignore[attr-defined]
    assert (image.width, image.height) == (8, 6)
    assert Image.open(io.BytesIO(image.encoded_image_string)).format == format


def test_the_projector_is_given_the_latest_vectors_with_their_names(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for factor in (1.0, 2.0):
        board.vectors(["a cat", "a\tdog"], {'"fused"': factor * torch.eye(2), "fixed": torch.zeros(2, 3)})
    board.close()
    assert (tmp_path / "names.tsv").read_text() == "a cat\na dog\n"
    assert (tmp_path / "vectors-0.tsv").read_text() == "2\t0\n0\t2\n"
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 2
    assert r'tensor_name: "\"fused\"" tensor_path: "vectors-0.tsv" metadata_path: "names.tsv"' in config
