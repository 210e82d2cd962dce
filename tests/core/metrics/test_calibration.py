import math

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.metrics.calibration import (
    Reliability,
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    reliability,
)

rows, columns, rates = st.integers(1, 25), st.integers(1, 4), st.sampled_from([0.05, 0.3, 0.9])
kinds = st.sampled_from(["random", "tied", "constant", "saturated", "half"])


def probabilities_of(draw: Draw, kind: str, n: int, c: int) -> Tensor:
    return {
        "random": lambda: draw.uniform(n, c),
        "tied": lambda: draw.levels(4, n, c),
        "constant": lambda: torch.full((n, c), 0.3),
        "saturated": lambda: (40 * draw.normal(n, c).float()).sigmoid(),
        "half": lambda: draw.uniform(n, c).half(),
    }[kind]()


def assert_same(found: Reliability, wanted: Reliability) -> None:
    assert_close(vars(found), vars(wanted), rtol=0, atol=0, equal_nan=True)


# --- temperature


@given(draws(), rows, columns, st.sampled_from([0.2, 1.0, 5.0]))
def test_no_temperature_is_likelier_than_the_one_that_is_fitted(draw: Draw, n: int, c: int, scale: float) -> None:
    logits, known = scale * draw.normal(n, c), draw.chance(0.8, n, c)
    target = draw.normal(n, c) < logits / scale
    known[0, 0] = True
    found = fit_temperature(logits, target, known)
    assert 0.0099 < found < 100.1
    x, y = logits[known].tolist(), target[known].double().tolist()
    least = reference.negative_log_likelihood(x, y, found)
    for other in (0.011, 0.1, 0.5 * found, 0.99 * found, 1.01 * found, 2 * found, 1.0, 10.0, 99.0):
        if 0.01 <= other <= 100:
            assert least <= reference.negative_log_likelihood(x, y, other) + 1e-9


@given(draws(), st.floats(0.3, 3.0))
def test_temperature_undoes_a_factor(draw: Draw, factor: float) -> None:
    logits = 2 * draw.normal(60, 3)
    target = draw.uniform(60, 3) < logits.sigmoid()
    assert fit_temperature(factor * logits, target) == pytest.approx(factor * fit_temperature(logits, target), rel=1e-6)


def test_temperature_of_calibrated_logits_is_1() -> None:
    draw = Draw(0)
    logits = 2 * draw.normal(20_000, 2)
    assert fit_temperature(logits, draw.uniform(20_000, 2) < logits.sigmoid()) == pytest.approx(1, abs=0.02)


def test_temperature_has_ends_where_the_best_one_is_none() -> None:
    logits = torch.tensor([[3.0], [-2.0]])
    assert fit_temperature(logits, torch.tensor([[1], [0]])) == pytest.approx(0.01)
    assert fit_temperature(logits, torch.tensor([[0], [1]])) == pytest.approx(100)
    assert fit_temperature(torch.zeros(2, 1), torch.tensor([[0], [1]])) == 1.0


@given(draws(), rows, columns)
def test_law_7_unknown_labels_change_no_temperature_and_no_threshold(draw: Draw, n: int, c: int) -> None:
    probabilities, target, known = draw.uniform(n, c), draw.chance(0.4, n, c).double(), draw.chance(0.6, n, c)
    known[0, 0] = True
    for junk in (math.nan, math.inf, 1e9):
        other, odd = probabilities.masked_fill(~known, junk), target.masked_fill(~known, -1)
        assert fit_temperature(other, odd, known) == fit_temperature(probabilities, target, known)
        assert torch.equal(fit_thresholds(other, odd, known), fit_thresholds(probabilities, target, known))
        assert_same(reliability(other, odd, known), reliability(probabilities, target, known))


# --- thresholds


def decided(threshold: float, p: Tensor, y: Tensor) -> tuple[int, int]:
    said = p.double() >= threshold
    return int(said.sum()), int((said & y).sum())


