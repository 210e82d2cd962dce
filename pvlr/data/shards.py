"""WebDataset's tar files: pictures and labels inside archives, found once and then read by their position."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.entries import Entry, assemble, collect_labels, inside, read_labels, shown
from pvlr.data.folders import ENDINGS
from pvlr.data.lines import parse_json

__all__ = ["MAX_LABEL_BYTES", "MAX_PICTURE_BYTES", "Member", "read_shards"]

MAX_PICTURE_BYTES = 200_000_000
"""Largest picture file in an archive."""
MAX_LABEL_BYTES = 1_000_000
"""Largest file of labels in an archive."""


@dataclass(frozen=True)
class Member:
    """A file inside an archive that is not compressed: called, it gives its bytes.

    The archive is opened for each call, so members pickle, and are read by any number of processes.

    Args:
        archive: The archive.
        name: Of the file in it, for messages.
        offset: Where its bytes begin.
        size: How many they are.

    Raises:
        DataError: when called, naming the archive, where it cannot be read or has become shorter.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        """The file's bytes."""
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as err:
            raise DataError(f"{self.archive}: expected {self.name} in it, but {err.strerror or err}") from None
        if len(content) != self.size:
            raise DataError(f"{self.archive}: expected {self.size:,} bytes of {self.name}, found {len(content):,}")
        return content


def read_shards(
    shards: Iterable[str | os.PathLike[str]],
    *,
    name: str,
    labels: LabelSet | None = None,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read tar files in WebDataset's layout; no picture is unpacked, none is read before its sample is asked for.

    Files with the same name up to the first dot are a sample: a picture, and either ``key.json``, an object with the
    list ``labels`` and, where something is unknown, ``unknown``, both of names or positions; or ``key.cls``, the
    position of the only label, as text. All other labels are absent. Further files of a sample are not looked at, nor
    are those whose names begin with a dot.

    Links, devices and paths that leave the archive are refused, as are archives that are compressed, damaged or
    incomplete.

    Args:
        shards: The tar files of a split, each of another name.
        name: Of the data set and its split.
        labels: The columns of the target; labels may then be given by their position. None: the names that the files
            have, sorted.
        transform: How pictures are shown, see `LabelledImages`.

    Returns:
        The pictures in the order of the archives, named ``<archive without its ending>/<key>``.

    Raises:
        DataError: naming the archive, the file in it and what is wrong.

    Example:
        >>> import io, tempfile
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
    """Key to ending to file, in the order of the archive."""
    samples: dict[str, dict[str, Member]] = {}
    for member in _members(path):
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


def _members(path: Path) -> Iterator[Member]:
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            end = 0
            for item in archive:
                place = f"{path}: {shown(item.name)}"
                # Damaged numbers must not send the reader back to where it was.
                if item.size < 0 or item.offset < end or item.offset_data + max(item.size, 0) > size:
                    raise DataError(f"{place}: expected a file inside the archive, found one that ends elsewhere")
                if item.isdir():
                    end = item.offset_data
                    continue
                if not item.isreg() or item.issparse():
                    raise DataError(f"{place}: expected files and folders, found a link, device or other")
                end = item.offset_data + -(-item.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                name, _ = inside(Path(), item.name, str(path))
                yield Member(path, name, item.offset_data, item.size)
            _require_end(path, file, end)
    except (tarfile.TarError, EOFError) as err:
        raise DataError(f"{path}: expected a tar archive that is not compressed, but {err}") from None
    except OSError as err:
        raise DataError(f"{path}: expected a tar archive, but {err.strerror or err}") from None
    except (ValueError, OverflowError, RecursionError) as err:
        if isinstance(err, DataError):
            raise
        # Damaged headers, which tarfile takes apart as they are.
        raise DataError(f"{path}: expected a tar archive that is not compressed, but {err}") from None


def _require_end(path: Path, file: BinaryIO, end: int) -> None:
    """After the last file there must be the archive's end mark, and nothing else: tarfile is content without."""
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise DataError(f"{path}: expected the end mark of an archive, found the end of the file: it is incomplete")
    while rest:
        if rest.strip(b"\0"):
            raise DataError(f"{path}: expected nothing after byte {end:,}, found a damaged header or another archive")
        rest = file.read(1_000_000)


def _entry(path: Path, key: str, files: dict[str, Member]) -> Entry:
    place = f"{path}: {key}"
    pictures = [files[ending] for ending in files if f".{ending}" in ENDINGS]
    said = [files[ending] for ending in files if ending in ("json", "cls")]
    for what, found in (("picture", pictures), (".json or .cls", said)):
        if len(found) != 1:
            raise DataError(f"{place}: expected one {what}, found {', '.join(files) if found else 'none'}")
    for member, limit in ((pictures[0], MAX_PICTURE_BYTES), (said[0], MAX_LABEL_BYTES)):
        if member.size > limit:
            raise DataError(f"{path}: {member.name}: expected at most {limit:,} bytes, found {member.size:,}")
    present, unknown = _labels(f"{path}: {said[0].name}", said[0])
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
        raise DataError(f"{place}: expected the key 'labels', found {', '.join(map(shown, fields)) or 'no keys'}")
    return read_labels(place, "labels", fields["labels"]), read_labels(place, "unknown", fields.get("unknown", []))
