"""Tags for more pictures than one machine likes, on Ray Data: parts in, a Parquet file each, each picture once."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pvlr.core.arguments import require_int
from pvlr.core.files import remove_leftovers, write_atomically
from pvlr.data.archives import Member, members
from pvlr.data.batch import DataError
from pvlr.data.folders import ENDINGS
from pvlr.train.monitor import say
from pvlr.train.predict import Tagger
from pvlr.train.tag_file import COLUMNS, identity_of
from pvlr.train.tagging import Tagged, Unreadable, tag_pictures

__all__ = ["BulkError", "Part", "parts_of", "tag_bulk"]

PLAN_NAME = "plan.json"


class BulkError(ValueError):
    """A bulk run that cannot start or go on."""


class Part(NamedTuple):
    """Pictures that are tagged together: the rows of one output file.

    Attributes:
        name: Of the output file, without its ending.
        kind: ``files``, ``tar`` or ``parquet``.
        place: The archive or Parquet file; empty for files.
        members: Paths, names in the archive, or the first and last row plus one.
    """

    name: str
    kind: str
    place: str
    members: tuple[str, ...]


def parts_of(pictures: str, size: int) -> list[Part]:
    """Cut what is to be tagged into parts, in an order that depends on the names alone.

    Args:
        pictures: A folder (with all below it), a pattern of files, WebDataset shards (``.tar``) or Parquet files with
            the columns ``name`` and ``image`` (the bytes of a picture file).
        size: Pictures of a part, at least 1.

    Raises:
        BulkError: where nothing is found.
        DataError: where an archive or table cannot be read.

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
    named: list[tuple[str, str, tuple[str, ...]]] = []
    files = [path for path in found if Path(path).suffix.lower() in ENDINGS]
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
    device: str = "cpu",
    address: str | None = None,
) -> None:
    """Tag pictures on a Ray cluster; ask again after an interruption, and what is left is done.

    Args:
        pictures: A folder, a pattern, .tar shards or .parquet files (columns name and image); every machine must reach
            them.
        out: Folder for the Parquet files (columns name, labels, probabilities or similarities, error), one a part.
        run: Folder of a finished run or a saved model, or hf-hub:ORGANISATION/REPOSITORY; every machine must reach it.
        tower: Without a run: towers that tag without training, such as pvlr:photos, a folder or a name of open_clip's.
            With one: where its towers lie now, if elsewhere.
        weights: Of the tower, where several are published: a tag, or a file.
        labels: Look for these: names with commas between, @FILE with one a line, voc, coco or imagenet; null for the
            run's own, or coco.
        workers: Processes that tag, each with a model of its own, at least 1.
        part_size: Pictures of a part, at least 1.
        batch_size: Pictures of one forward pass, at least 1.
        device: Where each worker computes: auto, cpu or cuda.
        address: Of a running Ray cluster; null starts one on this machine.

    Raises:
        BulkError: where ray is not installed, nothing is found, or the folder holds another run's tags.
        PretrainedError: where the model cannot be loaded.
    """
    for name, value in (("workers", workers), ("part_size", part_size), ("batch_size", batch_size)):
        require_int(name, value, least=1)
    try:
        import ray
        import ray.data
    except ImportError:
        raise BulkError("ray: expected the package, found none; pip install 'pvlr[ray]'") from None
    # Refused here, in one sentence, and not by every worker.
    chosen: dict[str, Any] = {"run": run, "tower": tower, "weights": weights, "labels": labels, "device": device}
    about = identity_of(Tagger.opened(**chosen).model)
    parts = parts_of(pictures, part_size)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, about, parts)
    waiting = [part for part in parts if not (folder / f"{part.name}.parquet").is_file()]
    say(f"{len(parts):,} parts of at most {part_size:,} pictures, {len(parts) - len(waiting):,} done before")
    if waiting:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
        try:
            options: dict[str, Any] = {"num_gpus": 1} if device.startswith("cuda") else {"num_cpus": 1}
            # A worker's death restarts its actor and gives its part to it again; only an error of the code is fatal.
            rows = [{"part": json.dumps(part)} for part in waiting]
            done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                _PartTagger,
                fn_constructor_kwargs={"chosen": chosen, "out": str(folder), "batch_size": batch_size},
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
    say(f"tags: {folder}/*.parquet")


class _PartTagger:
    """One worker: a model, and parts to tag with it."""

    def __init__(self, *, chosen: Mapping[str, Any], out: str, batch_size: int) -> None:
        torch.set_num_threads(1)  # There is a worker for each core.
        self.tagger = Tagger.opened(**chosen)
        self.folder, self.batch_size = Path(out), batch_size

    def __call__(self, row: Mapping[str, Any]) -> dict[str, int]:
        import pyarrow
        from pyarrow import parquet

        part = Part(*json.loads(str(row["part"])))
        found = tag_pictures(self.tagger, _sources(part), batch_size=self.batch_size, workers=1)
        column = COLUMNS[self.tagger.model.decision.scores][-1]
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
    """Name and bytes, or path, of each picture of a part."""
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
    """Refuse a folder with the tags of other pictures or another model; what a killed worker left is removed."""
    digest = hashlib.sha256(json.dumps([list(part) for part in parts]).encode()).hexdigest()
    plan, path = {"model": dict(about), "parts": digest}, folder / PLAN_NAME
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise BulkError(f"out: {folder} holds the tags of other pictures or another model; choose another folder")
    else:
        write_atomically(path, f"{json.dumps(plan)}\n".encode())
    remove_leftovers(folder)
