"""Shared functions of the readers: files as text, names inside a folder, rows as a target."""

import codecs
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import torch

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError, refusal
from pvlr.data.dataset import LabelledImages, Source, Transform

__all__ = [
    "Entry",
    "assemble",
    "collect_labels",
    "inside",
    "kind_at",
    "read_labels",
    "read_text",
    "repeated",
    "require_files",
    "require_name",
    "require_no_other",
    "require_one_hot_free",
    "shown",
    "shown_keys",
]

MAX_NAME = 1_000
"""Longest name of a picture or label, in characters."""
JOINERS = "\u200c\u200d"
"""Zero-width characters between letters of Persian and Hindi, and in emoji."""
NOTHING = "no such file"
"""Result of `kind_at` for a path that does not exist."""


class Entry(NamedTuple):
    """A picture and its labels, as read from a data set.

    Args:
        place: Its position in the data set's files, for messages: a file and line.
        name: Name of the picture.
        source: Source of the picture.
        present: The labels that are present: names, or positions in the label set.
        unknown: The labels that are unknown.
        absent: The labels that are said to be absent, which matters where the others are unknown.
    """

    place: str
    name: str
    source: Source
    present: Sequence[str | int]
    unknown: Sequence[str | int] = ()
    absent: Sequence[str | int] = ()


def kind_at(path: Path, what: str) -> str:
    """The kind of a path, links followed: ``a file``, ``a folder``, ``a pipe, socket or device``, or `NOTHING`.

    It is checked before anything is opened, since opening a pipe may block forever.

    Args:
        path: Path, which need not exist.
        what: Expected kind of file, for messages.

    Raises:
        DataError: naming the path, if its kind cannot be determined: its name is too long, or its folder unsearchable.

    Example:
        >>> kind_at(Path("."), "a table"), kind_at(Path("no", "where"), "a table")
        ('a folder', 'no such file')
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return NOTHING
    except OSError as err:
        raise refusal(err)(f"{path}: expected {what}, but {err.strerror or err}") from None
    except ValueError as err:  # A NUL, or a lone surrogate.
        raise DataError(f"{path}: expected {what}, but {err}") from None
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "a pipe, socket or device"


def require_no_other(path: Path, what: str) -> None:
    """Refuse a path to anything but a file, before it is opened; a missing file is left to the caller.

    Raises:
        DataError: naming the path and the kind that was found.

    Example:
        >>> require_no_other(Path("."), "a table")
        Traceback (most recent call last):
            ...
        pvlr.data.batch.DataError: .: expected a table, found a folder
    """
    kind = kind_at(path, what)
    if kind not in ("a file", NOTHING):
        raise DataError(f"{path}: expected {what}, found {kind}")


def read_text(path: Path, what: str, limit: int, encoding: str | None = None) -> str:
    """Read a whole text file.

    Args:
        path: Path of the file.
        what: Expected content, for messages: "a table".
        limit: Largest size in bytes.
        encoding: Encoding of the file, which the caller lets people choose; None: UTF-8, and nothing else.

    Raises:
        DataError: naming the file, if it cannot be read, is larger, or is not text in this encoding, and an encoding
            in which it is, if one can be chosen.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "x.csv").write_bytes(b"file,labels\\n")
        ...     read_text(Path(folder, "x.csv"), "a table", 1000)
        'file,labels\\n'
    """
    require_no_other(path, what)
    try:
        with path.open("rb") as file:
            # The size is checked before reading, and again after it, since the file may grow.
            size = os.fstat(file.fileno()).st_size
            data = file.read(limit + 1) if size <= limit else b""
    except OSError as err:
        raise DataError(f"{path}: expected {what}, but {err.strerror or err}") from None
    if max(size, len(data)) > limit:
        raise DataError(f"{path}: expected {what} of at most {limit:,} bytes, found more")
    utf8 = encoding is None or codecs.lookup(encoding).name == "utf-8"
    try:
        text = data.decode("utf-8-sig" if utf8 else str(encoding)).removeprefix("\ufeff")
    except UnicodeError as err:
        start = err.start if isinstance(err, UnicodeDecodeError) else 0
        line, hint = data.count(b"\n", 0, start) + 1, "" if encoding is None else _other_encoding(data, start)
        name = "UTF-8" if utf8 else encoding
        raise DataError(f"{path}: line {line}: expected {what} in {name}, found other bytes{hint}") from None
    nothing = text.find("\0")
    if nothing >= 0:
        line, hint = text.count("\n", 0, nothing) + 1, ""
        if encoding is not None and _two_bytes(data):
            hint = _other_encoding(data, 0)
        raise DataError(f"{path}: line {line}: expected {what}, found a NUL byte{hint}")
    return text


def _two_bytes(data: bytes) -> bool:
    """Whether two characters of ASCII look like UTF-16 without a mark of the order of its bytes."""
    return data[:4].count(0) == 2 and (data[0] == data[2] == 0 or data[1:2] == data[3:4] == b"\0")


def _other_encoding(data: bytes, start: int) -> str:
    """The hint at an encoding that would decode the data, with the line at which UTF-8 failed."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "; set encoding to 'utf-16'"
    if _two_bytes(data):
        return f"; set encoding to {'utf-16-be' if data[0] == 0 else 'utf-16-le'!r}"
    line = data[data.rfind(b"\n", 0, start) + 1 :][:MAX_NAME].splitlines()[0]
    try:
        data.decode("cp1252")
    except UnicodeError:
        return "; set encoding to the one in which it was saved"
    return f"; if its line is {shown(line.decode('cp1252', 'replace'))}, set encoding to 'cp1252'"


