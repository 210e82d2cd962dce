"""Layout of Pascal VOC and of exports like it: folders, lists of pictures, labels and the files of pictures."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers.entries import NOTHING, kind_at, read_text, require_name, shown, shown_keys
from pvlr.data.readers.exports import Unused, folder_holding, inside_any, require_rules
from pvlr.data.readers.lines import parse_json
from pvlr.data.readers.voc_annotation import MAX_XML_BYTES
from pvlr.data.sources import ENDINGS

__all__ = ["Pictures", "VOCRules", "all_annotations", "candidate", "find_folder", "read_list", "read_own_labels"]

MAX_LIST_BYTES = 100_000_000
MARKED = re.compile(r"(.*\S)[ \t]+(?:-1|0|1)")
"""A line of a class's list: a picture and its mark."""
YEAR = re.compile(r"VOC([0-9]{4})")


@dataclass(frozen=True, kw_only=True)
class VOCRules:
    """Folders and rules of data sets that are laid out like Pascal VOC, with the differences of labelling tools.

    Args:
        picture_folder: Folder of the pictures, in that of the data set; ``.`` is itself.
        annotation_folder: Folder of the annotations.
        list_folder: Folder of the lists of pictures, one per split.
        find_labels: Take all names in the annotations as labels, sorted, if none are given.
        unused: Treatment of labels of the files without an object in the split: ``keep``, ``drop`` or ``refuse``.

    Raises:
        DataError: naming a rule that is none of its choices.

    Example:
        >>> VOCRules(picture_folder="images", unused="drop").annotation_folder
        'Annotations'
    """

    picture_folder: str = "JPEGImages"
    annotation_folder: str = "Annotations"
    list_folder: str = "ImageSets/Main"
    find_labels: bool = False
    unused: Unused = "keep"

    def __post_init__(self) -> None:
        require_rules(self)


def candidate(root: Path, year: str, rules: VOCRules) -> Path | None:
    """Return the folder of the data set: ``VOC<year>`` in ``root`` or its ``VOCdevkit``, or one without a year.

    Args:
        root: The folder to look in.
        year: Year in the folder's name, if it has one.
        rules: Names of the folders by which one without a year is told.

    Returns:
        The folder; None if there is none.

    Raises:
        DataError: naming a folder of another year.
    """
    name = f"VOC{year}"
    places = [root / "VOCdevkit" / name, root / name]
    if root.name == name:
        places.append(root)
    for place in places:
        if kind_at(place, f"a folder {name}") == "a folder":
            return place
    parts = (rules.annotation_folder, rules.picture_folder)
    for place in (root / "VOCdevkit", root):
        if all(kind_at(place / part, f"the folder {part}") == "a folder" for part in parts):
            other = YEAR.fullmatch(place.name)
            if other is not None:
                raise DataError(
                    f"{place}: expected the folder {name}, found that of {other[1]}; set year to {other[1]!r}"
                )
            return place
    return None


def find_folder(root: Path, year: str, rules: VOCRules, *, listed: bool) -> Path:
    """Return the folder of the data set, in which those of its parts exist.

    Args:
        root: The folder that holds ``VOCdevkit`` or ``VOC<year>``, or is the data set's.
        year: Year in the folder's name, if it has one.
        rules: Names of the parts.
        listed: Whether lists of pictures are needed.

    Raises:
        DataError: naming the folder that is missing, and the option for its name.
    """
    folder = candidate(root, year, rules)
    options = {rules.annotation_folder: "annotation_folder", rules.picture_folder: "picture_folder"}
    if folder is None:
        own = f"VOCdevkit/VOC{year}, or the folders {rules.annotation_folder} and {rules.picture_folder}"
        raise DataError(f"{root}: expected a folder that holds {own}, found none{_elsewhere(root, rules)}")
    for part, option in options.items():
        if kind_at(folder / part, f"the folder {part}") != "a folder":
            raise DataError(f"{folder}: expected the folder {part} in it, found none; set {option} to its name")
    if listed and kind_at(folder / rules.list_folder, f"the folder {rules.list_folder}") != "a folder":
        raise DataError(
            f"{folder}: expected the folder {rules.list_folder} in it, found none; set list_folder to null for all "
            f"annotations, and test_share to 0.2 to set a fifth of them aside"
        )
    return folder


