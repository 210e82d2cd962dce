import json
import math
import pickle
from functools import partial

import pytest
import torch
from helpers.messages import pinned
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.metrics import report as module
from pvlr.core.metrics.calibration import expected_calibration_error
from pvlr.core.metrics.ranking import (
    average_precision,
    hamming_loss,
    label_ranking_average_precision,
    mean_average_precision,
    precision_recall,
    top_k,
)
from pvlr.core.metrics.report import MultiLabelReport, ReportAccumulator, multilabel_report


def test_the_report_holds_every_number_under_the_names_of_the_labels() -> None:
    draw = Draw(3)
    probabilities, target, known = draw.uniform(40, 3), draw.chance(0.4, 40, 3), draw.chance(0.8, 40, 3)
    target[:, 1] = False
    report = multilabel_report(probabilities, target, known, LabelSet(("cat", "dog", "cow")), threshold=0.3)
    ap = average_precision(probabilities, target, known)
    assert list(report.ap) == ["cat", "dog", "cow"]
    assert list(report.ap.values()) == pytest.approx(ap.tolist(), nan_ok=True)
    assert report.mAP == mean_average_precision(ap).item()
    decided = precision_recall(probabilities >= 0.3, target, known)
    assert {name: getattr(report, name) for name in decided._fields} == decided._asdict()
    for chosen, threshold in ((report.top3, None), (report.top3_from_threshold, 0.3)):
        assert chosen == precision_recall(top_k(probabilities.masked_fill(~known, 0.0), 3, threshold), target, known)
    assert report.hamming == pytest.approx(hamming_loss(probabilities >= 0.3, target, known), rel=1e-12)
    ranking = label_ranking_average_precision(probabilities, target, known)
    assert report.ranking_ap == pytest.approx(ranking.nanmean().item(), abs=1e-9)
    assert report.calibration_error == expected_calibration_error(probabilities, target, known, bins=15)
    assert (report.threshold, report.absent, report.images) == (0.3, ("dog",), 40)
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["ap"]["dog"] is None
    assert written["mAP"] == report.mAP
    assert written["top3"] == report.top3._asdict()
    assert written["absent"] == ["dog"]
    assert set(written) == set(report.__dataclass_fields__)


def test_a_probability_equal_to_the_threshold_is_a_prediction() -> None:
    report = multilabel_report(torch.tensor([[0.5]]), torch.tensor([[1]]), threshold=0.5)
    assert (report.OP, report.OR) == (1.0, 1.0)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_both_ends_are_thresholds(threshold: float) -> None:
    report = multilabel_report(torch.tensor([[0.0, 1.0]]), torch.tensor([[1, 1]]), threshold=threshold)
    assert pytest.approx(1.0 if threshold == 0 else 0.5) == report.OR


def test_ranking_by_logits_survives_a_sigmoid_that_saturates() -> None:
    logits, target = torch.tensor([[40.0], [60.0], [30.0]]), torch.tensor([[0], [1], [0]])
    probabilities = torch.sigmoid(logits)
    assert (probabilities == 1).all()
    assert multilabel_report(probabilities, target).mAP == pytest.approx(1 / 3)
    assert multilabel_report(probabilities, target, scores=logits).mAP == 1.0


def test_all_of_coco_takes_seconds() -> None:
    draw = Draw(0, torch.float32)
    report = multilabel_report(draw.uniform(40_137, 80), draw.chance(0.03, 40_137, 80))
    assert report.mAP == pytest.approx(0.03, abs=0.005)


def test_top_3_is_chosen_among_the_known_labels() -> None:
    probabilities, target = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.1]]), torch.tensor([[0, 0, 0, 1, 1]])
    known = torch.tensor([[False, True, True, True, True]])
    report = multilabel_report(probabilities, target, known)
    assert (pytest.approx(1 / 3), 0.5) == (report.top3.OP, report.top3.OR)
    sure = multilabel_report(probabilities, target, known, threshold=0.65).top3_from_threshold
    assert (sure.OP, sure.OR) == (0.0, 0.0)
    assert multilabel_report(probabilities, target).top3.OP == 0.0


