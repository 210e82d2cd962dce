import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvlr.data import images
from pvlr.data.batch import DataError, MachineError
from pvlr.data.images import decode_rgb, picture_of


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(9, 14, 3), dtype=np.uint8)


@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(tmp_path: Path, pixels: np.ndarray, name: str, options: dict) -> None:
    # The ending is a lie on purpose: only the content counts.
    Image.fromarray(pixels).save(tmp_path / "picture.txt", format=name, **options)
    assert np.array_equal(np.asarray(decode_rgb(tmp_path / "picture.txt")), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "JPEG" if mode == "CMYK" else "PNG"
    white = Image.new("I;16", (6, 4), 65535) if mode == "I;16" else Image.new("RGB", (6, 4), "white")
    if mode == "PA":
        white = white.convert("P")
        white.save(tmp_path / "x", format=name, transparency=b"\x80" * 256)
    else:
        (white if mode == "I;16" else white.convert(mode)).save(tmp_path / "x", format=name)
    picture = decode_rgb(tmp_path / "x")
    assert (picture.mode, picture.size) == ("RGB", (6, 4))
    assert np.asarray(picture).min() >= 250


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 256, 0x7F80], [0x8000, 0xFF00, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert np.asarray(decode_rgb(tmp_path / "x.png"))[..., 0].tolist() == [[0, 1, 127], [128, 255, 255]]


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    picture.putpixel((1, 0), (10, 20, 30, 255))
    picture.save(tmp_path / "x.png")
    assert np.asarray(decode_rgb(tmp_path / "x.png")).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    # By the EXIF table: what has to be done to the stored rows and columns.
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(decode_rgb(tmp_path / "x.png")), upright[orientation])


def test_a_corrupt_exif_block_does_not_matter(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.jpg", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x12\x01")
    assert decode_rgb(tmp_path / "x.jpg").size == (14, 9)


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert decode_rgb(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def encoded(name: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format=name)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "found something else"),
        (b"not a picture", "found something else"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "found something else"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "found something else"),
        (encoded("TIFF")[:-400], "expected a whole picture, but"),
        (encoded("AVIF")[:-100], "expected a whole picture, but"),
        (encoded("JPEG")[:-400], "truncated"),
        (encoded("PNG")[:-400], "expected a whole picture, but"),
        (encoded("BMP")[:-400], "truncated"),
        (png_claiming(20_000, 6_000), r"expected at most 100,000,000 pixels, got 20000 x 6000"),
        (png_claiming(60_000, 60_000), "expected at most 100,000,000 pixels"),
    ],
)
def test_refusals_name_the_file_and_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        decode_rgb(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jpg: expected a picture, found no such file"):
        decode_rgb(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match="expected a picture, found a folder"):
        decode_rgb(os.fspath(tmp_path))


def test_the_ceiling_itself_is_allowed(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "x.png")
    assert decode_rgb(tmp_path / "x.png", max_pixels=20).size == (5, 4)
    with pytest.raises(DataError, match="at most 19 pixels, got 5 x 4"):
        decode_rgb(tmp_path / "x.png", max_pixels=19)


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"]), seed=st.integers(0, 2**32))
def test_damaged_bytes_give_a_picture_or_a_data_error(
    name: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(encoded(name))
    for position in rng.integers(0, min(len(content), 400), size=rng.integers(1, 12)):
        content[position] = rng.integers(256)
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(content[: int(rng.integers(1, len(content) + 1))]))
    message = ""
    try:
        assert decode_rgb(path).mode == "RGB"
    except DataError as err:
        message = str(err)
    assert not message or message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (None, (1000, 601)),
        (601, (1000, 601)),
        (300, (500, 301)),
        (224, (500, 301)),
        (150, (250, 151)),
        (75, (125, 76)),
        (8, (125, 76)),
    ],
)
def test_a_jpeg_is_decoded_no_larger_than_its_use_needs(
    tmp_path: Path, side: int | None, expected: tuple[int, int]
) -> None:
    smooth = np.linspace(0, 255, 1000 * 601 * 3).reshape(601, 1000, 3).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    found = decode_rgb(tmp_path / "a.jpg", side=side)
    assert found.size == expected
    assert decode_rgb(tmp_path / "a.png", side=side).size == (1000, 601), "other formats have no such coefficients"
    small = [np.asarray(picture.resize((64, 64)), dtype=float) for picture in (found, Image.fromarray(smooth))]
    assert np.abs(small[0] - small[1]).mean() < 2


