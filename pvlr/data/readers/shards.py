"""Reader of WebDataset's tar files: pictures and labels in archives, located once and then read by offset."""

import os
from collections.abc import Iterable
from pathlib import Path

from pvlr.core.labels import LabelSet
from pvlr.data.archives import Member, members
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.images import MAX_BYTES
from pvlr.data.readers.entries import Entry, assemble, collect_labels, read_labels, shown, shown_keys
from pvlr.data.readers.folders import ENDINGS
from pvlr.data.readers.lines import parse_json

__all__ = ["MAX_LABEL_BYTES", "read_shards"]

MAX_LABEL_BYTES = 1_000_000
"""Largest file of labels in an archive."""


def read_shards(
    shards: Iterable[str | os.PathLike[str]],
    *,
    name: str,
    labels: LabelSet | None = None,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read tar files in WebDataset's layout; pictures are not unpacked, and read only with their sample.

    Files with the same name up to the first dot are a sample: a picture, and either ``key.json``, an object with the
    list ``labels`` and, if any are unknown, ``unknown``, both of names or positions; or ``key.cls``, the position of
    the only label, as text. All other labels are absent. Further files of a sample are ignored, as are those whose
    names begin with a dot.

    Links, devices and paths that leave the archive are refused, as are archives that are compressed, damaged or
    incomplete.

    Args:
        shards: The tar files of a split, with distinct names.
        name: Name of the data set and its split.
        labels: The columns of the target; labels may then be given by their position. None: the names in the files,
            sorted.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the archives, named ``<archive without its ending>/<key>``.

    Raises:
        DataError: naming the archive, the file in it and the defect.

    Example:
        >>> import tarfile, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (3, 2)).save(f"{folder}/1.png")
        ...     _ = Path(folder, "1.json").write_text('{"labels": ["cat"]}')
        ...     with tarfile.open(f"{folder}/train-0.tar", "w") as archive:
        ...         for file in ("1.png", "1.json"):
        ...             archive.add(f"{folder}/{file}", arcname=file)
        ...     data = read_shards([f"{folder}/train-0.tar"], name="mine train")
        ...     sample = data[0]
        >>> data.identifiers, sample.image.shape, sample.target.tolist()
        (('train-0/1',), torch.Size([3, 2, 3]), [1.0])
    """
    entries: list[Entry] = []
    for shard in shards:
        path = Path(shard)
        for key, files in _samples(path).items():
            entries.append(_entry(path, key, files))
    if not entries:
        raise DataError(f"{name}: expected at least one picture in the archives, found none")
    labels = collect_labels(name, entries) if labels is None else labels
    return assemble(name, entries, labels, transform=transform)


def _samples(path: Path) -> dict[str, dict[str, Member]]:
    """Return the files by key and extension, in the order of the archive."""
    samples: dict[str, dict[str, Member]] = {}
    for member in members(path):
        place = f"{path}: {member.name}"
        folder, _, file = member.name.rpartition("/")
        if file.startswith("."):
            continue
        stem, dot, ending = file.partition(".")
        if not dot or not ending:
            raise DataError(f"{place}: expected names such as key.jpg and key.json")
        key = f"{folder}/{stem}" if folder else stem
        sample = samples.setdefault(key, {})
        ending = ending.lower()
        if ending in sample:
            raise DataError(f"{place}: expected every file once, found it again")
        sample[ending] = member
    return samples


def _entry(path: Path, key: str, files: dict[str, Member]) -> Entry:
    place = f"{path}: {key}"
    pictures = [files[ending] for ending in files if f".{ending}" in ENDINGS]
    annotations = [files[ending] for ending in files if ending in ("json", "cls")]
    for what, found in (("picture", pictures), (".json or .cls", annotations)):
        if len(found) != 1:
            raise DataError(f"{place}: expected one {what}, found {', '.join(files) if found else 'none'}")
    for member, limit in ((pictures[0], MAX_BYTES), (annotations[0], MAX_LABEL_BYTES)):
        if member.size > limit:
            raise DataError(f"{path}: {member.name}: expected at most {limit:,} bytes, found {member.size:,}")
    present, unknown = _labels(f"{path}: {annotations[0].name}", annotations[0])
    return Entry(place, f"{path.stem}/{key}", pictures[0], present, unknown)


def _labels(place: str, member: Member) -> tuple[list[str | int], list[str | int]]:
    try:
        text = member().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{place}: expected labels in UTF-8, found other bytes") from None
    if member.name.lower().endswith(".cls"):
        number = text.strip()
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise DataError(f"{place}: expected the position of a label, found {shown(text)}")
        return [int(number)], []
    fields = parse_json(place, text)
    if "labels" not in fields:
        raise DataError(f"{place}: expected the key 'labels', found {shown_keys(fields)}")
    return read_labels(place, "labels", fields["labels"]), read_labels(place, "unknown", fields.get("unknown", []))
