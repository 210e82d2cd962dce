"""Pictures by what a command line names: files, folders, patterns, and lines of standard input."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pvlr.data.batch import DataError

__all__ = ["ENDINGS", "STDIN", "picture_paths"]

STDIN = "-"
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
"""Of files that are taken for pictures in a folder; a file that is named by itself may have any."""


def picture_paths(names: Iterable[str], lines: Iterable[bytes] | None = None) -> Iterator[str]:
    """Yield the path of every picture once, in the order of the names; in folders and patterns, sorted.

    Args:
        names: Each a file, a folder (looked through with all its folders, links to folders left out), a pattern such
            as ``photos/**/*.jpg``, or ``-`` for paths read from ``lines``, one a line. A file that is not there is
            yielded all the same: who opens it has to say so.
        lines: For ``-``.

    Raises:
        DataError: where a pattern matches nothing, a folder holds no picture, or there are no lines to read.

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
            if path not in seen:
                seen.add(path)
                yield path


def _named(name: str, lines: Iterable[bytes] | None) -> Iterator[str]:
    if name == STDIN:
        if lines is None:
            raise DataError(f"{STDIN}: expected standard input to read paths from, got none")
        yield from (os.fsdecode(line) for line in (raw.rstrip(b"\r\n") for raw in lines) if line)
    elif os.path.isdir(name):
        yield from _some(_inside(name), f"{name}: expected a folder with pictures ({', '.join(ENDINGS)}), found none")
    elif glob.has_magic(name) and not os.path.lexists(name):
        found = (path for path in sorted(glob.iglob(name, recursive=True)) if os.path.isfile(path))
        yield from _some(found, f"{name}: expected a pattern of picture files, it matches none")
    else:
        yield name


def _inside(folder: str) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders.sort()
        yield from (str(Path(place, file)) for file in sorted(files) if file.lower().endswith(ENDINGS))


def _some(paths: Iterator[str], otherwise: str) -> Iterator[str]:
    first = next(paths, None)
    if first is None:
        raise DataError(otherwise)
    yield first
    yield from paths
