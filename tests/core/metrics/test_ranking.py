import math

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.metrics import ranking
from pvlr.core.metrics.ranking import (
    average_precision,
    decision_counts,
    hamming_loss,
    label_ranking_average_precision,
    mean_average_precision,
    precision_recall,
    top_k,
)

rows, columns = st.integers(1, 25), st.integers(1, 4)
kinds = st.sampled_from(["random", "tied", "constant", "single", "saturated", "half", "brain", "zeros"])
rates = st.sampled_from([0.05, 0.3, 0.9])


def scores_of(draw: Draw, kind: str, n: int, c: int) -> Tensor:
    return {
        "random": lambda: draw.normal(n, c),
        "tied": lambda: draw.levels(3, n, c),
        "constant": lambda: torch.zeros(n, c).double(),
        "single": lambda: draw.normal(n, c).float(),
        "saturated": lambda: (40 * draw.normal(n, c).float()).sigmoid(),
        "half": lambda: draw.normal(n, c).half(),
        "brain": lambda: draw.normal(n, c).bfloat16(),
        "zeros": lambda: 0.0 * draw.normal(n, c).float(),  # Some are -0, and equal to the others.
    }[kind]()


# --- definition


@given(draws(), rows, columns, kinds, rates)
def test_average_precision_is_its_definition_and_scikit_learns(
    draw: Draw, n: int, c: int, kind: str, rate: float
) -> None:
    scores, target, known = scores_of(draw, kind, n, c), draw.chance(rate, n, c), draw.chance(0.7, n, c)
    for mask in (known, None):
        found = average_precision(scores, target, mask)
        rows_of = torch.ones_like(known) if mask is None else mask
        for i in range(c):
            wanted = reference.average_precision(*(x[:, i].tolist() for x in (scores, target, rows_of)))
            assert found[i].item() == pytest.approx(wanted, rel=1e-12, nan_ok=True)
            s, t = scores[rows_of[:, i], i], target[rows_of[:, i], i]
            assert t.any() == (not math.isnan(wanted))
            if t.any():
                theirs = average_precision_score(t.numpy(), s.double().numpy())
                assert found[i].item() == pytest.approx(theirs, rel=1e-12)


@given(draws(), st.integers(1, 6), st.integers(1, 20), kinds, rates)
def test_ranking_of_labels_is_its_definition_and_scikit_learns(
    draw: Draw, n: int, c: int, kind: str, rate: float
) -> None:
    scores, target, known = scores_of(draw, kind, n, c), draw.chance(rate, n, c), draw.chance(0.7, n, c)
    for mask in (known, None):
        found = label_ranking_average_precision(scores, target, mask)
        counted = torch.ones_like(known) if mask is None else mask
        for i in range(n):
            wanted = reference.label_ranking(*(x[i].tolist() for x in (scores, target, counted)))
            assert found[i].item() == pytest.approx(wanted, rel=1e-12, nan_ok=True)
            if not math.isnan(wanted):
                t, s = (x[i][counted[i]].double().numpy()[None] for x in (target, scores))
                theirs = sklearn_metrics.label_ranking_average_precision_score(t, s)
                assert found[i].item() == pytest.approx(theirs, rel=1e-12)


def test_scikit_learn_counts_images_without_a_label_as_ranked_perfectly() -> None:
    scores, target = torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([[0, 1], [0, 0]])
    assert label_ranking_average_precision(scores, target).tolist() == pytest.approx([0.5, math.nan], nan_ok=True)
    assert sklearn_metrics.label_ranking_average_precision_score(target.numpy(), scores.numpy()) == 0.75


@given(draws(), rows, columns, rates, rates)
def test_hamming_loss_is_scikit_learns_on_what_is_known(
    draw: Draw, n: int, c: int, rate: float, predicted_rate: float
) -> None:
    predicted, target, known = draw.chance(predicted_rate, n, c), draw.chance(rate, n, c), draw.chance(0.7, n, c)
    theirs = sklearn_metrics.hamming_loss(target.numpy(), predicted.numpy())
    assert hamming_loss(predicted, target) == pytest.approx(theirs, rel=1e-12)
    wanted = reference.hamming_loss(predicted.tolist(), target.tolist(), known.tolist())
    assert hamming_loss(predicted, target, known) == pytest.approx(wanted, rel=1e-12, nan_ok=True)
    assert hamming_loss(predicted ^ ~known, target, known) == pytest.approx(wanted, rel=1e-12, nan_ok=True)
    assert math.isnan(hamming_loss(predicted, target, known & ~known))


