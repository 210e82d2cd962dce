"""Rules for exports of labelling tools that several formats share: paths of Windows, labels that nothing is given."""

import itertools
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from pvlr.core.arguments import require_choices
from pvlr.data.batch import DataError
from pvlr.data.readers.entries import inside, require_name, shown_keys

__all__ = ["Unused", "annotations_near", "folder_holding", "inside_any", "require_rules", "treat_unused"]

Unused = Literal["keep", "drop", "refuse"]

MOST_FOLDERS, MOST_FILES = 200, 1_000
"""Folders, and files of each, that are looked through for a hint in a message."""


def require_rules(rules: Any) -> None:
    """Require of each field of a dataclass of rules that it is one of its choices.

    Raises:
        DataError: naming the field.
    """
    try:
        require_choices(rules)
    except ValueError as err:
        raise DataError(str(err)) from None


def inside_any(root: Path, name: object, place: str, ending: str = "") -> tuple[str, Path]:
    r"""Return the normalised name and the path of a file below a folder, given a name with ``/`` or ``\`` in it.

    Tools on Windows write ``\`` between folders. Elsewhere it may be a letter of a name: if there is a file of that
    very name, the name is refused.

    Args:
        root: The folder.
        name: Name from a data set.
        place: Its position in a file, for messages.
        ending: Ending of the file, if the name lacks it.

    Raises:
        DataError: naming the place, if the name is malformed, leaves the folder or has two meanings.

    Example:
        >>> inside_any(Path("images"), "a\\1.jpg", "x.json: images[0]")[0]
        'a/1.jpg'
    """
    if not isinstance(name, str) or "\\" not in name:
        return inside(root, name, place)
    require_name(place, "a picture", name)
    plain, path = inside(root, name.replace("\\", "/"), place)
    if os.sep == "/" and os.path.isfile(root / f"{name}{ending}"):
        raise DataError(
            f"{place}: expected a picture's path with / between folders, found {name!r}, which is the name of a file "
            f"too: rename that file"
        )
    return plain, path


def treat_unused(
    place: str, names: Sequence[str], used: Collection[str], unused: Unused
) -> tuple[tuple[str, ...], str]:
    """Keep, drop or refuse the labels that nothing is annotated with.

    Args:
        place: The file that lists the labels, for messages.
        names: Its labels.
        used: Labels with an annotation.
        unused: ``keep``, ``drop`` or ``refuse``.

    Returns:
        The remaining labels, and a note on the others, empty if there are none.

    Raises:
        DataError: naming the labels, if they are to be refused or no label remains.

    Example:
        >>> treat_unused("x.json", ["shapes", "cat"], {"cat"}, "drop")
        (('cat',), "1 label without an annotation left out: 'shapes'")
    """
    idle = [name for name in names if name not in used]
    if not idle:
        return tuple(names), ""
    if unused == "refuse":
        raise DataError(
            f"{place}: expected every label to be annotated, found none of {shown_keys(idle)}; "
            f"set unused to 'drop' or 'keep'"
        )
    if unused == "drop":
        names = [name for name in names if name in used]
        if not names:
            raise DataError(f"{place}: expected at least one label that is annotated, found none")
    done = "left out" if unused == "drop" else "kept"
    note = f"{len(idle):,} label{'s' if len(idle) > 1 else ''} without an annotation {done}: {shown_keys(idle)}"
    return tuple(names), note


def folder_holding(root: Path, endings: tuple[str, ...]) -> str | None:
    """Return the folder in ``root`` (or ``.``, itself) with files of such an ending, or None; for hints in messages.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "boxes").mkdir()
        ...     Path(folder, "boxes", "1.xml").touch()
        ...     folder_holding(Path(folder), (".xml",)), folder_holding(Path(folder), (".json",))
        ('boxes', None)
    """
    try:
        below = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
        for name in (".", *below[:MOST_FOLDERS]):
            with os.scandir(root / name) as entries:
                first = itertools.islice(entries, MOST_FILES)
                if any(entry.name.lower().endswith(endings) for entry in first):
                    return name
    except (OSError, ValueError):
        return None
    return None


def annotations_near(root: Path) -> str:
    """Return the options for annotation files of COCO that are in a folder or one below, for a message.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "result.json").touch()
        ...     annotations_near(Path(folder))
        "; set annotations to 'result.json' and test_share to 0.2, which sets a fifth of it aside"
    """
    found = sorted(
        path.relative_to(root)
        for pattern in ("*.json", "*/*.json")
        for path in itertools.islice(root.glob(pattern), MOST_FILES)
    )
    if not found:
        return ""
    if len(found) == 1:
        name = found[0].as_posix()
        return f"; set annotations to {name!r} and test_share to 0.2, which sets a fifth of it aside"
    if len({path.name for path in found}) == 1 and len({len(path.parts) for path in found}) == 1:
        name, splits = f"{{split}}/{found[0].name}", [path.parts[0] for path in found]
        return f"; set annotations to {name!r}, and train_split and test_split to two of {shown_keys(splits)}"
    there = shown_keys(path.as_posix() for path in found)
    return f"; set annotations to one of {there}, with {{split}} for what differs between splits"
