import math

import pytest
import torch
from helpers.messages import pinned
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core.metrics import bootstrap as module
from pvlr.core.metrics.bootstrap import bootstrap_map, percentile_interval, resampled_counts
from pvlr.core.metrics.ranking import average_precision, mean_average_precision


@given(draws(), st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.05, 0.4]), st.booleans(), st.integers(1, 40))
def test_every_value_is_the_map_of_the_images_repeated(
    draw: Draw, n: int, c: int, rate: float, tied: bool, at_once: int
) -> None:
    scores = draw.levels(3, n, c) if tied else draw.normal(n, c).float()
    target, known = draw.chance(rate, n, c), draw.chance(0.8, n, c)
    counts = resampled_counts(n, 6, torch.Generator().manual_seed(3))
    before = module._COUNTS_AT_ONCE
    try:
        module._COUNTS_AT_ONCE = at_once
        found = bootstrap_map(scores, target, known, resamples=6, seed=3)
    finally:
        module._COUNTS_AT_ONCE = before
    for i in range(6):
        rows = torch.arange(n).repeat_interleave(counts[i].long())
        assert len(rows) == n
        wanted = mean_average_precision(average_precision(scores[rows], target[rows], known[rows]))
        assert_close(found[i], wanted, equal_nan=True)


def test_images_are_drawn_with_equal_chances() -> None:
    counts = resampled_counts(10, 4000, torch.Generator().manual_seed(0)).double()
    assert_close(counts.mean(dim=0), torch.ones(10).double(), atol=0.06, rtol=0)
    assert counts.var().item() == pytest.approx(0.9, abs=0.05)  # Of a binomial of 10 draws with a chance of 1 / 10.


def test_the_seed_makes_the_sets_and_the_interval_narrows_with_the_number_of_images() -> None:
    draw = Draw(0, torch.float32)
    target = draw.chance(0.3, 1600, 3)
    scores = draw.normal(1600, 3) + target
    intervals = []
    for n in (100, 1600):
        values = bootstrap_map(scores[:n], target[:n], resamples=200, seed=1)
        assert torch.equal(values, bootstrap_map(scores[:n], target[:n], resamples=200, seed=1))
        assert not torch.equal(values, bootstrap_map(scores[:n], target[:n], resamples=200, seed=2))
        found = percentile_interval(values)
        assert found.low < mean_average_precision(average_precision(scores[:n], target[:n])).item() < found.high
        intervals.append(found.high - found.low)
    assert intervals[1] == pytest.approx(intervals[0] / 4, rel=0.4)


def test_its_defaults_are_a_thousand_sets_of_seed_0_and_95_percent() -> None:
    scores, target = torch.tensor([[0.9], [0.8], [0.7]]), torch.tensor([[0], [1], [1]])
    values = bootstrap_map(scores, target)
    assert_close(values, bootstrap_map(scores, target, resamples=1000, seed=0), rtol=0, atol=0, equal_nan=True)
    assert len(values) == 1000
    assert percentile_interval(torch.arange(1001.0)) == pytest.approx((25, 975))
    assert percentile_interval(torch.tensor([1.0, math.nan, 1.0])) == (1.0, 1.0)
    assert percentile_interval(torch.tensor([0.5])) == (0.5, 0.5)


def test_no_positives_are_nan() -> None:
    assert bootstrap_map(torch.zeros(3, 2), torch.zeros(3, 2), resamples=4).isnan().all()


X = torch.zeros(2, 3)
REFUSED = [
    (lambda: bootstrap_map(X, X, resamples=0), "resamples: expected a whole number of at least 1, got 0"),
    (lambda: bootstrap_map(X, X, seed=-1), "seed: expected a whole number of at least 0, got -1"),
    (lambda: bootstrap_map(X[:0], X[:0]), "scores: expected at least one image to draw from, got none"),
    (lambda: bootstrap_map(X, X + 2), "target: expected 0 or 1 wherever known, got 2"),
    (lambda: percentile_interval(X[0], level=1.0), "level: expected a finite number > 0 and < 1, got 1.0"),
    (lambda: percentile_interval(torch.zeros(0)), "values: expected at least one value, got none"),
    (lambda: percentile_interval(X), "values: expected axes 'resamples', got shape (2, 3)"),
    (lambda: percentile_interval(X[0].long()), "values: expected a tensor of dtype float, got torch.int64"),
    (lambda: percentile_interval([0.5]), "values: expected a tensor with axes 'resamples', got list"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_resampling_refuses_by_the_name_of_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        call()