def require_name(place: str, what: str, name: object) -> str:
    """Return a name, if it can be printed, compared and stored.

    Args:
        place: Its position in a file, for messages.
        what: Kind of thing that it names.
        name: A text without white space around it, of 1 to `MAX_NAME` characters that UTF-8 can hold, without line
            ends, other control characters, marks of direction or other invisible characters except the two joiners.

    Raises:
        DataError: naming the place.

    Example:
        >>> require_name("x.csv: line 2", "a label", "cat")
        'cat'
    """
    if not isinstance(name, str):
        raise DataError(f"{place}: expected the name of {what}, found {shown(name)}")
    if len(name) > MAX_NAME:
        raise DataError(f"{place}: expected the name of {what} in at most {MAX_NAME:,} characters, found {len(name):,}")
    if not name or name != name.strip():
        raise DataError(f"{place}: expected the name of {what} without white space around it, found {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: expected the name of {what} in Unicode, found {name!r}") from None
    if not name.isprintable() and any(_commands(letter) for letter in name):
        # Messages and records are single lines, and must show a name as it is.
        raise DataError(f"{place}: expected the name of {what} without control characters, found {name!r}")
    return name


def _commands(letter: str) -> bool:
    # Not all that isprintable rejects: names of screenshots have unusual spaces, and Python lacks new characters.
    return unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp") and letter not in JOINERS


def inside(root: Path, name: object, place: str) -> tuple[str, Path]:
    """Return the normalised name and the path of a file below a folder, given a name from a data set.

    Only the name is checked; `require_files` detects links that leave the folder.

    Args:
        root: The folder.
        name: Name with ``/`` between folders.
        place: Its position in a file, for messages.

    Raises:
        DataError: naming the place, if the name is malformed or leaves the folder.

    Example:
        >>> name, path = inside(Path("images"), "./a/1.jpg", "x.csv: line 2")
        >>> name, path == Path("images", "a", "1.jpg")
        ('a/1.jpg', True)
        >>> inside(Path("images"), "../1.jpg", "x.csv: line 2")
        Traceback (most recent call last):
            ...
        pvlr.data.batch.DataError: x.csv: line 2: expected a picture inside its folder, found '../1.jpg'
    """
    name = require_name(place, "a picture", name)
    # On Windows only, a backslash separates folders, and a colon marks a drive.
    if "\\" in name or (len(name) > 1 and name[1] == ":"):
        raise DataError(f"{place}: expected a picture's path with / between folders, found {name!r}")
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or not plain.parts:
        raise DataError(f"{place}: expected a picture inside its folder, found {name!r}")
    return str(plain), root / plain


