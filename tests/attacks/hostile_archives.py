"""Archives that want to be elsewhere, larger, or something else."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from attack import Act, Attack
from hostile_pictures import encoded, png

from pvlr.core.labels import LabelSet
from pvlr.data.archives import unpack
from pvlr.data.images import MAX_BYTES
from pvlr.data.readers.shards import MAX_LABEL_BYTES, read_shards

LABELS = LabelSet(("cat", "dog"))
Files = list[tuple[str, bytes]]
GOOD: Files = [("a.png", encoded("PNG")), ("a.cls", b"0")]
OUTSIDE = "expected a picture inside its folder, found"
NO_TAR = "refused: x.tar: expected a tar archive that is not compressed, but "
ODD = "refused: x.tar: 'a.png': expected files and folders, found a link, device or other"


def info(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size = size
    for key, value in fields.items():
        setattr(found, key, value)
    return found


def tar(files: Files, *odd: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for item in odd:
            archive.addfile(item)
        for name, content in files:
            archive.addfile(info(name, len(content)), io.BytesIO(content))
    return buffer.getvalue()


def block(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header and the content that it announces."""
    header = info(name, len(content), type=kind).tobuf(tarfile.USTAR_FORMAT)
    return header + content + bytes(-len(content) % tarfile.BLOCKSIZE)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", encoded("PNG"))
    return buffer.getvalue()


def shard(name: str, content: bytes | Callable[[], bytes], outcome: str, size: int | None = None) -> Attack:
    def make(folder: Path) -> Act:
        path = folder / "x.tar"
        with path.open("wb") as target:
            target.write(content if isinstance(content, bytes) else content())
            if size is not None:
                target.truncate(size)
        return lambda: tuple(read_shards([path], name="mine", labels=LABELS)[0].image.shape)

    return Attack(f"shard: {name}", make, outcome)


def piped(folder: Path) -> Act:
    os.mkfifo(folder / "x.tar")
    return lambda: read_shards([folder / "x.tar"], name="mine").summary()


def unpacked(name: str, content: bytes, outcome: str) -> Attack:
    """An archive that is written out, as that of a download; a file beside the folder would be seen."""

    def make(folder: Path) -> Act:
        path, inner = folder / "x.tar", folder / "deep" / "inner"
        path.write_bytes(content)

        def act() -> object:
            try:
                unpack(path, inner)
            finally:
                beside = {item.relative_to(folder) for item in folder.rglob("*") if item.is_file()} - {Path("x.tar")}
                assert all(item.is_relative_to("deep/inner") for item in beside), beside
            return sorted(str(item) for item in beside)

        return act

    return Attack(f"unpacked: {name}", make, outcome)


def number(header: bytes, value: bytes) -> bytes:
    """A header with other bytes as the size, and the checksum that belongs to it."""
    changed = bytearray(header)
    changed[124:136] = value.ljust(12, b"\0")
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def linked(kind: bytes) -> tarfile.TarInfo:
    return info("a.png", type=kind, linkname="/etc/passwd")


ZEROS = 20_000_000
PLAIN = tar(GOOD, form=tarfile.USTAR_FORMAT)

ARCHIVES = (
    Attack("shard: archive is a pipe", piped, "refused: x.tar: expected a tar archive, found a pipe, socket or device"),
    shard("a good one", tar(GOOD), "read: (3, 40, 48)"),
    *(
        make(f"member {name}", tar([(name, b"x"), *GOOD]), f"refused: x.tar: {OUTSIDE} {name!r}")
        for make in (shard, unpacked)
        for name in ("../a.png", "b/../../a.png", "/tmp/a.png")
    ),
    shard("member of Windows' folders", tar([("..\\a.png", b"x")]), "expected a picture's path with / between folders"),
    shard("member with a line end", tar([("a\n.png", b"x")]), "without control characters, found 'a\\n.png'"),
    *(
        make(name, tar(GOOD, linked(kind)), ODD)
        for make in (shard, unpacked)
        for name, kind in (
            ("symbolic link", tarfile.SYMTYPE),
            ("hard link", tarfile.LNKTYPE),
            ("device", tarfile.CHRTYPE),
            ("pipe", tarfile.FIFOTYPE),
        )
    ),
    *(
        shard(f"expands 1,000 times: {name}", lambda pack=pack: pack(bytes(ZEROS)), NO_TAR)
        for name, pack in (("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress))
    ),
    *(
        make(
            "sparse file that expands to a terabyte",
            tar([], info("a.png", pax_headers={"GNU.sparse.size": str(10**12), "GNU.sparse.map": f"0,0,{10**12},0"})),
            "refused: x.tar: 'a.png': expected a file inside the archive, found one that ends elsewhere",
        )
        for make in (shard, unpacked)
    ),
    shard("a zip file by another name", zipped(), NO_TAR),
    shard("cut short", tar(GOOD)[:700], "found one that ends elsewhere"),
    shard(
        "without its end", b"".join(block(*file) for file in GOOD), "refused: x.tar: expected the end mark of an arc"
    ),
    shard("a second one behind it", tar(GOOD) * 2, "expected nothing after byte"),
    shard("file larger than the archive", number(PLAIN, b"77777777777") + PLAIN[512:], "found one that ends elsewhere"),
    shard("file of a negative size", number(PLAIN, b"\xff" * 12) + PLAIN[512:], "found one that ends elsewhere"),
    shard("file of 2^87 bytes", number(PLAIN, b"\x80" + b"\x7f" * 11) + PLAIN[512:], "found one that ends elsewhere"),
    shard(
        "header of 8 GB",
        number(block("x", b"", tarfile.XHDTYPE), b"77777777777") + bytes(1024),
        "refused: x.tar: expected headers of at most 8,192 bytes, found 8,589,934,592",
    ),
    shard(
        "header whose reading takes the square of its length",
        block("x", b"1" * 1_000_000, tarfile.XHDTYPE) + bytes(1024),
        "refused: x.tar: expected headers of at most 8,192 bytes, found 1,000,448",
    ),
    shard(
        "picture of 200 MB and a byte",
        block("a.cls", b"0") + number(block("a.png", b""), b"%o" % (MAX_BYTES + 1)),
        "refused: x.tar: a.png: expected at most 200,000,000 bytes, found 200,000,001",
        size=MAX_BYTES + 20_000,
    ),
    shard(
        "labels of 1 MB and a byte", tar([GOOD[0], ("a.json", bytes(MAX_LABEL_BYTES + 1))]), "at most 1,000,000 bytes"
    ),
    shard(
        "bomb as a picture", tar([("a.png", png(60_000, 60_000)), GOOD[1]]), "refused: mine: x/a: expected at most 100"
    ),
    shard(
        "the same file twice", tar([*GOOD, GOOD[0]]), "refused: x.tar: a.png: expected every file once, found it again"
    ),
    unpacked("the same file twice", tar([*GOOD, GOOD[0]]), "x.tar: a.png: expected every file once, found it again"),
    shard(
        "label that is not there",
        tar([GOOD[0], ("a.cls", b"7")]),
        "expected the position of a label from 0 to 1, found 7",
    ),
    shard("label that is no number", tar([GOOD[0], ("a.cls", b"-1")]), "expected the position of a label, found '-1'"),
    shard(
        "unknown label",
        tar([GOOD[0], ("a.json", b'{"labels": ["cta"]}')]),
        "unknown label 'cta', the nearest known one is",
    ),
    shard("picture without labels", tar(GOOD[:1]), "refused: x.tar: a: expected one .json or .cls, found none"),
)