def test_numbers_of_a_report_by_hand() -> None:
    report = multilabel_report(torch.tensor([[0.9, 0.8, 0.2], [0.1, 0.6, 0.3]]), torch.tensor([[1, 0, 1], [0, 0, 0]]))
    assert report.ranking_ap == pytest.approx((1 + 2 / 3) / 2)  # The second image has no label.
    assert report.hamming == pytest.approx(3 / 6)
    assert (report.images, report.absent) == (2, ("1",))


@given(draws(), st.integers(1, 12), st.integers(1, 5))
def test_law_7_unknown_labels_change_no_number_of_the_report(draw: Draw, n: int, c: int) -> None:
    probabilities, target, known = draw.uniform(n, c), draw.chance(0.4, n, c).double(), draw.chance(0.6, n, c)
    report = multilabel_report(probabilities, target, known)
    for junk in (math.nan, math.inf, -7.0):
        again = multilabel_report(probabilities.masked_fill(~known, junk), target.masked_fill(~known, -1), known)
        assert same(again, report)


# --- in parts


def same(a: MultiLabelReport, b: MultiLabelReport) -> bool:
    """Test whether two are equal to the last bit, NaN where the other is NaN."""
    return json.dumps(a.to_json()) == json.dumps(b.to_json())


def accumulated(parts: list[Tensor], *data: Tensor) -> ReportAccumulator:
    found = ReportAccumulator(threshold=0.4)
    for rows in parts:
        probabilities, target, known, scores = (part[rows] for part in data)
        found.update(probabilities, target, known, scores=scores)
    return found


@given(draws(), st.integers(1, 30), st.integers(1, 5), st.integers(1, 8), st.integers(1, 3), st.integers(1, 90))
def test_any_parts_in_any_order_on_any_ranks_make_the_whole(
    draw: Draw, n: int, c: int, parts: int, ranks: int, at_once: int
) -> None:
    scores = [draw.normal(n, c), draw.levels(3, n, c).float(), 40 * draw.normal(n, c).float()][n % 3]
    # Taken of all at once: a sigmoid rounds a number differently at another place in memory.
    data = scores.sigmoid(), draw.chance(0.3, n, c), draw.chance(0.8, n, c), scores
    whole = multilabel_report(*data[:3], threshold=0.4, scores=scores)
    batches = list(draw.order(n).tensor_split(parts))  # Some are empty where there are more parts than images.
    before = module.SCORES_AT_ONCE
    try:
        module.SCORES_AT_ONCE = at_once
        gathered = [pickle.loads(pickle.dumps(accumulated(batches[rank::ranks], *data))) for rank in range(ranks)]  # noqa: S301
        order = draw.order(ranks).tolist()
        total = gathered[order[0]]
        for rank in order[1:]:
            total.merge(gathered[rank])
        assert same(total.compute(), whole)
        assert same(total.compute(), whole)  # Looking changes nothing.
    finally:
        module.SCORES_AT_ONCE = before


def test_what_is_kept_is_five_bytes_a_label_wherever_it_is_kept() -> None:
    draw = Draw(0, torch.float32)
    logits, target = draw.normal(50, 7), draw.chance(0.3, 50, 7).float()
    shelf: list[Tensor] = []

    def keep(tensor: Tensor) -> object:
        shelf.append(tensor.clone())
        tensor.zero_()  # Nothing else holds it.
        return partial(shelf.__getitem__, len(shelf) - 1)

    found = ReportAccumulator(keep=keep)
    probabilities = logits.sigmoid()
    for start in range(0, 50, 8):
        rows = slice(start, start + 8)
        found.update(probabilities[rows], target[rows], scores=logits[rows])
    assert sum(tensor.nbytes for tensor in shelf) == 5 * 50 * 7
    assert same(found.compute(), multilabel_report(probabilities, target, scores=logits))


