"""Decoding of pictures from untrusted sources."""

import contextlib
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features
from torch import Tensor

from pvlr.data.batch import DataError, MachineError, refusal

__all__ = [
    "FORMATS", "HEAD", "MAX_BYTES", "MAX_PIXELS", "MAX_SIDE", "MAX_WHOLE", "Picture", "Pixels", "decode_rgb",
    "head_of", "kind_of", "picture_of",
]  # fmt: skip

Picture = str | os.PathLike[str] | bytes | io.BytesIO | io.BufferedReader | Image.Image
"""Types that are decoded: a file's path, its bytes, the open file, or an image of Pillow."""

Pixels = np.ndarray | Tensor
"""Types of a picture that is already decoded."""

_File = io.BytesIO | io.BufferedReader

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
"""Formats that are read, the last with the extra `heic`; each further decoder would expose more code to untrusted
bytes."""
CAMERAS = "MPO"
"""Pillow's name for a JPEG file of a camera with a second picture in it."""
MAX_BYTES = 200_000_000
"""Largest size of a picture's file or bytes."""
MAX_PIXELS = 100_000_000
"""Largest width times height unless `max_pixels` says otherwise: such a picture takes 400 MB when decoded, and two to
three times that during conversion."""
MAX_WHOLE = 200_000_000
"""Largest width times height, whatever `max_pixels` says, of a picture that has to be decoded as a whole: all but JPEG
files of a single scan. It takes less than 3 GB."""
MAX_SIDE = 65_535
"""Largest width and height, also JPEG's own limit; Pillow's time grows with the square of longer rows."""
HEAD = 64
"""Number of bytes by which a format is known."""
# `.` stands for any byte.
BEGINNINGS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"RIFF....WEBP"),
    ("BMP", rb"BM....\0\0\0\0"),
    ("GIF", rb"GIF8[79]a"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    # A general brand first, then the special one.
    ("AVIF", rb"....ftyp(?:avi[fs]|(?:mif1|msf1).{4}(?:.{4}){0,8}avi[fs])"),
    ("HEIF", rb"....ftyp(?:hei[cmsx]|hev[cmsx]|mif[12]|msf1)"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  "),
    ("Photoshop's", rb"8BPS"),
)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions that make a picture upright, by its EXIF orientation."""


def kind_of(head: bytes) -> str | None:
    """Return the format of a picture by its first `HEAD` bytes, also where it is not among `FORMATS`; None: no picture.

    Example:
        >>> kind_of(b"GIF89a"), kind_of(b"8BPS"), kind_of(b"GIF? No.")
        ('GIF', "Photoshop's", None)
    """
    return next((name for name, beginning in BEGINNINGS if re.match(beginning, head, re.DOTALL)), None)


def head_of(path: str | os.PathLike[str], size: int = HEAD) -> bytes | None:
    """Return the first bytes of a regular file; None if it is none, or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # Opening a pipe or a device may block forever.
            return None
        with open(path, "rb") as file:
            return file.read(size)
    except OSError:
        return None


def decode_rgb(
    picture: Picture, *, name: str | None = None, side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode a picture to 8 bits per channel, upright.

    The first frame of an animation or page of a document is taken, the EXIF orientation is applied, transparent parts
    are blended with white, and 16-bit levels and floats from 0 to 1 are scaled (not clipped) to 8 bits. The file's
    extension is ignored.

    Args:
        picture: A file in one of `FORMATS`, of at most `MAX_BYTES` and `MAX_SIDE`: its path, bytes, or the file opened
            for reading bytes, which stays open. Or an image of Pillow, which is not modified.
        name: Name in messages; None: its path, or "picture".
        side: Size to which it will be resized. A JPEG file is then decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of
            its size at which no side is shorter than this: the inverse cosine transform of a few coefficients instead
            of all. None: at its own size.
        max_pixels: Largest width times height. A JPEG file of more than `MAX_PIXELS` is decoded at the largest of the
            sizes above that has no more, so that memory is bounded; JPEG files of several scans (progressive ones) and
            other formats, which are decoded as a whole, have at most `MAX_WHOLE`.

    Returns:
        The picture in mode RGB.

    Raises:
        DataError: naming the file and the reason; a `MachineError` if the file is not the cause.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (3, 2), 128).save(f"{folder}/grey.png")
        ...     picture = decode_rgb(f"{folder}/grey.png")
        ...     same = decode_rgb(Path(folder, "grey.png").read_bytes())
        >>> picture.mode, picture.size, picture.getpixel((0, 0)), same == picture
        ('RGB', (3, 2), (128, 128, 128), True)
    """
    if isinstance(picture, str | os.PathLike):
        picture = Path(picture)
        name = name or str(picture)
    name = name or "picture"
    try:
        # Pillow warns of corrupt EXIF blocks, which do not affect pixels, and of sizes, which are checked here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(picture, Image.Image):
                if picture.format not in (None, CAMERAS, *FORMATS):  # Pillow may decode it at first use only.
                    raise DataError(f"{name}: expected a picture ({', '.join(FORMATS)}), found one in {picture.format}")
                return _decoded(picture, name, None, max_pixels)
            with _required(picture, name) as file, _opened(file, name) as image:
                return _decoded(image, name, side, max_pixels)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: expected a picture, found no such file") from None
    except UnidentifiedImageError:
        raise DataError(f"{name}: expected a picture ({', '.join(FORMATS)}), found something else") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: expected at most {MAX_PIXELS:,} pixels, found far more") from None
    except Exception as err:
        if _blames_machine(err):
            raise MachineError(f"{name}: expected a machine that can read it, but {_reason(err)}") from err
        # Pillow's readers raise SyntaxError, struct.error, IndexError and others for broken bytes.
        raise DataError(f"{name}: expected a whole picture, but {_reason(err)}") from err


def _reason(err: Exception) -> str:
    reason = err.strerror if isinstance(err, OSError) else None
    if isinstance(err, MemoryError):
        return "there is too little memory"
    return reason or str(err) or f"its decoder gave up ({type(err).__name__})"


def _blames_machine(err: Exception) -> bool:
    """Return True if another machine, or this one at another time, may read the picture."""
    if isinstance(err, MemoryError) or str(err).startswith("out of memory"):  # The second is from Pillow's decoders.
        # If the memory of the largest allowed picture is available, the file claimed an absurd amount.
        try:
            np.empty(8 * MAX_PIXELS, dtype=np.uint8)  # Never written to, so it takes no memory.
        except MemoryError:
            return True
        return False
    return refusal(err) is MachineError


def picture_of(pixels: Pixels) -> Image.Image:
    """Convert an array or a tensor to a picture.

    Args:
        pixels: Array ``h w 3`` or ``h w``, or tensor ``3 h w``, ``1 h w`` or ``h w``: 8-bit levels, or floats from 0 to
            1. Not an image normalised by a tower's transform.

    Returns:
        The picture in mode RGB.

    Raises:
        DataError: if its shape, type or range is another.

    Example:
        >>> picture_of(np.full((2, 4, 3), 128, dtype=np.uint8)).size
        (4, 2)
        >>> picture_of(torch.ones(3, 2, 4)).getpixel((0, 0))
        (255, 255, 255)
    """
    if isinstance(pixels, Tensor):
        levels = pixels.detach().cpu()
    else:
        try:
            levels = torch.from_numpy(np.array(pixels))
        except (TypeError, ValueError):  # Strings, objects, longer floats and other byte orders.
            found = f"{pixels.dtype} {pixels.shape}"
            raise DataError(f"picture: expected 8-bit levels or floats from 0 to 1, got {found}") from None
    found = f"{levels.dtype} {tuple(levels.shape)}".removeprefix("torch.")
    if isinstance(pixels, np.ndarray) and levels.dim() == 3:
        levels = levels.permute(2, 0, 1)
    if levels.dim() == 2:
        levels = levels.unsqueeze(0)
    if levels.dim() != 3 or levels.shape[0] not in (1, 3) or levels.numel() == 0:
        kind = "an array h w 3 or h w" if isinstance(pixels, np.ndarray) else "a tensor 3 h w or h w"
        raise DataError(f"picture: expected {kind}, got {found}")
    if levels.is_floating_point():
        # Written so that NaN is refused.
        if not bool(((levels >= 0) & (levels <= 1)).all()):
            least, most = levels.min().item(), levels.max().item()
            raise DataError(f"picture: expected floats from 0 to 1, got {least:g} to {most:g}")
        levels = (levels.float() * 255).round().to(torch.uint8)
    if levels.dtype != torch.uint8:
        raise DataError(f"picture: expected 8-bit levels or floats from 0 to 1, got {found}")
    return Image.fromarray(levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


@contextlib.contextmanager
def _required(picture: Path | bytes | _File, name: str) -> Iterator[_File]:
    """Open a picture that Pillow may read: a regular file, no larger than allowed."""
    if not isinstance(picture, Path | bytes) and not picture.seekable():
        picture = picture.read(MAX_BYTES + 1)  # Pillow would read a pipe to its end.
    if isinstance(picture, Path):
        found = os.stat(picture)
        if not stat.S_ISREG(found.st_mode):  # Opening a pipe or a device may block forever.
            what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
            raise DataError(f"{name}: expected a picture, found {what}")
        size = found.st_size
    else:
        size = len(picture) if isinstance(picture, bytes) else picture.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise DataError(f"{name}: expected a picture of at most {MAX_BYTES:,} bytes, found {size:,}")
    if isinstance(picture, Path):
        with picture.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(picture) if isinstance(picture, bytes) else picture


def _opened(file: _File, name: str) -> ImageFile.ImageFile:
    """Open a picture as `Image.open` does, whose limit of pixels is one of the process; the size is checked later."""
    Image.init()
    file.seek(0)
    head = file.read(HEAD)
    for form in FORMATS:
        factory, accept = _heif_opener(head, name) if form == "HEIF" else Image.OPEN.get(form, (None, None))
        if factory is None or (accept is not None and accept(head) is not True):
            continue
        file.seek(0)
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # As Pillow does.
            return factory(file, "")
    if kind_of(head) == "AVIF" and not features.check("avif"):
        raise DataError(
            f"{name}: expected a Pillow with AVIF, as 11.3 and newer have it, found {PIL.__version__}: "
            "pip install -U pillow"
        )
    raise UnidentifiedImageError


def _heif_opener(head: bytes, name: str) -> tuple[Callable[[_File, str], ImageFile.ImageFile] | None, None]:
    """Return what opens a HEIF file, if one begins so. It is not registered with Pillow, for all of the process."""
    if kind_of(head) != "HEIF":
        return None, None
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise DataError(
            f"{name}: expected the package pillow-heif to read HEIC, found none: pip install 'pvlr[heic]'"
        ) from None
    return HeifImageFile, None


def _decoded(image: Image.Image, name: str, side: int | None, max_pixels: int) -> Image.Image:
    pixels, size = image.width * image.height, f"{image.width} x {image.height}"
    if pixels > max_pixels:
        raise DataError(
            f"{name}: expected at most {max_pixels:,} pixels, got {size}; set max_pixels to {pixels} "
            "(data.max_pixels in training, --max_pixels where pictures are tagged)"
        )
    if max(image.size) > MAX_SIDE:
        raise DataError(f"{name}: expected sides of at most {MAX_SIDE:,} pixels, got {size}")
    jpeg = image.format in ("JPEG", CAMERAS)
    if pixels > MAX_WHOLE and not (jpeg and _is_of_one_scan(image)):
        raise DataError(
            f"{name}: expected at most {MAX_WHOLE:,} pixels, since only a JPEG file that is not progressive is decoded "
            f"in parts, got {size}; make it smaller"
        )
    if jpeg and (side is not None or pixels > MAX_PIXELS):
        least = 1
        while image.width // least * (image.height // least) > MAX_PIXELS:
            least *= 2
        wide, high = image.width // least, image.height // least
        image.draft(None, (wide, high) if side is None else (min(side, wide), min(side, high)))
    if image.format == "TIFF":
        _require_plain_tiff(image, name)
    image.load()
    picture = _to_rgb(_upright(image), name)
    picture.info = {}  # It still has the orientation, which would be applied again.
    return picture


def _is_of_one_scan(image: Image.Image) -> bool:
    """Return whether a JPEG file's first scan has all of it; else libjpeg holds the coefficients of all its pixels."""
    file: IO[bytes] | None = getattr(image, "fp", None)
    layers: int = getattr(image, "layers", 0)
    if file is None or image.info.get("progressive"):
        return False
    # Pillow has read the header of the scan: the number of components, two bytes of each, and three more.
    place = file.tell()
    file.seek(place - 4 - 2 * layers)
    alone = file.read(1) == bytes([layers])
    file.seek(place)
    return alone


def _upright(image: Image.Image) -> Image.Image:
    turn = None
    with contextlib.suppress(Exception):  # A corrupt EXIF block has no orientation.
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Not by ImageOps.exif_transpose: it rewrites the block, which may fail after the rotation.
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        levels = np.asarray(image)
        if not bool(((levels >= 0) & (levels <= 1)).all()):  # Written so that NaN is refused.
            found = f"{levels.min():g} to {levels.max():g}"
            raise DataError(f"{name}: expected floats from 0 to 1, got {found}; convert it to 8 or 16 bits")
        return Image.fromarray((levels * 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        raise DataError(f"{name}: expected grey, RGB or CMYK, found colours in L*a*b*; convert it to RGB")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which would leave nearly all of a 16-bit picture white.
        levels = np.asarray(image)
        grey = (levels >> (_tag(image, ExifTags.Base.BitsPerSample, 16) - 8)).clip(0, 255).astype(np.uint8)
        if _tag(image, ExifTags.Base.PhotometricInterpretation, 1) == 0:  # White, which Pillow turns in 8 bits only.
            grey = 255 - grey
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # The level that is transparent.
            grey[levels == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, mask=layer)
        return ground
    return image.convert("RGB")


def _require_plain_tiff(image: Image.Image, name: str) -> None:
    """Refuse what has no range that is known, and tiles for which far more memory is taken than for the picture."""
    if image.mode == "I":
        found = f"{_tag(image, ExifTags.Base.BitsPerSample, 32)}-bit levels"
        raise DataError(
            f"{name}: expected 8 or 16 bits without a sign, or floats from 0 to 1, found {found} of no known range; "
            "convert it to 8 or 16 bits"
        )
    tile = _tag(image, ExifTags.Base.TileWidth, 1) * _tag(image, ExifTags.Base.TileLength, 1)
    if tile > MAX_PIXELS:
        raise DataError(f"{name}: expected tiles of at most {MAX_PIXELS:,} pixels, found {tile:,}")


def _tag(image: Image.Image, tag: int, otherwise: int) -> int:
    """Return the first number of a tag of a TIFF file."""
    found = getattr(image, "tag_v2", {}).get(tag, otherwise)
    return int(found[0] if isinstance(found, tuple) else found)
