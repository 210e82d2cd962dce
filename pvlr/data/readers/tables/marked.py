"""Tables whose cells are marks: wide ones, with a column per label, and long ones, with a row per picture and label."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers.entries import Entry, require_name, shown, shown_keys
from pvlr.data.readers.lines import Record
from pvlr.data.readers.tables.format import (
    MOST_CELLS,
    Mark,
    TableFormat,
    looks_like_marks,
    proposed_marks,
    shown_cells,
)
from pvlr.data.readers.tables.names import picture_path
from pvlr.data.readers.tables.records import Row, require_kind, split_of, table_records

__all__ = ["long_rows", "one_hot_hint", "require_all_pairs", "wide_rows"]

MOST_KEPT = 1_000
"""Distinct cells of a column that are remembered for a message."""


def wide_rows(path: Path, images: Path, format: TableFormat, labels: LabelSet | None) -> tuple[LabelSet, Iterator[Row]]:
    """Read a table with a column per label.

    Args:
        path: Path of the table.
        images: The folder of pictures.
        format: Its ``marks`` are the meaning of the cells, its ``label_columns`` the columns that are labels.
        labels: The labels, names of columns; None: by ``label_columns``.

    Returns:
        The labels, those of ``label_columns`` sorted, and the rows.

    Raises:
        DataError: naming the table, and columns or cells whose meaning was not said.
    """
    if require_kind(path, format) == "objects":
        raise DataError("marks: expected a .csv table, to read a table with a column per label")
    options = {format.file_column: "file_column"}
    records = table_records(path, format, (format.file_column, *(labels or ())), options)
    first = next(records, None)
    if first is None:
        raise DataError(f"{path}: expected at least one row, found none")
    if labels is None:
        others = _others(first, format)
        if format.label_columns is None:
            raise DataError(
                f"{path}: expected labels, the columns that are labels, found none; "
                f"set label_columns to 'others' to take {shown_keys(others)}"
            )
        labels = LabelSet(tuple(sorted(others)))
    return labels, _wide(path, chain([first], records), images, format, labels)


def _others(record: Record, format: TableFormat) -> list[str]:
    """The columns that are neither of files nor of splits, nor set aside; one without a name is an index."""
    for column in format.ignore_columns:
        if column not in record.fields:
            raise DataError(
                f"ignore_columns: expected columns of {record.place.rsplit(':', 1)[0]}, found no {column!r} among "
                f"{shown_keys(record.fields)}"
            )
    left_out = {format.file_column, format.split_column, *format.ignore_columns}
    others = [name for name in record.fields if name.strip() and name not in left_out]
    if not others:
        raise DataError(f"{record.place}: expected columns of labels, found {shown_keys(record.fields)}")
    return [require_name(record.place, "a label", name) for name in others]


def _wide(path: Path, records: Iterable[Record], images: Path, format: TableFormat, labels: LabelSet) -> Iterator[Row]:
    marks = format.marks or {}
    for record in records:
        found: dict[Mark, list[str | int]] = {"present": [], "absent": [], "unknown": []}
        for column, label in enumerate(labels):
            cell = record.fields[label].strip()
            if cell not in marks:
                raise DataError(_uncovered(path, record, label, format, labels))
            found[marks[cell]].append(column)
        name, source = picture_path(images, record.fields[format.file_column], record.place, format)
        entry = Entry(record.place, name, source, found["present"], found["unknown"])
        yield Row(split_of(record, format.split_column), entry)


def _uncovered(path: Path, record: Record, label: str, format: TableFormat, labels: Iterable[str]) -> str:
    """The message at a cell without a meaning: all cells of the table, and marks that cover them."""
    cell = record.fields[label].strip()
    if format.marks:
        said = (
            f"{record.place}: expected {label!r} to be one of {', '.join(map(repr, format.marks))}, found {shown(cell)}"
        )
    else:
        said = f"{record.place}: expected marks, the meaning of cells such as {shown(cell)} of {label!r}, found none"
    columns = _cells_of(path, format, labels)
    cells = set().union(*columns.values())
    strange = [name for name, found in columns.items() if not found <= set(format.marks or {}) | _usual(found)]
    if label in strange and len(strange) < len(columns) and format.label_columns is not None:
        return f"{said}; if they are no labels, set ignore_columns to {[*format.ignore_columns, *strange[:20]]!r}"
    listed = f"{said}; the cells are {shown_cells(cells)}"
    return (
        listed
        if len(cells) > MOST_CELLS
        else f"{listed}: say what each means, such as marks: {proposed_marks(cells, format.marks)}"
    )


def _usual(cells: set[str]) -> set[str]:
    return {cell for cell in cells if looks_like_marks([cell, "1"])}


def _cells_of(path: Path, format: TableFormat, columns: Iterable[str]) -> dict[str, set[str]]:
    """The distinct cells of each column, a thousand at most."""
    found: dict[str, set[str]] = {column: set() for column in columns}
    for record in table_records(path, format, ()):
        for column, cells in found.items():
            if len(cells) < MOST_KEPT:
                cells.add(str(record.fields.get(column, "")).strip())
    return found


def one_hot_hint(path: Path, format: TableFormat) -> str:
    """Return the hint at options that read a table as a wide one, if columns of it look like marks; else nothing.

    Args:
        path: Path of a table that lacks the column of labels.
        format: Its ``file_column`` and ``split_column`` are no labels.
    """
    if require_kind(path, format) == "objects":
        return ""
    try:
        first = next(table_records(path, format, ()), None)
        others = [] if first is None else _others(first, format)
        columns = _cells_of(path, format, others)
    except DataError:
        return ""
    labels = [name for name, cells in columns.items() if any(cells) and _usual(cells) == cells]
    cells: set[str] = set().union(*(columns[name] for name in labels))
    if len(labels) < 2 or not looks_like_marks(cells):
        return ""
    rest = [name for name in others if name not in labels] if first and format.file_column in first.fields else []
    ignored = f", ignore_columns: {rest!r}" if rest else ""
    return (
        f"; or, if {shown_keys(labels)} are labels, whose cells are {shown_cells(cells)}, set label_columns: "
        f"'others'{ignored} and say what each cell means, such as marks: {proposed_marks(cells)}"
    )


def long_rows(path: Path, images: Path, format: TableFormat) -> Iterator[Row]:
    """Yield the pictures of a table with a row per picture and label, in the order of their first rows.

    Args:
        path: Path of the table.
        images: The folder of pictures.
        format: Its ``label_column`` holds a label, its ``value_column`` a cell of ``marks``; without the latter, every
            row says that the label is present.

    Raises:
        DataError: naming the row that contradicts another, unless ``repeated`` is ``union``, or a cell without a
            meaning.
    """
    options = {format.file_column: "file_column", format.label_column: "label_column"}
    if format.value_column:
        options[format.value_column] = "value_column"
    elif format.value_column is None:
        _require_no_values(path, format, options)
    pictures: dict[str, tuple[str | None, Entry, dict[str, Mark]]] = {}
    for record in table_records(path, format, tuple(options), options):
        place = record.place
        name, source = picture_path(images, record.fields[format.file_column], place, format)
        label = record.fields[format.label_column]
        label = require_name(place, "a label", label.strip() if isinstance(label, str) else label)
        part, mark = split_of(record, format.split_column), _value(path, record, format)
        before, entry, marks = pictures.setdefault(name, (part, Entry(place, name, source, ()), {}))
        if part != before:
            raise DataError(f"{place}: expected {name!r} in the split {before!r} of {entry.place}, found {part!r}")
        said = marks.setdefault(label, mark)
        if said != mark and format.repeated == "refuse":
            raise DataError(
                f"{place}: expected {label!r} of {name!r} to be {said}, as before, found {mark}; "
                "set repeated to 'union' to take it as present where any row says so"
            )
        marks[label] = next(state for state in ("present", "unknown", "absent") if state in (said, mark))
    for part, entry, marks in pictures.values():
        lists = [
            [label for label, mark in marks.items() if mark == state] for state in ("present", "unknown", "absent")
        ]
        yield Row(part, entry._replace(present=lists[0], unknown=lists[1], absent=lists[2]))


def _value(path: Path, record: Record, format: TableFormat) -> Mark:
    if not format.value_column:
        return "present"
    value = record.fields[format.value_column]
    cell = "" if value is None else str(value).strip()
    marks = format.marks or {}
    if cell not in marks:
        cells = _cells_of(path, format, [format.value_column])[format.value_column]
        expected = f"one of {', '.join(map(repr, marks))}" if marks else "a cell of marks"
        raise DataError(
            f"{record.place}: expected {format.value_column!r} to be {expected}, found {shown(cell)}; the cells are "
            f"{shown_cells(cells)}: say what each means, such as marks: {proposed_marks(sorted(cells)[:10], marks)}"
        )
    return marks[cell]


def _require_no_values(path: Path, format: TableFormat, options: Mapping[str, str]) -> None:
    """Refuse a long table without ``value_column``, if a column looks as if it said that labels are absent."""
    first = next(table_records(path, format, tuple(options), options), None)
    others = [] if first is None else [name for name in first.fields if name not in (*options, format.split_column)]
    for name, cells in _cells_of(path, format, others).items():
        if looks_like_marks(cells) and "absent" in proposed_marks(cells).values():
            raise DataError(
                f"{path}: expected value_column, as {name!r} with the cells {shown_cells(cells)} may say which labels "
                f"are absent; set value_column to {name!r} and marks to {proposed_marks(cells)}, or value_column to '' "
                "if every row says that its label is present"
            )


def require_all_pairs(path: Path, entries: Sequence[Entry], labels: LabelSet) -> None:
    """Refuse a long table that says nothing of some picture and label, where ``unnamed`` does not say what that means.

    Raises:
        DataError: naming the first such picture and label.

    Example:
        >>> require_all_pairs(Path("x.csv"), [Entry("line 2", "a.jpg", Path("a.jpg"), ["cat"])], LabelSet(("cat",)))
    """
    missing = 0
    example: tuple[str, str] | None = None
    for entry in entries:
        said = {*entry.present, *entry.unknown, *entry.absent}
        missing += len(labels) - len(said)
        if example is None and len(said) < len(labels):
            example = entry.name, next(label for label in labels if label not in said)
    if example is not None:
        raise DataError(
            f"{path}: expected a row for every picture and label, found none for {example[1]!r} of {example[0]!r} and "
            f"{missing - 1:,} other pairs; set unnamed to 'unknown' or 'absent'"
        )