@given(draws(), rows, columns, kinds, rates)
def test_no_threshold_has_a_higher_f1(draw: Draw, n: int, c: int, kind: str, rate: float) -> None:
    p, target, known = probabilities_of(draw, kind, n, c), draw.chance(rate, n, c), draw.chance(0.8, n, c)
    found = fit_thresholds(p, target, known)
    for i in range(c):
        k = known[:, i]
        decisions = reference.threshold_decisions(*(x[:, i].tolist() for x in (p, target, known)))
        if not (target & known)[:, i].any():
            assert found[i].item() == 0.5
            continue
        said, right = decided(found[i].item(), p[k, i], target[k, i])
        best = max((2 * hits / (all_said + positives), -all_said) for _, all_said, hits, positives in decisions)
        assert (2 * right / (said + decisions[0][3]), -said) == best


@given(draws(), rows, columns, kinds, rates, st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_of_those_of_the_precision_asked_for_no_threshold_says_more(
    draw: Draw, n: int, c: int, kind: str, rate: float, precision: float
) -> None:
    p, target, known = probabilities_of(draw, kind, n, c), draw.chance(rate, n, c), draw.chance(0.8, n, c)
    found = fit_thresholds(p, target, known, by="precision", precision=precision)
    for i in range(c):
        k = known[:, i]
        decisions = reference.threshold_decisions(*(x[:, i].tolist() for x in (p, target, known)))
        if not (target & known)[:, i].any():
            assert found[i].item() == 0.5
            continue
        said, right = decided(found[i].item(), p[k, i], target[k, i])
        reached = [all_said for _, all_said, hits, _ in decisions if hits / all_said >= precision]
        if reached:
            assert right / said >= precision
            assert said == max(reached)
        else:
            assert (right / said, said) == max((hits / all_said, all_said) for _, all_said, hits, _ in decisions)


def test_a_threshold_lies_halfway_and_the_default_precision_is_nine_tenths() -> None:
    p = torch.arange(20, 0, -1)[:, None] / 32
    target = torch.ones(20, 1)
    target[[9, 18, 19]] = 0  # The first 10 have precision 0.9, the first 18 17/18 and all 20 17/20: 19 is 17/19.
    assert fit_thresholds(p, target, by="precision").item() == pytest.approx((3 / 32 + 2 / 32) / 2)
    assert fit_thresholds(p, target, by="precision", precision=0.85).item() == 1 / 32  # The lowest of all.
    assert fit_thresholds(p, target).item() == pytest.approx((3 / 32 + 2 / 32) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_neighbouring_numbers_the_upper_one_is_the_threshold(dtype: torch.dtype) -> None:
    low = torch.tensor(0.25, dtype=dtype)
    high = torch.nextafter(low, torch.tensor(1.0, dtype=dtype))
    found = fit_thresholds(torch.stack([high, low])[:, None], torch.tensor([[1], [0]]))
    assert found.dtype == dtype
    assert found.item() == high.item()


def test_thresholds_of_half_precision_are_single() -> None:
    found = fit_thresholds(torch.tensor([[0.5], [0.25]], dtype=torch.bfloat16), torch.tensor([[1], [0]]))
    assert (found.dtype, found.tolist()) == (torch.float32, [0.375])


def test_no_rows_and_no_labels() -> None:
    assert fit_thresholds(torch.zeros(0, 2), torch.zeros(0, 2)).tolist() == [0.5, 0.5]
    assert fit_thresholds(torch.zeros(2, 0), torch.zeros(2, 0)).shape == (0,)
    assert math.isnan(expected_calibration_error(torch.zeros(0, 2), torch.zeros(0, 2)))


# --- reliability


@given(draws(), rows, columns, kinds, rates, st.sampled_from([1, 2, 15, 16]))
def test_reliability_is_its_definition_and_scikit_learns(
    draw: Draw, n: int, c: int, kind: str, rate: float, bins: int
) -> None:
    p, target, known = probabilities_of(draw, kind, n, c), draw.chance(rate, n, c), draw.chance(0.8, n, c)
    for mask in (known, None):
        found = reliability(p, target, mask, bins=bins)
        counted = torch.ones_like(known) if mask is None else mask
        x, y = p[counted].double(), target[counted].double()
        wanted = reference.reliability(x.tolist(), y.tolist(), bins)
        for part, column in zip(vars(found).values(), zip(*wanted, strict=True), strict=True):
            assert part.tolist() == pytest.approx(column, abs=1e-9, nan_ok=True)
        error = expected_calibration_error(p, target, mask, bins=bins)
        assert error == pytest.approx(reference.calibration_error(x.tolist(), y.tolist(), bins), abs=1e-9, nan_ok=True)
        if len(x):
            frequency, confidence = calibration_curve(y.numpy(), x.numpy(), n_bins=bins)
            some = found.count > 0
            np.testing.assert_allclose(found.confidence[some].numpy(), confidence, atol=1e-6)
            np.testing.assert_allclose(found.frequency[some].numpy(), frequency, atol=1e-6)


def test_edges_belong_to_the_bin_below_and_fifteen_is_the_default() -> None:
    found = reliability(torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0, 0.26]]), torch.tensor([[0, 1, 0, 1, 1, 0]]), bins=4)
    assert found.count.tolist() == [2, 2, 1, 1]
    assert found.frequency.tolist() == [0.5, 0.0, 1.0, 1.0]
    assert len(reliability(torch.zeros(1, 1), torch.zeros(1, 1)).count) == 15