def require_files(
    entries: Iterable[Entry],
    root: Path,
    what: str = "the picture",
    find: Callable[[Entry, Path], Path | None] | None = None,
) -> list[Source]:
    """Require that every file exists inside its folder: links may lead to other places of the folder, not out of it.

    Args:
        entries: The entries; those whose source is not a path are skipped.
        root: The folder, which may be a link itself.
        what: Kind of the files, for messages.
        find: Callable that returns another path for a missing file, or None to leave it, or raises an error that says
            what helps.

    Returns:
        The sources, in order.

    Raises:
        DataError: naming the first file that is missing or outside.
    """
    sources: list[Source] = []
    home = os.path.join(os.path.realpath(root), "")
    folders: dict[str, str] = {}
    for entry in entries:
        source = entry.source
        if isinstance(source, Path):
            kind = kind_at(source, f"{what} of {entry.place}")
            if kind == NOTHING and find is not None:
                found = find(entry, source)
                if found is None:
                    sources.append(source)
                    continue
                source = found
                kind = kind_at(source, f"{what} of {entry.place}")
            if kind != "a file":
                raise DataError(f"{source}: expected {what} of {entry.place}, found {kind}")
            folder, name = os.path.split(source)
            if folder not in folders:  # There are few folders, and a file that is no link lies in its folder.
                folders[folder] = os.path.realpath(folder)
            place = os.path.realpath(source) if source.is_symlink() else os.path.join(folders[folder], name)
            if not place.startswith(home):
                raise DataError(f"{source}: expected {what} inside {root}, found a link to {place}")
        sources.append(source)
    return sources


def assemble(
    name: str,
    entries: Sequence[Entry],
    labels: LabelSet,
    *,
    unnamed: Literal["absent", "unknown"] = "absent",
    note: str = "",
    transform: Transform | None = None,
) -> LabelledImages:
    """Build a data set from entries.

    Args:
        name: Name of the data set.
        entries: The entries, in the order of the data set.
        labels: The columns of the target.
        unnamed: State of the labels that an entry does not name.
        note: See `LabelledImages`.
        transform: See `LabelledImages`.

    Raises:
        DataError: naming the place of an entry whose picture or label is repeated, or whose label is not in the set.

    Example:
        >>> entry = Entry("line 1", "a.jpg", Path("a.jpg"), ["cat"], ["dog"])
        >>> data = assemble("mine", [entry], LabelSet(("cat", "cow", "dog")))
        >>> data.target.tolist(), data.known.tolist()
        ([[1.0, 0.0, 0.0]], [[True, True, False]])
    """
    target = torch.zeros(len(entries), len(labels))
    known = torch.full((len(entries), len(labels)), unnamed == "absent")
    places: dict[str, str] = {}
    marks: dict[str, list[tuple[int, int]]] = {"present": [], "unknown": [], "absent": []}
    for row, entry in enumerate(entries):
        if entry.name in places:
            raise DataError(
                f"{entry.place}: expected every picture once, found {entry.name!r} again, after {places[entry.name]}"
            )
        places[entry.name] = entry.place
        seen: set[int] = set()
        for kind, given in (("present", entry.present), ("unknown", entry.unknown), ("absent", entry.absent)):
            for label in given:
                column = _column(labels, label, entry.place)
                if column in seen:
                    raise DataError(f"{entry.place}: expected every label once, found {labels.names[column]!r} twice")
                seen.add(column)
                marks[kind].append((row, column))
    if marks["present"]:
        target[tuple(torch.tensor(marks["present"]).T)] = 1.0
    for kind, cells in marks.items():
        if cells:
            known[tuple(torch.tensor(cells).T)] = kind != "unknown"
    return LabelledImages(
        name=name, labels=labels, paths=[entry.source for entry in entries],
        identifiers=[entry.name for entry in entries], target=target, known=known, note=note, transform=transform,
    )  # fmt: skip


