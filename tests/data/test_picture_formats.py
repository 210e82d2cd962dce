"""Pictures of phones, scanners and printers: formats, levels, orientations, endings, and sizes beyond the limit."""

import io
import itertools
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.extras import require_extra
from helpers.messages import pinned
from PIL import Image, features

from pvlr.core.labels import LabelSet
from pvlr.data import images
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.images import MAX_PIXELS, decode_rgb
from pvlr.data.scan import scan
from pvlr.data.sources import is_picture, picture_paths

RED, BLUE = (255, 0, 0), (0, 0, 255)


def half_and_half() -> Image.Image:
    picture = Image.new("RGB", (64, 32), RED)
    picture.paste(BLUE, (32, 0, 64, 32))
    return picture


def written(path: Path, form: str, picture: Image.Image, **options: object) -> Path:
    if form == "HEIF":
        require_extra("heic", "pillow_heif")
        import pillow_heif

        pillow_heif.register_heif_opener()
        Image.ID.remove(form)
        del Image.OPEN[form]  # For writing only.
    picture.save(path, form, **options)
    return path


def colours(picture: Image.Image) -> tuple[str, str]:
    """The colours at the beginning and the end, by their strongest channel."""
    corners = (picture.getpixel((2, 2)), picture.getpixel((picture.width - 3, picture.height - 3)))
    return tuple("RGB"[int(np.argmax(corner))] for corner in corners)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("form", ["TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("name", ["x.tif", "x.jpg", "x"])
def test_formats_of_phones_and_scanners_are_read_whatever_their_ending(tmp_path: Path, form: str, name: str) -> None:
    path = written(tmp_path / name, form, half_and_half())
    found = decode_rgb(path)
    assert (found.mode, found.size, colours(found)) == ("RGB", (64, 32), ("R", "B"))
    assert decode_rgb(path.read_bytes()) == found
    with path.open("rb") as file:
        assert decode_rgb(file) == found
        assert not file.closed


@pytest.mark.parametrize("form", ["TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize(
    ("orientation", "size", "ends"),
    [(1, (64, 32), "RB"), (3, (64, 32), "BR"), (6, (32, 64), "RB"), (8, (32, 64), "BR")],
)
def test_they_are_upright(tmp_path: Path, form: str, orientation: int, size: tuple[int, int], ends: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode_rgb(written(tmp_path / "x", form, half_and_half(), exif=exif.tobytes()))
    assert (found.size, "".join(colours(found))) == (size, ends)


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *itertools.product(
            ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"],
            [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"],
        ),
        *((mode, "jpeg") for mode in ("L", "RGB", "CMYK")),
    ],
)
def test_every_tiff_of_a_known_range_becomes_rgb(tmp_path: Path, mode: str, compression: str | None) -> None:
    if mode == "I;16":
        white = Image.new("I;16", (24, 16), 65535)
    elif mode == "F":
        white = Image.fromarray(np.ones((16, 24), dtype=np.float32))
    else:
        white = Image.new("RGB", (24, 16), "white").convert(mode)
    white.save(tmp_path / "x.tif", compression=compression)
    found = decode_rgb(tmp_path / "x.tif")
    assert (found.mode, found.size) == ("RGB", (24, 16))
    assert np.asarray(found).min() >= 250


def tiff(levels: np.ndarray, *, bits: int, photometric: int = 1, form: int = 1) -> bytes:
    """A TIFF file of one strip, of greys by the bytes of an array."""
    body = levels.tobytes()
    entries = [
        (256, 4, levels.shape[1]), (257, 4, levels.shape[0]), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
        (273, 4, 8), (277, 3, 1), (278, 4, levels.shape[0]), (279, 4, len(body)), (339, 3, form),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + table + bytes(4)


def test_levels_of_a_tiff_are_scaled_not_clipped() -> None:
    deep = np.array([[0, 256, 0x7F80, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert np.asarray(decode_rgb(tiff(deep, bits=16)))[0, :, 0].tolist() == [0, 1, 127, 128, 255]
    turned = decode_rgb(tiff(deep, bits=16, photometric=0))
    assert np.asarray(turned)[0, :, 0].tolist() == [255, 254, 128, 127, 0], "0 is white"
    floats = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert np.asarray(decode_rgb(tiff(floats, bits=32, form=3)))[0, :, 0].tolist() == [0, 128, 255]
    # Two levels of 12 bits in three bytes: 0x800 and 0xFFF.
    twelve = np.frombuffer(bytes([0x80, 0x0F, 0xFF]), dtype=np.uint8).reshape(1, 3)
    content = bytearray(tiff(twelve, bits=12))
    place = content.index(struct.pack("<HHII", 256, 4, 1, 3))
    content[place : place + 12] = struct.pack("<HHII", 256, 4, 1, 2)
    assert np.asarray(decode_rgb(bytes(content)))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tiff(np.array([[-3, 400]], dtype=np.float32), bits=32, form=3),
            "x: expected floats from 0 to 1, got -3 to 400; convert it to 8 or 16 bits",
        ),
        (
            tiff(np.array([[0, np.nan]], dtype=np.float32), bits=32, form=3),
            "x: expected floats from 0 to 1, got nan to nan; convert it to 8 or 16 bits",
        ),
        (
            tiff(np.array([[0, 9]], dtype=np.uint32), bits=32),
            "x: expected 8 or 16 bits without a sign, or floats from 0 to 1, found 32-bit levels of no known range; "
            "convert it to 8 or 16 bits",
        ),
        (
            tiff(np.array([[0, -9]], dtype=np.int16), bits=16, form=2),
            "x: expected 8 or 16 bits without a sign, or floats from 0 to 1, found 16-bit levels of no known range; "
            "convert it to 8 or 16 bits",
        ),
    ],
)
def test_levels_of_no_known_range_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=pinned(message)):
        decode_rgb(content, name="x")


def test_colours_that_pillow_does_not_convert_are_refused(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: expected grey, RGB or CMYK, found colours in L\*a\*b\*"):
        decode_rgb(tmp_path / "x.tif")


def test_a_tile_that_takes_far_more_memory_than_the_picture_is_refused() -> None:
    tiles = struct.pack("<HHII", 322, 4, 1, 2**15) + struct.pack("<HHII", 323, 4, 1, 2**15)
    content = tiff(np.zeros((4, 4), dtype=np.uint8), bits=8)
    place = content.index(struct.pack("<H", 10) + struct.pack("<HH", 256, 4))
    content = content[:place] + struct.pack("<H", 12) + content[place + 2 : -4] + tiles + bytes(4)
    with pytest.raises(DataError, match=pinned("x: expected tiles of at most 100,000,000 pixels, found 1,073,741,824")):
        decode_rgb(content, name="x")


def test_the_first_page_of_a_document(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (4, 4), colour) for colour in (BLUE, RED, RED)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert decode_rgb(tmp_path / "x.tif").getpixel((0, 0)) == BLUE


def test_without_its_package_a_heic_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.HEIC").write_bytes(b"\0\0\0\x20ftypheic" + bytes(90))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = "x.HEIC: expected the package pillow-heif to read HEIC, found none: pip install 'pvlr[heic]'"
    with pytest.raises(DataError, match=pinned(message)):
        decode_rgb(tmp_path / "x.HEIC", name="x.HEIC")


def test_a_pillow_without_avif_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x", "AVIF", half_and_half())
    monkeypatch.delitem(Image.OPEN, "AVIF")
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(DataError, match=r"expected a Pillow with AVIF.* 11\.3 .* found .*: pip install"):
        decode_rgb(path)


def test_reading_a_heic_leaves_pillow_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "x.heic", "HEIF", half_and_half())
    decode_rgb(path)
    assert "HEIF" not in Image.OPEN


@pytest.mark.parametrize(
    ("name", "content", "taken"),
    [
        ("scan", b"MM\0*", True),
        ("scan.", b"II*\0", True),
        ("IMG_1", b"\0\0\0\x20ftypmif1\0\0\0\0mif1heic", True),
        ("IMG_2", b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", True),
        ("a.jfif", b"", True),
        ("a.HEIC", b"", True),
        ("a.AVIF", b"", True),
        ("a.tiff", b"", True),
        ("README", b"BM stands for nothing", False),
        ("clip", b"\0\0\0\x20ftypisom", False),
        ("a.txt", b"\xff\xd8\xff", False),
        ("a.xml", b"<a/>", False),
        ("a.nef", b"MM\0*", False),
        (".hidden", b"\xff\xd8\xff", False),
        ("._a.jpg", b"\xff\xd8\xff", False),
    ],
)
def test_in_a_folder_the_first_bytes_decide_where_there_is_no_ending(
    tmp_path: Path, name: str, content: bytes, taken: bool
) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.png").touch()
    assert is_picture(tmp_path / name) is taken
    assert [Path(path).name for path in picture_paths([str(tmp_path)])] == [*([name] if taken else []), "z.png"]


def jpeg_of(width: int, height: int, **options: object) -> bytes:
    """A JPEG file of one grey."""
    buffer = io.BytesIO()
    Image.new("L", (width, height), 200).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_a_size_beyond_the_limit_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    path = tmp_path / "pano.jpg"
    path.write_bytes(jpeg_of(400, 100))
    message = (
        f"{path}: expected at most 9,999 pixels, got 400 x 100; set max_pixels to 40000 (data.max_pixels in training, "
        "--max_pixels where pictures are tagged)"
    )
    with pytest.raises(DataError, match=pinned(message)):
        decode_rgb(path, max_pixels=9_999)
    assert decode_rgb(path, max_pixels=40_000).size == (100, 25), "no more than what needs no option"
    assert decode_rgb(path, max_pixels=40_000, side=20).size == (100, 25)
    assert decode_rgb(path, max_pixels=40_000, side=10).size == (50, 13)


def test_what_is_decoded_as_a_whole_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    monkeypatch.setattr(images, "MAX_WHOLE", 400 * 90)
    contents = {
        "one scan": jpeg_of(400, 100),
        "progressive": jpeg_of(400, 100, progressive=True),
        "png": (Image.new("RGB", (400, 100)).save(file := io.BytesIO(), "PNG"), file.getvalue())[1],
    }
    # A scan for each component, and not progressive: the first one says how many components it has.
    colour = io.BytesIO()
    Image.new("RGB", (400, 100)).save(colour, "JPEG")
    several = bytearray(colour.getvalue())
    place = several.index(b"\xff\xda")
    several[place : place + 14] = b"\xff\xda" + struct.pack(">H", 8) + b"\x01\x01\x00\x00\x3f\x00" + bytes(4)
    contents["scans"] = bytes(several)
    found = {}
    for name, content in contents.items():
        try:
            found[name] = str(decode_rgb(content, name=name, max_pixels=10**9).size)
        except DataError as err:
            found[name] = str(err)
    assert found.pop("one scan") == "(100, 25)"
    for name, said in found.items():
        assert said.startswith(
            f"{name}: expected at most 36,000 pixels, since only a JPEG file that is not progressive"
        )


CHILD = """
import resource, sys
import numpy, PIL.Image
from pvlr.data.images import decode_rgb
decode_rgb(sys.argv[1], side=64)  # What is loaded once.
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = decode_rgb(sys.argv[2], side=None if sys.argv[3] == "None" else int(sys.argv[3]), max_pixels=10**10)
print(found.width, found.height, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("side", "size", "most"), [("224", (3000, 750), 60), ("None", (12000, 3000), 450)])
def test_a_panorama_takes_bounded_memory(tmp_path: Path, side: str, size: tuple[int, int], most: int) -> None:
    (tmp_path / "small.jpg").write_bytes(jpeg_of(640, 480))
    (tmp_path / "pano.jpg").write_bytes(jpeg_of(24_000, 6_000))
    words = [sys.executable, "-c", CHILD, str(tmp_path / "small.jpg"), str(tmp_path / "pano.jpg"), side]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    width, height, grown = map(int, done.stdout.split())
    assert (width, height) == size
    assert grown < most * 1024, "KiB; decoded as a whole it takes 720 MB"


def test_a_data_set_passes_the_limit_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (20, 10)).save(path)
    data = LabelledImages(
        name="x", labels=LabelSet(("cat", "dog")), paths=[path], identifiers=["a"], target=torch.ones(1, 2)
    )
    small = data.with_max_pixels(199)
    for part in (
        small,
        small.with_known(small.known, ""),
        small.with_labels(["dog"]),
        small.select([0]),
        small.with_transform(None),
    ):
        with pytest.raises(DataError, match=r"expected at most 199 pixels, got 20 x 10; set max_pixels to 200"):
            part[0]
    assert data.max_pixels == MAX_PIXELS
    assert data[0].image.shape == (3, 10, 20)
    memory = tmp_path / "scanned.jsonl"
    assert list(scan(data, memory=memory)) == [None]
    (refused,) = scan(small, memory=memory)
    assert refused is not None
    assert "data.max_pixels" in refused.reason, "what was read under a larger limit is looked at again"
    assert list(scan(data.with_max_pixels(200), memory=memory)) == [None]
