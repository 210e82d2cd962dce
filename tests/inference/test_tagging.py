"""Pictures of every kind tagged one at a time, and files by the stream."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.model_toys import LABELS as TOY_LABELS
from helpers.model_toys import ToyImage, ToyText
from helpers.tagging_toys import NAMES, make_recognizer, write_pictures
from PIL import Image

from pvlr.core import PVLR, PretrainedError, PVLRConfig
from pvlr.data.batch import DataError, MachineError
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tagging import Tagged, Unreadable, tag_files
from pvlr.train.monitoring.latency import latency_table


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return make_recognizer(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 11)


def same(one: list[Any], other: list[Any]) -> bool:
    return [(tag.name, tag.probability) for tag in one] == [
        (tag.name, pytest.approx(tag.probability, abs=1e-5)) for tag in other
    ]


def test_one_picture_in_every_form_has_the_same_tags(recognizer: Recognizer, paths: list[str]) -> None:
    image = Image.open(paths[3])
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [Path(paths[3]), Path(paths[3]).read_bytes(), image, array, array / 255, tensor, tensor.float() / 255]
    expected = recognizer.tag(paths[3], threshold=0.0)
    assert len(expected) == 3
    for form in forms:
        found = recognizer.tag(form, threshold=0.0)
        assert [tag[:2] for tag in found] == [tag[:2] for tag in expected]
        assert all(torch.equal(one.attention, other.attention) for one, other in zip(found, expected, strict=True))
    grey = Image.new("L", (9, 7), 100)
    ways = [recognizer.tag(one, threshold=0.0) for one in (np.asarray(grey), grey)]
    assert [tag[:2] for tag in ways[0]] == [tag[:2] for tag in ways[1]]


def test_a_picture_is_not_listed_for_what_the_machine_lacks(
    recognizer: Recognizer, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_of_files(*_: object, **__: object) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("pvlr.data.images._opened", short_of_files)
    with pytest.raises(MachineError, match="Too many open files"):
        list(tag_files(recognizer, paths[:2]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((3, 8, 4), np.uint8), r"picture: expected an array h w 3 or h w, got uint8 \(3, 8, 4\)"),
        (torch.zeros(8, 4, 3, dtype=torch.uint8), r"picture: expected a tensor 3 h w or h w, got uint8 \(8, 4, 3\)"),
        (torch.full((3, 4, 4), 9.0), "picture: expected floats from 0 to 1, got 9 to 9"),
        (torch.full((3, 4, 4), float("nan")), "picture: expected floats from 0 to 1, got nan to nan"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"picture: expected 8-bit levels or floats from 0 to 1, got int64"),
        (np.zeros((0, 4, 3), np.uint8), "picture: expected an array h w 3"),
        ("gone.png", r"gone\.png: expected a picture, found no such file"),
        (b"no picture", "expected a picture"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, message: str, recognizer: Recognizer) -> None:
    with pytest.raises(DataError, match=message):
        recognizer.tag(picture)


def test_a_model_that_knows_no_transform_is_refused() -> None:
    model = PVLR(PVLRConfig(heads=2), TOY_LABELS, ToyText(), ToyImage())
    with pytest.raises(PretrainedError, match=r"^model: expected one that was made by from_towers, this one knows no"):
        Recognizer(model)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (4, 3), (50, 2)])
def test_files_are_told_in_order_and_none_is_lost(
    batch_size: int, workers: int, recognizer: Recognizer, paths: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(paths[0]).read_bytes()[:60])
    given = [paths[0], str(broken), *paths[1:], "gone.jpg"]
    found = list(tag_files(recognizer, given, batch_size=batch_size, workers=workers))
    assert [one.path for one in found] == given
    for one in found:
        if one.path in (str(broken), "gone.jpg"):
            assert isinstance(one, Unreadable)
            assert one.path in one.reason
        else:
            assert isinstance(one, Tagged)
            assert same(one.tags, recognizer.tag(one.path))
            assert one.thumbnail is None
            assert all(tag.attention is None for tag in one.tags)


def test_thumbnails_come_with_attention(recognizer: Recognizer, paths: list[str]) -> None:
    (found,) = tag_files(recognizer, paths[:1], threshold=0.0, thumbnails=16)
    assert isinstance(found, Tagged)
    assert found.thumbnail is not None
    assert found.thumbnail[8:12] == b"WEBP"
    for one, other in zip(found.tags, recognizer.tag(paths[0], threshold=0.0), strict=True):
        assert torch.allclose(one.attention, other.attention, atol=1e-6)


def test_files_are_taken_no_faster_than_they_are_tagged(recognizer: Recognizer, paths: list[str]) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield paths[taken % len(paths)]

    stream = tag_files(recognizer, endless(), batch_size=4, workers=2)
    for told in range(1, 60):
        next(stream)
        assert taken <= told + 3 * 4
    before = threading.active_count()
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() < before  # The readers have gone.


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("workers", 0)])
def test_numbers_out_of_range_are_refused(name: str, value: int, recognizer: Recognizer) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least 1, got 0"):
        next(tag_files(recognizer, ["a.jpg"], **{name: value}))


def test_the_label_side_is_computed_once(
    recognizer: Recognizer, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    compute = PVLR._compute_label_side

    def counted(model: PVLR) -> Any:
        nonlocal calls
        calls += 1
        return compute(model)

    monkeypatch.setattr(PVLR, "_compute_label_side", counted)
    fresh = recognizer.with_labels(NAMES)
    list(tag_files(fresh, paths, batch_size=2))
    assert calls == 1


def test_the_table_of_speed_has_figures(recognizer: Recognizer, paths: list[str]) -> None:
    table = latency_table(recognizer, paths, batch_size=2, workers=1)
    assert table.startswith("cpu, ")
    assert "one picture and 3 labels from its features, label side anew" in table
    assert table.count(" ms") == 4
    assert table.count("pictures/s") == 2


def test_a_panorama_is_tagged_with_the_option_that_its_refusal_names(recognizer: Recognizer, tmp_path: Path) -> None:
    path = str(tmp_path / "pano.png")
    Image.new("RGB", (60, 20), (200, 30, 30)).save(path)
    (refused,) = tag_files(recognizer, [path], max_pixels=1199)
    assert isinstance(refused, Unreadable)
    assert "set max_pixels to 1200 (data.max_pixels in training, --max_pixels where pictures are tagged)" in refused[1]
    (found,) = tag_files(recognizer, [path], max_pixels=1200, thumbnails=8)
    assert isinstance(found, Tagged)
    with pytest.raises(DataError, match="set max_pixels to 1200"):
        recognizer.tag(path, max_pixels=1199)
    for options, message in (({"max_pixels": 0}, "max_pixels: expected"), ({"every": -1.0}, "every: expected")):
        with pytest.raises(ValueError, match=message):
            tag_files(recognizer, [path], **options)
