"""Text files of one record per line, read with line numbers."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvlr.data.batch import DataError
from pvlr.data.readers.entries import read_text, repeated, shown, shown_keys

__all__ = ["MAX_TABLE_BYTES", "Record", "csv_records", "json_records", "parse_json"]

MAX_TABLE_BYTES = 1_000_000_000
"""Largest table that is read."""


class Record(NamedTuple):
    """A line of a table: its position, for messages, and its fields by name."""

    place: str
    fields: dict[str, Any]


def csv_records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    """Yield the rows of a CSV file (commas, double quotes) whose first line names the columns.

    Args:
        path: Path of the file, at most `MAX_TABLE_BYTES` of UTF-8.
        columns: The required columns, in any order; the file may have others.

    Raises:
        DataError: naming file and line, if a column is missing or repeated, a row is empty or of another length than
            the first, or quotes are left open. Empty lines at the end of the file are ignored.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "x.csv")
        ...     _ = path.write_text('file,labels\\n"a, b.jpg",cat\\n')
        ...     [record.fields for record in csv_records(path, ["file"])]
        [{'file': 'a, b.jpg', 'labels': 'cat'}]
    """
    text = read_text(path, "a table", MAX_TABLE_BYTES)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line, empty = 1, ""
    while True:
        place = f"{path}: line {line}"
        try:
            row = next(rows, None)
        except csv.Error as err:
            raise DataError(f"{place}: expected comma-separated values, but {err}") from None
        if row is None:
            break
        line = rows.line_num + 1
        if not header:
            header = _header(place, row, columns)
        elif not row:
            empty = empty or place
        elif empty:
            raise DataError(f"{empty}: expected a row, found an empty line")
        elif len(row) != len(header):
            raise DataError(f"{place}: expected {len(header)} values, one per column, found {len(row)}")
        else:
            yield Record(place, dict(zip(header, row, strict=True)))
    if not header:
        raise DataError(f"{path}: expected a table, found an empty file")


def json_records(path: Path, keys: Sequence[str]) -> Iterator[Record]:
    """Yield the lines of a JSONL file, one object each.

    Args:
        path: Path of the file, at most `MAX_TABLE_BYTES` of UTF-8.
        keys: The required keys of every object, which may have others.

    Raises:
        DataError: naming file and line, if a line is empty, is not a JSON object or lacks a key. Empty lines at the
            end of the file are ignored.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "x.jsonl")
        ...     _ = path.write_text('{"file": "a.jpg", "labels": ["cat"]}\\n')
        ...     [record.fields for record in json_records(path, ["file"])]
        [{'file': 'a.jpg', 'labels': ['cat']}]
    """
    # Not splitlines: JSON strings may contain other line ends, such as U+2028.
    lines = read_text(path, "a table", MAX_TABLE_BYTES).rstrip().split("\n")
    if lines == [""]:
        raise DataError(f"{path}: expected a table, found an empty file")
    for line, text in enumerate(lines, start=1):
        place = f"{path}: line {line}"
        if not text.strip():
            raise DataError(f"{place}: expected a row, found an empty line")
        fields = parse_json(place, text)
        for key in keys:
            if key not in fields:
                raise DataError(f"{place}: expected the key {key!r}, found {shown_keys(fields)}")
        yield Record(place, fields)


def parse_json(place: str, text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        DataError: naming the place, if the text is not a JSON object, or repeats a key.

    Example:
        >>> parse_json("x.jsonl: line 1", '{"file": "a.jpg"}')
        {'file': 'a.jpg'}
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise DataError(f"{place}: expected every key once, found {shown(repeated(key for key, _ in pairs))} twice")
        return fields

    try:
        fields = json.loads(text, object_pairs_hook=once)
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{place}: expected JSON, found far too many brackets within brackets") from None
    except ValueError as err:
        raise DataError(f"{place}: expected JSON, but {err}") from None
    if not isinstance(fields, dict):
        raise DataError(f"{place}: expected an object in braces, found {shown(fields)}")
    return fields


def _header(place: str, row: list[str], columns: Sequence[str]) -> list[str]:
    there = set(row)
    for column in columns:
        if column not in there:
            found = shown_keys(row) if row else "an empty line"
            raise DataError(f"{place}: expected the column {column!r}, found {found}")
    if len(there) != len(row):
        raise DataError(f"{place}: expected every column once, found {shown(repeated(row))} twice")
    return row
