"""Contact sheets: the augmented pictures of a batch in one picture, for people."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from pvlr.core.shapes import expect
from pvlr.data.batch import DataError
from pvlr.data.drawing import fitted

__all__ = ["contact_sheet"]

GAP = 4
"""Width of the white space between the pictures and around the sheet, in pixels."""
FONT, LINE = 14, 19
"""Size of the font and height of a caption, in pixels."""


def contact_sheet(
    images: Float[Tensor, "b 3 y x"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    captions: Sequence[str] | None = None,
    columns: int = 4,
) -> Float[Tensor, "3 h w"]:
    """Arrange normalised pictures in rows on white, in their order, each with its caption below.

    Args:
        images: Pictures as returned by a transform: ``(level - mean) / std``.
        mean: Mean of red, green and blue that was subtracted, on the scale from 0 to 1.
        std: Standard deviation of red, green and blue, on the same scale.
        captions: One line per picture, shortened to the picture's width; None: no captions.
        columns: Pictures per row.

    Returns:
        The sheet, levels from 0 to 1, on the device of the pictures.

    Raises:
        ShapeError: if ``images`` is not a batch of pictures of three channels.
        DataError: naming the argument that is invalid.

    Example:
        >>> pictures = torch.zeros(5, 3, 8, 8)
        >>> sheet = contact_sheet(pictures, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), columns=3)
        >>> sheet.shape, sheet.unique().tolist()
        (torch.Size([3, 28, 40]), [0.5, 1.0])
    """
    sizes = expect("images", images, "b k y x", dtype="float", k=3)
    count, width = sizes["b"], sizes["x"]
    if columns < 1:
        raise DataError(f"columns: expected at least 1, got {columns}")
    if captions is not None and len(captions) != count:
        raise DataError(f"captions: expected one for each of the {count} pictures, got {len(captions)}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise DataError(f"{name}: expected three numbers, got {len(values)}")
    center, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    tiles = (images.float() * spread + center).clamp(0, 1)
    if captions is not None:
        tiles = torch.cat([tiles, torch.stack([_written(text, width) for text in captions]).to(tiles)], dim=2)
    columns = min(columns, count)
    tiles = functional.pad(tiles, (GAP, 0, GAP, 0, 0, 0, 0, -count % columns), value=1.0)
    sheet = rearrange(tiles, "(row column) k y x -> k (row y) (column x)", column=columns)
    return functional.pad(sheet, (0, GAP, 0, GAP), value=1.0)


def _written(text: str, width: int) -> Float[Tensor, "3 h w"]:
    strip = Image.new("RGB", (width, LINE), "white")
    shown, font = fitted(text, FONT, width)
    ImageDraw.Draw(strip).text((0, 1), shown, fill="black", font=font)
    pixels: Tensor = F.pil_to_tensor(strip)
    return pixels.float() / 255