def test_calibration_error_by_hand() -> None:
    p, target = torch.tensor([[0.1], [0.3], [0.9]], dtype=torch.float64), torch.tensor([[0], [1], [1]])
    assert expected_calibration_error(p, target, bins=2) == pytest.approx(
        2 / 3 * abs(0.2 - 0.5) + 1 / 3 * 0.1, abs=1e-9
    )
    known = torch.tensor([[True], [False], [True]])
    assert expected_calibration_error(p, target, known, bins=1) == pytest.approx(0, abs=1e-9)
    assert math.isnan(expected_calibration_error(p, target, torch.zeros(3, 1, dtype=torch.bool)))


@given(draws(), rows, columns)
def test_the_order_of_pictures_and_labels_changes_no_bit(draw: Draw, n: int, c: int) -> None:
    p, target, i, j = draw.uniform(n, c), draw.chance(0.4, n, c), draw.order(n), draw.order(c)
    assert_same(reliability(p[i][:, j], target[i][:, j]), reliability(p, target))
    assert torch.equal(fit_thresholds(p[i][:, j], target[i][:, j]), fit_thresholds(p, target)[j])


# --- refusal

X = torch.zeros(2, 3)
NOTHING_KNOWN = "known: expected at least one known label to fit a temperature on, got none"
REFUSED = [
    (lambda: fit_temperature(X[0], X), "logits: expected axes 'n c', got shape (3,)"),
    (lambda: fit_temperature(X + math.nan, X), "logits: expected finite values wherever known, got nan"),
    (lambda: fit_temperature(X, X + 2), "target: expected 0 or 1 wherever known, got 2"),
    (
        lambda: fit_temperature(X, X, X.bool()),
        "known: expected at least one known label to fit a temperature on, got none",
    ),
    (
        lambda: fit_temperature(X[:0], X[:0]),
        "known: expected at least one known label to fit a temperature on, got none",
    ),
    (lambda: fit_thresholds(X, X[:1]), "target: expected axes 'n c' with n=2, got shape (1, 3)"),
    (lambda: fit_thresholds(X + 2, X), "probabilities: expected values in [0, 1], got 2: are these logits?"),
    (lambda: fit_thresholds(X - 1, X), "probabilities: expected values in [0, 1], got -1: are these logits?"),
    (lambda: fit_thresholds(X, X, by="recall"), "by: expected one of 'f1', 'precision', got 'recall'"),
    (lambda: fit_thresholds(X, X, precision=0.0), "precision: expected a finite number > 0, got 0.0"),
    (lambda: fit_thresholds(X, X, precision=1.5), "precision: expected a fraction in (0, 1], got 1.5"),
    (lambda: reliability(X, X, bins=0), "bins: expected a whole number of at least 1, got 0"),
    (lambda: reliability(X + 1.5, X), "probabilities: expected values in [0, 1], got 1.5: are these logits?"),
    (lambda: reliability(X.long(), X), "probabilities: expected a tensor of dtype float, got torch.int64"),
    (lambda: expected_calibration_error(X, X, X), "known: expected a tensor of dtype bool, got torch.float32"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_calibration_refuses_by_the_name_of_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        call()