def test_a_part_that_is_refused_has_not_been_taken_in() -> None:
    found = ReportAccumulator(LabelSet(("cat", "dog")))
    good = torch.tensor([[0.9, 0.2]]), torch.tensor([[1, 0]])
    found.update(*good)
    before = found.compute()
    for probabilities, target in ((good[0] + 1, good[1]), (good[0], good[1] + 1), (good[0][:, :1], good[1][:, :1])):
        with pytest.raises(ValueError, match="expected"):
            found.update(probabilities, target)
    with pytest.raises(ValueError, match="scores: expected finite"):
        found.update(*good, scores=good[0] / 0)
    assert same(found.compute(), before)


def test_an_empty_part_and_an_empty_rank_add_nothing() -> None:
    found, nothing = ReportAccumulator(), ReportAccumulator()
    found.update(torch.tensor([[0.9, 0.2]]), torch.tensor([[1, 0]]))
    before = found.compute()
    found.update(torch.zeros(0, 2), torch.zeros(0, 2))
    found.merge(nothing)
    nothing.merge(found)
    assert same(found.compute(), before)
    assert same(nothing.compute(), before)


def test_merging_leaves_the_other_as_it_was() -> None:
    a, b = ReportAccumulator(), ReportAccumulator()
    for accumulator, first in ((a, 0.9), (b, 0.3)):
        accumulator.update(torch.tensor([[first, 0.2]]), torch.tensor([[1, 0]]))
    before = b.compute()
    a.merge(b)
    a.update(torch.tensor([[0.1, 0.2]]), torch.tensor([[1, 0]]))
    assert same(b.compute(), before)
    assert a.compute().images == 3


# --- refusal

X = torch.zeros(2, 3)
NAN = math.nan
ONE = torch.tensor([[0.5, 1.0, 0.5]])  # One value unlike the others.


def after(probabilities: Tensor) -> ReportAccumulator:
    found = ReportAccumulator()
    found.update(probabilities, probabilities)
    return found


REFUSED = [
    (lambda: multilabel_report(X + 2, X), "probabilities: expected values in [0, 1], got 2: are these logits?"),
    (lambda: multilabel_report(2 * ONE, X[:1]), "probabilities: expected values in [0, 1], got 2: are these logits?"),
    (lambda: multilabel_report(X[0], X), "probabilities: expected axes 'n c', got shape (3,)"),
    (lambda: multilabel_report(X + NAN, X), "probabilities: expected finite values wherever known, got nan"),
    (lambda: multilabel_report(X, X, threshold=1.5), "threshold: expected a probability in [0, 1], got 1.5"),
    (lambda: multilabel_report(X, X, threshold=-0.5), "threshold: expected a finite number >= 0, got -0.5"),
    (lambda: multilabel_report(X, X, scores=X[:1]), "target: expected axes 'n c' with n=1, got shape (2, 3)"),
    (
        lambda: multilabel_report(X, X, labels=LabelSet(("a", "b"))),
        "labels: expected 3 names for the axis c of probabilities, got 2",
    ),
    (lambda: ReportAccumulator(threshold=2.0), "threshold: expected a probability in [0, 1], got 2"),
    (lambda: ReportAccumulator().compute(), "batches: expected at least one batch to report on, got none"),
    (lambda: after(X).update(X[:, :2], X[:, :2]), "probabilities: expected 3 labels as before, got 2"),
    (lambda: after(X).merge(after(X[:, :2])), "other: expected 3 labels as before, got 2"),
    (
        lambda: after(X).merge(ReportAccumulator(threshold=0.4)),
        "other: expected an accumulator with the same labels and threshold, got another",
    ),
    (
        lambda: after(X).merge(ReportAccumulator(LabelSet(("a", "b", "c")))),
        "other: expected an accumulator with the same labels and threshold, got another",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_a_report_refuses_by_the_name_of_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        call()
