"""Reader of tables: a folder of pictures, and a CSV or JSONL file of their labels."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import (
    Entry,
    assemble,
    collect_labels,
    inside,
    read_labels,
    require_files,
    require_name,
    shown,
)
from pvlr.data.readers.lines import Record, csv_records, json_records

__all__ = ["Mark", "NoSplitError", "read_table"]

Mark = Literal["present", "absent", "unknown"]


class NoSplitError(DataError):
    """Error of a split that is requested from data without splits."""


def read_table(
    images: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    split: str | None = None,
    name: str | None = None,
    labels: LabelSet | None = None,
    marks: Mapping[str, Mark] | None = None,
    separator: str = ";",
    file_column: str = "file",
    split_column: str = "split",
    check_files: bool = True,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read a table of pictures and their labels, in one of three forms.

    A **list** is a CSV file with the columns ``file`` and ``labels``, and, if any labels are unknown, ``unknown``::

        file,labels,unknown,split
        a/1.jpg,cat;dog,,train
        a/2.jpg,,cow,test

    **JSONL** has the same fields in one object per line; ``unknown`` and ``split`` may be left out::

        {"file": "a/1.jpg", "labels": ["cat", "dog"], "split": "train"}

    A **wide** CSV file has a column per label. ``marks`` gives the meaning of its cells: there is no default, since
    ``0`` and ``-1`` differ between tables. With ``{"1": "present", "0": "absent", "": "unknown"}``::

        file,cat,cow,dog
        a/1.jpg,1,0,1
        a/2.jpg,0,,0

    Labels that a row does not name are absent. Every row is checked, those of other splits too. Further columns are
    ignored.

    Args:
        images: The folder to which each ``file`` is appended.
        table: A file whose name ends in ``.csv`` or ``.jsonl``, in UTF-8.
        split: Read the rows with this value in the column ``split``; None: all rows, and the summary lists the splits.
        name: Name of the data set; None: that of the table without its extension, and the split.
        labels: The columns of the target; None: those in the table, in any split, sorted. Required for a wide table, as
            the names of its columns.
        marks: Meaning of each cell of a wide table.
        separator: Separator of the labels in a cell.
        file_column: Name of the column of files.
        split_column: Name of the column of splits.
        check_files: Check that every picture of the split exists. Otherwise a missing one is found when its sample is
            read; for statistics of labels, and for slow disks.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the table, named by their ``file``.

    Raises:
        DataError: naming the table, the line and the defect: a missing column, an empty row, a repeated picture or
            label, a label that is not among those given (with the nearest that is), a path that leaves the folder,
            other bytes than UTF-8. Or the picture that is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for image in ("1.jpg", "2.jpg"):
        ...         Path(folder, image).touch()
        ...     _ = Path(folder, "list.csv").write_text("file,labels,unknown\\n1.jpg,cat;dog,\\n2.jpg,,cow\\n")
        ...     _ = Path(folder, "wide.csv").write_text("file,cat,cow,dog\\n1.jpg,1,0,1\\n2.jpg,0,,0\\n")
        ...     data = read_table(folder, f"{folder}/list.csv")
        ...     marks = {"1": "present", "0": "absent", "": "unknown"}
        ...     wide = read_table(folder, f"{folder}/wide.csv", labels=data.labels, marks=marks)
        >>> data.labels.names, data.target.tolist(), data.known.tolist()
        (('cat', 'cow', 'dog'), [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], [[True, True, True], [True, False, True]])
        >>> wide.digest() == data.digest()
        True
    """
    path = Path(table)
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise DataError(
            f"{path}: expected a table whose name ends in .csv or .jsonl, found {path.suffix or 'no ending'}"
        )
    if marks is not None and (kind == ".jsonl" or labels is None):
        missing = "a .csv table" if kind == ".jsonl" else "labels, the names of its columns"
        raise DataError(f"marks: expected {missing}, to read a table with a column per label")
    if not separator or separator != separator.strip():
        raise DataError(f"separator: expected a text without white space around it, got {separator!r}")
    if kind == ".jsonl":
        rows = _read_objects(path, Path(images), file_column, split_column)
    elif marks is not None and labels is not None:
        rows = _read_wide(path, Path(images), labels, _require_marks(marks), file_column, split_column)
    else:
        rows = _read_lists(path, Path(images), separator, file_column, split_column)
    entries: list[Entry] = []
    parts: list[str | None] = []
    for part, entry in rows:
        if part is None and split is not None:
            raise NoSplitError(f"{entry.place}: expected {split_column!r} to say the split, found none")
        entries.append(entry)
        parts.append(part)
    if not entries:
        raise DataError(f"{path}: expected at least one row, found none")
    whole = assemble(path.stem, entries, collect_labels(str(path), entries) if labels is None else labels)
    found = sorted({part for part in parts if part is not None})
    if split is None:
        data = whole
        data.note = f"of all splits: {', '.join(found)}" if found else ""
    else:
        if split not in found:
            raise DataError(f"{path}: expected rows of the split {split!r}, found those of {', '.join(found)}")
        chosen = [row for row, part in enumerate(parts) if part == split]
        entries, data = [entries[row] for row in chosen], whole.select(chosen)
    if check_files:
        require_files(entries, Path(images))
    data.name = name or (path.stem if split is None else f"{path.stem} {split}")
    return data.with_transform(transform)


