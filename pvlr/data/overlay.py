"""Attention maps over the patches of a picture, in colours of evenly increasing brightness."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from pvlr.core.shapes import expect
from pvlr.data.batch import DataError

__all__ = ["colours", "overlay", "to_picture"]

# Ten steps of inferno, the colour map of van der Walt and Smith (2015): its lightness rises evenly from black to a
# light yellow, so that larger values are brighter, also in grey and for colour-blind readers.
INFERNO = (
    (0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96),
    (207, 68, 70), (237, 105, 37), (251, 155, 6), (247, 209, 61), (252, 255, 164),
)  # fmt: skip


def colours(values: Float[Tensor, "h w"]) -> UInt8[Tensor, "h w 3"]:
    """Map values from 0 (black) to 1 (light yellow) to red, green and blue; values outside are clamped.

    Args:
        values: ``h w``; NaN counts as 0.

    Example:
        >>> colours(torch.tensor([[0.0, 1.0, 9.0]]))[0].tolist()
        [[0, 0, 4], [252, 255, 164], [252, 255, 164]]
    """
    expect("values", values, "h w", dtype="float")
    steps = torch.tensor(INFERNO, dtype=torch.float32)
    place = values.detach().float().cpu().nan_to_num(0.0).clamp(0.0, 1.0) * (len(INFERNO) - 1)
    below = place.floor().long().clamp(max=len(INFERNO) - 2)
    return torch.lerp(steps[below], steps[below + 1], (place - below).unsqueeze(-1)).round().to(torch.uint8)


def overlay(
    picture: Image.Image, attention: Float[Tensor, "g g"], *, strength: float = 0.75, top: float | None = None
) -> Image.Image:
    """Blend a picture with the colours of a map over its patches, more opaque where values are larger.

    Args:
        picture: The model's input, or the original: patches divide each side evenly whatever its length.
        attention: One value of at least 0 per patch, ``g g``, rows from the top; of heads and layers, a mean or one.
        strength: Opacity of the colour at the largest value, in [0, 1].
        top: Value of the brightest colour; None: the map's maximum. Pass the same for maps to be compared.

    Returns:
        A new picture, mode RGB, of the picture's size.

    Raises:
        ShapeError: if the map is not ``g g``.
        DataError: if a value of the map is negative or not finite, or ``strength`` or ``top`` is out of range.

    Example:
        >>> attention = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
        >>> shown = overlay(Image.new("RGB", (40, 20)), attention, strength=1.0)
        >>> shown.size, shown.getpixel((0, 0)), shown.getpixel((39, 19))
        ((40, 20), (0, 0, 0), (252, 255, 164))
    """
    axes = expect("attention", attention, "g width", dtype="float")
    expect("attention", attention, "g g2", g2=axes["g"])
    if not 0 <= strength <= 1:
        raise DataError(f"strength: expected a share from 0 to 1, got {strength}")
    if top is not None and not 0 < top < float("inf"):
        raise DataError(f"top: expected a finite number above 0, got {top}")
    values = attention.detach().float().cpu()
    odd = ~((values >= 0) & values.isfinite())
    if bool(odd.any()):
        raise DataError(f"attention: expected finite values of at least 0, got {values[odd][0].item():g}")
    if top is None:
        top = float(values.max()) or 1.0  # A map of zeros must not divide by zero.
    grid = Image.fromarray((values / top).clamp(max=1.0).numpy())
    # Cubic, so that no edges of patches are visible; its overshoot at peaks is clamped.
    smooth = torch.from_numpy(np.array(grid.resize(picture.size, Image.Resampling.BICUBIC))).clamp(0.0, 1.0)
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).float()
    shown = torch.lerp(pixels, colours(smooth).float(), strength * smooth.unsqueeze(-1))
    return Image.fromarray(shown.round().to(torch.uint8).numpy())


def to_picture(image: Float[Tensor, "3 h w"], *, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """Convert a model's input back to a picture: normalisation undone, mode RGB.

    Args:
        image: ``3 h w``, normalised by ``mean`` and ``std``.
        mean: Mean of red, green and blue, on the scale from 0 to 1.
        std: Standard deviation of red, green and blue, on the same scale.

    Example:
        >>> to_picture(torch.zeros(3, 1, 2), mean=(1.0, 0.5, 0.0), std=(0.3, 0.3, 0.3)).getpixel((1, 0))
        (255, 128, 0)
    """
    expect("image", image, "rgb h w", dtype="float", rgb=3)
    centre, spread = (torch.tensor(tuple(values)).view(3, 1, 1) for values in (mean, std))
    levels = (image.detach().float().cpu() * spread + centre) * 255
    return Image.fromarray(levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
