"""Picture paths from command-line arguments: files, folders, patterns, and lines of standard input."""

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from pvlr.data.batch import DataError, refusal
from pvlr.data.images import FORMATS

__all__ = ["ENDINGS", "STDIN", "picture_paths", "why_left_out"]

STDIN = "-"
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif")
"""Extensions of picture files in a folder, in any case; a file that is named explicitly may have any."""
# Formats by the first bytes of a file; `.` stands for any byte.
BEGINNINGS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"RIFF....WEBP"),
    ("BMP", rb"BM....\0\0\0\0"),
    ("GIF", rb"GIF8[79]a"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("HEIC", rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif[12]|msf1)"),
    ("AVIF", rb"....ftypavi[fs]"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  "),
    ("Photoshop's", rb"8BPS"),
)
OTHER_ENDINGS = (
    ".heic", ".heif", ".avif", ".tif", ".tiff", ".jxl", ".jp2", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf",
    ".orf", ".rw2", ".svg",
)  # fmt: skip
HEAD = 32


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


def why_left_out(path: str | os.PathLike[str]) -> str | None:
    """Return why a file, whose extension is not among `ENDINGS`, is left out though it is a picture, and what helps.

    Returns:
        One sentence; None if it is no picture, by its first bytes and its extension.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, content in (("a.heic", b""), ("scan", b"GIF89a"), ("note.txt", b"GIF? No.")):
        ...         path = Path(folder, name)
        ...         _ = path.write_bytes(content)
        ...         print(str(why_left_out(path)).replace(f"{folder}/", ""))
        a.heic: expected a picture (JPEG, PNG, WEBP, BMP, GIF), found HEIC; convert it to JPEG or PNG
        scan: expected a picture to end in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .gif, found GIF without such an
        ending; rename it, or name it by itself
        None
    """
    if not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        head = b""
    ending = os.path.splitext(path)[1].lower()
    kind = next((name for name, beginning in BEGINNINGS if re.match(beginning, head, re.DOTALL)), None)
    if kind in FORMATS:
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
            if file.lower().endswith(ENDINGS):
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
