import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError, collate
from pvlr.data.images import decode_rgb
from pvlr.data.readers.rows import read_rows
from pvlr.data.sampling import EpochSampler

LABELS = LabelSet(("cat", "dog"))


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


PICTURE = Image.new("RGB", (4, 3), (10, 20, 30))


class Table:
    """Rows that decode their picture when they are asked for, as those of `datasets` do."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.decoded = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        self.decoded += 1
        return {**self.rows[row], "image": PICTURE}


def test_pictures_of_every_kind_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(PICTURE))
    kinds = [
        PICTURE,
        PICTURE.convert("RGBA"),
        path,
        str(path),
        path.read_bytes(),
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    data = read_rows([{"image": kind, "labels": ["cat"]} for kind in kinds], name="mine")
    wanted = torch.tensor([10.0, 20.0, 30.0])[:, None, None].expand(3, 3, 4) / 255
    for index in range(len(kinds)):
        assert torch.equal(data[index].image, wanted), kinds[index]
    assert data.identifiers == tuple("0123456")
    assert data.summary() == "mine: 7 images, 1 labels, 1.00 positives per image, 0 unknown labels"


def test_keys_names_and_positions() -> None:
    rows = [
        {"picture": PICTURE, "tags": ["dog", 0], "maybe": [], "key": "a"},
        {"picture": PICTURE, "tags": [], "maybe": (1,), "key": "b"},
    ]
    data = read_rows(
        rows, name="mine", labels=LABELS, image="picture", present="tags", unknown="maybe", identifier="key"
    )
    assert data.identifiers == ("a", "b")
    assert data.target.tolist() == [[1, 1], [0, 0]]
    assert data.known.tolist() == [[True, True], [True, False]]


def test_labels_are_read_without_decoding() -> None:
    rows = Table([{"labels": [number % 2]} for number in range(4)])
    data = read_rows(rows, name="mine", labels=LABELS, annotations=rows.rows)
    assert rows.decoded == 0
    assert data.target.argmax(1).tolist() == [0, 1, 0, 1]
    assert data[2].image.shape == (3, 3, 4)
    assert rows.decoded == 1
    with pytest.raises(DataError, match="mine: expected annotations for 4 rows, found 3"):
        read_rows(rows, name="mine", labels=LABELS, annotations=rows.rows[:3])


def test_it_pickles_and_reads_in_workers() -> None:
    rows = [{"image": encoded(PICTURE), "labels": ["cat"]}, {"image": PICTURE, "labels": ["dog"]}]
    data = pickle.loads(pickle.dumps(read_rows(rows, name="mine")))  # noqa: S301
    (batch,) = DataLoader(data, batch_sampler=EpochSampler(2, 2), num_workers=1, collate_fn=collate)
    assert batch.target.tolist() == [[1, 0], [0, 1]]
    assert torch.equal(batch.image[0], batch.image[1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected a mapping, found a list"),
        ({"image": PICTURE}, "expected the key 'labels', found 'image'"),
        ({"labels": []}, "expected the key 'image', found 'labels'"),
        ({"image": PICTURE, "labels": "cat"}, "expected 'labels' to be a list, found 'cat'"),
        ({"image": PICTURE, "labels": ["catt"]}, "unknown label 'catt', the nearest known one is 'cat'"),
        ({"image": PICTURE, "labels": [2]}, "expected the position of a label from 0 to 1, found 2"),
        ({"image": PICTURE, "labels": [-1]}, "expected the position of a label from 0 to 1, found -1"),
        ({"image": PICTURE, "labels": [0, "cat"]}, "expected every label once, found 'cat' twice"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rows_that_are_refused(row: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows([{"image": PICTURE, "labels": ["cat"]}, row], name="mine", labels=LABELS)
    assert str(caught.value) == f"mine: row 1: {message}"


def test_names_come_once_and_there_are_rows() -> None:
    rows = [{"image": PICTURE, "labels": ["cat"], "key": "a"}] * 2
    with pytest.raises(DataError, match="mine: row 1: expected every picture once, found 'a' again, after mine: row 0"):
        read_rows(rows, name="mine", identifier="key")
    with pytest.raises(DataError, match="mine: expected at least one picture, found none"):
        read_rows([], name="mine", labels=LABELS)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, "mine: row 0: expected an image, a path or bytes, found None"),
        ({"bytes": None, "path": None}, "mine: row 0: expected an image, a path or bytes, found None"),
        (7, "mine: row 0: expected an image, a path or bytes, found 7"),
        (b"x", "mine: 0: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found something else"),
        (encoded(PICTURE)[:-30], "mine: 0: expected a whole picture, but "),
        ("nowhere.png", "mine: 0: expected a picture, found no such file"),
    ],
)
def test_pictures_that_are_refused(picture: object, message: str) -> None:
    data = read_rows([{"image": picture, "labels": ["cat"]}], name="mine")
    with pytest.raises(DataError) as caught:
        data[0]
    assert str(caught.value).startswith(message)


def test_decoding_leaves_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(encoded(PICTURE))
    with (tmp_path / "x").open("rb") as file:
        for opened in (file, io.BytesIO(encoded(PICTURE))):
            assert decode_rgb(opened) == PICTURE
            assert not opened.closed
    turned = Image.new("L", (4, 3))
    turned.getexif()[0x0112] = 6
    assert (decode_rgb(turned).size, turned.size, turned.mode) == ((3, 4), (4, 3), "L")
    assert decode_rgb(PICTURE) is not PICTURE
    for picture in (PICTURE, encoded(PICTURE)):
        with pytest.raises(DataError, match=r"^picture: expected at most 11 pixels, got 4 x 3"):
            decode_rgb(picture, max_pixels=11)
    with pytest.raises(DataError, match=r"^holiday: expected at most 11 pixels"):
        decode_rgb(PICTURE, name="holiday", max_pixels=11)


THREE = LabelSet(("cat", "dog", "elk"))


def labelled(value: object, *, labels: LabelSet | None = THREE, **options: Any) -> list[list[float]]:
    found: list[list[float]] = read_rows(
        [{"image": PICTURE, "labels": value}], name="mine", labels=labels, **options
    ).target.tolist()
    return found


def test_numbers_are_positions_or_marks() -> None:
    assert labelled([0, 2]) == labelled(np.array([0, 2])) == labelled([np.int64(2), np.int32(0)]) == [[1, 0, 1]]
    assert labelled(torch.tensor([1])) == labelled(["dog"]) == [[0, 1, 0]]
    for marks in ([1, 0, 1], [1.0, 0.0, 1.0], [True, False, True], np.array([1, 0, 1]), torch.tensor([1.0, 0, 1])):
        assert labelled(marks, numbers="one_hot") == [[1, 0, 1]]
        with pytest.raises(DataError, match=r"found a 0 or 1 for each of 3; set numbers to 'one_hot'"):
            labelled(marks)
    assert labelled("cat, elk", separator=",") == labelled("elk  cat", separator=" ") == [[1, 0, 1]]
    assert labelled("", separator=",") == [[0, 0, 0]]


def test_a_0_and_a_1_for_two_labels_are_not_two_positions() -> None:
    for labels in ([0, 1], [1, 0], (np.int64(0), 1)):
        with pytest.raises(DataError, match=r"for each of 2; set numbers to 'one_hot', or to 'positions'$"):
            labelled(labels, labels=LABELS)
    assert labelled([0, 1], labels=LABELS, numbers="positions") == [[1, 1]]
    assert labelled([0, 1], labels=LABELS, numbers="one_hot") == [[0, 1]]
    assert labelled([1], labels=LABELS) == [[0, 1]]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, 0], {"numbers": "one_hot"}, "row 0: expected 'labels' to hold a 0 or 1 for each of 3 labels, found 2"),
        ([1, 0, -1], {"numbers": "one_hot"}, "row 0: expected 'labels' to hold 0 and 1, found -1"),
        ([1, 0, float("nan")], {"numbers": "one_hot"}, "row 0: expected 'labels' to hold 0 and 1, found nan"),
        (["cat", 0, 1], {"numbers": "one_hot"}, "row 0: expected 'labels' to hold 0 and 1, found 'cat'"),
        ("cat, dog", {}, "row 0: expected 'labels' to be a list, found 'cat, dog'; set separator to ','"),
        ([1.0, 2.0], {}, "row 0: expected the name of a label, found 1.0"),
        (np.array([[1, 0]]), {}, "row 0: expected the name of a label, found a list"),
        (1, {}, "row 0: expected 'labels' to be a list, found 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_numbers_that_are_refused(labels: object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        labelled(labels, **options)
    assert str(caught.value) == f"mine: {message}"


@pytest.mark.usefixtures("unchecked")
def test_options_of_rows_that_do_not_fit() -> None:
    for options, message in (
        ({"numbers": "hot"}, "numbers: expected 'positions' or 'one_hot', got 'hot'"),
        ({"numbers": "one_hot", "labels": None}, "numbers: expected labels, the names of the places of 'one_hot'"),
        ({"separator": ""}, "separator: expected a text between labels, got ''"),
    ):
        with pytest.raises(DataError, match=message):
            labelled([1, 0, 1], **options)
