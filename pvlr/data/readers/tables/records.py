"""Rows of a table, whatever its kind of file, and the labels and splits in them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pvlr.data.batch import DataError
from pvlr.data.readers.entries import Entry, read_labels, require_name, require_one_hot_free, shown
from pvlr.data.readers.lines import NO_OPTIONS, Record, csv_records, json_records, parse_json_value
from pvlr.data.readers.tables.format import TableFormat
from pvlr.data.readers.tables.workbook import sheet_records

__all__ = ["Row", "label_list", "require_kind", "split_of", "table_records", "united"]

KINDS = {".csv": "text", ".tsv": "text", ".xlsx": "sheet", ".jsonl": "objects", ".json": "objects"}
QUOTED = r"""(?:'[^'\\]*'|"[^"\\]*")"""
PYTHON_LIST = re.compile(rf"\[\s*(?:{QUOTED}(?:\s*,\s*{QUOTED})*\s*)?\]")
"""Lists of texts as ``str`` writes them; with escapes or without commas (NumPy) they are not read."""


class Row(NamedTuple):
    """A picture of a table: its split, if the table knows any, and its labels."""

    split: str | None
    entry: Entry


def require_kind(path: Path, format: TableFormat) -> str:
    """Return the kind of a table, by its ending: ``text``, ``sheet`` or ``objects``.

    Raises:
        DataError: naming the file, if its ending is another.

    Example:
        >>> require_kind(Path("x.CSV"), TableFormat())
        'text'
    """
    kind = KINDS.get(path.suffix.lower())
    if kind is None and format.delimiter is not None:
        return "text"
    if kind is None:
        hint = "; set delimiter, if it has columns" if path.suffix.lower() in (".txt", ".dat", ".tab", ".data") else ""
        raise DataError(
            f"{path}: expected a table whose name ends in .csv, .tsv, .xlsx, .jsonl or .json, "
            f"found {path.suffix or 'no ending'}{hint}"
        )
    return kind


def table_records(
    path: Path, format: TableFormat, columns: Sequence[str], options: Mapping[str, str] = NO_OPTIONS
) -> Iterator[Record]:
    """Yield the rows of a table with their places.

    Args:
        path: Path of the table.
        format: How it is written.
        columns: The required columns.
        options: The option that names a column, by the column; for messages.

    Raises:
        DataError: naming file and line, see `csv_records`, `json_records` and `sheet_records`.
    """
    kind = require_kind(path, format)
    if kind == "objects":
        return json_records(path, columns, options=options, encoding=format.encoding)
    if kind == "sheet":
        return sheet_records(path, columns, options=options, sheet=format.sheet)
    delimiter = format.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
    return csv_records(path, columns, options=options, delimiter=delimiter, encoding=format.encoding)


def label_list(
    record: Record, column: str, format: TableFormat, *, text: bool = True, count: int | None = None
) -> list[str | int]:
    """Return the labels of a cell, or of a value of JSON.

    Args:
        record: The row.
        column: Its column; a row without it has none.
        format: Its ``cells`` and ``separator`` say how they are written.
        text: Whether it is a cell, always a text, and not a value of JSON.
        count: Number of labels, if they are given and may be named by their positions.

    Raises:
        DataError: naming the place, and the option that reads the cell.

    Example:
        >>> label_list(Record("line 2", {"labels": "cat; dog"}), "labels", TableFormat())
        ['cat', 'dog']
        >>> label_list(Record("line 2", {"labels": '{"choices": ["cat", "dog"]}'}), "labels", TableFormat(cells="json"))
        ['cat', 'dog']
    """
    place, value = record.place, record.fields.get(column, [])
    if text and isinstance(value, str) and format.cells != "json":
        return _from_text(place, value, format)
    if format.cells == "json":
        value = _choices(place, value)
    elif isinstance(value, dict) and "choices" in value:
        raise DataError(f"{place}: expected {column!r} to be a list, found an object of choices; set cells to 'json'")
    elif isinstance(value, str):
        hint = "; set cells to 'json', if it is one label"
        raise DataError(f"{place}: expected {column!r} to be a list, found {shown(value)}{hint}")
    labels = read_labels(place, column, value)
    require_one_hot_free(place, column, labels, count, "; give the names of those that are present")
    return labels