def _elsewhere(root: Path, rules: VOCRules) -> str:
    """Return the options that fit what is in a folder instead, for a message; empty if there are none."""
    for place in (root, root / "VOCdevkit"):
        try:
            years = [found[1] for entry in sorted(os.listdir(place)) if (found := YEAR.fullmatch(entry))]
        except OSError:
            years = []
        if years:
            return f"; set year to {years[0]!r}"
    boxes, pictures = folder_holding(root, (".xml",)), folder_holding(root, ENDINGS)
    if boxes is None or pictures is None or (boxes, pictures) == (rules.annotation_folder, rules.picture_folder):
        return ""
    return (
        f"; there are XML files in {boxes!r} and pictures in {pictures!r}: "
        f"set annotation_folder to {boxes!r} and picture_folder to {pictures!r}"
    )


def read_list(folder: Path, split: str, rules: VOCRules) -> tuple[str, ...]:
    r"""Read the list of a split: a picture a line, without its ending, perhaps with a mark (-1, 0 or 1) after it.

    Pictures may lie in folders (``/`` or ``\`` between them), and names may have spaces: ``Screenshot 1`` is the
    picture ``Screenshot`` with a mark, or one whose name ends in ``1``, whichever has an annotation.

    Args:
        folder: Folder of the data set.
        split: Name of the list without its ending.
        rules: Names of the folders of lists and annotations.

    Raises:
        DataError: naming the line, if there is no such picture, or there are both.
    """
    path = folder / rules.list_folder / f"{split}.txt"
    if kind_at(path, f"the list of the split {split!r}") == NOTHING:
        # Lists per class are named <class>_<split>; the others are the splits.
        stems = sorted(p.stem for p in path.parent.glob("*.txt"))
        there = [stem for stem in stems if "_" not in stem] or stems
        found = ", ".join(there)[:300] or "no lists"
        raise DataError(f"{path}: expected the list of the split {split!r}, found {found}{_way(there)}")
    text = read_text(path, "a list of pictures", MAX_LIST_BYTES)
    annotations = folder / rules.annotation_folder
    seen: dict[str, None] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        identifier = inside_any(annotations, _named(annotations, line.strip(), place), place, ".xml")[0]
        if identifier in seen:
            raise DataError(f"{place}: expected every picture once, found {identifier!r} twice")
        seen[identifier] = None
    if not seen:
        raise DataError(f"{path}: expected at least one picture, found an empty list")
    return tuple(seen)


def _way(there: list[str]) -> str:
    if not there:
        return "; set list_folder to null for all annotations"
    if len(there) == 1:
        return f"; set train_split to {there[0]!r} and test_share to 0.2, which sets a fifth of it aside"
    return "; set train_split and test_split to two of them"


def _named(annotations: Path, line: str, place: str) -> str:
    """Return the name in a line, with or without a mark after it."""
    if len(line.split()) == 1:
        return line
    marked = MARKED.fullmatch(line)
    if marked is not None and "\t" in line:  # No name has a tab.
        return marked[1].rstrip()
    names = [line] if marked is None else [line, marked[1]]
    there = []
    for name in names:
        require_name(place, "a picture", name)
        _, path = inside_any(annotations, name, place, ".xml")
        if kind_at(path.with_name(f"{path.name}.xml"), f"the annotation of {name!r}") == "a file":
            there.append(name)
    if len(there) == 1:
        return there[0]
    if there:
        raise DataError(
            f"{place}: expected a name, alone or with -1, 0 or 1, found {shown(line)} and annotations of both "
            f"{shown(names[0])} and {shown(names[1])}: rename one of them"
        )
    raise DataError(
        f"{place}: expected a name, alone or with -1, 0 or 1, found {shown(line)} and no annotation of "
        f"{' or '.join(map(shown, names))}"
    )


def all_annotations(annotations: Path) -> tuple[str, ...]:
    """Return the names of all annotations in a folder and those below it, sorted, with ``/`` and without ending.

    Raises:
        DataError: naming the folder, if there are none, or the file whose name is malformed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "day 1").mkdir()
        ...     Path(folder, "day 1", "a.xml").touch()
        ...     all_annotations(Path(folder))
        ('day 1/a',)
    """
    names = sorted(_walk(annotations))
    if not names:
        raise DataError(f"{annotations}: expected annotations, whose names end in .xml, found none")
    return tuple(inside_any(annotations, name, str(annotations), ".xml")[0] for name in names)