@given(draws(), rows, columns, rates, rates)
def test_precision_and_recall_are_their_definitions_and_scikit_learns(
    draw: Draw, n: int, c: int, rate: float, predicted_rate: float
) -> None:
    predicted, target, known = draw.chance(predicted_rate, n, c), draw.chance(rate, n, c), draw.chance(0.7, n, c)
    for mask in (known, torch.ones_like(known)):
        found = precision_recall(predicted, target, mask)._asdict()
        wanted = reference.precision_recall(predicted.tolist(), target.tolist(), mask.tolist())
        assert found == pytest.approx(wanted, rel=1e-12, nan_ok=True)
    present = target.any(dim=0)
    if present.any():
        found = precision_recall(predicted, target)
        both = {"average": "binary", "zero_division": 0}
        each = [
            precision_recall_fscore_support(target[:, i].numpy(), predicted[:, i].numpy(), **both)[:3]
            for i in present.nonzero()[:, 0]
        ]
        assert (found.CP, found.CR, found.mean_F1) == pytest.approx(tuple(np.mean(each, axis=0)))
        overall = precision_recall_fscore_support(target.flatten().numpy(), predicted.flatten().numpy(), **both)[:3]
        assert pytest.approx(overall) == (found.OP, found.OR, found.OF1)


def test_numbers_worked_out_by_hand() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    assert average_precision(scores, torch.tensor([[1], [0], [1], [0]])).item() == pytest.approx((1 + 2 / 3) / 2)
    found = precision_recall(torch.tensor([[True, True], [True, False]]), torch.tensor([[1, 0], [0, 1]]))
    assert (found.CP, found.CR, found.CF1, found.mean_F1) == pytest.approx((0.25, 0.5, 1 / 3, 1 / 3))
    assert pytest.approx((1 / 3, 1 / 2, 0.4)) == (found.OP, found.OR, found.OF1)


def test_f1_of_the_means_is_not_the_mean_of_f1() -> None:
    found = precision_recall(torch.tensor([[True, True], [True, False]]), torch.tensor([[1, 1], [0, 1]]))
    assert pytest.approx(0.75) == found.CF1
    assert found.mean_F1 == pytest.approx(2 / 3)


def test_a_class_never_predicted_has_precision_0_and_its_positives_stay_in_the_overall_recall() -> None:
    found = precision_recall(torch.tensor([[True, False], [True, False]]), torch.tensor([[1, 1], [1, 1]]))
    assert (found.CP, found.CR, found.OP, found.OR) == (0.5, 0.5, 1.0, 0.5)


def test_false_alarms_of_an_absent_class_count_overall_and_not_in_the_means() -> None:
    found = precision_recall(torch.tensor([[True, True], [True, True]]), torch.tensor([[1, 0], [1, 0]]))
    assert (found.CP, found.CR, found.CF1) == (1.0, 1.0, 1.0)
    assert (found.OP, found.OR) == (0.5, 1.0)


def test_mean_average_precision_leaves_absent_classes_out() -> None:
    assert mean_average_precision(torch.tensor([0.2, math.nan, 0.4])).item() == pytest.approx(0.3)
    assert math.isnan(mean_average_precision(torch.tensor([math.nan])).item())


def test_no_images_no_classes_no_positives_are_nan_or_empty_and_never_an_error() -> None:
    assert average_precision(torch.zeros(0, 2), torch.zeros(0, 2)).isnan().all()
    assert average_precision(torch.zeros(3, 0), torch.zeros(3, 0)).shape == (0,)
    found = precision_recall(torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2))
    assert all(math.isnan(getattr(found, name)) for name in ("CP", "CR", "CF1", "mean_F1", "OR", "OF1"))
    assert found.OP == 0


# --- law


