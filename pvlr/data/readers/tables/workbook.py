"""Sheets of Excel's workbooks (``.xlsx``), read as rows of texts with their numbers."""

import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from pvlr.data.batch import DataError, refusal
from pvlr.data.readers.entries import kind_at, require_no_other, shown_keys
from pvlr.data.readers.lines import MAX_TABLE_BYTES, NO_OPTIONS, Record, require_columns

__all__ = ["sheet_records"]

MOST_ROWS = 1_048_576
"""Rows of a sheet; a file may claim more."""


def sheet_records(
    path: Path, columns: Sequence[str], *, options: Mapping[str, str] = NO_OPTIONS, sheet: str | None = None
) -> Iterator[Record]:
    """Yield the rows of a sheet whose first row names the columns, every cell as a text.

    Args:
        path: Path of the workbook, at most `MAX_TABLE_BYTES`, packed and unpacked.
        columns: The required columns, in any order; the sheet may have others.
        options: The option that names a column, by the column; for messages.
        sheet: Name of the sheet; None: the only one.

    Raises:
        DataError: naming the file and row, if a column is missing or repeated or a row is empty; the sheets, if there
            are several and none is chosen; the extra, if ``openpyxl`` is not installed. Empty rows at the end are
            ignored.
    """
    header: list[str] = []
    empty = ""
    for number, cells in enumerate(_cells(path, sheet), start=1):
        place = f"{path}: row {number}"
        if number > MOST_ROWS:
            raise DataError(f"{place}: expected at most {MOST_ROWS:,} rows, found more")
        texts = [_text(cell) for cell in cells]
        while texts and not texts[-1]:
            texts.pop()
        if not header:
            header = require_columns(place, texts, columns, options)
        elif not texts:
            empty = empty or place
        elif empty:
            raise DataError(f"{empty}: expected a row, found an empty one")
        elif len(texts) > len(header):
            raise DataError(f"{place}: expected {len(header)} values, one per column, found {len(texts)}")
        else:
            texts += [""] * (len(header) - len(texts))
            yield Record(place, dict(zip(header, texts, strict=True)))
    if not header:
        raise DataError(f"{path}: expected a table, found an empty sheet")


def _cells(path: Path, sheet: str | None) -> Iterator[Sequence[Any]]:
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: expected the package openpyxl to read it, found none; pip install 'pvlr[xlsx]'"
        ) from None
    require_no_other(path, "a table")
    if kind_at(path, "a table") == "a file":
        _require_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of styles and checks of input that it cannot read, and nobody needs.
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                found = _sheet(path, book, sheet)
                found.reset_dimensions()  # The file may claim any, and rows would be filled up to them.
                yield from found.iter_rows(values_only=True)
            finally:
                book.close()
    except DataError:
        raise
    except OSError as err:
        raise refusal(err)(f"{path}: expected a table, but {err.strerror or err}") from None
    except Exception as err:
        # The package raises whatever its parsers raise.
        reason = " ".join(str(err).split()) or type(err).__name__
        raise refusal(err)(f"{path}: expected a workbook of Excel, but {reason[:200]}") from None


def _sheet(path: Path, book: Any, sheet: str | None) -> Any:
    names = [found.title for found in book.worksheets]
    if sheet is None and len(names) != 1:
        raise DataError(f"{path}: expected one sheet, found {shown_keys(names)}; choose one with sheet")
    if sheet is not None and sheet not in names:
        raise DataError(f"{path}: expected the sheet {sheet!r}, found {shown_keys(names)}")
    return book.worksheets[0 if sheet is None else names.index(sheet)]


def _require_size(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            size = max(path.stat().st_size, sum(part.file_size for part in archive.infolist()))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as err:
        raise DataError(f"{path}: expected a workbook of Excel, but {err}") from None
    except OSError as err:
        raise refusal(err)(f"{path}: expected a table, but {err.strerror or err}") from None
    if size > MAX_TABLE_BYTES:
        raise DataError(f"{path}: expected a table of at most {MAX_TABLE_BYTES:,} bytes, found more")


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return cell.isoformat() if isinstance(cell, date | datetime | time) else str(cell)
