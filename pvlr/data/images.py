"""Decoding of pictures from untrusted sources."""

import contextlib
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from pvlr.data.batch import DataError, MachineError, refusal

__all__ = ["FORMATS", "MAX_BYTES", "MAX_PIXELS", "MAX_SIDE", "Picture", "Pixels", "decode_rgb", "picture_of"]

Picture = str | os.PathLike[str] | bytes | io.BytesIO | io.BufferedReader | Image.Image
"""Types that are decoded: a file's path, its bytes, the open file, or an image of Pillow."""

Pixels = np.ndarray | Tensor
"""Types of a picture that is already decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""Formats that are read; each further decoder would expose more code to untrusted bytes."""
CAMERAS = "MPO"
"""Pillow's name for a JPEG file of a camera with a second picture in it."""
MAX_BYTES = 200_000_000
"""Largest size of a picture's file or bytes."""
MAX_PIXELS = 100_000_000
"""Largest width times height: such a picture takes 400 MB when decoded, and twice that during conversion."""
MAX_SIDE = 65_535
"""Largest width and height, also JPEG's own limit; Pillow's time grows with the square of longer rows."""
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


def decode_rgb(picture: Picture, *, name: str | None = None, side: int | None = None) -> Image.Image:
    """Decode a picture to 8 bits per channel, upright.

    The first frame of an animation is taken, the EXIF orientation is applied, transparent parts are blended with
    white, and 16-bit greys are scaled (not clipped) to 8 bits. The file's extension is ignored.

    Args:
        picture: A file in one of `FORMATS`, of at most `MAX_BYTES`, `MAX_PIXELS` and `MAX_SIDE`: its path, bytes, or
            the file opened for reading bytes, which stays open. Or an image of Pillow, which is not modified.
        name: Name in messages; None: its path, or "picture".
        side: Size to which it will be resized. A JPEG file is then decoded at the smallest of 1/1, 1/2, 1/4 and 1/8 of
            its size at which no side is shorter than this: the inverse cosine transform of a few coefficients instead
            of all. None: at its own size.

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
                return _decoded(picture, name, None)
            with Image.open(_required(picture, name), formats=FORMATS) as image:
                return _decoded(image, name, side)
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


def _required(
    picture: Path | bytes | io.BytesIO | io.BufferedReader, name: str
) -> Path | io.BytesIO | io.BufferedReader:
    """Return a source that Pillow may open: a regular file, no larger than allowed."""
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
    return io.BytesIO(picture) if isinstance(picture, bytes) else picture


def _decoded(image: Image.Image, name: str, side: int | None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{name}: expected at most {MAX_PIXELS:,} pixels, got {image.width} x {image.height}")
    if max(image.size) > MAX_SIDE:
        raise DataError(f"{name}: expected sides of at most {MAX_SIDE:,} pixels, got {image.width} x {image.height}")
    if side is not None and image.format in ("JPEG", CAMERAS):
        image.draft(None, (side, side))
    image.load()
    picture = _to_rgb(_upright(image))
    picture.info = {}  # It still has the orientation, which would be applied again.
    return picture


def _upright(image: Image.Image) -> Image.Image:
    turn = None
    with contextlib.suppress(Exception):  # A corrupt EXIF block has no orientation.
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Not by ImageOps.exif_transpose: it rewrites the block, which may fail after the rotation.
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which would leave nearly all of a 16-bit picture white.
        levels = np.asarray(image)
        grey = (levels >> 8).clip(0, 255).astype(np.uint8)
        clear = image.info.get("transparency")
        if isinstance(clear, int):  # The level that is transparent.
            grey[levels == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGB", layer.size, "white")
        ground.paste(layer, mask=layer)
        return ground
    return image.convert("RGB")
