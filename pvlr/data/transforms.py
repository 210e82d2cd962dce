"""Transforms of pictures, in any supported form, to tensors: resizing, augmentation and the tower's normalisation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pvlr.data.batch import DataError
from pvlr.data.images import MAX_PIXELS, Picture, Pixels, decode_rgb, picture_of

__all__ = ["ImageTransform", "TransformConfig", "as_tensor", "cutout", "still_transform"]

GREY = 127
"""Level, of 255, of areas that augmentation leaves empty."""

RATIOS = (3 / 4, 4 / 3)
"""Range of width to height of random crops."""

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """Configuration of the transform of pictures to tensors.

    `size`, `mean`, `std` and `interpolation` are the tower's; the others act in training only. Augmentations are
    torchvision's.

    Args:
        size: side of the square in pixels; pictures are resized to it without keeping their proportions, so that no
            labelled object at the border is cut off.
        mean: mean of red, green and blue, on the scale from 0 to 1.
        std: standard deviation of red, green and blue, on the same scale.
        interpolation: "bicubic", "bilinear" or "nearest"; the first two smooth when they shrink.
        crop: smallest share of a picture's area that is cropped at random, in (0, 1]; a labelled object may lie
            outside of it. 1 takes whole pictures.
        flip: whether half of the pictures are mirrored.
        rand_augment: whether two random operations of RandAugment are applied to each picture.
        cutout: side of the square that is painted grey, as a share of the picture's side in [0, 1]; 0 for none.

    Raises:
        DataError: naming the field, what was expected and what was found.

    Example:
        >>> TransformConfig(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), cutout=0.0).interpolation
        'bicubic'
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop: float = 1.0
    flip: bool = True
    rand_augment: bool = True
    cutout: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"transform.size: expected at least 1 pixel, got {self.size}")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                kind = "positive numbers" if name == "std" else "numbers"
                raise DataError(f"transform.{name}: expected three finite {kind}, got {values}")
            object.__setattr__(self, name, values)
        if self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"transform.interpolation: expected one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}"
            )
        if not 0 < self.crop <= 1:
            raise DataError(f"transform.crop: expected a share above 0, at most 1, got {self.crop}")
        if not 0 <= self.cutout <= 1:
            raise DataError(f"transform.cutout: expected a share from 0 to 1, got {self.cutout}")


class ImageTransform:
    """Transform of a picture to a tower's input tensor.

    Args:
        config: sizes and switches.
        train: whether the augmentations are applied.

    Example:
        >>> config = TransformConfig(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> white = Image.new("RGB", (20, 10), (255, 255, 255))
        >>> ImageTransform(config)(white).unique()
        tensor([1.])
        >>> augment = ImageTransform(config, train=True)
        >>> first, second = (augment(white, torch.Generator().manual_seed(1)) for _ in range(2))
        >>> torch.equal(first, second)
        True
    """

    def __init__(self, config: TransformConfig, train: bool = False) -> None:
        self.config, self.train = config, train
        size, mode = (config.size, config.size), v2.InterpolationMode(config.interpolation)
        if train and config.crop < 1:
            resize: v2.Transform = v2.RandomResizedCrop(
                size, scale=(config.crop, 1.0), ratio=RATIOS, interpolation=mode
            )
        else:
            resize = v2.Resize(size, interpolation=mode, antialias=True)
        self.steps: list[v2.Transform] = [resize]
        if train and config.flip:
            self.steps.append(v2.RandomHorizontalFlip(0.5))
        if train and config.rand_augment:
            # Resizing is several times faster on tensors than on Pillow images, rotation and colour changes are slower.
            bilinear = v2.InterpolationMode.BILINEAR
            randomly = v2.RandAugment(interpolation=bilinear, fill=[GREY, GREY, GREY])
            self.steps += [v2.ToPILImage(), randomly, v2.PILToTensor()]

    @property
    def side(self) -> int:
        """The least side of a decoded picture at which neither it nor its smallest crop has to be enlarged."""
        crop = self.config.crop if self.train else 1.0
        return self.config.size if crop == 1 else math.ceil(self.config.size / math.sqrt(RATIOS[0] * crop))

    def __call__(self, image: Image.Image, generator: torch.Generator | None = None) -> Float[Tensor, "3 s s"]:
        """Transform one picture.

        Args:
            image: mode RGB, any size.
            generator: source of all randomness (on the CPU); None: torch's global generator.

        Returns:
            the normalised picture, float32.
        """
        pixels = F.pil_to_tensor(image)
        if not self.train:
            return self._normalise(self._steps(pixels))
        seed = int(torch.randint(2**62, (), generator=generator))
        # torchvision draws from the global generator. `default_generator` and not `torch.manual_seed`, which would
        # also set the generators of GPUs, which are not restored.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pixels = self._steps(pixels)
            if self.config.cutout > 0:
                pixels = cutout(pixels, share=self.config.cutout, center=torch.rand(2))
        return self._normalise(pixels)

    def _steps(self, pixels: UInt8[Tensor, "3 y x"]) -> UInt8[Tensor, "3 s s"]:
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def _normalise(self, pixels: UInt8[Tensor, "3 s s"]) -> Float[Tensor, "3 s s"]:
        # In place, on the scale from 0 to 255: one new tensor instead of four; bytes are made contiguous faster.
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.config.mean, self.config.std))
        return pixels.contiguous().float().sub_(mean).div_(std)

    def __repr__(self) -> str:
        return f"ImageTransform(config={self.config!r}, train={self.train})"


