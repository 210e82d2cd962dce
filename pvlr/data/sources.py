"""Picture paths from command-line arguments: files, folders, patterns, and lines of standard input."""

import fnmatch
import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from pvlr.data.batch import DataError, refusal
from pvlr.data.images import FORMATS, head_of, kind_of
from pvlr.data.video import is_video

__all__ = ["ENDINGS", "STDIN", "is_picture", "picture_paths", "why_left_out"]

STDIN = "-"
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic",
    ".heif", ".hif",
)  # fmt: skip
"""Extensions of picture files in a folder, in any case; a file that is named explicitly may have any."""
# Some are TIFF files by their first bytes, whose first picture is a small one.
OTHER_ENDINGS = (
    ".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw",
    ".nrw", ".3fr", ".svg",
)  # fmt: skip


def picture_paths(
    names: Iterable[str],
    lines: Iterable[bytes] | None = None,
    *,
    left_out: Callable[[str, str], object] | None = None,
) -> Iterator[str]:
    """Yield the path of every picture once, in the order of the names; in folders and patterns, sorted.

    ``a.png``, ``./a.png`` and ``.//a.png`` are one picture; a file and a link to it are two.

    Args:
        names: Each a file, a folder (searched recursively, without links to folders), a pattern such as
            ``photos/**/*.jpg`` (also without links to folders, unless it names them), or ``-`` for paths read from
            ``lines``, one per line. A missing file is yielded too; opening it raises the error.
        lines: Lines of standard input, for ``-``.
        left_out: Called with the path of each picture in a folder that is left out for its extension or format, and
            with the reason, see :func:`why_left_out`.

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
        for path in _named(name, lines, left_out):
            # Not os.path.normpath: link/../a.png may be another picture than a.png.
            plain = str(PurePath(path))
            if plain not in seen:
                seen.add(plain)
                yield path


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file found in a folder is a picture: by its extension, or by its first bytes where it has none.

    A hidden file, whose name begins with a dot, is not taken.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "scan", "note.txt", ".hidden"):
        ...         _ = Path(folder, name).write_bytes(b"GIF89a")
        ...     [name for name in sorted(os.listdir(folder)) if is_picture(Path(folder, name))]
        ['a.png', 'scan']
    """
    if os.path.basename(path).startswith("."):  # macOS keeps ._a.jpg beside a.jpg on other disks.
        return False
    ending = os.path.splitext(path)[1].lower()
    return ending in ENDINGS or (ending in ("", ".") and kind_of(head_of(path) or b"") in FORMATS)


def why_left_out(path: str | os.PathLike[str]) -> str | None:
    """Return why a file in a folder, which :func:`is_picture` does not take, is left out, and what helps.

    Returns:
        One sentence; None if it is neither a picture nor a video, by its first bytes and its extension, or hidden.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, content in (("a.jxl", b""), ("a.dat", b"GIF89a"), ("a.txt", b"GIF? No.")):
        ...         path = Path(folder, name)
        ...         _ = path.write_bytes(content)
        ...         print(str(why_left_out(path)).replace(f"{folder}/", ""))
        a.jxl: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found JXL; convert it to JPEG or PNG
        a.dat: expected a picture to end in .jpg, .jpeg, ..., found GIF without such an ending; rename it, or name it by
        itself
        None
    """
    if os.path.basename(path).startswith(".") or not os.path.isfile(path):
        return None
    ending, head = os.path.splitext(path)[1].lower(), head_of(path) or b""
    kind = kind_of(head)
    if is_video(path):
        return str(DataError(f"{path}: expected a picture, found a video; name it by itself to tag its key frames"))
    if kind in FORMATS and ending not in OTHER_ENDINGS:
        but = f"found {kind} without such an ending; rename it, or name it by itself"
        return str(DataError(f"{path}: expected a picture to end in {', '.join(ENDINGS)}, {but}"))
    if kind is None and ending not in OTHER_ENDINGS:
        return None
    kind = ending[1:].upper() if ending in OTHER_ENDINGS else kind
    return str(DataError(f"{path}: expected a picture ({', '.join(FORMATS)}), found {kind}; convert it to JPEG or PNG"))


def _named(name: str, lines: Iterable[bytes] | None, left_out: Callable[[str, str], object] | None) -> Iterator[str]:
    if name == STDIN:
        if lines is None:
            raise DataError(f"{STDIN}: expected standard input to read paths from, got none")
        yield from (os.fsdecode(line) for line in (raw.rstrip(b"\r\n") for raw in lines) if line)
    elif os.path.isdir(name):
        skipped: list[str] = []
        found = _inside(name, left_out or (lambda path, reason: None), skipped)
        first = next(found, None)
        if first is None:
            but = f" but {len(skipped):,} others ({skipped[0]})" if skipped else ""
            raise DataError(f"{name}: expected a folder with pictures ({', '.join(ENDINGS)}), found none{but}")
        yield first
        yield from found
    elif glob.has_magic(name) and not os.path.lexists(name):
        matches = sorted(path for path in _matching(name) if os.path.isfile(path))
        if not matches:
            raise DataError(f"{name}: expected a pattern of picture files, it matches none")
        yield from matches
    else:
        yield name


def _inside(folder: str, left_out: Callable[[str, str], object], skipped: list[str]) -> Iterator[str]:
    for place in _folders(folder):
        for file in _listed(place)[1]:
            path = str(Path(place, file))
            if is_picture(path):
                yield path
            elif reason := why_left_out(path):
                left_out(path, reason)
                skipped.append(reason)


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
