import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlr.data.batch import DataError
from pvlr.data.sampling import EpochSampler, Share, derive_seed


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 100),
    shuffle=st.booleans(),
)
def test_every_sample_comes_once_and_resuming_is_exact(
    n: int, batch_size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    whole = list(EpochSampler(n, batch_size, seed, epoch, shuffle))
    assert sorted(draw.index for batch in whole for draw in batch) == list(range(n))
    assert all(len(batch) == batch_size for batch in whole[:-1])
    assert whole == list(EpochSampler(n, batch_size, seed, epoch, shuffle))
    for step in range(len(whole) + 1):
        rest = EpochSampler(n, batch_size, seed, epoch, shuffle, start_step=step)
        assert list(rest) == whole[step:]
        assert len(rest) == len(whole) - step


def test_order_depends_on_seed_and_epoch_and_not_on_the_global_generator() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [draw.index for batch in EpochSampler(50, 7, seed, epoch, shuffle=True) for draw in batch]

    first = order(1, 0)
    state = torch.get_rng_state()
    torch.manual_seed(123)
    assert order(1, 0) == first
    torch.set_rng_state(state)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert order(0, 1) != order(1, 0)


def test_seeds_of_draws_do_not_depend_on_order_or_batches() -> None:
    def seeds(batch_size: int, shuffle: bool, epoch: int = 3) -> dict[int, int]:
        return dict(d for batch in EpochSampler(20, batch_size, 5, epoch, shuffle) for d in batch)

    assert seeds(4, True) == seeds(7, False)
    assert seeds(4, True) == {index: derive_seed(5, 3, index) for index in range(20)}
    assert not set(seeds(4, True).values()) & set(seeds(4, True, epoch=4).values())


def test_unshuffled_order_is_the_files() -> None:
    batches = EpochSampler(7, 3, seed=9, epoch=4, shuffle=False)
    assert [draw.index for batch in batches for draw in batch] == list(range(7))


@given(st.lists(st.integers(-(2**70), 2**70), max_size=4), st.lists(st.integers(-(2**70), 2**70), max_size=4))
def test_derive_seed_tells_inputs_apart_within_range(first: list[int], second: list[int]) -> None:
    assert 0 <= derive_seed(*first) < 2**63
    assert (derive_seed(*first) == derive_seed(*second)) == (first == second)


def test_derive_seed_is_pinned() -> None:
    # A changed value changes every run: this is on purpose not computed from the code.
    assert derive_seed(0, 1, 2) == int("c0be322c1ad6af50", 16) >> 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "n: expected a number of at least 1, got 0"),
        ((4, 0), "batch_size: expected a number of at least 1, got 0"),
        ((4, 2, 0, -1), "epoch: expected a number of at least 0, got -1"),
        ((4, 2, 0, 0, True, 3), "start_step: expected a number from 0 to the 2 batches, got 3"),
        ((4, 2, 0, 0, True, -1), "start_step: expected a number from 0 to the 2 batches, got -1"),
    ],
)
def test_refusals(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        EpochSampler(*arguments)


def test_the_representation_is_a_constructor_call() -> None:
    sampler = EpochSampler(9, 2, 3, 4, True, 1, share=Share(1, 2))
    assert list(eval(repr(sampler))) == list(sampler)  # noqa: S307
