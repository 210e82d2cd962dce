"""Tagging of large sets of pictures with Ray Data: one Parquet file per part, each picture once."""

import glob
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pvlr.console import say
from pvlr.core.arguments import require_int
from pvlr.data.archives import Member, members
from pvlr.data.batch import DataError
from pvlr.data.images import MAX_PIXELS
from pvlr.data.sources import ENDINGS, is_picture, why_left_out
from pvlr.files import remove_leftovers, write_atomically
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tag_file import COLUMNS, identity_of
from pvlr.inference.tagging import Tagged, Unreadable, tag_pictures

__all__ = ["BulkError", "Part", "parts_of", "tag_bulk"]

PLAN_NAME = "plan.json"
OWN = re.compile(r"\d{8}\.parquet")
"""Names of the output files."""


class BulkError(ValueError):
    """Error of a bulk run that cannot start or continue."""


class Part(NamedTuple):
    """Pictures that are tagged together: the rows of one output file.

    Attributes:
        name: Name of the output file, without extension.
        kind: ``files``, ``tar`` or ``parquet``.
        place: The archive or Parquet file; empty for files.
        members: Paths, names in the archive, or the first and last row plus one.
    """

    name: str
    kind: str
    place: str
    members: tuple[str, ...]


def parts_of(
    pictures: str,
    size: int,
    *,
    out: str | None = None,
    left_out: Callable[[str], object] = lambda reason: None,
) -> list[Part]:
    """Split pictures into parts, in an order that depends on their names only.

    Args:
        pictures: A folder (with all below it), a pattern of files, WebDataset shards (``.tar``) or Parquet files with
            the columns ``name`` and ``image`` (the bytes of a picture file).
        size: Pictures per part, at least 1.
        out: Folder of the tags: the tags in it are not taken for tables of pictures.
        left_out: Called with the reason for each picture in a folder that is left out for its extension or format, see
            :func:`~pvlr.data.sources.why_left_out`.

    Raises:
        BulkError: if nothing is found.
        DataError: if an archive or table cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in "abc":
        ...         Image.new("RGB", (2, 2)).save(f"{folder}/{name}.png")
        ...     [(part.name, len(part.members)) for part in parts_of(folder, size=2)]
        [('00000000', 2), ('00000001', 1)]
    """
    require_int("size", size, least=1)
    found = _found(pictures)
    if out is not None:
        found = [path for path in found if not _is_own(path, os.path.realpath(out))]
    if os.path.isdir(pictures):
        for path in found:
            is_read = path.endswith((".tar", ".parquet")) or is_picture(path)
            if not is_read and (reason := why_left_out(path)):
                left_out(reason)
    named: list[tuple[str, str, tuple[str, ...]]] = []
    files = [path for path in found if is_picture(path)]
    named += [("files", "", tuple(files[start : start + size])) for start in range(0, len(files), size)]
    for path in found:
        if path.endswith(".tar"):
            names = [member.name for member in _pictures(path)]
            named += [("tar", path, tuple(names[start : start + size])) for start in range(0, len(names), size)]
        elif path.endswith(".parquet"):
            rows = _rows(path)
            named += [("parquet", path, (str(start), str(min(start + size, rows)))) for start in range(0, rows, size)]
    if not named:
        raise BulkError(f"pictures: expected pictures, .tar or .parquet files at {pictures}, found none")
    return [Part(f"{number:08d}", *part) for number, part in enumerate(named)]


def tag_bulk(
    *,
    pictures: str,
    out: str,
    run: str | None = None,
    tower: str | None = None,
    weights: str | None = None,
    labels: str | None = None,
    workers: int = 2,
    part_size: int = 256,
    batch_size: int = 32,
    max_pixels: int = MAX_PIXELS,
    device: str = "cpu",
    address: str | None = None,
) -> int:
    """Tag pictures on a Ray cluster; the same call continues after an interruption.

    Args:
        pictures: A folder, a pattern, .tar shards or .parquet files (columns name and image); every machine must reach
            them.
        out: Folder for the Parquet files (columns name, labels, probabilities or similarities, error), one per part; it
            may be in the folder of the pictures.
        run: Folder of a finished run or a saved model, or hf-hub:ORGANISATION/REPOSITORY; every machine must reach it.
        tower: Without a run: towers that tag without training, such as pvlr:photos, a folder or a name of open_clip's.
            With one: the current place of its towers, if it has changed.
        weights: Weights of the tower, if several are published: a tag, or a file.
        labels: Labels to look for: names separated by commas, @FILE with one per line, voc, coco or imagenet; null for
            the run's own, or coco.
        workers: Processes that tag, each with a model of its own, at least 1.
        part_size: Pictures per part, at least 1.
        batch_size: Pictures per forward pass, at least 1.
        max_pixels: Largest width times height of a picture, at least 1.
        device: Device of each worker: auto, cpu or cuda.
        address: Address of a running Ray cluster; null starts one on this machine.

    Returns:
        The exit code: 0; 1 if a picture could not be read, or a folder holds pictures that are left out for their
        extension or format, which are told on stderr.

    Raises:
        BulkError: if ray is not installed, nothing is found, or the folder holds another run's tags.
        PretrainedError: if the model cannot be loaded.
    """
    sizes = {"batch_size": batch_size, "max_pixels": max_pixels}
    for name, value in {"workers": workers, "part_size": part_size, **sizes}.items():
        require_int(name, value, least=1)
    try:
        import ray
        import ray.data
    except ImportError:
        raise BulkError("ray: expected the package, found none; pip install 'pvlr[ray]'") from None
    # Errors are raised here once, and not by every worker.
    chosen: dict[str, Any] = {"run": run, "tower": tower, "weights": weights, "labels": labels, "device": device}
    about = identity_of(Recognizer.open(**chosen))
    left_out: list[str] = []
    parts = parts_of(pictures, part_size, out=out, left_out=left_out.append)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    folder, bad = Path(out), 0
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, about, parts)
    waiting = [part for part in parts if not (folder / f"{part.name}.parquet").is_file()]
    say(f"{len(parts):,} parts of at most {part_size:,} pictures, {len(parts) - len(waiting):,} done before")
    if waiting:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        try:
            options: dict[str, Any] = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 1}
            # If a worker dies, its actor is restarted and its part repeated; only an error of the code is fatal.
            rows = [{"part": json.dumps(part)} for part in waiting]
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _PartRecognizer,
                fn_constructor_kwargs={"chosen": chosen, "out": str(folder), "sizes": sizes},
                compute=ray.data.ActorPoolStrategy(size=workers),
                max_restarts=-1,
                max_task_retries=-1,
                **options,
            )
            counts = done.take_all()
        finally:
            ray.shutdown()
        total, bad = (sum(row[name] for row in counts) for name in ("pictures", "bad"))
        say(f"{total:,} pictures, {bad:,} of them unreadable")
    if left_out:
        say(f"{len(left_out):,} pictures left out")
    say(f"tags: {folder}/*.parquet")
    return 1 if bad or left_out else 0