def test_a_camera_s_file_of_two_pictures_is_scaled_too(tmp_path: Path) -> None:
    picture = Image.new("RGB", (800, 400), (200, 40, 90))
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[picture])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
        assert decode_rgb(opened).size == (800, 400), "what somebody else has opened"
    assert decode_rgb(tmp_path / "a.jpg", side=100).size == (200, 100)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_scaled_decoding_keeps_colours_and_orientation(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (800, 400), (200, 40, 90))
    picture.paste((10, 20, 240), (0, 0, 400, 400))
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned by a quarter.
    picture.convert(mode).save(tmp_path / "a.jpg", quality=95, exif=exif)
    whole, scaled = decode_rgb(tmp_path / "a.jpg"), decode_rgb(tmp_path / "a.jpg", side=100)
    assert (whole.size, scaled.size) == ((400, 800), (100, 200))
    both = [np.asarray(found.resize((20, 40)), dtype=float) for found in (whole, scaled)]
    assert np.abs(both[0] - both[1]).mean() < 3


def test_what_was_turned_is_not_turned_again(pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", exif=exif)
    with Image.open(buffer) as opened:
        found = decode_rgb(opened)
        assert opened.getexif()[0x0112] == 6, "it is left as it is"
        assert opened.size == (14, 9)
    assert decode_rgb(found).size == found.size == (9, 14)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE])
def test_errors_of_the_machine_are_not_the_picture_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*given: object, **options: object) -> Image.Image:
        raise OSError(number, os.strerror(number))

    Image.new("RGB", (3, 2)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "_opened", refuse)
    with pytest.raises(MachineError) as caught:
        decode_rgb(tmp_path / "x.png")
    assert str(caught.value) == (
        f"{tmp_path / 'x.png'}: expected a machine that can read it, but {os.strerror(number)}"
    )
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(MachineError):
        decode_rgb(tmp_path / "x.png")


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory when reading image file")])
@pytest.mark.parametrize("short", [True, False])
def test_a_lack_of_memory_is_the_picture_s_only_where_there_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, short: bool
) -> None:
    def refuse(*given: object, **options: object) -> Image.Image:
        raise error

    Image.new("RGB", (3, 2)).save(tmp_path / "x.png")
    monkeypatch.setattr(images, "_opened", refuse)
    if short:
        monkeypatch.setattr(images, "MAX_PIXELS", 2**57)
    with pytest.raises(DataError, match="memory") as caught:
        decode_rgb(tmp_path / "x.png")
    assert type(caught.value) is (MachineError if short else DataError)


def test_the_ceiling_holds_for_open_files_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()

    def outcomes() -> list[str]:
        found = []
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        with (tmp_path / "x.png").open("rb") as file, os.fdopen(reading, "rb") as pipe:
            file.read(9)  # It is read from its beginning, wherever it stands.
            for picture in (content, io.BytesIO(content), file, pipe, tmp_path / "x.png"):
                try:
                    found.append(str(decode_rgb(picture, name="x").size))
                except DataError as err:
                    found.append(str(err))
        return found

    assert outcomes() == ["(5, 4)"] * 5
    monkeypatch.setattr(images, "MAX_BYTES", len(content) - 1)
    least = f"x: expected a picture of at most {len(content) - 1} bytes, found {len(content)}"
    assert outcomes() == [least] * 5


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.array([["a"]]), "<U1 (1, 1)"),
        (np.zeros((2, 2), dtype=object), "object (2, 2)"),
        (np.zeros((2, 2), dtype=np.longdouble), f"{np.dtype(np.longdouble)} (2, 2)"),
        (np.zeros((2, 2), dtype=np.int64), "int64 (2, 2)"),
    ],
)
def test_arrays_of_other_kinds_are_refused(array: np.ndarray, found: str) -> None:
    with pytest.raises(DataError) as caught:
        picture_of(array)
    assert str(caught.value) == f"picture: expected 8-bit levels or floats from 0 to 1, got {found}"
