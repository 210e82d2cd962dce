"""Text files of records, read with line numbers: CSV, JSON lines and lists of JSON."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvlr.data.batch import DataError
from pvlr.data.readers.entries import read_text, repeated, shown, shown_keys

__all__ = [
    "MAX_TABLE_BYTES",
    "ColumnError",
    "Record",
    "csv_records",
    "json_records",
    "parse_json",
    "parse_json_value",
    "require_columns",
]

MAX_TABLE_BYTES = 1_000_000_000
"""Largest table that is read."""


NO_OPTIONS: Mapping[str, str] = {}


class ColumnError(DataError):
    """Error of a column or key that a table lacks."""


class Record(NamedTuple):
    """A line of a table: its position, for messages, and its fields by name."""

    place: str
    fields: dict[str, Any]


def csv_records(
    path: Path,
    columns: Sequence[str],
    *,
    options: Mapping[str, str] = NO_OPTIONS,
    delimiter: str = ",",
    encoding: str | None = None,
) -> Iterator[Record]:
    """Yield the rows of a CSV file (commas, double quotes) whose first line names the columns.

    Args:
        path: Path of the file, at most `MAX_TABLE_BYTES`.
        columns: The required columns, in any order; the file may have others.
        options: The option that names a column, by the column; for messages.
        delimiter: Character between two values.
        encoding: See `read_text`.

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
    text = read_text(path, "a table", MAX_TABLE_BYTES, encoding)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header: list[str] = []
    line, empty = 1, ""
    while True:
        place = f"{path}: line {line}"
        try:
            row = next(rows, None)
        except csv.Error as err:
            parted = "comma-separated values" if delimiter == "," else f"values separated by {_called(delimiter)}"
            raise DataError(f"{place}: expected {parted}, but {err}") from None
        if row is None:
            break
        line = rows.line_num + 1
        if not header:
            hint = _other_delimiter(row, delimiter) if options else ""
            header = require_columns(place, row, columns, options, hint)
        elif not row:
            empty = empty or place
        elif empty:
            raise DataError(f"{empty}: expected a row, found an empty line; take it out")
        elif len(row) != len(header):
            more = (
                f" (a value that contains {_called(delimiter)} stands in double quotes)"
                if len(row) > len(header)
                else ""
            )
            raise DataError(f"{place}: expected {len(header)} values, one per column, found {len(row)}{more}")
        else:
            yield Record(place, dict(zip(header, row, strict=True)))
    if not header:
        raise DataError(f"{path}: expected a table, found an empty file")


def json_records(
    path: Path, keys: Sequence[str], *, options: Mapping[str, str] = NO_OPTIONS, encoding: str | None = None
) -> Iterator[Record]:
    """Yield the objects of a JSONL file, one a line, or of a JSON file: a list of them, or FiftyOne's ``labels.json``.

    The file of FiftyOne maps the names of pictures to their labels; each becomes an object with the keys ``file`` and
    ``labels``.

    Args:
        path: Path of the file, at most `MAX_TABLE_BYTES`; a list of objects or FiftyOne's, if its name ends in
            ``.json``.
        keys: The required keys of every object, which may have others.
        options: The option that names a key, by the key; for messages.
        encoding: See `read_text`.

    Raises:
        DataError: naming file and line, or the number of the object in the list, if a line is empty, is not a JSON
            object or lacks a key. Empty lines at the end of the file are ignored.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "x.jsonl")
        ...     _ = path.write_text('{"file": "a.jpg", "labels": ["cat"]}\\n')
        ...     [record.fields for record in json_records(path, ["file"])]
        [{'file': 'a.jpg', 'labels': ['cat']}]
    """
    text = read_text(path, "a table", MAX_TABLE_BYTES, encoding)
    if not text.strip():
        raise DataError(f"{path}: expected a table, found an empty file")
    for place, fields in _list_objects(path, text) if path.suffix.lower() == ".json" else _line_objects(path, text):
        require_columns(place, fields, keys, options, what="key")
        yield Record(place, fields)


