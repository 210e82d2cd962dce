"""Conversion of one picture, in any supported form, to a model's input."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pvlr.data.images import Picture, Pixels, decode_rgb, picture_of
from pvlr.data.transforms import ImageTransform, TransformConfig

__all__ = ["as_tensor", "still_transform"]


def still_transform(preprocess: Mapping[str, Any]) -> ImageTransform:
    """Return the transform that a tower requires, without augmentation."""
    return ImageTransform(TransformConfig(**preprocess, flip=False, rand_augment=False, cutout=0.0))


def as_tensor(picture: Picture | Pixels, transform: ImageTransform) -> Float[Tensor, "3 s s"]:
    """Decode a picture and transform it.

    Args:
        picture: A file's path, its bytes or the open file; an image of Pillow; an array ``h w 3`` or a tensor
            ``3 h w`` of 8-bit levels or of floats from 0 to 1.
        transform: The transform.

    Raises:
        DataError: naming the picture that cannot be read.

    Example:
        >>> from PIL import Image
        >>> transform = still_transform({"size": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3})
        >>> as_tensor(Image.new("RGB", (9, 7)), transform).shape
        torch.Size([3, 4, 4])
    """
    if isinstance(picture, Pixels):
        return transform(picture_of(picture))
    return transform(decode_rgb(picture, side=transform.side))
