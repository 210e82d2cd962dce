"""Picture paths from command-line arguments: files, folders, patterns, and lines of standard input."""

import fnmatch
import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from pvlr.data.batch import DataError, refusal

__all__ = ["ENDINGS", "STDIN", "picture_paths"]

STDIN = "-"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Extensions of picture files in a folder; a file that is named explicitly may have any."""


def picture_paths(names: Iterable[str], lines: Iterable[bytes] | None = None) -> Iterator[str]:
    """Yield the path of every picture once, in the order of the names; in folders and patterns, sorted.

    ``a.png``, ``./a.png`` and ``.//a.png`` are one picture; a file and a link to it are two.

    Args:
        names: Each a file, a folder (searched recursively, without links to folders), a pattern such as
            ``photos/**/*.jpg`` (also without links to folders, unless it names them), or ``-`` for paths read from
            ``lines``, one per line. A missing file is yielded too; opening it raises the error.
        lines: Lines of standard input, for ``-``.

    Raises:
        DataError: if a pattern matches nothing, a folder holds no picture or cannot be read, or there are no lines
            to read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.JPG", "note.txt"):
        ...         _ = Path(folder, name).write_bytes(b"")
        ...     [Path(path).name for path in picture_paths([folder, f"{folder}/b.png"])]
        ['a.JPG', 'b.png']
    """
    seen: set[str] = set()
    for name in names:
        for path in _named(name, lines):
            # Not os.path.normpath: link/../a.png may be another picture than a.png.
            plain = str(PurePath(path))
            if plain not in seen:
                seen.add(plain)
                yield path


def _named(name: str, lines: Iterable[bytes] | None) -> Iterator[str]:
    if name == STDIN:
        if lines is None:
            raise DataError(f"{STDIN}: expected standard input to read paths from, got none")
        yield from (os.fsdecode(line) for line in (raw.rstrip(b"\r\n") for raw in lines) if line)
    elif os.path.isdir(name):
        yield from _some(_inside(name), f"{name}: expected a folder with pictures ({', '.join(ENDINGS)}), found none")
    elif glob.has_magic(name) and not os.path.lexists(name):
        found = sorted(path for path in _matching(name) if os.path.isfile(path))
        yield from _some(iter(found), f"{name}: expected a pattern of picture files, it matches none")
    else:
        yield name


def _inside(folder: str) -> Iterator[str]:
    for place in _folders(folder):
        yield from (str(Path(place, file)) for file in _listed(place)[1] if file.lower().endswith(ENDINGS))


def _folders(folder: str, *, hidden: bool = True) -> Iterator[str]:
    """Yield a folder and all folders below it, each before its content."""
    todo = [folder]
    while todo:  # Not os.walk: it is recursive up to Python 3.11, and folders may be nested deeper than its limit.
        place = todo.pop()
        yield place
        todo += (os.path.join(place, name) for name in reversed(_listed(place)[0]) if hidden or name[0] != ".")


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders in a folder, and of its other content; links to folders are left out."""
    try:
        with os.scandir(folder or os.curdir) as items:
            found = sorted(items, key=lambda item: item.name)
    except OSError as err:
        # Skipping it would leave out pictures without notice.
        raise refusal(err)(f"{folder}: expected a folder, but {err.strerror or err}") from None
    folders = [item.name for item in found if item.is_dir(follow_symlinks=False)]
    left_out = {*folders, *(item.name for item in found if item.is_symlink() and os.path.isdir(item.path))}
    return folders, [item.name for item in found if item.name not in left_out]


def _matching(pattern: str) -> set[str]:
    """Return the matches of `glob.glob`; links to folders, which may form cycles, are followed only by name."""
    drive, rest = os.path.splitdrive(pattern.replace(os.altsep or os.sep, os.sep))
    parts = [part for part in rest.split(os.sep) if part]
    places = {f"{drive}{os.sep}" if rest.startswith(os.sep) else drive}
    for part in [*parts, "*"] if parts[-1] == "**" else parts:
        if not glob.has_magic(part):
            places = {os.path.join(place, part) for place in places}
            continue
        places = {place for place in places if os.path.isdir(place or os.curdir)}
        if part == "**":
            places = {deep for place in places for deep in _folders(place, hidden=False)}
        else:
            places = {
                os.path.join(place, name)
                for place in places
                for name in itertools.chain(*_listed(place))
                if fnmatch.fnmatch(name, part) and (name[0] != "." or part[0] == ".")
            }
    return places


def _some(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise DataError(otherwise)
    yield first
    yield from paths