def _choices(place: str, value: object) -> object:
    """The list in a cell of Label Studio: one choice is a plain text, several are an object or a list of JSON."""
    if isinstance(value, str):
        text = value.strip()
        value = parse_json_value(place, text) if text[:1] in ("[", "{") else [text] if text else []
    if isinstance(value, dict):
        if "choices" not in value:
            raise DataError(f"{place}: expected a list of labels, or an object with 'choices', found {shown(value)}")
        value = value["choices"]
    return value


def _from_text(place: str, cell: str, format: TableFormat) -> list[str | int]:
    text = cell.strip()
    if format.cells == "python":
        if text and not PYTHON_LIST.fullmatch(text):
            raise DataError(f"{place}: expected a list of texts such as ['cat', 'dog'], found {shown(text)}")
        names = [quoted[1:-1].strip() for quoted in re.findall(QUOTED, text)]
        return [require_name(place, "a label", name) for name in names]
    if text[:1] in ("[", "{"):
        _require_plain(place, text)
    names = [name.strip() for name in text.split(format.separator)] if text else []
    if not format.separator.strip():
        names = [name for name in names if name]  # Several spaces part no more than one.
    if "" in names:
        raise DataError(
            f"{place}: expected a label between any two {format.separator!r}, found an empty name "
            "(a separator too many?)"
        )
    return [require_name(place, "a label", name) for name in names]


def _require_plain(place: str, text: str) -> None:
    """Refuse a list that is written as JSON or by Python, where labels between separators are expected."""
    try:
        written = "json" if isinstance(parse_json_value(place, text), list | dict) else ""
    except DataError:
        written = "python" if PYTHON_LIST.fullmatch(text) else ""
    if written:
        raise DataError(f"{place}: expected labels between separators, found {shown(text)}; set cells to {written!r}")


def split_of(record: Record, column: str) -> str | None:
    """Return the split of a row, or None where none is said.

    Raises:
        DataError: naming the place, if it is no name.
    """
    part = record.fields.get(column)
    return None if part in (None, "") else require_name(record.place, "a split", part)


def united(rows: Iterable[Row], format: TableFormat) -> Iterator[Row]:
    """Yield every picture once: rows of the same picture are refused, or united where ``repeated`` says so.

    A label is present if any row says so; else unknown, if any row says that; else what the rows say.

    Raises:
        DataError: naming the row that repeats a picture, or gives it another split.

    Example:
        >>> entries = [Entry(f"line {n}", "a.jpg", Path("a.jpg"), [label]) for n, label in ((2, "cat"), (3, "dog"))]
        >>> rows = [Row(None, entry) for entry in entries]
        >>> [row.entry.present for row in united(rows, TableFormat(repeated="union"))]
        [['cat', 'dog']]
    """
    found: dict[str, Row] = {}
    for row in rows:
        part, entry = row
        before = found.setdefault(entry.name, row)
        if before is row:
            continue
        if format.repeated == "refuse":
            raise DataError(
                f"{entry.place}: expected every picture once, found {entry.name!r} again, after {before.entry.place}; "
                "set repeated to 'union' to unite its labels, or form to 'long' if each row says one"
            )
        if part != before.split:
            raise DataError(
                f"{entry.place}: expected {entry.name!r} in the split {before.split!r} of {before.entry.place}, "
                f"found {part!r}"
            )
        present = dict.fromkeys((*before.entry.present, *entry.present))
        unknown = dict.fromkeys((*before.entry.unknown, *entry.unknown))
        absent = dict.fromkeys((*before.entry.absent, *entry.absent))
        merged = before.entry._replace(
            present=list(present),
            unknown=[label for label in unknown if label not in present],
            absent=[label for label in absent if label not in present and label not in unknown],
        )
        found[entry.name] = Row(part, merged)
    return iter(found.values())