def collect_labels(name: str, entries: Iterable[Entry]) -> LabelSet:
    """Return the labels that entries name, sorted.

    Raises:
        DataError: if there is none, or one is given by its position.
    """
    found: set[str] = set()
    for entry in entries:
        for label in (*entry.present, *entry.unknown, *entry.absent):
            if not isinstance(label, str):
                raise DataError(
                    f"{entry.place}: expected a label by its name, since no labels are given, found {shown(label)}"
                )
            found.add(label)
    if not found:
        raise DataError(f"{name}: expected at least one label, found none")
    return LabelSet(tuple(sorted(found)))


def read_labels(place: str, what: str, given: object) -> list[str | int]:
    """Check a list of labels entry by entry, and return it.

    Args:
        place: Its position in a file, for messages.
        what: Its key or column, for messages.
        given: A list of names and positions.

    Raises:
        DataError: naming the place.

    Example:
        >>> read_labels("x.jsonl: line 1", "labels", ["cat", 2])
        ['cat', 2]
    """
    if not isinstance(given, list | tuple):
        raise DataError(f"{place}: expected {what!r} to be a list, found {shown(given)}")
    return [
        label if isinstance(label, int) and not isinstance(label, bool) else require_name(place, "a label", label)
        for label in given
    ]


def require_one_hot_free(place: str, what: str, given: Sequence[str | int], count: int | None, hint: str = "") -> None:
    """Refuse positions that may as well be a 0 or 1 for every label.

    Args:
        place: Their position in a file, for messages.
        what: Their key or column, for messages.
        given: Names and positions.
        count: Number of labels; None: they are not known.
        hint: The option that says which is meant.

    Raises:
        DataError: naming the place.

    Example:
        >>> require_one_hot_free("row 0", "labels", [0, 2], 3)
        >>> require_one_hot_free("row 0", "labels", [0, 1], 2)
        Traceback (most recent call last):
            ...
        pvlr.data.batch.DataError: row 0: expected 'labels' to hold positions of labels, found a 0 or 1 for each of 2
    """
    if given and len(given) == count and all(isinstance(label, int) and label in (0, 1) for label in given):
        raise DataError(
            f"{place}: expected {what!r} to hold positions of labels, found a 0 or 1 for each of {count}{hint}"
        )


def _column(labels: LabelSet, label: str | int, place: str) -> int:
    if isinstance(label, int):
        if not 0 <= label < len(labels):
            found = shown(label)
            raise DataError(f"{place}: expected the position of a label from 0 to {len(labels) - 1}, found {found}")
        return label
    try:
        return labels.index(label)
    except LabelError as err:
        raise DataError(f"{place}: {err}") from None


def shown(value: object) -> str:
    """Return a short description of a value, for a message.

    Example:
        >>> shown([1, 2]), shown("x" * 99)[:9], shown(None)
        ('a list', "'xxxxxxxx", 'None')
    """
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown_keys(keys: Iterable[object]) -> str:
    """Return the first few keys of an object, for a message.

    Example:
        >>> shown_keys(["a", "b"]), shown_keys(range(99)), shown_keys([])
        ("'a', 'b'", '0, 1, 2, 3, 4, 5, 6, 7 and 91 more', 'no keys')
    """
    texts = [shown(key) for key in keys]
    more = f" and {len(texts) - 8} more" if len(texts) > 8 else ""
    return ", ".join(texts[:8]) + more or "no keys"


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is repeated, or None.

    Example:
        >>> repeated(["a", "b", "a"]), repeated(["a", "b"])
        ('a', None)
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
