"""Images through a tower: a few at a time where that is faster, with the same result."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident

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
        self.source, self.sizes, self.threads = source, [], set()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> ImageFeatures:
        self.sizes.append(len(images))
        self.threads.add(get_ident())
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


@pytest.fixture
def two_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize("count", [1, IMAGES_AT_ONCE, IMAGES_AT_ONCE + 1, 5 * IMAGES_AT_ONCE])
@pytest.mark.parametrize(("thread_safe", "asked"), [(True, True), (True, False), (False, True)])
def test_threads_compute_parts_of_towers_that_allow_it(count: int, thread_safe: bool, asked: bool) -> None:
    tower, images = Tower(True).eval(), torch.randn(count, 3, 2, 2)
    tower.thread_safe = thread_safe
    whole = tower(images)
    tower.threads.clear()
    with torch.no_grad():
        found = encode_images(tower, images, threads=asked)
    assert all(torch.equal(one, other) for one, other in zip(found[:3], whole[:3], strict=True))
    assert not found.pooled.requires_grad
    several = thread_safe and asked and count > IMAGES_AT_ONCE
    assert (get_ident() in tower.threads) is not several


@pytest.mark.usefixtures("two_cores")
@pytest.mark.parametrize(
    "context", [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), nullcontext()]
)
def test_threads_compute_in_the_callers_mode(context: AbstractContextManager[object]) -> None:
    class Modes(nn.Module):
        thread_safe = True

        def forward(self, images: Tensor) -> ImageFeatures:
            patches = images.flatten(2) @ images.flatten(2).transpose(1, 2)
            seen = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
            modes.append((*seen, torch.is_inference_mode_enabled(), patches.dtype))
            return ImageFeatures(patches, patches[:, 0])

    modes: list[tuple[object, ...]] = []
    tower, images = Modes().eval(), torch.randn(3 * IMAGES_AT_ONCE, 3, 2, 2)
    with torch.no_grad(), context:
        encode_images(tower, images)
        alone = set(modes)
        encode_images(tower, images, threads=True)
    assert (set(modes), len(modes)) == (alone, 6)
