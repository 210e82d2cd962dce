"""Files of every format, edited at random: ``python tests/attacks/byte_edits.py 5000`` makes 5,000 edits of each.

The process limits its own memory, and ends with a traceback where one edit takes longer than `SECONDS`. An error that
is not the project's own ends it too, and says which edit it was.
"""

import argparse
import faulthandler
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hostile_annotations import coco_text
from hostile_archives import GOOD, LABELS, block, tar
from hostile_pictures import NOISE, animation, encoded, turned
from hostile_voc import annotation
from PIL import Image

from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.images import MAX_PIXELS, decode_rgb
from pvlr.data.readers.coco import read_coco
from pvlr.data.readers.shards import read_shards
from pvlr.data.readers.table import read_table
from pvlr.data.readers.voc import read_annotation

SECONDS, GIGABYTES = 20, 2.5
NUMBERS = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"99999999999",
    b"-1",
    b"1e999",
    b"\xd8\0",
)


class Format(NamedTuple):
    """Valid files, and the function that reads one."""

    files: tuple[bytes, ...]
    ending: str
    read: Callable[[Path], object]


class Tried(NamedTuple):
    """Outcome of the edits of a format."""

    edits: int
    read: int
    seconds: float


def _decode(path: Path) -> None:
    side = path.stat().st_size % 3 * 16 or None
    picture = decode_rgb(path, side=side)
    if picture.mode != "RGB" or picture.width * picture.height > MAX_PIXELS:
        raise RuntimeError(f"expected a picture in RGB, got {picture}")


def _require_sound(data: LabelledImages) -> None:
    if not set(data.target.unique().tolist()) <= {0.0, 1.0} or data.target[~data.known].any():
        raise RuntimeError("expected targets of 0 and 1, and 0 where nothing is known")


def _archive(path: Path) -> None:
    data = read_shards([path], name="mine", labels=LABELS)
    _require_sound(data)
    for index in range(len(data)):
        data[index]


def _table(path: Path) -> None:
    _require_sound(read_table(path.parent, path, labels=LABELS, check_files=False))


def _annotation(path: Path) -> None:
    if not set(read_annotation(path).values()) <= {0, 1}:
        raise RuntimeError("expected marks of 0 and 1")


NOISY, GREY_NOISE = Image.fromarray(NOISE), Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
COCO = coco_text(
    images=[
        {"id": number, "file_name": f"a/{number}.jpg", "width": 9, "flickr_url": "somewhere/" * 9}
        for number in range(5)
    ],
    annotations=[{"image_id": number, "category_id": 1, "bbox": [0, 0.5, 9, 1e1], "iscrowd": 0} for number in range(5)],
)
CSV = "file,labels,unknown\n" + "".join(f'"a, {number}.jpg",cat;dog,\nb/{number}.png,,cat\n' for number in range(5))
JSONL = "".join(
    json.dumps({"file": f"{number}.jpg", "labels": ["cat"], "unknown": ["dog"], "author": "somebody, " * 9}) + "\n"
    for number in range(5)
)
XML = annotation(
    rest=f"<difficult>1</difficult><pose>{'Left, as far as one can see. ' * 20}</pose>", head="<?xml version='1.0'?>"
)

FORMATS = {
    "JPEG": Format(
        (
            encoded("JPEG"), encoded("JPEG", progressive=True), encoded("JPEG", NOISY.convert("CMYK")),
            turned("JPEG", 6), encoded("MPO", save_all=True, append_images=[NOISY]),
        ),
        "jpg",
        _decode,
    ),
    "PNG": Format(
        (
            encoded("PNG"), encoded("PNG", NOISY.convert("P"), transparency=bytes(range(256))), animation("PNG"),
            encoded("PNG", GREY_NOISE), turned("PNG", 5),
        ),
        "png",
        _decode,
    ),
    "WebP": Format(
        (encoded("WEBP"), encoded("WEBP", lossless=True), animation("WEBP"), turned("WEBP", 8)), "webp", _decode
    ),
    "GIF": Format((encoded("GIF"), animation("GIF")), "gif", _decode),
    "BMP": Format((encoded("BMP"), encoded("BMP", NOISY.convert("P"))), "bmp", _decode),
    "XML": Format((XML.encode(),), "xml", _annotation),
    "JSON": Format(
        (COCO.encode(),),
        "json",
        lambda path: _require_sound(read_coco(path.parent, path, keep_unlabelled=True, check_files=False)),
    ),
    "CSV": Format((CSV.encode(),), "csv", _table),
    "JSONL": Format((JSONL.encode(),), "jsonl", _table),
    "tar": Format((tar(GOOD), b"".join(block(*file) for file in GOOD) + bytes(1024)), "tar", _archive),
}  # fmt: skip


def edited(content: bytes, seed: int) -> bytes:
    """Make one to four edits, often near the start: bytes changed, added, removed, doubled, exchanged, or cut off."""
    rng = np.random.default_rng(seed)
    changed = bytearray(content)
    for _ in range(1 if rng.random() < 0.6 else rng.integers(2, 5)):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 256)
        start = int(rng.integers(0, max(1, end)))
        length = int(rng.integers(1, 17))
        piece = changed[start : start + length]
        match rng.integers(0, 7):
            case 0:
                changed[start : start + 1] = rng.bytes(1) if rng.random() < 0.5 else bytes([rng.integers(32, 127)])
            case 1:
                changed[start : start + 1] = bytes([(changed[start] if changed else 0) ^ (1 << int(rng.integers(8)))])
            case 2:
                number = NUMBERS[rng.integers(len(NUMBERS))]
                changed[start : start + len(number)] = number
            case 3:
                changed[start:start] = rng.bytes(length)
            case 4:
                del changed[start : start + length]
            case 5:
                changed[start:start] = piece * int(rng.integers(1, 50))
            case 6:
                other = int(rng.integers(0, max(1, len(changed))))
                changed[start : start + length], changed[other : other + length] = (
                    changed[other : other + length],
                    piece,
                )
    if rng.random() < 0.1:
        del changed[int(rng.integers(0, len(changed) + 1)) :]
    return bytes(changed)


def try_edits(form: Format, edits: int, folder: Path, *, first: int = 0) -> Tried:
    """Read so many edited files; refusals must name the file in one line."""
    path, read, slowest = folder / f"edited.{form.ending}", 0, 0.0
    for seed in range(first, first + edits):
        path.write_bytes(edited(form.files[seed % len(form.files)], seed))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        start = time.perf_counter()
        try:
            form.read(path)
            read += 1
        except DataError as err:
            said = str(err)
            if not said.startswith((str(path), "mine: ")) or "\n" in said or len(said) > 2_000:
                raise RuntimeError(
                    f"edit {seed} of {form.ending}: expected a message of one line, got {said!r}"
                ) from err
        except Exception as err:
            raise RuntimeError(f"edit {seed} of {form.ending}: an error of another kind") from err
        finally:
            faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.perf_counter() - start)
    return Tried(edits, read, slowest)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edits", type=int, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first edit: others give other edits")
    given = parser.parse_args()
    before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = before + int(GIGABYTES * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    print("| format | edits | read | refused | slowest |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for title, form in FORMATS.items():
            tried = try_edits(form, given.edits, Path(name), first=given.first)
            print(
                f"| {title} | {tried.edits:,} | {tried.read:,} | {tried.edits - tried.read:,} | "
                f"{tried.seconds * 1000:.0f} ms |",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{given.edits * len(FORMATS):,} edits; at most {peak:,.0f} MiB ({GIGABYTES} GiB beyond the start allowed)")
