"""Images through a tower: a few at a time where that is faster, with the same result."""

import pytest
import torch
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pvlr.core.protocols import IMAGES_AT_ONCE, ImageFeatures, encode_images


class Tower(nn.Module):
    """Features that depend on each image alone; remembers how many it was given at a time."""

    def __init__(self, source: bool) -> None:
        super().__init__()
        self.source, self.sizes = source, []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> ImageFeatures:
        self.sizes.append(len(images))
        patches = self.weight * images.flatten(2).transpose(1, 2)
        return ImageFeatures(patches, patches.mean(dim=1), patches.amax(dim=1) if self.source else None)


@given(draws(), st.integers(1, 3 * IMAGES_AT_ONCE + 1), st.booleans())
def test_a_few_images_at_a_time_give_what_all_at_once_give(draw: Draw, count: int, source: bool) -> None:
    tower, images = Tower(source).eval(), draw.normal(count, 3, 2, 2)
    whole = tower(images)
    tower.sizes.clear()
    with torch.no_grad():
        found = encode_images(tower, images)
    assert (max(tower.sizes), sum(tower.sizes)) == (min(count, IMAGES_AT_ONCE), count)
    for one, other in zip(found, whole, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("training", [False, True])
def test_all_at_once_for_gradients_and_for_batch_norm(training: bool) -> None:
    tower, images = Tower(True).train(training), torch.randn(3 * IMAGES_AT_ONCE, 3, 2, 2)
    with torch.set_grad_enabled(not training):
        assert encode_images(tower, images).pooled.requires_grad is not training
    assert tower.sizes == [len(images)]