@given(draws(), rows, columns, kinds, rates)
def test_the_order_of_rows_and_classes_does_not_matter(draw: Draw, n: int, c: int, kind: str, rate: float) -> None:
    scores, target, known = scores_of(draw, kind, n, c), draw.chance(rate, n, c), draw.chance(0.7, n, c)
    i, j = draw.order(n), draw.order(c)
    ap = average_precision(scores, target, known)
    again = average_precision(scores[i][:, j], target[i][:, j], known[i][:, j])
    assert_close(again, ap[j], rtol=0, atol=0, equal_nan=True)  # To the last bit.
    decided = precision_recall(scores > 0, target, known)
    assert precision_recall((scores > 0)[i][:, j], target[i][:, j], known[i][:, j]) == pytest.approx(
        decided, nan_ok=True
    )


@given(draws(), rows, columns, kinds, rates)
def test_only_the_order_of_scores_matters(draw: Draw, n: int, c: int, kind: str, rate: float) -> None:
    scores, target = scores_of(draw, kind, n, c), draw.chance(rate, n, c)
    stretched = 5 * scores.double().sign() * scores.double().abs().sqrt()
    assert_close(average_precision(stretched, target), average_precision(scores, target), equal_nan=True)


@given(draws(), rows, columns, kinds, rates)
def test_law_7_unknown_entries_change_nothing(draw: Draw, n: int, c: int, kind: str, rate: float) -> None:
    scores, target, known = scores_of(draw, kind, n, c), draw.chance(rate, n, c).double(), draw.chance(0.6, n, c)
    ap, decided = average_precision(scores, target, known), precision_recall(scores > 0, target, known)
    for junk in (math.nan, math.inf, -math.inf, 1e4):
        again = average_precision(scores.masked_fill(~known, junk), target.masked_fill(~known, -1), known)
        assert_close(again, ap, rtol=0, atol=0, equal_nan=True)
    assert precision_recall((scores > 0) ^ ~known, target.masked_fill(~known, -1), known) == pytest.approx(
        decided, nan_ok=True
    )


@given(draws(), rows, st.integers(1, 7), st.integers(1, 60))
def test_slices_of_classes_make_the_whole(draw: Draw, n: int, c: int, at_once: int) -> None:
    scores, target, known = draw.levels(4, n, c), draw.chance(0.4, n, c), draw.chance(0.8, n, c)
    whole = average_precision(scores, target, known)
    before = ranking.SCORES_AT_ONCE
    try:
        ranking.SCORES_AT_ONCE = at_once
        assert_close(average_precision(scores, target, known), whole, rtol=0, atol=0, equal_nan=True)
    finally:
        ranking.SCORES_AT_ONCE = before


@given(draws(), rows, columns, rates)
def test_constant_scores_give_the_rate_of_positives_and_perfect_ones_give_1(
    draw: Draw, n: int, c: int, rate: float
) -> None:
    target = draw.chance(rate, n, c)
    share = target.double().mean(0).masked_fill(~target.any(0), math.nan)
    assert_close(average_precision(torch.zeros(n, c), target), share, equal_nan=True)
    assert_close(average_precision(target.float(), target), share / share, equal_nan=True)


@given(draws(), rows, st.integers(1, 6), st.integers(1, 8))
def test_top_k_takes_the_k_best_and_the_first_of_equals(draw: Draw, n: int, c: int, k: int) -> None:
    probabilities = draw.levels(4, n, c).to(torch.float64 if n % 2 else torch.float32)
    chosen = top_k(probabilities, k)
    for row in range(n):
        ranked = sorted(range(c), key=lambda i, r=row: (-probabilities[r, i].item(), i))
        assert sorted(ranked[:k]) == chosen[row].nonzero().flatten().tolist()
    assert torch.equal(top_k(probabilities, k, threshold=0.5), chosen & (probabilities >= 0.5))


