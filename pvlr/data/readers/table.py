"""Reader of tables: a folder of pictures, and a file of their labels: CSV, Excel's or JSON."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import Entry, assemble, collect_labels, require_files
from pvlr.data.readers.lines import ColumnError
from pvlr.data.readers.tables.format import Form, Mark, TableFormat
from pvlr.data.readers.tables.marked import long_rows, one_hot_hint, require_all_pairs, wide_rows
from pvlr.data.readers.tables.names import Finder, picture_path
from pvlr.data.readers.tables.records import Row, label_list, require_kind, split_of, table_records, united

__all__ = ["Mark", "NoSplitError", "read_table"]


class NoSplitError(DataError):
    """Error of a split that is requested from data without splits."""


def read_table(
    images: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    split: str | None = None,
    name: str | None = None,
    labels: LabelSet | None = None,
    form: Form | None = None,
    file_column: str = "file",
    label_column: str = "labels",
    split_column: str = "split",
    value_column: str | None = None,
    label_columns: Literal["others"] | None = None,
    ignore_columns: tuple[str, ...] = (),
    marks: Mapping[str, Mark] | None = None,
    unnamed: Literal["absent", "unknown"] | None = None,
    repeated: Literal["refuse", "union"] = "refuse",
    separator: str = ";",
    cells: Literal["text", "json", "python"] = "text",
    delimiter: str | None = None,
    encoding: str = "utf-8",
    sheet: str | None = None,
    suffix: str = "",
    strip_prefix: str | None = None,
    check_files: bool = True,
    leave_missing: bool = False,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read a table of pictures and their labels, in one of three forms.

    A **list** has a row per picture, with the columns ``file`` and ``labels``, and, if any labels are unknown,
    ``unknown``::

        file,labels,unknown,split
        a/1.jpg,cat;dog,,train
        a/2.jpg,,cow,test

    **JSON lines** have the same fields in one object per line, and a ``.json`` file has a list of such objects;
    ``unknown`` and ``split`` may be left out::

        {"file": "a/1.jpg", "labels": ["cat", "dog"], "split": "train"}

    A **wide** table has a column per label. ``marks`` gives the meaning of its cells: there is no default, since
    ``0`` and ``-1`` differ between tables. With ``{"1": "present", "0": "absent", "": "unknown"}``::

        file,cat,cow,dog
        a/1.jpg,1,0,1
        a/2.jpg,0,,0

    A **long** table has a row per picture and label, and in ``value_column`` a cell of ``marks``::

        file,labels,value
        a/1.jpg,cat,1
        a/1.jpg,cow,0

    Labels that a row does not name are absent, see ``unnamed``. Every row is checked, those of other splits too.
    Further columns are ignored.

    A name that is not found is searched in another Unicode form and with an ending in another case; if one file fits,
    it is taken, and the summary counts these files.

    Args:
        images: The folder to which each ``file`` is appended.
        table: A file whose name ends in ``.csv``, ``.tsv``, ``.xlsx`` (with the extra ``xlsx``), ``.jsonl`` or
            ``.json``.
        split: Read the rows with this value in the column ``split``; None: all rows, and the summary lists the splits.
        name: Name of the data set; None: that of the table without its extension, and the split.
        labels: The columns of the target; None: those in the table, in any split, sorted. For a wide table, the names
            of its columns.
        form: ``list``, ``wide`` or ``long``; None: ``wide`` with ``marks`` or ``label_columns``, else ``list``.
        file_column: Name of the column of files.
        label_column: Name of the column of labels.
        split_column: Name of the column of splits.
        value_column: Name of the column that says, by ``marks``, whether the label of a row of a long table is present;
            empty: every row says that it is.
        label_columns: ``others``: all columns of a wide table are labels, except those of files and splits, those
            without a name and ``ignore_columns``. None: ``labels`` names them.
        ignore_columns: Columns of a wide table that are no labels.
        marks: Meaning of each cell of a wide table, or of ``value_column``.
        unnamed: State of the labels that a picture's rows do not name: ``absent`` or ``unknown``. None: ``absent``, but
            refused for a long table with a ``value_column`` that lacks rows.
        repeated: Treatment of several rows for a picture: ``refuse``, or ``union`` (a label is present if any row says
            so). In a long table, of rows that contradict each other.
        separator: Separator of the labels in a cell; several spaces are one.
        cells: ``text`` (labels between separators), ``json`` (a list, or an object with the list ``choices``; a plain
            text is one label) or ``python`` (a list of texts as pandas writes it).
        delimiter: Separator of the columns, ``tab`` for tabs; None: a comma, in ``.tsv`` a tab.
        encoding: Encoding of the file, by its name in Python.
        sheet: Name of the sheet of a workbook; None: the only one.
        suffix: Ending that is appended to the names that do not end as a picture does, such as ``.jpg``.
        strip_prefix: Beginning that is removed from every name: a folder, a drive or an address. Backslashes become
            slashes, also if it is empty. None: names are relative to ``images``.
        check_files: Check that every picture of the split exists. Otherwise a missing one is found when its sample is
            read, under no other spelling; for statistics of labels, and for slow disks.
        leave_missing: Leave pictures that are missing, and that no option would find, until they are read;
            :func:`~pvlr.data.scan.without_bad_images` tells and drops them. Otherwise an error counts them.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the table, named by their ``file``.

    Raises:
        DataError: naming the table, the line, the defect and the option that helps: a missing column, an empty row, a
            repeated picture or label, a label that is not among those given (with the nearest that is), a path that
            leaves the folder, bytes of another encoding. Or the picture that is missing.

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
    path, root = Path(table), Path(images)
    format = TableFormat(
        form=form, file_column=file_column, label_column=label_column, split_column=split_column,
        value_column=value_column, label_columns=label_columns, ignore_columns=ignore_columns, marks=marks,
        unnamed=unnamed, repeated=repeated, separator=separator, cells=cells, delimiter=delimiter, encoding=encoding,
        sheet=sheet, suffix=suffix, strip_prefix=strip_prefix,
    )  # fmt: skip
    require_kind(path, format)
    if format.form == "wide":
        labels, rows = wide_rows(path, root, format, labels)
    else:
        rows = long_rows(path, root, format) if format.form == "long" else _list_rows(path, root, format, labels)
    entries: list[Entry] = []
    parts: list[str | None] = []
    for part, entry in united(rows, format):
        if part is None and split is not None:
            raise NoSplitError(f"{entry.place}: expected {split_column!r} to say the split, found none")
        entries.append(entry)
        parts.append(part)
    if not entries:
        raise DataError(f"{path}: expected at least one row, found none")
    labels = collect_labels(str(path), entries) if labels is None else labels
    if format.form == "long" and value_column and unnamed is None:
        require_all_pairs(path, entries, labels)
    data = assemble(path.stem, entries, labels, unnamed=unnamed or "absent")
    found = sorted({part for part in parts if part is not None})
    if split is None:
        data.note = f"of all splits: {', '.join(found)}" if found else ""
    else:
        if split not in found:
            raise DataError(f"{path}: expected rows of the split {split!r}, found those of {', '.join(found)}")
        chosen = [row for row, part in enumerate(parts) if part == split]
        entries, data = [entries[row] for row in chosen], data.select(chosen)
    if check_files:
        _check_files(data, Finder(root, format, entries, leave=leave_missing))
    data.name = name or (path.stem if split is None else f"{path.stem} {split}")
    return data.with_transform(transform)


def _check_files(data: LabelledImages, finder: Finder) -> None:
    """Check that every picture exists, and take the files that were found in another spelling."""
    data.paths = tuple(require_files(finder.rows, finder.root, find=finder))
    if note := finder.note():
        data.note = ", ".join(part for part in (data.note, note) if part)
        places: dict[object, str] = {}
        for source, entry in zip(data.paths, finder.rows, strict=True):
            if source in places:
                raise DataError(
                    f"{entry.place}: expected every picture once, found {source} again, after {places[source]}"
                )
            places[source] = entry.place


def _list_rows(path: Path, images: Path, format: TableFormat, labels: LabelSet | None) -> Iterator[Row]:
    options = {format.file_column: "file_column", format.label_column: "label_column"}
    text = require_kind(path, format) != "objects"
    count = None if labels is None else len(labels)
    try:
        for record in table_records(path, format, tuple(options), options):
            present, unknown = (
                label_list(record, column, format, text=text, count=count)
                for column in (format.label_column, "unknown")
            )
            name, source = picture_path(images, record.fields[format.file_column], record.place, format)
            yield Row(split_of(record, format.split_column), Entry(record.place, name, source, present, unknown))
    except ColumnError as err:
        raise DataError(f"{err}{one_hot_hint(path, format)}") from None
