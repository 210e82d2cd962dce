"""Pictures that are broken, hostile or only unusual."""

import io
import math
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from attack import Act, Attack
from PIL import Image

from pvlr.data.images import MAX_BYTES, decode_rgb
from pvlr.data.readers.rows import read_rows

NOISE = np.random.default_rng(0).integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
RED, BLUE = (255, 0, 0), (0, 0, 255)
ELSE = "refused: x.jpg: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found something else"


def encoded(form: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(NOISE) if image is None else image).save(buffer, format=form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *extra: bytes, depth: int = 8, colours: int = 2, pixels: bytes = b"\0" * 9) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + end


def jpeg_claiming(width: int, height: int) -> bytes:
    content = bytearray(encoded("JPEG"))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def gif_beyond_its_canvas() -> bytes:
    content = bytearray(encoded("GIF"))
    start = content.index(b"\x2c\0\0\0\0")
    content[start + 5 : start + 9] = struct.pack("<HH", 65_000, 65_000)
    return bytes(content)


def webp_of_four_rows() -> bytes:
    content = bytearray(animation("WEBP"))
    start = content.index(b"VP8X") + 12
    content[start : start + 6] = (8_388_607).to_bytes(3, "little") + (3).to_bytes(3, "little")
    return bytes(content)


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, BLUE)]
    return encoded(form, frames[0], save_all=True, append_images=frames[1:], lossless=True)


def turned(form: str, orientation: int) -> bytes:
    """Red above blue, stored on its side; the colours are where they belong once it is upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (32, 16), RED)
    picture.paste(BLUE, (16, 0, 32, 16))
    return encoded(form, picture, exif=exif, quality=95)


def look(picture: object, name: str | None = None) -> str:
    """Mode and size, and the colours of the first and last pixel to the nearest eighth."""
    found = decode_rgb(picture, name=name)
    corners = (found.getpixel((0, 0)), found.getpixel((found.width - 1, found.height - 1)))
    colours = " to ".join(",".join(str(round(level / 32)) for level in corner) for corner in corners)
    return f"{found.mode} {found.width} x {found.height}, {colours}"


def file(name: str, content: bytes | Callable[[], bytes], outcome: str) -> Attack:
    def make(folder: Path) -> Act:
        path = folder / "x.jpg"
        path.write_bytes(content if isinstance(content, bytes) else content())
        return lambda: look(path)

    return Attack(name, make, outcome)


def place(name: str, put: Callable[[Path], object], outcome: str) -> Attack:
    def make(folder: Path) -> Act:
        put(folder / "x.jpg")
        return lambda: look(folder / "x.jpg")

    return Attack(name, make, outcome)


def large(path: Path) -> None:
    with path.open("wb") as target:
        target.write(encoded("JPEG"))
        target.truncate(MAX_BYTES + 1)


def opened_large(folder: Path) -> Act:
    large(folder / "x.jpg")

    def act() -> str:
        with (folder / "x.jpg").open("rb") as opened:
            return look(opened)

    return act


def turned_and_odd() -> bytes:
    """A camera's orientation, and beside it a note that Pillow reads and cannot write."""
    notes = struct.pack("<H", 2) + struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHIf", 0x9000, 11, 1, math.nan)
    with Image.open(io.BytesIO(turned("JPEG", 1))) as picture:
        return encoded("JPEG", picture, exif=b"Exif\0\0II*\0\x08\0\0\0" + notes + bytes(4), quality=95)


def row(name: str, rows: Callable[[], object], outcome: str) -> Attack:
    def make(folder: Path) -> Act:
        return lambda: tuple(read_rows(rows(), name="mine")[0].image.shape)

    return Attack(name, make, outcome)


