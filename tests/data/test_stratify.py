"""Tests of the stratified split: each label on both sides, in proportion, whatever the order."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pvlr.data.stratify import stratified_split


def lacking(present: Tensor, aside: Tensor) -> int:
    """Labels of two pictures or more that are missing on a side, counted by side."""
    several = present.sum(dim=0) >= 2
    sides = torch.stack([present[~aside].sum(dim=0), present[aside].sum(dim=0)])
    return int((sides[:, several] == 0).sum())


@st.composite
def label_tables(draw: st.DrawFn) -> Tensor:
    n, c = draw(st.integers(2, 40)), draw(st.integers(1, 6))
    rate = draw(st.sampled_from([0.05, 0.2, 0.6]))
    return torch.rand(n, c, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31)))) < rate


@given(label_tables(), st.sampled_from([0.1, 0.2, 0.5, 0.8]), st.integers(0, 2**31))
def test_both_parts_have_pictures_and_every_label_that_has_two(present: Tensor, share: float, seed: int) -> None:
    n = len(present)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    aside = stratified_split(present, share, order)
    assert aside.shape == (n,)
    assert 0 < int(aside.sum()) < n
    # Pictures of several rare labels may stand in each other's way: then it is rare, and never worse than by chance.
    by_chance = torch.zeros(n, dtype=torch.bool)
    by_chance[order[: max(1, round(n * share))]] = True
    assert lacking(present, aside) <= lacking(present, by_chance)
    assert torch.equal(aside, stratified_split(present, share, order))


@given(st.integers(0, 2**31))
def test_on_few_pictures_no_other_split_has_fewer_labels_missing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    present = torch.rand(6, 4, generator=generator) < 0.4
    found = lacking(present, stratified_split(present, 0.5, range(6)))
    every = (torch.tensor(choice) for choice in product([False, True], repeat=6))
    best = min(lacking(present, aside) for aside in every if 0 < int(aside.sum()) < 6)
    assert found <= best + 1


def test_independent_labels_are_all_on_both_sides_in_proportion() -> None:
    present = torch.zeros(100, 10, dtype=torch.bool)
    for picture in range(100):
        present[picture, picture % 10] = True
    aside = stratified_split(present, 0.2, range(100))
    assert present[aside].sum(dim=0).tolist() == [2] * 10


def test_a_label_of_two_pictures_is_on_both_sides_where_chance_would_rarely_do_it() -> None:
    present = torch.zeros(100, 5, dtype=torch.bool)
    for label in range(5):
        present[2 * label : 2 * label + 2, label] = True
    aside = stratified_split(present, 0.1, range(100))
    assert int(aside.sum()) == 10
    assert lacking(present, aside) == 0


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_of_nearly_nothing_or_all_leaves_a_picture_on_either_side(share: float) -> None:
    aside = stratified_split(torch.ones(5, 1, dtype=torch.bool), share, range(5))
    assert int(aside.sum()) in (1, 4)
