"""Maps on pictures: in the right place, in colours that grow brighter, and pictures that come back as they were."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pvlr.core.shapes import ShapeError
from pvlr.data.batch import DataError
from pvlr.data.overlay import colours, overlay, to_picture
from pvlr.data.transforms import ImageTransform, TransformConfig


def noise(width: int, height: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def lightness(rgb: torch.Tensor) -> torch.Tensor:
    """L* of CIELAB, from its definition."""
    linear = rgb.double() / 255
    linear = torch.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    y = linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    return torch.where(y > (6 / 29) ** 3, 116 * y ** (1 / 3) - 16, y * (29 / 3) ** 3)


def test_more_is_always_brighter_by_about_the_same() -> None:
    shown = lightness(colours(torch.linspace(0, 1, 101)[None])[0])
    steps = shown[10:] - shown[:-10]
    assert shown[0] < 1
    assert shown[-1] > 95
    assert steps.min() > 5
    assert steps.max() < 15


def test_colours_know_no_value_outside_of_theirs() -> None:
    ends = colours(torch.tensor([[0.0, 1.0]]))[0]
    odd = colours(torch.tensor([[-1.0, float("nan"), 2.0, float("inf")]]))[0]
    assert torch.equal(odd, ends[[0, 0, 1, 1]])


@given(g=st.integers(1, 9), width=st.integers(9, 60), height=st.integers(9, 60), seed=st.integers(0, 99))
def test_the_brightest_spot_is_in_the_patch_that_was_looked_at(g: int, width: int, height: int, seed: int) -> None:
    row, column = divmod(seed % g**2, g)
    attention = torch.zeros(g, g)
    attention[row, column] = 0.01  # Shares of a softmax over many patches are small.
    shown = overlay(Image.new("RGB", (width, height)), attention, strength=1.0)
    assert shown.size == (width, height)
    light = np.asarray(shown.convert("L")).astype(int)
    y, x = np.unravel_index(light.argmax(), light.shape)
    # The brightest pixel's middle, in patches.
    assert abs((y + 0.5) / height * g - row - 0.5) <= 0.5
    assert abs((x + 0.5) / width * g - column - 0.5) <= 0.5


@given(g=st.integers(1, 6), seed=st.integers(0, 99))
def test_where_nothing_is_the_picture_is_itself(g: int, seed: int) -> None:
    picture = noise(24, 18, seed)
    assert overlay(picture, torch.zeros(g, g)) == picture
    attention = torch.rand(g, g, generator=torch.Generator().manual_seed(seed))
    assert overlay(picture, attention, strength=0.0) == picture


def test_maps_are_compared_by_a_common_top() -> None:
    black, weak, strong = Image.new("RGB", (8, 8)), torch.full((2, 2), 0.1), torch.full((2, 2), 0.4)
    assert overlay(black, weak) == overlay(black, strong)
    together = [overlay(black, one, top=0.4).getpixel((4, 4)) for one in (weak, strong)]
    assert sum(together[0]) < sum(together[1])
    assert overlay(black, strong, top=0.2) == overlay(black, strong)  # More than the top is the top.


def test_half_the_strength_hides_half_of_the_picture() -> None:
    white = Image.new("RGB", (8, 8), (255, 255, 255))
    top = colours(torch.ones(1, 1))[0, 0].double().numpy()
    shown = np.array(overlay(white, torch.ones(3, 3), strength=0.5).getpixel((1, 1)))
    assert np.abs(shown - (255 + top) / 2).max() <= 0.5


def test_an_input_becomes_the_picture_it_was() -> None:
    config = TransformConfig(size=20, mean=(0.48, 0.45, 0.41), std=(0.27, 0.26, 0.28))
    picture = noise(20, 20, 1)
    image = ImageTransform(config)(picture)
    assert to_picture(image, mean=config.mean, std=config.std) == picture
    assert to_picture(image.double() * 9, mean=config.mean, std=config.std).size == (20, 20)  # Cut off, not wrapped.


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("attention", "options", "error", "message"),
    [
        (torch.zeros(2, 3), {}, ShapeError, r"attention: expected axes 'g g2' with g2=2, got shape \(2, 3\)"),
        (torch.zeros(4), {}, ShapeError, r"attention: expected axes 'g width', got shape \(4,\)"),
        (torch.tensor([[-1.0]]), {}, DataError, "attention: expected finite values of at least 0, got -1"),
        (torch.tensor([[float("nan")]]), {}, DataError, "attention: expected finite values of at least 0, got nan"),
        (torch.ones(1, 1), {"strength": 1.5}, DataError, "strength: expected a share from 0 to 1, got 1.5"),
        (torch.ones(1, 1), {"top": 0.0}, DataError, r"top: expected a finite number above 0, got 0\.0"),
    ],
)
def test_refusals(attention: torch.Tensor, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        overlay(Image.new("RGB", (4, 4)), attention, **options)
