import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlr.data.batch import Batch, DataError, Sample, collate


def draw_sample(index: int, side: int, classes: int, generator: torch.Generator) -> Sample:
    known = torch.rand(classes, generator=generator) < 0.7
    target = (torch.rand(classes, generator=generator) < 0.5).float() * known
    return Sample(torch.randn(3, side, side, generator=generator), target, known, index)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 5), side=st.integers(1, 6), classes=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_collate_stacks_every_field_in_order(size: int, side: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    samples = [draw_sample(100 - i, side, classes, generator) for i in range(size)]
    batch = collate(samples)
    assert batch.image.shape == (size, 3, side, side)
    assert (batch.target.dtype, batch.known.dtype, batch.index.dtype) == (torch.float32, torch.bool, torch.int64)
    for row, sample in enumerate(samples):
        assert torch.equal(batch.image[row], sample.image)
        assert torch.equal(batch.target[row], sample.target)
        assert torch.equal(batch.known[row], sample.known)
        assert int(batch.index[row]) == sample.index


def test_collate_refuses_what_does_not_stack() -> None:
    generator = torch.Generator().manual_seed(0)
    first = draw_sample(3, 4, 2, generator)
    with pytest.raises(DataError, match="expected at least one"):
        collate([])
    with pytest.raises(
        DataError, match=r"sample 8: expected image of shape \(3, 4, 4\) like sample 3, got \(3, 5, 5\)"
    ):
        collate([first, draw_sample(8, 5, 2, generator)])
    with pytest.raises(DataError, match=r"sample 8: expected target of shape \(2,\) like sample 3, got \(1,\)"):
        collate([first, draw_sample(8, 4, 1, generator)])


def test_batch_moves_and_pickles() -> None:
    batch = collate([draw_sample(1, 2, 3, torch.Generator().manual_seed(0))])
    moved = batch.to("meta")
    assert [x.device.type for x in moved] == ["meta", "meta", "meta", "cpu"]
    again = pickle.loads(pickle.dumps(batch))  # noqa: S301
    assert isinstance(again, Batch)
    assert all(torch.equal(a, b) for a, b in zip(again, batch, strict=True))


def test_data_error_is_a_value_error() -> None:
    assert issubclass(DataError, ValueError)
