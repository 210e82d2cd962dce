"""Reader of data sets given as rows: lists of dictionaries, or any sequence of mappings."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError, refusal
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.images import Picture
from pvlr.data.readers.entries import (
    Entry,
    assemble,
    collect_labels,
    read_labels,
    require_name,
    require_one_hot_free,
    shown,
    shown_keys,
)

__all__ = ["Rows", "read_rows"]


@runtime_checkable
class Rows(Protocol):
    """Rows indexed by number, from 0: a list of dictionaries, or a data set of ``datasets``."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


def read_rows(
    rows: Rows,
    *,
    name: str,
    labels: LabelSet | None = None,
    image: str = "image",
    present: str = "labels",
    unknown: str | None = None,
    identifier: str | None = None,
    annotations: Rows | None = None,
    numbers: Literal["positions", "one_hot"] | None = None,
    separator: str | None = None,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read a data set of rows that are mappings, such as one of Hugging Face's ``datasets`` or a list of dictionaries.

    The labels are read at once, a picture each time its sample is read. It may be an image of Pillow, the path of a
    file, the bytes of one, or a mapping with the key ``bytes`` or ``path``, as in ``datasets`` for images that are not
    decoded.

    Args:
        rows: The rows, each a mapping; they must be picklable to be read in workers.
        name: Name of the data set and its split.
        labels: The columns of the target; labels may then be given by their position. None: the names in the rows,
            sorted.
        image: Key of the picture.
        present: Key of the labels that are present: a list of names or positions, or an array of the latter.
        unknown: Key of the labels that are unknown; None: all labels are known.
        identifier: Key of the picture's name; None: the number of its row.
        annotations: The same rows, from which all but the picture is read; None: ``rows``. If reading a row decodes its
            picture, as in ``datasets``, rows without it are read much faster: ``rows.remove_columns("image")``.
        numbers: Meaning of numbers: ``positions`` of labels, or ``one_hot``, a 1 or 0 for every label. None: positions,
            but a list that may be either is refused.
        separator: Separator of names in a text; None: labels are lists.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the rows.

    Raises:
        DataError: naming the row and its defect.

    Example:
        >>> rows = [
        ...     {"image": Image.new("RGB", (3, 2)), "labels": ["cat"]},
        ...     {"image": "b.jpg", "labels": ["cat", "dog"]},
        ... ]
        >>> data = read_rows(rows, name="mine")
        >>> data[0].image.shape, data.target.tolist()
        (torch.Size([3, 2, 3]), [[1.0, 0.0], [1.0, 1.0]])
    """
    annotated = rows if annotations is None else annotations
    if len(annotated) != len(rows):
        raise DataError(f"{name}: expected annotations for {len(rows):,} rows, found {len(annotated):,}")
    if numbers not in (None, "positions", "one_hot"):
        raise DataError(f"numbers: expected 'positions' or 'one_hot', got {numbers!r}")
    if separator is not None and not separator:
        raise DataError("separator: expected a text between labels, got ''")
    if numbers == "one_hot" and labels is None:
        raise DataError("numbers: expected labels, the names of the places of 'one_hot', got none")
    count = None if labels is None else len(labels)
    entries: list[Entry] = []
    for number in range(len(rows)):
        place = f"{name}: row {number}"
        row = _row(place, annotated, number)
        if not isinstance(row, Mapping):
            raise DataError(f"{place}: expected a mapping, found {shown(row)}")
        key = str(number) if identifier is None else require_name(place, "a picture", _get(place, row, identifier))
        lists = [
            [] if column is None else _labels(place, column, _get(place, row, column), count, numbers, separator)
            for column in (present, unknown)
        ]
        if annotations is None:
            _get(place, row, image)
        entries.append(Entry(place, key, _Row(rows, number, image, place), *lists))
    labels = collect_labels(name, entries) if labels is None else labels
    return assemble(name, entries, labels, transform=transform)


@dataclass(frozen=True)
class _Row:
    """Source of the picture of a row."""

    rows: Rows
    number: int
    key: str
    place: str

    def __call__(self) -> Picture:
        picture = _get(self.place, _row(self.place, self.rows, self.number), self.key)
        if isinstance(picture, Mapping):
            picture = picture.get("bytes") or picture.get("path")
        if not isinstance(picture, str | os.PathLike | bytes | Image.Image):
            raise DataError(f"{self.place}: expected an image, a path or bytes, found {shown(picture)}")
        return picture


def _labels(
    place: str, column: str, value: Any, count: int | None, numbers: str | None, separator: str | None
) -> list[str | int]:
    if isinstance(value, str) and separator is not None:
        names = [name.strip() for name in value.split(separator)] if value.strip() else []
        return read_labels(place, column, names if separator.strip() else [name for name in names if name])
    if isinstance(value, str) and "," in value:
        raise DataError(f"{place}: expected {column!r} to be a list, found {shown(value)}; set separator to ','")
    if hasattr(value, "tolist"):
        value = value.tolist()  # An array of NumPy or PyTorch.
    if isinstance(value, list | tuple):
        value = [each.tolist() if hasattr(each, "tolist") else each for each in value]
        if numbers == "one_hot":
            return _marked(place, column, value, count)
        floats = any(isinstance(each, float | bool) for each in value)
        if floats and len(value) == count and all(each in (0, 1) for each in value):
            raise DataError(
                f"{place}: expected {column!r} to hold names or positions of labels, "
                f"found a 0 or 1 for each of {count}; set numbers to 'one_hot'"
            )
    found = read_labels(place, column, value)
    if numbers is None:
        hint = "; set numbers to 'one_hot', or to 'positions'"
        require_one_hot_free(place, column, found, count, hint)
    return found


def _marked(place: str, column: str, value: list[Any] | tuple[Any, ...], count: int | None) -> list[str | int]:
    if len(value) != count:
        raise DataError(f"{place}: expected {column!r} to hold a 0 or 1 for each of {count} labels, found {len(value)}")
    for each in value:
        if not isinstance(each, int | float) or each not in (0, 1):
            raise DataError(f"{place}: expected {column!r} to hold 0 and 1, found {shown(each)}")
    return [position for position, each in enumerate(value) if each]


def _row(place: str, rows: Rows, number: int) -> Any:
    try:
        return rows[number]
    except Exception as err:
        # Reading a row may decode its picture or download it.
        reason = " ".join(str(err).split()) or type(err).__name__
        raise refusal(err)(f"{place}: expected a row, but {reason}") from err


def _get(place: str, row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise DataError(f"{place}: expected the key {key!r}, found {shown_keys(row)}")
    return row[key]
