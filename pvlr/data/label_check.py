"""Check of the labels of a data set before training: positives per split, and names or pictures that look wrong."""

import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pvlr.core.labels import LabelSet
from pvlr.data.batch import refusal
from pvlr.data.dataset import LabelledImages

__all__ = ["MOST_ROWS", "LabelReport", "OnBadLabels", "check_labels"]

OnBadLabels = Literal["warn", "refuse"]
MOST_ROWS = 40
"""Maximum number of labels in a table."""
MOST_NAMES = 5
SEPARATORS = ",;|/+&"
END = 4096


@dataclass(frozen=True)
class LabelReport:
    """The labels of a data set, as a table, and what is wrong with them.

    Attributes:
        table: Positives of each label in each split, one label a line; of many labels, the ones with the fewest.
        problems: One sentence for each kind of problem, empty where there is none.
        rows: The whole table: a row of titles, then the name and the positives of each label, in their order.
    """

    table: str
    problems: tuple[str, ...]
    rows: tuple[tuple[str | int, ...], ...]

    def to_csv(self) -> str:
        """Return the whole table as CSV."""
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows(self.rows)
        return file.getvalue()


def check_labels(splits: Mapping[str, LabelledImages]) -> LabelReport:
    """Count positives, and look for labels and pictures that people did not mean.

    Labels without a positive in a split; names that differ in case, spaces, underscores or a plural alone; names that
    are others joined by a separator; the same picture, by content, in two splits.

    Args:
        splits: By name, the training split first; all with the same labels.

    Example:
        >>> import torch
        >>> data = LabelledImages(
        ...     name="mine", labels=LabelSet(("cat", "cats")), paths=[Path("a.jpg")], identifiers=["a"],
        ...     target=torch.tensor([[1.0, 0.0]]),
        ... )
        >>> print(*check_labels({"train": data}).problems, sep="\\n")
        labels without a positive in train: 'cats'
        labels that differ in case, space, underscore or a plural alone: 'cat' and 'cats'
    """
    labels = next(iter(splits.values())).labels
    counts = {name: part.present.sum(dim=0).tolist() for name, part in splits.items()}
    problems = []
    for name, count in counts.items():
        if missing := [label for label, found in zip(labels, count, strict=True) if not found]:
            problems.append(f"labels without a positive in {name}: {_listed(missing)}")
    if alike := _alike(labels):
        problems.append(f"labels that differ in case, space, underscore or a plural alone: {'; '.join(alike)}")
    problems += _joined(labels)
    if shared := _shared_pictures(splits):
        problems.append(f"pictures of the same content in two splits: {'; '.join(shared)}")
    rows = ("label", *counts), *zip(labels, *counts.values(), strict=True)
    return LabelReport(_table(labels, counts), tuple(problems), rows)


def _table(labels: LabelSet, counts: Mapping[str, list[int]]) -> str:
    """Positives by label and split; the rarest in training first where not all are shown."""
    rows = list(zip(labels, *counts.values(), strict=True))
    left = len(rows) - MOST_ROWS
    if left > 0:
        rows = sorted(rows, key=lambda row: row[1])[:MOST_ROWS]
    width = max(len("label"), *(len(name) for name, *_ in rows))
    head = f"{'label':<{width}}" + "".join(f"{name:>12}" for name in counts)
    lines = [f"{name:<{width}}" + "".join(f"{number:>12,}" for number in numbers) for name, *numbers in rows]
    return "\n".join([head, *lines, *([f"and {left:,} labels with more positives"] if left > 0 else [])])


def _alike(labels: Iterable[str]) -> list[str]:
    """Groups of labels that are one in all but spelling."""
    groups = defaultdict(list)
    for name in labels:
        groups[_plain(name)].append(name)
    found = [" and ".join(map(repr, names)) for names in groups.values() if len(names) > 1]
    return _first(found)


def _plain(name: str) -> str:
    words = re.split(r"[\s_\-]+", name.casefold().strip())
    return "".join(re.sub(r"(?<=[^s])s$", "", word) if len(word) > 3 else word for word in words)


def _joined(labels: LabelSet) -> list[str]:
    """Labels that are others joined by a separator, one sentence for each separator."""
    found = []
    for separator in SEPARATORS:
        parts = {name: [part.strip() for part in name.split(separator)] for name in labels if separator in name}
        several: dict[str, int] = defaultdict(int)
        for pieces in parts.values():
            for piece in set(pieces):
                several[piece] += 1
        joined = [
            name
            for name, pieces in parts.items()
            if all(pieces) and any(piece in labels or several[piece] > 1 for piece in pieces)
        ]
        if joined:
            found.append(
                f"labels that look like several, joined by {separator!r}: {_listed(joined)}; if they are, another "
                f"separator was meant (of a table: data.separator {separator!r})"
            )
    return found


def _shared_pictures(splits: Mapping[str, LabelledImages]) -> list[str]:
    """Pairs of files of the same content in two splits; only files of one size and one end are read whole."""
    groups = [[(name, path) for name, part in splits.items() for path in part.paths if isinstance(path, Path)]]
    for mark in (_size, _end, _content):
        groups = [same for group in groups for same in _several_splits(group, mark)]
    found = []
    for group in groups:
        first, path = group[0]
        other, copy = next(one for one in group if one[0] != first)
        found.append(f"{path} ({first}) and {copy} ({other})")
    return _first(found)


def _several_splits(
    files: Iterable[tuple[str, Path]], mark: Callable[[Path], int | bytes | None]
) -> Iterator[list[tuple[str, Path]]]:
    """Groups of files with the same mark that are of two splits or more; files that are gone are left out."""
    groups = defaultdict(list)
    for name, path in files:
        try:
            found = mark(path)
        except OSError as err:
            raise refusal(err)(f"{path}: expected a picture, but {err.strerror or err}") from None
        groups[found].append((name, path))
    return (same for found, same in groups.items() if found is not None and len({name for name, _ in same}) > 1)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _end(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END))
        return file.read()


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _first(found: list[str]) -> list[str]:
    """The first of a list, and how many there are besides."""
    left = len(found) - MOST_NAMES
    return [*found[:MOST_NAMES], *([f"and {left:,} more"] if left > 0 else [])]


def _listed(names: list[str]) -> str:
    left = len(names) - MOST_NAMES
    return ", ".join(map(repr, names[:MOST_NAMES])) + (f" and {left:,} more" if left > 0 else "")