def test_top_k_takes_the_first_of_many_equals() -> None:
    probabilities = Draw(0).levels(2, 4, 300)  # Only long rows are sorted in a way that moves equals.
    first = (probabilities == 0.5) & ((probabilities == 0.5).cumsum(dim=1) <= 20)
    assert torch.equal(top_k(probabilities, 20), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_any_dtype_of_scores_and_targets(dtype: torch.dtype, kind: torch.dtype) -> None:
    found = average_precision(
        torch.tensor([[0.5], [0.25], [0.75]], dtype=dtype), torch.tensor([[1], [0], [0]]).to(kind)
    )
    assert found.dtype == torch.float64
    assert found.item() == 0.5


def test_results_stay_where_the_scores_are_whatever_the_default_device() -> None:
    scores, target, nothing = torch.tensor([[0.5], [0.25]]), torch.tensor([[1], [0]]), torch.zeros(2, 0)
    with torch.device("meta"):
        assert average_precision(scores, target).tolist() == [1.0]
        assert average_precision(nothing, nothing).device == nothing.device


# --- refusal

X = torch.zeros(2, 3)
B = X.bool()
ONE = torch.tensor([[0.5, 1.0, 0.5]])  # One value unlike the others.
NAN = math.nan
REFUSED = [
    (lambda: average_precision(X[0], X), "scores: expected axes 'n c', got shape (3,)"),
    (lambda: average_precision(X, X[:, :2]), "target: expected axes 'n c' with c=3, got shape (2, 2)"),
    (lambda: average_precision(X, X, B[:1]), "known: expected axes 'n c' with n=2, got shape (1, 3)"),
    (lambda: average_precision(X, X, B[:, :2]), "known: expected axes 'n c' with c=3, got shape (2, 2)"),
    (lambda: average_precision(X.long(), X), "scores: expected a tensor of dtype float, got torch.int64"),
    (lambda: average_precision(X, X.to("meta")), "target: expected a tensor on cpu, got one on meta"),
    (lambda: average_precision(X, X, B.to("meta")), "known: expected a tensor on cpu, got one on meta"),
    (lambda: average_precision(X, X, X), "known: expected a tensor of dtype bool, got torch.float32"),
    (lambda: average_precision(X + NAN, X), "scores: expected finite values wherever known, got nan"),
    (lambda: average_precision(ONE / (ONE < 1), X[:1]), "scores: expected finite values wherever known, got inf"),
    (lambda: average_precision(X - math.inf, X), "scores: expected finite values wherever known, got -inf"),
    (lambda: average_precision(X, X - 1), "target: expected 0 or 1 wherever known, got -1"),
    (lambda: average_precision(X, X + 0.5), "target: expected 0 or 1 wherever known, got 0.5"),
    (lambda: average_precision(X, X.long() + 2, ~B), "target: expected 0 or 1 wherever known, got 2"),
    (lambda: mean_average_precision(X), "ap: expected axes 'c', got shape (2, 3)"),
    (lambda: mean_average_precision(X[0].long()), "ap: expected a tensor of dtype float, got torch.int64"),
    (lambda: precision_recall(X, X), "predicted: expected a tensor of dtype bool, got torch.float32"),
    (lambda: precision_recall(B, X + NAN), "target: expected 0 or 1 wherever known, got nan"),
    (lambda: top_k(X[0], 1), "probabilities: expected axes 'n c', got shape (3,)"),
    (lambda: top_k(X.long(), 1), "probabilities: expected a tensor of dtype float, got torch.int64"),
    (lambda: top_k(X, 0), "k: expected a whole number of at least 1, got 0"),
    (lambda: top_k(X + NAN, 1), "probabilities: expected finite values, got nan"),
    (lambda: decision_counts(X, X), "predicted: expected a tensor of dtype bool, got torch.float32"),
    (lambda: decision_counts(B, X[:1]), "target: expected axes 'n c' with n=2, got shape (1, 3)"),
    (lambda: hamming_loss(B, X - 1), "target: expected 0 or 1 wherever known, got -1"),
    (lambda: label_ranking_average_precision(X[0], X), "scores: expected axes 'n c', got shape (3,)"),
    (lambda: label_ranking_average_precision(X + NAN, X), "scores: expected finite values wherever known, got nan"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        call()


def test_scores_that_differ_in_float64_alone_do_not_tie() -> None:
    scores = torch.tensor([[1.0], [1.0 + 1e-12], [1.0 + 2e-12]], dtype=torch.float64)
    assert average_precision(scores, torch.tensor([[1], [0], [0]])).tolist() == pytest.approx([1 / 3])
    assert average_precision(scores, torch.tensor([[0], [0], [1]])).tolist() == [1.0]