class Failing:
    """Rows of which one cannot be had: their own decoder gives up."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> dict:
        raise RuntimeError("cannot identify\nimage file")


def postscript() -> Image.Image:
    return Image.open(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"))


GREY16 = Image.fromarray(np.full((4, 6), 0xFF00, dtype=np.uint16))
WHITE = "read: RGB 6 x 4, 8,8,8 to 8,8,8"
NOTHING = Image.new("RGBA", (6, 4), (0, 0, 0, 0))

PICTURES = (
    file("empty", b"", ELSE),
    file("text named .jpg", b"no picture", ELSE),
    file("SVG named .jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", ELSE),
    file("PostScript named .jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", ELSE),
    file("TIFF named .jpg", encoded("TIFF"), "read: RGB 48 x 40"),
    *(
        file(f"{form} cut short", encoded(form)[:-400], "refused: x.jpg: expected a whole picture, but ")
        for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP")
    ),
    file("JPEG without a last byte", encoded("JPEG")[:-30], "refused: x.jpg: expected a whole picture, but "),
    file("PNG with a wrong checksum", encoded("PNG").replace(b"IDAT", b"IDAX", 1), ELSE),
    file(
        "PNG without the palette it needs",
        png(2, 1, colours=3, pixels=b"\0\0\1"),
        "refused: x.jpg: expected a whole picture, but its decoder gave up (AssertionError)",
    ),
    file("PNG of no pixels", png(0, 0), ELSE),
    file("bomb: PNG, 20,000 x 6,000", png(20_000, 6_000), "refused: x.jpg: expected at most 100,000,000 pixels, got 2"),
    file("bomb: PNG, 60,000 x 60,000", png(60_000, 60_000), "refused: x.jpg: expected at most 100,000,000 pixels"),
    file("bomb: JPEG, 65,500 x 65,500", jpeg_claiming(65_500, 65_500), "refused: x.jpg: expected at most 100,000,000"),
    file("bomb: GIF, frame beyond the canvas", gif_beyond_its_canvas, "refused: x.jpg: expected at most 100,000,000"),
    file(
        "WebP, 8,388,608 x 4", webp_of_four_rows, "refused: x.jpg: expected sides of at most 65,535 pixels, got 83886"
    ),
    file("PNG, 4 x 65,536", png(4, 65_536), "refused: x.jpg: expected sides of at most 65,535 pixels, got 4 x 65536"),
    file(
        "bomb: PNG, text of 300 MB",
        lambda: png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000)))),
        "refused: x.jpg: expected a whole picture, but Decompressed data too large",
    ),
    file(
        "bomb: PNG, colour profile of 300 MB",
        lambda: png(1, 1, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(300_000_000))), pixels=b"\0\xff\xff\xff"),
        "refused: x.jpg: expected a whole picture, but Decompressed data too large",
    ),
    file(
        "bomb: PNG, more pixels than it says",
        lambda: png(1, 1, pixels=b"\0\xff\xff\xff" + bytes(300_000_000)),
        "read: RGB 1 x 1, 8,8,8",
    ),
    place(
        "file of 200 MB and a byte", large, "refused: x.jpg: expected a picture of at most 200,000,000 bytes, found 2"
    ),
    place("missing file", lambda path: None, "refused: x.jpg: expected a picture, found no such file"),
    place("folder", lambda path: path.mkdir(), "refused: x.jpg: expected a picture, found a folder"),
    Attack(
        "path that paints the terminal",
        lambda folder: lambda: look(folder / "a\x1b[31m\nb.jpg"),
        "refused: a\\x1b[31m\\nb.jpg: expected a picture, found no such file",
    ),
    Attack("open file of 200 MB and a byte", opened_large, "refused: picture: expected a picture of at most 200,000,0"),
    place("pipe", os.mkfifo, "refused: x.jpg: expected a picture, found a pipe, socket or device"),
    place(
        "link to a device", lambda path: path.symlink_to("/dev/zero"), "refused: x.jpg: expected a picture, found a pi"
    ),
    place("link to itself", lambda path: path.symlink_to(path), "refused: x.jpg: expected a whole picture, but "),
    row(
        "row: PostScript opened by Pillow",
        lambda: [{"image": postscript(), "labels": ["cat"]}],
        "refused: mine: 0: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found one in EPS",
    ),
    row(
        "row: broken bytes",
        lambda: [{"image": b"no", "labels": ["cat"]}],
        "refused: mine: 0: expected a picture (JPEG, P",
    ),
    row(
        "row: number for a picture",
        lambda: [{"image": 7, "labels": ["cat"]}],
        "refused: mine: row 0: expected an image",
    ),
    row(
        "row: fails when asked",
        Failing,
        "refused: mine: row 0: expected a row, but cannot identify image file",
    ),
    row(
        "row: camera's file opened by Pillow",
        lambda: [{"image": Image.open(io.BytesIO(encoded("MPO", save_all=True))), "labels": ["cat"]}],
        "read: (3, 40, 48)",
    ),
    # What only looks hostile is read, and means what it should.
    file("PNG named .jpg", encoded("PNG"), "read: RGB 48 x 40"),
    file("GIF animation", animation("GIF"), "read: RGB 6 x 4, 8,0,0 to 8,0,0"),
    file("WebP animation", animation("WEBP"), "read: RGB 6 x 4, 8,0,0 to 8,0,0"),
    file("PNG animation", animation("PNG"), "read: RGB 6 x 4, 8,0,0 to 8,0,0"),
    file(
        "camera's file of two pictures (MPO)",
        encoded("MPO", Image.new("RGB", (6, 4), RED), save_all=True, append_images=[Image.new("RGB", (6, 4), BLUE)]),
        "read: RGB 6 x 4, 8,0,0 to 8,0,0",
    ),
    file("CMYK", encoded("JPEG", Image.new("CMYK", (6, 4), (0, 0, 0, 0))), WHITE),
    file("grey", encoded("JPEG", Image.new("L", (6, 4), 255)), WHITE),
    file("two levels", encoded("PNG", Image.new("1", (6, 4), 1)), WHITE),
    file("palette", encoded("PNG", Image.new("RGB", (6, 4), RED).convert("P")), "read: RGB 6 x 4, 8,0,0 to 8,0,0"),
    file("palette with transparency", encoded("PNG", Image.new("P", (6, 4)), transparency=b"\0" * 256), WHITE),
    file("alpha: nothing to be seen", encoded("PNG", NOTHING), WHITE),
    file("alpha: WebP", encoded("WEBP", NOTHING, lossless=True), WHITE),
    file("grey with alpha", encoded("PNG", NOTHING.convert("LA")), WHITE),
    file("16 bits, grey", encoded("PNG", GREY16), WHITE),
    file(
        "16 bits, grey, and a level that is not to be seen",
        png(2, 1, chunk(b"tRNS", b"\x12\x34"), depth=16, colours=0, pixels=b"\0\x12\x34\x12\x35"),
        "read: RGB 2 x 1, 8,8,8 to 1,1,1",
    ),
    file("16 bits, colours", png(1, 1, depth=16, pixels=b"\0" + b"\xff\0" * 3), "read: RGB 1 x 1, 8,8,8"),
    *(
        file(f"EXIF orientation 6, {form}", turned(form, 6), "read: RGB 16 x 32, 8,0,0 to 0,0,8")
        for form in ("JPEG", "PNG", "WEBP")
    ),
    file("EXIF orientation 99", turned("JPEG", 99), "read: RGB 32 x 16, 8,0,0 to 0,0,8"),
    file(
        "corrupt EXIF",
        encoded("JPEG", Image.new("RGB", (6, 4), RED), exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"),
        "read: RGB 6 x 4, 8,0,0",
    ),
    file("EXIF that cannot be written anew", turned_and_odd(), "read: RGB 16 x 32, 8,0,0 to 0,0,8"),
    Attack(
        "EXIF that cannot be written anew, opened by Pillow",
        lambda folder: lambda: look(Image.open(io.BytesIO(turned_and_odd()))),
        "read: RGB 16 x 32, 8,0,0 to 0,0,8",
    ),
    file("JPEG with an archive behind it", encoded("JPEG") + b"PK\x03\x04" + bytes(9_000), "read: RGB 48 x 40"),
)
