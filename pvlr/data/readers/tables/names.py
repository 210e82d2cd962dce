"""Names of pictures as tables give them: full paths, addresses, without an ending, in another spelling."""

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pvlr.data.batch import DataError, refusal
from pvlr.data.readers.entries import NOTHING, Entry, inside, require_name
from pvlr.data.readers.tables.format import TableFormat
from pvlr.data.sources import ENDINGS

__all__ = ["Finder", "picture_path"]


def picture_path(root: Path, name: object, place: str, format: TableFormat) -> tuple[str, Path]:
    """Return the normalised name and the path of a picture, given its name in a table.

    Args:
        root: The folder of pictures.
        name: The name in the table.
        place: Its position, for messages.
        format: Its ``strip_prefix`` is removed and its ``suffix`` appended; neither leads out of the folder.

    Raises:
        DataError: naming the place, if the name is malformed, lacks the prefix or leaves the folder, and the prefix
            that would make it fit.

    Example:
        >>> format = TableFormat(strip_prefix="C:\\\\photos", suffix=".jpg")
        >>> picture_path(Path("images"), "C:\\\\photos\\\\a\\\\1", "x.csv: line 2", format)[0]
        'a/1.jpg'
    """
    text = require_name(place, "a picture", name)
    if format.strip_prefix is not None:
        text = _without_prefix(text, format.strip_prefix, place)
    elif _leads_out(text):
        try:
            inside(root, "/" if "://" in text else text, place)
        except DataError as err:
            said = str(err) if "://" not in text else f"{place}: expected a picture inside its folder, found {text!r}"
            raise DataError(f"{said}{_prefix_hint(text, root, format.suffix)}") from None
    if format.suffix and not text.lower().endswith(ENDINGS):
        text += format.suffix
    return inside(root, text, place)


def _without_prefix(name: str, prefix: str, place: str) -> str:
    plain, start = name.replace("\\", "/"), prefix.replace("\\", "/")
    if not plain.startswith(start):
        raise DataError(f"{place}: expected a picture that begins with strip_prefix '{prefix}', found '{name}'")
    plain = plain[len(start) :]
    if start and not start.endswith("/"):
        plain = plain.removeprefix("/")
    # In an address, a space is %20.
    return unquote(plain) if start.lower().startswith(("http://", "https://", "file://")) else plain


def _leads_out(name: str) -> bool:
    return name.startswith("/") or "\\" in name or name[1:2] == ":" or "://" in name or ".." in name.split("/")


def _prefix_hint(name: str, root: Path, suffix: str = "") -> str:
    """The hint at the prefix whose removal leaves the name of a file that is there, or else at that of its folder."""
    plain = name.replace("\\", "/")
    if not _leads_out(plain):
        return "; set strip_prefix to '', which makes \\ a /"
    for cut in (index + 1 for index, letter in enumerate(plain) if letter == "/"):
        rest = plain[cut:]
        inner = rest and not rest.startswith("/") and ".." not in rest.split("/")
        if inner and any(os.path.isfile(root / f"{rest}{end}") for end in ("", suffix)):
            return f"; set strip_prefix to '{name[:cut]}'"
    if ".." in plain.split("/"):
        return ""
    folder = name[: plain.rfind("/") + 1]
    return f"; set strip_prefix to the part before the folder of pictures, such as '{folder}'"


