"""Check of every picture before a run: the unreadable ones are refused or left out."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal, NamedTuple

from pvlr.data.batch import DataError, MachineError, refusal
from pvlr.data.dataset import LabelledImages, Source
from pvlr.data.images import MAX_PIXELS, decode_rgb

__all__ = ["REFUSED_NAME", "OnBadImage", "Refused", "scan", "without_bad_images"]

REFUSED_NAME = "refused.jsonl"
"""File in a run's folder with the pictures that cannot be read."""

AT_ONCE = 64

OnBadImage = Literal["raise", "drop"]


class Refused(NamedTuple):
    """A picture that cannot be read.

    Args:
        row: Its position in the data set.
        identifier: Its name.
        reason: One sentence, which names the file.
    """

    row: int
    identifier: str
    reason: str


def without_bad_images(
    parts: Sequence[LabelledImages],
    policy: OnBadImage,
    *,
    folder: Path | None = None,
    workers: int = 0,
    watch: Callable[[str, int, Iterator[Refused | None]], Iterator[Refused | None]] = lambda name, total, seen: seen,
) -> list[LabelledImages]:
    """Return the pictures that can be read, after decoding all of them; none is replaced by another.

    Args:
        parts: The splits of a data set.
        policy: ``"raise"``: refuse the data set if a picture is bad. ``"drop"``: leave bad pictures out, which the
            summary states.
        folder: Folder of ``refused.jsonl``, the list of the bad pictures under either policy, and of the record of
            earlier scans; None: nothing is written.
        workers: See :func:`scan`.
        watch: Called with the name, size and outcomes of a part, which it yields unchanged: for a progress bar.

    Raises:
        DataError: naming the first bad picture and their number, if the policy is ``"raise"``; if no picture of a part
            is left; or, under either policy, if the machine fails and not a picture, see :func:`scan`.

    Example:
        >>> import tempfile, torch
        >>> from PIL import Image
        >>> from pvlr.core.labels import LabelSet
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     Image.new("RGB", (4, 4)).save(folder / "a.png")
        ...     _ = (folder / "b.png").write_bytes(b"no picture")
        ...     paths, names = [folder / "a.png", folder / "b.png"], ["a", "b"]
        ...     whole = LabelledImages(
        ...         name="mine", labels=LabelSet(("cat",)), paths=paths, identifiers=names, target=torch.ones(2, 1)
        ...     )
        ...     without_bad_images([whole], "drop")[0].summary()
        'mine: 1 images, 1 labels, 1.00 positives per image, 0 unknown labels (1 refused)'
    """
    if policy not in ("raise", "drop"):
        raise DataError(f"policy: expected 'raise' or 'drop', got {policy!r}")
    memory = None if folder is None else folder / "scanned.jsonl"
    found = [
        [outcome for outcome in watch(part.name, len(part), scan(part, memory=memory, workers=workers)) if outcome]
        for part in parts
    ]
    listed = [
        {"picture": outcome.identifier, "reason": outcome.reason, "data": part.name}
        for part, refused in zip(parts, found, strict=True)
        for outcome in refused
    ]
    if folder is not None:
        path = folder / REFUSED_NAME
        path.unlink(missing_ok=True)
        if listed:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{json.dumps(line)}\n" for line in listed), encoding="utf-8")
    if listed and policy == "raise":
        where = "" if folder is None else f", listed in {folder / REFUSED_NAME}"
        others = f" (and {len(listed) - 1:,} more{where})" if len(listed) > 1 else ""
        raise DataError(f"{listed[0]['reason']}{others}")
    return [_without(part, refused) for part, refused in zip(parts, found, strict=True)]


def _without(part: LabelledImages, refused: Sequence[Refused]) -> LabelledImages:
    if not refused:
        return part
    if len(refused) == len(part):
        raise DataError(f"{part.name}: expected at least one picture that can be read; {refused[0].reason}")
    bad = {outcome.row for outcome in refused}
    rows = [row for row in range(len(part)) if row not in bad]
    return part.select(rows, note=f"{len(bad):,} refused")


def scan(data: LabelledImages, *, memory: Path | None = None, workers: int = 0) -> Iterator[Refused | None]:
    """Decode every picture once, in order.

    Args:
        data: The pictures.
        memory: File that records good pictures by path, size and times; they are not decoded again while those stay
            the same. It only grows; a damaged line is ignored.
        workers: Number of processes that decode; 0: this one.

    Yields:
        For each picture None, or the reason why it is refused.

    Raises:
        DataError: if a picture cannot be read for a reason other than its content (memory or open files run out, a disk
            fails), or a process dies: an interrupted scan gives no result.
    """
    known = _remembered(memory)
    marks = [_mark(source, data.max_pixels) for source in data.paths]
    open_rows = [row for row, mark in enumerate(marks) if mark is None or mark not in known]
    reasons = _reasons([(data.paths[row], data.identifiers[row], data.max_pixels) for row in open_rows], workers)
    todo, fresh = iter(open_rows), []
    upcoming = next(todo, None)
    try:
        for row in range(len(data)):
            if row != upcoming:
                yield None
                continue
            upcoming = next(todo, None)
            reason = next(reasons)
            mark = marks[row]
            if reason is None and mark is not None:
                fresh.append(mark)
            yield None if reason is None else Refused(row, data.identifiers[row], reason)
    finally:
        # Pictures checked before an interruption are not checked again.
        if memory is not None and fresh:
            memory.parent.mkdir(parents=True, exist_ok=True)
            with memory.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(entry)}\n" for entry in fresh)


def _reasons(pictures: list[tuple[Source, str, int]], workers: int) -> Iterator[str | None]:
    if workers == 0 or len(pictures) <= AT_ONCE:
        yield from map(_reason, pictures)
        return
    try:
        with ProcessPoolExecutor(workers) as pool:
            yield from pool.map(_reason, pictures, chunksize=AT_ONCE)
    except BrokenProcessPool:
        raise DataError("a process that looked at the pictures ended at once: is there too little memory?") from None


def _reason(picture: tuple[Source, str, int]) -> str | None:
    source, name, max_pixels = picture
    try:
        if isinstance(source, Path):
            decode_rgb(source, max_pixels=max_pixels)
        else:
            decode_rgb(source(), name=name, max_pixels=max_pixels)
    except MachineError:
        raise
    except DataError as err:
        return str(err)
    except (MemoryError, OSError) as err:  # From a source outside this package.
        if refusal(err) is MachineError:
            reason = str(err) or "there is too little memory"
            raise MachineError(f"{name}: expected a machine that can read it, but {reason}") from err
        raise
    return None


def _mark(source: Source, max_pixels: int) -> tuple[str | int, ...] | None:
    if not isinstance(source, Path):
        return None
    try:
        found = os.stat(source)
    except OSError:
        return None
    # By its path: a picture of the same name elsewhere is another. The last time cannot be set back.
    mark = (os.path.abspath(source), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return mark if max_pixels == MAX_PIXELS else (*mark, max_pixels)


def _remembered(memory: Path | None) -> set[tuple[object, ...]]:
    if memory is None or not memory.is_file():
        return set()
    seen: set[tuple[object, ...]] = set()
    for line in memory.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            seen.add(tuple(json.loads(line)))
        except (ValueError, TypeError):  # A line cut short by a full disk or a kill.
            continue
    return seen
