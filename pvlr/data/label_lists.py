"""Labels from a command-line argument: a bundled list, a file, or the names themselves."""

from importlib.resources import files
from pathlib import Path

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers.entries import read_text
from pvlr.data.readers.voc import VOC_LABELS

__all__ = ["LISTS", "labels_of", "require_apart"]

LISTS = ("voc", "coco", "imagenet")
"""Bundled lists: Pascal VOC's 20, MS-COCO's 80 and ImageNet-1k's 1,000 names."""
MOST_BYTES = 10_000_000


def labels_of(text: str) -> LabelSet:
    """Return the labels that a text names.

    Args:
        text: One of :data:`LISTS`; ``@FILE``, a file of one label per line, whose names may have commas; or names
            separated by commas.

    Raises:
        DataError: naming the file that cannot be read, or its line that is not a label.
        LabelError: if a name is not a valid label, or is repeated.

    Example:
        >>> labels_of("cat, traffic light").names, len(labels_of("coco"))
        (('cat', 'traffic light'), 80)
    """
    if text == "voc":
        return VOC_LABELS
    if text in LISTS:
        listed = (files("pvlr") / "assets" / "labels" / f"{text}.txt").read_text(encoding="utf-8")
        return LabelSet(tuple(listed.splitlines()))
    if text.startswith("@"):
        return _from_file(Path(text[1:]))
    if Path(text).suffix.lower() in (".txt", ".csv") and Path(text).is_file():
        raise LabelError(f"labels: expected names with commas between, got the file {text!r}; @{text} reads its lines")
    names = _pieces(text)
    if '"' in text:
        raise LabelError(
            f"labels: expected names without quotes, got {text!r}; names that hold commas are read from @FILE, one a "
            "line"
        )
    if not all(names):
        raise LabelError(
            f"labels: expected names with commas between, @FILE with one a line, or one of {', '.join(LISTS)}, "
            f"got {text!r}"
        )
    try:
        return LabelSet(names)
    except LabelError as err:
        raise LabelError(f"labels: {str(err).removeprefix('names: ')}") from None


def require_apart(text: str, known: LabelSet) -> None:
    """Check that no known label that holds a comma was taken apart by :func:`labels_of`.

    Args:
        text: The text, as for :func:`labels_of`.
        known: Labels of the model that it is meant for.

    Raises:
        LabelError: naming the label.

    Example:
        >>> require_apart("cat, salt", LabelSet(("salt, pepper",)))
        >>> require_apart("cat, salt, pepper", LabelSet(("salt, pepper",)))
        Traceback (most recent call last):
            ...
        pvlr.core.labels.LabelError: labels: expected names with commas between, found 'salt, pepper', which is one
        label of the model; names that hold commas are read from @FILE, one a line
    """
    if text.startswith("@") or text in LISTS:
        return
    pieces = _pieces(text)
    for name in known:
        parts = _pieces(name)
        if len(parts) > 1 and any(parts == pieces[start : start + len(parts)] for start in range(len(pieces))):
            raise LabelError(
                f"labels: expected names with commas between, found {name!r}, which is one label of the model; names "
                "that hold commas are read from @FILE, one a line"
            )


def _pieces(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _from_file(path: Path) -> LabelSet:
    places: dict[str, int] = {}
    lines = read_text(path, "a file of labels, one a line", MOST_BYTES).splitlines()
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if name in places:
            raise DataError(f"{path}: line {number}: expected each label once, {name!r} is in line {places[name]} too")
        places[name] = number
    if not places:
        raise DataError(f"{path}: expected one label a line, found none")
    try:
        return LabelSet(tuple(places))
    except LabelError as err:
        raise DataError(f"{path}: {str(err).removeprefix('names: ')}") from None