class Finder:
    """Search for files under other spellings of their names: another Unicode form, an ending in another case.

    Args:
        root: The folder of pictures.
        format: Its ``suffix`` and ``strip_prefix`` are named where they would help.
        rows: All pictures, of which a message counts those that are missing.
        leave: Whether a picture that no option would find is left as it is.

    Attributes:
        forms: Number of files that were found in another Unicode form.
        endings: Number of files that were found by an ending in another case.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "1.JPG").touch()
        ...     finder = Finder(Path(folder), TableFormat())
        ...     finder(Entry("x.csv: line 2", "1.jpg", Path(folder, "1.jpg"), []), Path(folder, "1.jpg")).name
        '1.JPG'
        >>> finder.note()
        'of 1 file the ending is in another case'
    """

    def __init__(self, root: Path, format: TableFormat, rows: Sequence[Entry] = (), *, leave: bool = False) -> None:
        self.root, self.format, self.rows, self.leave = root, format, rows, leave
        self.forms = self.endings = 0
        self._listed: dict[Path, dict[tuple[str, str], list[str]]] = {}

    def __call__(self, entry: Entry, path: Path) -> Path | None:
        """Return the path of the file that a missing one must be; None if there is none and it is left.

        Raises:
            DataError: naming the picture, if no file or several fit, and the option that would find one.
        """
        found = self._search(entry, path)
        if found is None:
            hint = self._hint(entry.name)
            if self.leave and not hint:
                return None
            raise DataError(f"{path}: expected the picture of {entry.place}, found {NOTHING}{hint or self._others()}")
        actual = found.relative_to(self.root).as_posix()
        if unicodedata.normalize("NFC", actual) == unicodedata.normalize("NFC", entry.name):
            self.forms += 1
        else:
            self.endings += 1
        return found

    def _search(self, entry: Entry, path: Path) -> Path | None:
        found = self.root
        for part in PurePosixPath(entry.name).parts:
            names = self._names(found).get(_spelling(part), [])
            if part in names:
                names = [part]
            if len(names) > 1:
                listed = " and ".join(map(repr, names))
                raise DataError(f"{path}: expected the picture of {entry.place}, found {listed} in {found}")
            if not names:
                return None
            found = found / names[0]
        return found

    def note(self) -> str:
        """A remark on what was found, or an empty text."""
        counts = ((self.forms, "the name is in another Unicode form"), (self.endings, "the ending is in another case"))
        return ", ".join(f"of {count:,} file{'s' if count > 1 else ''} {what}" for count, what in counts if count)

    def _names(self, folder: Path) -> dict[tuple[str, str], list[str]]:
        if folder not in self._listed:
            names: dict[tuple[str, str], list[str]] = {}
            try:
                for name in sorted(os.listdir(folder)):
                    names.setdefault(_spelling(name), []).append(name)
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as err:
                raise refusal(err)(f"{folder}: expected a folder of pictures, but {err.strerror or err}") from None
            self._listed[folder] = names
        return self._listed[folder]

    def _others(self) -> str:
        """The number of other pictures that are missing, and how to go on without them."""
        sources = ((row, row.source) for row in self.rows)
        more = sum(isinstance(path, Path) and self._search(row, path) is None for row, path in sources) - 1
        if more < 1:
            return ""
        are = "is" if more == 1 else "are"
        return f"; {more:,} more {are} missing: data.on_bad_image drop leaves them out of training"

    def _hint(self, name: str) -> str:
        """The hint at an option under which the picture would be found."""
        endings = [""] if name.lower().endswith(ENDINGS) else ["", *ENDINGS, *(ending.upper() for ending in ENDINGS)]
        parts = name.split("/")
        for cut in range(len(parts)):
            prefix, rest = "/".join(parts[:cut]), "/".join(parts[cut:])
            for ending in endings:
                if os.path.isfile(self.root / f"{rest}{ending}"):
                    strip = f"strip_prefix to '{self.format.strip_prefix or ''}{prefix}/'" if prefix else ""
                    options = [*([strip] if strip else []), *([f"suffix to {ending!r}"] if ending else [])]
                    return f"; set {' and '.join(options)}" if options else ""
        return ""


def _spelling(name: str) -> tuple[str, str]:
    plain = PurePosixPath(unicodedata.normalize("NFC", name))
    return (plain.stem, plain.suffix.lower()) if plain.suffix.lower() in ENDINGS else (str(plain), "")
