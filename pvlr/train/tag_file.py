"""Tags in a file that other programs read, which an interrupted run goes on with."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from pvlr.core.files import write_atomically
from pvlr.core.model import PVLR
from pvlr.core.tags import Tag
from pvlr.core.towers import weights_fingerprint
from pvlr.core.weights import trained_state
from pvlr.train.tagging import Unreadable

__all__ = ["COLUMNS", "TagFile", "TagFileError", "identity_of"]

SEPARATOR = ";"
COLUMNS = {"probability": ("file", "labels", "probabilities"), "similarity": ("file", "labels", "similarities")}


class TagFileError(ValueError):
    """A file of tags that cannot be gone on with."""


def identity_of(model: PVLR) -> dict[str, Any]:
    """What decides on a picture's tags: weights, towers, labels, temperature and thresholds."""
    return {
        "weights": weights_fingerprint(trained_state(model)),
        "towers": None if model.origin is None else model.origin.fingerprint,
        "labels": list(model.labels.names),
        "texts": list(model.labels.texts),
        "temperature": model.decision.temperature,
        "thresholds": list(model.decision.for_labels(model.labels)),
        "scores": model.decision.scores,
    }


class TagFile:
    """Rows of pictures and their tags, each picture once.

    Beside ``tags.jsonl`` lie ``tags.jsonl.about.json``, what the tags were made by, and, where a picture could not be
    read, ``tags.jsonl.refused.jsonl``. A row that was cut off by a kill or a full disk is taken out at the start.

    A line of JSON is ``{"file": …, "tags": [{"name": …, "probability": …}, …]}``; CSV has the columns ``file``,
    ``labels`` and ``probabilities``, the latter two separated by ``;``, as the reader of tables takes them. Numbers
    that only rank labels are called ``similarity`` and ``similarities``.

    Args:
        path: The file; made, or gone on with.
        about: What the tags are made by; see :func:`identity_of`.
        kind: ``"jsonl"`` or ``"csv"``; None: by the path's ending.

    Raises:
        TagFileError: where the file holds tags made by something else, or something else than tags; where its ending
            says no kind; where a label cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "tags.csv")
        >>> with TagFile(path, {"labels": ["cat"]}) as file:
        ...     file.write("a.jpg", [Tag("cat", 0.75)])
        >>> with TagFile(path, {"labels": ["cat"]}) as file:
        ...     "a.jpg" in file.done
        True
        >>> print(path.read_text(), end="")
        file,labels,probabilities
        a.jpg,cat,0.7500
        >>> folder.cleanup()
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, kind: Literal["jsonl", "csv"] | None = None) -> None:
        self.path, self.kind = path, kind or _kind_of(path)
        self.about_path = path.with_name(f"{path.name}.about.json")
        self.refused_path = path.with_name(f"{path.name}.refused.jsonl")
        told = {"kind": self.kind, **about}
        self._score = str(about.get("scores", "probability"))
        if self.kind == "csv":
            for name in told["labels"]:
                if SEPARATOR in name:
                    raise TagFileError(f"{path}: expected labels without '{SEPARATOR}', which separates them in CSV")
        if not path.parent.is_dir():
            raise TagFileError(f"{path}: expected a file in a folder that is there, found no {path.parent}")
        self.done: set[str] = set()
        if path.exists() and path.stat().st_size > 0:
            self._require_same(told)
            self.done = set(self._rows())
        write_atomically(self.about_path, f"{json.dumps(told, indent=1)}\n".encode())
        self._mended: set[str] = set()
        refused = list(_json_rows(self.refused_path)) if self.refused_path.exists() else []
        self._refused = {row["file"] for row in refused}
        if self.refused_path.exists() and not self.refused_path.read_bytes().endswith(b"\n"):  # Cut short by a kill.
            self._write_refused(refused)
        # A name need not be UTF-8: its bytes are written as they are.
        self._file: IO[str] = path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        if self.kind == "csv" and path.stat().st_size == 0:
            csv.writer(self._file, lineterminator="\n").writerow(COLUMNS[self._score])

    def write(self, path: str, tags: list[Tag]) -> None:
        """Add a picture; one whose name does not fit into a line of CSV is listed among those that are refused."""
        if self.kind == "csv" and len(path.splitlines()) != 1:
            self.refuse(Unreadable(path, f"{path!r}: expected a name without line breaks, which CSV lines end at"))
            return
        if self.kind == "jsonl":
            told = [{"name": tag.name, self._score: round(tag.probability, 4)} for tag in tags]
            self._file.write(f"{json.dumps({'file': path, 'tags': told})}\n")
        else:
            columns = ([tag.name for tag in tags], [f"{tag.probability:.4f}" for tag in tags])
            csv.writer(self._file, lineterminator="\n").writerow((path, *map(SEPARATOR.join, columns)))
        self._file.flush()  # A kill does not lose what the system has.
        self.done.add(path)
        if path in self._refused:
            self._mended.add(path)

    def refuse(self, bad: Unreadable) -> None:
        """List a picture that cannot be read, once however often it is tried."""
        if bad.path not in self._refused:
            self._refused.add(bad.path)
            with self.refused_path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps({'file': bad.path, 'reason': bad.reason})}\n")

    def __enter__(self) -> "TagFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._mended:  # Pictures that could be read after all.
            self._write_refused(row for row in _json_rows(self.refused_path) if row["file"] not in self._mended)

    def _write_refused(self, rows: Iterable[Mapping[str, Any]]) -> None:
        write_atomically(self.refused_path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def _require_same(self, told: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.about_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise TagFileError(
                f"{self.path}: expected a new file, or one with {self.about_path.name} beside it; it is kept as it is"
            )
        differ = [name for name in sorted(told.keys() | before.keys()) if told.get(name) != before.get(name)]
        if differ:
            raise TagFileError(
                f"{self.path}: expected tags made by the same model to go on with, found others "
                f"({', '.join(differ)} differ); name another file"
            )

    def _rows(self) -> Iterator[str]:
        """Names in the rows that are there; what follows the last whole row is cut off."""
        with self.path.open("rb+") as file:
            end = 0
            for number, line in enumerate(iter(file.readline, b"")):
                name = self._name_in(line) if line.endswith(b"\n") else None
                if name is None and file.read(1):
                    raise TagFileError(f"{self.path}, line {number + 1}: expected tags, found something else")
                if name is None:  # The last row, cut off as it was written.
                    file.truncate(end)
                    return
                end += len(line)
                if number > 0 or self.kind == "jsonl":
                    yield name

    def _name_in(self, line: bytes) -> str | None:
        text = line.decode("utf-8", errors="surrogateescape")
        try:
            if self.kind == "jsonl":
                return str(json.loads(text)["file"])
            row = next(csv.reader([text], strict=True))
        except (ValueError, KeyError, TypeError, csv.Error, StopIteration):
            return None
        return row[0] if len(row) == len(COLUMNS[self._score]) else None


def _kind_of(path: Path) -> Literal["jsonl", "csv"]:
    ending = path.suffix.lower()
    if ending not in (".jsonl", ".csv"):
        raise TagFileError(f"{path}: expected a file that ends in .jsonl or .csv")
    return "jsonl" if ending == ".jsonl" else "csv"


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # The line that a killed run was writing.
            continue
        if isinstance(row, dict) and "file" in row:
            yield row
