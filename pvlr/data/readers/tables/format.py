"""Format of a table: the names of its columns, the meaning of its cells, and how its text is written."""

import codecs
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pvlr.core.arguments import require_choices
from pvlr.data.batch import DataError
from pvlr.data.readers.entries import shown
from pvlr.data.sources import ENDINGS

__all__ = ["MOST_CELLS", "Form", "Mark", "TableFormat", "looks_like_marks", "proposed_marks", "shown_cells"]

Form = Literal["list", "wide", "long"]
Mark = Literal["present", "absent", "unknown"]

MEANINGS: dict[str, Mark] = {
    **dict.fromkeys(("1", "1.0", "true", "t", "yes", "y", "x"), "present"),
    **dict.fromkeys(("0", "0.0", "false", "f", "no", "n"), "absent"),
    **dict.fromkeys(("", "-1", "-1.0", "nan", "na", "n/a", "null", "none", "u", "?"), "unknown"),
}
"""Usual meanings of cells, in lower case: what a refusal proposes, and no table is read by."""
MOST_CELLS = 10
NOT_TEXT = frozenset({"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape", "utf-7", "mbcs", "oem"})


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """Everything that says how a table is read; see `read_table` for the meaning of each field.

    Raises:
        DataError: naming the field whose value does not fit.

    Example:
        >>> TableFormat(separator=" ", delimiter="tab").delimiter
        '\\t'
    """

    form: Form | None = None
    file_column: str = "file"
    label_column: str = "labels"
    split_column: str = "split"
    value_column: str | None = None
    label_columns: Literal["others"] | None = None
    ignore_columns: tuple[str, ...] = ()
    marks: Mapping[str, Mark] | None = None
    unnamed: Literal["absent", "unknown"] | None = None
    repeated: Literal["refuse", "union"] = "refuse"
    separator: str = ";"
    cells: Literal["text", "json", "python"] = "text"
    delimiter: str | None = None
    encoding: str = "utf-8"
    sheet: str | None = None
    suffix: str = ""
    strip_prefix: str | None = None

    def __post_init__(self) -> None:
        try:
            require_choices(self)
        except ValueError as err:
            raise DataError(str(err)) from None
        self._require_texts()
        if self.marks is not None:
            object.__setattr__(self, "marks", _marks(self.marks))
        object.__setattr__(self, "ignore_columns", tuple(self.ignore_columns))
        wide = self.form == "wide" or (self.form is None and (self.marks is not None or self.label_columns is not None))
        if self.form is None:
            object.__setattr__(self, "form", "wide" if wide else "list")
        for name, idle, only in (
            ("label_columns", None, "wide"),
            ("ignore_columns", (), "wide"),
            ("value_column", None, "long"),
        ):
            if getattr(self, name) != idle and self.form != only:
                raise DataError(f"{name}: expected form {only!r}, to which it belongs, got {self.form!r}")
        if self.form == "list" and self.marks is not None:
            raise DataError("marks: expected form 'wide' or 'long', to which they belong, got 'list'")
        if self.form == "wide" and self.unnamed is not None:
            raise DataError("unnamed: expected form 'list' or 'long', since a wide table has a cell for every label")
        if self.form == "long" and self.marks is not None and not self.value_column:
            raise DataError("marks: expected value_column, the column of their cells, got none")

    def _require_texts(self) -> None:
        if not self.separator or (self.separator.strip() and self.separator != self.separator.strip()):
            raise DataError(f"separator: expected a text without white space around it, got {self.separator!r}")
        tabs = {"tab": "\t", "\\t": "\t"}
        delimiter = tabs.get(self.delimiter or "", self.delimiter)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
            raise DataError(f"delimiter: expected one character, or 'tab', got {delimiter!r}")
        object.__setattr__(self, "delimiter", delimiter)
        _require_encoding(self.encoding)
        if self.suffix and (not self.suffix.lower().endswith(ENDINGS) or "/" in self.suffix or "\\" in self.suffix):
            raise DataError(f"suffix: expected an ending of pictures, such as '.jpg', got {self.suffix!r}")

    def options(self) -> dict[str, Any]:
        """Return the fields by name, as keyword arguments of `read_table`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _require_encoding(name: str) -> None:
    try:
        found = codecs.lookup(name)
        text = bool(getattr(found, "_is_text_encoding", False)) and found.name not in NOT_TEXT
    except (LookupError, ValueError):
        text = False
    if not text:
        raise DataError(f"encoding: expected one of Python's names, such as 'cp1252' or 'utf-16', got {name!r}")


def _marks(given: Mapping[str, Mark]) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}
    for cell, mark in given.items():
        key: object = cell
        if isinstance(key, bool) or not isinstance(key, str | int | float):
            raise DataError(f"marks: expected a cell as a text in quotes, got {key!r}")
        if isinstance(key, float) and math.isnan(key):
            key = "nan"  # A cell is a text; YAML reads 1.0 as a number.
        if mark not in ("present", "absent", "unknown"):
            raise DataError(f"marks: expected 'present', 'absent' or 'unknown' for {cell!r}, got {mark!r}")
        marks[str(key)] = mark
    if "present" not in marks.values():
        raise DataError("marks: expected one that means 'present', got none")
    return marks


def looks_like_marks(cells: Iterable[str]) -> bool:
    """Whether all cells are among those that usually mark labels, at least one of them as present or absent.

    Example:
        >>> looks_like_marks(["1", "", "-1.0"]), looks_like_marks(["1", "17"]), looks_like_marks([""])
        (True, False, False)
    """
    found = [MEANINGS.get(cell.lower()) for cell in cells]
    return None not in found and any(mark != "unknown" for mark in found)


def proposed_marks(cells: Iterable[str], marks: Mapping[str, Mark] | None = None) -> dict[str, Mark]:
    """Return marks that cover all cells: the given ones, else the usual meaning, else unknown.

    Example:
        >>> proposed_marks(["0", "1.0", "-1"], {"0": "unknown"})
        {'1.0': 'present', '-1': 'unknown', '0': 'unknown'}
    """
    missing = [cell for cell in cells if cell not in (marks or {})]
    order = ("present", "absent", "unknown")
    found = {cell: MEANINGS.get(cell.lower(), "unknown") for cell in sorted(missing)}
    return {**dict(sorted(found.items(), key=lambda item: order.index(item[1]))), **(marks or {})}


def shown_cells(cells: Iterable[str]) -> str:
    """Return up to ten of the distinct cells, sorted, for a message.

    Example:
        >>> shown_cells(["1", "0", "1"]), shown_cells(map(str, range(12)))[-14:]
        ("'0', '1'", "'7' and 2 more")
    """
    distinct = sorted(set(cells))
    more = f" and {len(distinct) - MOST_CELLS:,} more" if len(distinct) > MOST_CELLS else ""
    return ", ".join(map(shown, distinct[:MOST_CELLS])) + more