class _PartRecognizer:
    """One worker, which tags parts with its own model."""

    def __init__(self, *, chosen: Mapping[str, Any], out: str, sizes: Mapping[str, int]) -> None:
        torch.set_num_threads(1)  # There is a worker for each core.
        self.recognizer = Recognizer.open(**chosen)
        self.folder, self.sizes = Path(out), sizes

    def __call__(self, row: Mapping[str, Any]) -> dict[str, int]:
        import pyarrow
        from pyarrow import parquet

        part = Part(*json.loads(str(row["part"])))
        found = tag_pictures(self.recognizer, _sources(part), workers=1, **self.sizes)
        column = COLUMNS[self.recognizer.decision.scores][-1]
        rows = [_row(one, column) for one in found]
        schema = pyarrow.schema([
            ("name", pyarrow.string()),
            ("labels", pyarrow.list_(pyarrow.string())),
            (column, pyarrow.list_(pyarrow.float32())),
            ("error", pyarrow.string()),
        ])  # fmt: skip
        table = pyarrow.Table.from_pylist(rows, schema=schema)
        write_atomically(self.folder / f"{part.name}.parquet", lambda file: parquet.write_table(table, file))
        return {"pictures": len(rows), "bad": sum(row["error"] is not None for row in rows)}


def _row(found: Tagged | Unreadable, column: str) -> dict[str, Any]:
    tags, error = (found.tags, None) if isinstance(found, Tagged) else ([], found.reason)
    return {
        "name": found.path,
        "labels": [tag.name for tag in tags],
        column: [tag.probability for tag in tags],
        "error": error,
    }


def _sources(part: Part) -> Iterator[tuple[str, str | bytes]]:
    """Yield the name and the bytes or path of each picture of a part."""
    if part.kind == "files":
        yield from ((path, path) for path in part.members)
    elif part.kind == "tar":
        wanted = set(part.members)
        for member in _pictures(part.place):
            if member.name in wanted:
                yield f"{part.place}/{member.name}", member()
    else:
        from pyarrow import parquet

        first, end = map(int, part.members)
        table = parquet.read_table(part.place, columns=["name", "image"]).slice(first, end - first)
        for name, image in zip(table["name"].to_pylist(), table["image"].to_pylist(), strict=True):
            yield str(name), image if image is not None else b""


def _pictures(archive: str) -> list[Member]:
    return [member for member in members(Path(archive)) if member.name.lower().endswith(ENDINGS)]


def _found(pictures: str) -> list[str]:
    if os.path.isdir(pictures):
        return sorted(str(path) for path in Path(pictures).rglob("*") if path.is_file())
    return sorted(path for path in glob.glob(pictures, recursive=True) if os.path.isfile(path))


def _is_own(path: str, out: str) -> bool:
    """Return True for a table of tags in the folder of the tags, which has a plan."""
    folder, name = os.path.split(path)
    mine = OWN.fullmatch(name) is not None and os.path.realpath(folder) == out
    return mine and os.path.isfile(os.path.join(out, PLAN_NAME))


def _rows(path: str) -> int:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise BulkError("pyarrow: expected the package, found none; pip install 'pvlr[ray]'") from None
    try:
        about = parquet.read_metadata(path)
    except (OSError, ArrowException) as err:
        raise DataError(
            f"{path}: expected a Parquet file, but {(str(err).splitlines() or ['it is none'])[0]}"
        ) from None
    columns = about.schema.to_arrow_schema().names
    for column in ("name", "image"):
        if column not in columns:
            raise DataError(f"{path}: expected the column {column!r}, found {', '.join(columns)}")
    return int(about.num_rows)


def _claim(folder: Path, about: Mapping[str, Any], parts: Sequence[Part]) -> None:
    """Refuse a folder with the tags of other pictures or another model; remove leftovers of killed workers."""
    digest = hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()
    plan, path = {"model": dict(about), "parts": digest}, folder / PLAN_NAME
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise BulkError(f"out: {folder} holds the tags of other pictures or another model; choose another folder")
    elif other := next((name for name in sorted(os.listdir(folder)) if OWN.fullmatch(name)), None):
        # It would be taken for a part that is done.
        raise BulkError(
            f"out: expected a folder without other tables, found {other} in {folder}; choose another folder"
        )
    else:
        write_atomically(path, f"{json.dumps(plan)}\n".encode())
    remove_leftovers(folder)