def still_transform(preprocess: Mapping[str, Any]) -> ImageTransform:
    """Return the transform that a tower requires, without augmentation."""
    return ImageTransform(TransformConfig(**preprocess, flip=False, rand_augment=False, cutout=0.0))


def as_tensor(
    picture: Picture | Pixels, transform: ImageTransform, *, max_pixels: int = MAX_PIXELS
) -> Float[Tensor, "3 s s"]:
    """Decode a picture and transform it.

    Args:
        picture: A file's path, its bytes or the open file; an image of Pillow; an array ``h w 3`` or a tensor
            ``3 h w`` of 8-bit levels or of floats from 0 to 1.
        transform: The transform.
        max_pixels: See :func:`~pvlr.data.images.decode_rgb`.

    Raises:
        DataError: naming the picture that cannot be read.

    Example:
        >>> transform = still_transform({"size": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3})
        >>> as_tensor(Image.new("RGB", (9, 7)), transform).shape
        torch.Size([3, 4, 4])
    """
    if isinstance(picture, Pixels):
        return transform(picture_of(picture))
    return transform(decode_rgb(picture, side=transform.side, max_pixels=max_pixels))


def cutout(
    pixels: UInt8[Tensor, "3 s s"], *, share: float, center: Float[Tensor, " 2"], fill: int = GREY
) -> UInt8[Tensor, "3 s s"]:
    """Paint a square over a picture (DeVries & Taylor 2017, arXiv:1708.04552).

    Args:
        pixels: levels from 0 to 255; not modified.
        share: side of the square as a share of the picture's side, in [0, 1].
        center: center of the square, row and column, each in [0, 1]; the part outside the picture is cut off.
        fill: level of the square.

    Returns:
        a new picture.

    Example:
        >>> cutout(torch.zeros(3, 4, 4, dtype=torch.uint8), share=0.5, center=torch.tensor([0.5, 0.0]), fill=9)[0]
        tensor([[0, 0, 0, 0],
                [9, 0, 0, 0],
                [9, 0, 0, 0],
                [0, 0, 0, 0]], dtype=torch.uint8)
    """
    side = pixels.shape[-1]
    width = round(share * side)
    row, column = (round(float(c) * side - width / 2) for c in center)
    result = pixels.clone()
    result[:, max(0, row) : max(0, row + width), max(0, column) : max(0, column + width)] = fill
    return result
