"""Annotations of Pascal VOC: the labels of a picture, from its XML file."""

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from pvlr.data.batch import DataError
from pvlr.data.readers.entries import read_text, require_name, shown

__all__ = ["DIFFICULT", "MAX_XML_BYTES", "PRESENT", "Annotation", "parse_annotation", "read_annotation"]

MAX_XML_BYTES = 1_000_000
"""Largest annotation."""

PRESENT, DIFFICULT = 1, 0

MARKS = {
    "": PRESENT, "0": PRESENT, "false": PRESENT, "no": PRESENT, "unspecified": PRESENT,
    "1": DIFFICULT, "true": DIFFICULT, "yes": DIFFICULT,
}  # fmt: skip
"""States of an object by the text of ``<difficult>`` in lower case; what is not specified is not difficult."""


class Annotation(NamedTuple):
    """Labels in an annotation, and the name of its picture.

    Attributes:
        states: By label, `PRESENT` if any object is not difficult, `DIFFICULT` if all are.
        filename: The text of ``<filename>``, unchecked; empty if there is none.
    """

    states: dict[str, int]
    filename: str


def read_annotation(path: Path) -> dict[str, int]:
    """Return the labels in an annotation file: 1 if any object is not difficult, 0 if all are; see `parse_annotation`.

    Raises:
        DataError: naming the file and its defect.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "1.xml")
        ...     _ = path.write_text("<annotation><object><name>cat</name></object></annotation>")
        ...     read_annotation(path)
        {'cat': 1}
    """
    return parse_annotation(path).states


def parse_annotation(path: Path) -> Annotation:
    """Read an annotation file.

    Files with a document type or entities are refused: they can make a parser read other files or fill the memory.
    Boxes are checked if given, and then discarded. ``<difficult>`` is 0 or 1, or one of the words that tools write:
    true or false, yes or no, Unspecified (which is read as 0, as is its absence). Other elements are ignored.

    Raises:
        DataError: naming the file and its defect.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "1.xml")
        ...     item = "<object><name>cat</name><difficult>True</difficult></object>"
        ...     _ = path.write_text(f"<annotation><filename>1.png</filename>{item}</annotation>")
        ...     parse_annotation(path)
        Annotation(states={'cat': 0}, filename='1.png')
    """
    text = read_text(path, "an annotation", MAX_XML_BYTES)
    for forbidden in ("<!DOCTYPE", "<!ENTITY"):
        if forbidden in text:
            raise DataError(f"{path}: expected an annotation without document type and entities, found {forbidden}")
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as err:
        raise DataError(f"{path}: expected well-formed XML, but {err}") from None
    if tree.tag != "annotation":
        raise DataError(f"{path}: expected the element <annotation>, found {shown(tree.tag)}")
    states: dict[str, int] = {}
    size = _only(str(path), tree, "size")
    for item in tree.iterfind("object"):
        name = _text(str(path), item, "name")
        mark = _text(str(path), item, "difficult")
        if not name:
            raise DataError(f"{path}: expected every <object> to have a <name>, found one without")
        require_name(str(path), "a label", name)
        if mark.lower() not in MARKS:
            raise DataError(
                f"{path}: expected <difficult> of {name!r} to be 0 or 1, true or false, yes or no, or Unspecified, "
                f"found {shown(mark)}"
            )
        for box in item.iterfind("bndbox"):
            _require_box(f"{path}: {name!r}", box, size)
        states[name] = max(states.get(name, DIFFICULT), MARKS[mark.lower()])
    return Annotation(states, (tree.findtext("filename") or "").strip())


def _require_box(place: str, box: ElementTree.Element, size: ElementTree.Element | None) -> None:
    for low, high, side in (("xmin", "xmax", "width"), ("ymin", "ymax", "height")):
        first, last = _number(place, box, low), _number(place, box, high)
        if not 0 <= first <= last:
            raise DataError(f"{place}: expected 0 <= <{low}> <= <{high}>, found {first:g} and {last:g}")
        end = 0.0 if size is None else _number(place, size, side)
        if 0 < end < first:  # A size of 0 means unknown.
            raise DataError(f"{place}: expected <{low}> within the picture's <{side}> of {end:g}, found {first:g}")


def _number(place: str, item: ElementTree.Element, key: str) -> float:
    text = _text(place, item, key)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{place}: expected <{key}> to be a finite number, found {shown(text)}")
    return number


def _only(place: str, item: ElementTree.Element, key: str) -> ElementTree.Element | None:
    found = item.findall(key)
    if len(found) > 1:  # One would be read, and the others ignored.
        raise DataError(f"{place}: expected <{key}> once in <{item.tag}>, found it {len(found):,} times")
    return found[0] if found else None


def _text(place: str, item: ElementTree.Element, key: str) -> str:
    found = _only(place, item, key)
    return "" if found is None else (found.text or "").strip()
