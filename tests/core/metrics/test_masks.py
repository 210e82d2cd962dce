"""Refusals of every metric, and the labels that it takes out."""

import torch
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core.metrics.masks import masked


@given(draws(), st.integers(0, 6), st.integers(0, 4))
def test_unknown_predictions_are_0_and_unknown_targets_are_no_positives(draw: Draw, n: int, c: int) -> None:
    values, target, known = draw.normal(n, c), draw.chance(0.5, n, c).long(), draw.chance(0.5, n, c)
    found = masked("scores", values.masked_fill(~known, torch.nan), target.masked_fill(~known, 7), known)
    for row in range(n):
        for column in range(c):
            seen = bool(known[row, column])
            assert found.values[row, column].item() == (values[row, column].item() if seen else 0.0)
            assert found.positive[row, column].item() == (seen and target[row, column].item() == 1)
    assert torch.equal(found.known, known)
    everywhere = masked("scores", values, target, None)
    assert_close(everywhere.values, values)
    assert everywhere.known.all()
