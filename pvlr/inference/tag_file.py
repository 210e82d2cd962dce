"""Files of tags for other programs, which an interrupted run continues."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from pvlr.core.models.state import trained_state
from pvlr.core.towers import weights_fingerprint
from pvlr.files import write_atomically
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tagging import Unreadable
from pvlr.inference.tags import Tag

__all__ = ["COLUMNS", "TagFile", "TagFileError", "identity_of"]

SEPARATOR = ";"
COLUMNS = {"probability": ("file", "labels", "probabilities"), "similarity": ("file", "labels", "similarities")}


class TagFileError(ValueError):
    """Error of a file of tags that cannot be written or continued."""


def identity_of(recognizer: Recognizer) -> dict[str, Any]:
    """Return everything that determines a picture's tags: weights, towers, labels, temperature and thresholds."""
    model, decision = recognizer.model, recognizer.decision
    return {
        "weights": weights_fingerprint(trained_state(model)),
        "towers": recognizer.origin.fingerprint,
        "labels": list(model.labels.names),
        "texts": list(model.labels.texts),
        "temperature": decision.temperature,
        "thresholds": list(decision.for_labels(model.labels)),
        "scores": decision.scores,
    }


class TagFile:
    """File of pictures and their tags, each picture once.

    Beside ``tags.jsonl``, ``tags.jsonl.about.json`` describes the model and settings, and ``tags.jsonl.refused.jsonl``
    lists the pictures that could not be read, if any. A row cut off by a kill or a full disk is removed on opening.

    A line of JSON is ``{"file": …, "tags": [{"name": …, "probability": …}, …]}``; CSV has the columns ``file``,
    ``labels`` and ``probabilities``, the latter two separated by ``;``, as the reader of tables reads them. Numbers
    that only rank labels are named ``similarity`` and ``similarities``.

    Args:
        path: The file; created or continued.
        about: Description of the model and settings; see :func:`identity_of`.
        kind: ``"jsonl"`` or ``"csv"``; None: by the path's extension.

    Raises:
        TagFileError: if the file holds tags of another model or settings, or anything but tags; if its extension is
            unknown; if a label cannot be written.

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
        description = {"kind": self.kind, **about}
        self._score = str(about.get("scores", "probability"))
        if self.kind == "csv":
            for name in description["labels"]:
                if SEPARATOR in name:
                    raise TagFileError(f"{path}: expected labels without '{SEPARATOR}', which separates them in CSV")
        if not path.parent.is_dir():
            raise TagFileError(f"{path}: expected a file in a folder that is there, found no {path.parent}")
        self.done: set[str] = set()
        if path.exists() and path.stat().st_size > 0:
            self._require_same(description)
            self.done = set(self._rows())
        write_atomically(self.about_path, f"{json.dumps(description, indent=1)}\n".encode())
        self._mended: set[str] = set()
        refused = list(_json_rows(self.refused_path)) if self.refused_path.exists() else []
        self._refused = {row["file"] for row in refused}
        if self.refused_path.exists() and not self.refused_path.read_bytes().endswith(b"\n"):  # Cut short by a kill.
            self._write_refused(refused)
        # A name need not be UTF-8: its bytes are written unchanged.
        self._file: IO[str] = path.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        if self.kind == "csv" and path.stat().st_size == 0:
            csv.writer(self._file, lineterminator="\n").writerow(COLUMNS[self._score])

    def write(self, path: str, tags: list[Tag]) -> None:
        """Add a picture; one whose name does not fit into a line of CSV is refused."""
        if self.kind == "csv" and len(path.splitlines()) != 1:
            self.refuse(Unreadable(path, f"{path!r}: expected a name without line breaks, which CSV lines end at"))
            return
        if self.kind == "jsonl":
            values = [{"name": tag.name, self._score: round(tag.probability, 4)} for tag in tags]
            self._file.write(f"{json.dumps({'file': path, 'tags': values})}\n")
        else:
            columns = ([tag.name for tag in tags], [f"{tag.probability:.4f}" for tag in tags])
            csv.writer(self._file, lineterminator="\n").writerow((path, *map(SEPARATOR.join, columns)))
        self._file.flush()  # Data passed to the system survives a kill.
        self.done.add(path)
        if path in self._refused:
            self._mended.add(path)

    def refuse(self, bad: Unreadable) -> None:
        """List a picture that cannot be read, once even if it is tried repeatedly."""
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

    def _require_same(self, description: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self.about_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise TagFileError(
                f"{self.path}: expected a new file, or one with {self.about_path.name} beside it; it is kept as it is"
            )
        names = sorted(description.keys() | before.keys())
        differ = [name for name in names if description.get(name) != before.get(name)]
        if differ:
            raise TagFileError(
                f"{self.path}: expected tags made by the same model to go on with, found others "
                f"({', '.join(differ)} differ); name another file"
            )

    def _rows(self) -> Iterator[str]:
        """Yield the names in the rows; anything after the last whole row is cut off."""
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
