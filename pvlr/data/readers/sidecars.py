"""Reader of pictures with a text file of labels beside each."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import Entry, assemble, collect_labels, inside, read_text, require_files
from pvlr.data.readers.folders import files_below
from pvlr.data.readers.lines import Record
from pvlr.data.readers.tables.format import TableFormat
from pvlr.data.readers.tables.records import label_list
from pvlr.data.sources import ENDINGS, is_picture

__all__ = ["read_sidecars"]

MAX_SIDECAR_BYTES = 1_000_000
"""Largest file of a picture's labels that is read."""


def read_sidecars(
    root: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: LabelSet | None = None,
    separator: str = ";",
    encoding: str = "utf-8",
    transform: Transform | None = None,
) -> LabelledImages:
    """Read pictures with a text file beside each, which holds their labels: one a line, or several with separators.

    The labels of ``a/1.jpg`` are in ``a/1.txt`` or ``a/1.jpg.txt``; those that are not named are absent, and an empty
    file says that all are. Files and folders whose names begin with a dot are left out; anything else that is neither a
    picture nor its text is refused.

    Args:
        root: The folder of pictures, which may have subfolders; one such folder per split.
        name: Name of the data set; None: that of the folder.
        labels: The columns of the target; None: those in the files, sorted.
        separator: Separator of the labels in a line; white space around labels is removed.
        encoding: Encoding of the files, by its name in Python.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures, sorted and named by their path in the folder.

    Raises:
        DataError: naming the file that is missing, unexpected or malformed, or whose labels seem to have another
            separator.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number, text in ((1, "cat, dog"), (2, "dog")):
        ...         Path(folder, f"{number}.jpg").touch()
        ...         _ = Path(folder, f"{number}.txt").write_text(text)
        ...     data = read_sidecars(folder, separator=",")
        >>> data.labels.names, data.identifiers, data.target.tolist()
        (('cat', 'dog'), ('1.jpg', '2.jpg'), [[1.0, 1.0], [0.0, 1.0]])
    """
    root, format = Path(root), TableFormat(separator=separator, encoding=encoding)
    pictures, texts = [], {}
    for file in files_below(root):
        if is_picture(root / file):
            pictures.append(file)
        elif file.lower().endswith(".txt"):
            texts[file[: -len(".txt")]] = file
        else:
            raise DataError(
                f"{root / file}: expected a picture ({', '.join(ENDINGS)}) or its .txt, found something else"
            )
    beside = _beside(root, pictures, texts)
    entries = []
    for picture in sorted(pictures):
        path = root / beside[picture]
        identifier, source = inside(root, picture, str(root))
        entries.append(Entry(str(path), identifier, source, _labels_in(path, format)))
    # The texts lie in the folder, too: a link among them may not lead out of it.
    require_files([entry._replace(source=Path(entry.place)) for entry in entries], root, "the labels")
    require_files(entries, root)
    if labels is None:
        _require_separator(entries, separator)
        labels = collect_labels(str(root), entries)
    return assemble(name or root.resolve().name, entries, labels, transform=transform)


def _beside(root: Path, pictures: Iterable[str], texts: Mapping[str, str]) -> dict[str, str]:
    """The text of each picture; no text has two pictures or none."""
    taken: dict[str, str] = {}
    found: dict[str, str] = {}
    for picture in pictures:
        stem = picture[: picture.rfind(".")]
        keys = [key for key in (stem, picture) if key in texts]
        if len(keys) != 1:
            what = "no such file (an empty one says that no label is present)" if not keys else f"also {picture}.txt"
            raise DataError(f"{root / stem}.txt: expected the labels of {root / picture}, found {what}")
        if keys[0] in taken:
            raise DataError(f"{root / texts[keys[0]]}: expected one picture, found {taken[keys[0]]} and {picture}")
        taken[keys[0]], found[picture] = picture, texts[keys[0]]
    for key, text in texts.items():
        if key not in taken:
            raise DataError(f"{root / text}: expected a picture beside it, found none")
    return found


def _labels_in(path: Path, format: TableFormat) -> list[str | int]:
    labels: list[str | int] = []
    text = read_text(path, "labels", MAX_SIDECAR_BYTES, format.encoding)
    for number, line in enumerate(text.splitlines(), start=1):
        labels += label_list(Record(f"{path}: line {number}", {"labels": line}), "labels", format)
    return labels


def _require_separator(entries: Iterable[Entry], separator: str) -> None:
    """Refuse lines with commas, where no file has the separator or a second line."""
    commas = None
    for entry in entries:
        if len(entry.present) > 1:
            return
        if commas is None and any("," in str(label) for label in entry.present):
            commas = entry
    if commas is not None and separator != ",":
        raise DataError(
            f"{commas.place}: expected a label a line or {separator!r} between labels, found {commas.present[0]!r}; "
            "set separator to ',', or name the labels if commas belong to them"
        )