Rows = Iterator[tuple[str | None, Entry]]


def _entry(record: Record, images: Path, column: str, present: list[str | int], unknown: list[str | int]) -> Entry:
    name, source = inside(images, record.fields[column], record.place)
    return Entry(record.place, name, source, present, unknown)


def _part(record: Record, column: str) -> str | None:
    part = record.fields.get(column)
    return None if part in (None, "") else require_name(record.place, "a split", part)


def _read_lists(path: Path, images: Path, separator: str, file_column: str, split_column: str) -> Rows:
    for record in csv_records(path, (file_column, "labels")):
        lists: list[list[str | int]] = []
        for column in ("labels", "unknown"):
            cell: str = record.fields.get(column, "")
            names = [name.strip() for name in cell.split(separator)] if cell.strip() else []
            if "" in names:
                raise DataError(
                    f"{record.place}: expected a label between any two {separator!r}, found an empty name "
                    "(a separator too many?)"
                )
            lists.append([require_name(record.place, "a label", name) for name in names])
        yield _part(record, split_column), _entry(record, images, file_column, *lists)


def _read_wide(
    path: Path, images: Path, labels: LabelSet, marks: Mapping[str, Mark], file_column: str, split_column: str
) -> Rows:
    expected = ", ".join(map(repr, marks))
    for record in csv_records(path, (file_column, *labels)):
        found: dict[str, list[str | int]] = {"present": [], "absent": [], "unknown": []}
        for column, label in enumerate(labels):
            cell = record.fields[label].strip()
            if cell not in marks:
                raise DataError(f"{record.place}: expected {label!r} to be one of {expected}, found {shown(cell)}")
            found[marks[cell]].append(column)
        yield _part(record, split_column), _entry(record, images, file_column, found["present"], found["unknown"])


def _read_objects(path: Path, images: Path, file_key: str, split_key: str) -> Rows:
    for record in json_records(path, (file_key, "labels")):
        lists = [read_labels(record.place, key, record.fields.get(key, [])) for key in ("labels", "unknown")]
        yield _part(record, split_key), _entry(record, images, file_key, *lists)


def _require_marks(marks: Mapping[str, Mark]) -> Mapping[str, Mark]:
    for cell, mark in marks.items():
        if mark not in ("present", "absent", "unknown"):
            raise DataError(f"marks: expected 'present', 'absent' or 'unknown' for {cell!r}, got {mark!r}")
    if "present" not in marks.values():
        raise DataError("marks: expected one that means 'present', got none")
    return marks