def _line_objects(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: JSON strings may contain other line ends, such as U+2028.
    for line, part in enumerate(text.rstrip().split("\n"), start=1):
        place = f"{path}: line {line}"
        if not part.strip():
            raise DataError(f"{place}: expected a row, found an empty line; take it out")
        yield place, parse_json(place, part)


def _list_objects(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = parse_json_value(str(path), text)
    except DataError as err:
        lines = text.lstrip().startswith("{") and "Extra data" in str(err)
        raise DataError(f"{err}; a table of an object a line ends in .jsonl" if lines else str(err)) from None
    if isinstance(values, dict) and values.keys() == {"classes", "labels"}:
        yield from _of_fiftyone(path, values["classes"], values["labels"])
        return
    if not isinstance(values, list):
        found = f"an object with {shown_keys(values)}" if isinstance(values, dict) else shown(values)
        raise DataError(f"{path}: expected a list of objects, found {found}")
    for number, value in enumerate(values, start=1):
        place = f"{path}: object {number}"
        if not isinstance(value, dict):
            raise DataError(f"{place}: expected an object in braces, found {shown(value)}")
        yield place, value


def _of_fiftyone(path: Path, classes: object, labels: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the pictures of FiftyOne's ``labels.json``, whose labels are names, positions of classes, or objects."""
    if not isinstance(classes, list) or not isinstance(labels, dict):
        raise DataError(f"{path}: expected a list of classes and an object of labels, as FiftyOne writes them")
    for name, value in labels.items():
        place = f"{path}: {name}"
        found = []
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            label = one.get("label") if isinstance(one, dict) else one
            if type(label) is int and 0 <= label < len(classes):
                label = classes[label]
            if not isinstance(label, str):
                raise DataError(
                    f"{place}: expected a label's name, its position among {len(classes)} classes or an object with "
                    f"'label', found {shown(one)}"
                )
            found.append(label)
        yield place, {"file": name, "labels": list(dict.fromkeys(found))}  # Boxes of one label are one label.


def parse_json(place: str, text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        DataError: naming the place, if the text is not a JSON object, or repeats a key.

    Example:
        >>> parse_json("x.jsonl: line 1", '{"file": "a.jpg"}')
        {'file': 'a.jpg'}
    """
    fields = parse_json_value(place, text)
    if not isinstance(fields, dict):
        raise DataError(f"{place}: expected an object in braces, found {shown(fields)}")
    return fields


def parse_json_value(place: str, text: str) -> Any:
    """Parse JSON of any kind.

    Raises:
        DataError: naming the place, if the text is not JSON, or an object repeats a key.

    Example:
        >>> parse_json_value("x.csv: line 2", '["cat", "dog"]')
        ['cat', 'dog']
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise DataError(f"{place}: expected every key once, found {shown(repeated(key for key, _ in pairs))} twice")
        return fields

    try:
        return json.loads(text, object_pairs_hook=once)
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{place}: expected JSON, found far too many brackets within brackets") from None
    except ValueError as err:
        raise DataError(f"{place}: expected JSON, but {err}") from None


def require_columns(
    place: str,
    found: Iterable[str],
    columns: Iterable[str],
    options: Mapping[str, str] = NO_OPTIONS,
    hint: str = "",
    what: str = "column",
) -> list[str]:
    """Return the columns of a table, if the required ones are among them and none is repeated.

    Args:
        place: Position of their names, for messages.
        found: The columns of the table.
        columns: The required ones.
        options: The option that names a column, by the column; for messages.
        hint: Hint for messages in place of the one at ``options``.
        what: Kind of the columns, for messages.

    Raises:
        ColumnError: naming the columns that are missing, those that are there, and the options that name them.
        DataError: naming a column that is repeated.

    Example:
        >>> require_columns("line 1", ["path", "labels"], ["file", "labels"], {"file": "file_column"})
        Traceback (most recent call last):
            ...
        pvlr.data.readers.lines.ColumnError: line 1: expected the column 'file', found 'path', 'labels'; say which it
        is with file_column
    """
    names = list(found)
    there = set(names)
    if missing := [column for column in dict.fromkeys(columns) if column not in there]:
        one = len(missing) == 1
        expected = " and ".join(map(shown, missing)) if len(missing) < 3 else shown_keys(missing)
        known = [options[column] for column in missing if column in options]
        if known and names and not hint:
            hint = f"; say which {'it is' if one else 'they are'} with {' and '.join(known)}"
        listed = shown_keys(names) if names or what == "key" else "an empty line"
        raise ColumnError(f"{place}: expected the {what}{'' if one else 's'} {expected}, found {listed}{hint}")
    if len(there) != len(names):
        raise DataError(f"{place}: expected every {what} once, found {shown(repeated(names))} twice")
    return names


def _called(delimiter: str) -> str:
    return "'tab'" if delimiter == "\t" else repr(delimiter)


def _other_delimiter(row: Sequence[str], delimiter: str) -> str:
    """The hint at a delimiter that the first line contains, where the given one is not in it."""
    for other in (";", "\t", ",", "|"):
        if len(row) == 1 and other != delimiter and other in row[0]:
            return f"; set delimiter to {_called(other)}"
    return ""