def _walk(folder: Path) -> Iterator[str]:
    def stop(err: OSError) -> None:
        raise DataError(f"{err.filename}: expected a folder of annotations, but {err.strerror or err}")

    for place, _, files in os.walk(folder, onerror=stop):
        below = Path(place).relative_to(folder)
        for file in files:
            if file.endswith(".xml"):
                yield (below / file.removesuffix(".xml")).as_posix()


def read_own_labels(folder: Path) -> tuple[LabelSet, str] | None:
    """Read the labels that lie with the data: ``labels.json`` of `LabelSet.to_json`, or CVAT's ``labelmap.txt``.

    Returns:
        The labels and the name of the file; None if there is neither.

    Raises:
        DataError: naming the file and its defect.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "labelmap.txt").write_text("background:0,0,0::\\ncat:1,2,3::\\n")
        ...     read_own_labels(Path(folder))
        (LabelSet(names=('background', 'cat')), 'labelmap.txt')
    """
    path = folder / "labels.json"
    if kind_at(path, "a label set") != NOTHING:
        try:
            return LabelSet.from_json(parse_json(str(path), read_text(path, "a label set", MAX_XML_BYTES))), path.name
        except LabelError as err:
            raise DataError(f"{path}: expected a label set, but {err}") from None
    path = folder / "labelmap.txt"
    if kind_at(path, "a label map") == NOTHING:
        return None
    names = []
    for number, line in enumerate(read_text(path, "a label map", MAX_XML_BYTES).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        place, parts = f"{path}: line {number}", line.strip().rsplit(":", 3)
        if len(parts) != 4:
            raise DataError(f"{place}: expected label:color:parts:actions, found {shown(line)}; set labels to a list")
        names.append(require_name(place, "a label", parts[0]))
    try:
        return LabelSet(tuple(names)), path.name
    except LabelError as err:
        raise DataError(f"{path}: {err}") from None


class Pictures:
    """Files of pictures by the names of their annotations, whatever their ending.

    Args:
        folder: Folder of the pictures.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "1.png").touch()
        ...     Pictures(Path(folder)).find("1", "").name
        '1.png'
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._taken: dict[Path, str] = {}

    def find(self, name: str, filename: str) -> Path:
        """Return the picture of that stem; of several, and if there is none, the one that the annotation names.

        Args:
            name: Name of the annotation, without ending.
            filename: The annotation's ``<filename>``, or an empty text.

        Returns:
            Path of the picture, which does not exist if none was found.

        Raises:
            DataError: naming the pictures, if there are several and the annotation names none of them, or one is that
                of another annotation too.
        """
        path = self.folder / name
        # Names may have dots: what follows the last one of `name` is not an ending.
        found = self._stems(path.parent).get(path.name, [])
        if len(found) == 1:
            return self._own(path.with_name(found[0]), name)
        if found:
            last = re.split(r"[/\\]", filename)[-1]
            if last not in found:
                raise DataError(
                    f"{path}: expected one picture of this name, found {shown_keys(found)}, and <filename> "
                    f"{shown(filename)} in the annotation is none of them"
                )
            return self._own(path.with_name(last), name)
        for place in (path.parent, self.folder):
            try:
                _, there = inside_any(place, filename, name)
            except DataError:
                continue
            if os.path.isfile(there):
                return self._own(there, name)
        return path.with_name(f"{path.name}.jpg")

    def _own(self, path: Path, name: str) -> Path:
        if path in self._taken:
            raise DataError(f"{path}: expected the picture of one annotation, found {self._taken[path]!r} and {name!r}")
        self._taken[path] = name
        return path

    def _stems(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listed:
            stems: dict[str, list[str]] = {}
            try:
                files = sorted(os.listdir(folder))
            except OSError:
                files = []
            for file in files:
                stem, ending = os.path.splitext(file)
                if ending.lower() in ENDINGS:
                    stems.setdefault(stem, []).append(file)
            self._listed[folder] = stems
        return self._listed[folder]
