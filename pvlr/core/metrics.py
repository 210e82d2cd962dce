"""How well scores rank and decide labels: AP per class, mAP, the precision and recall family."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from pvlr.core.arguments import require_int, require_number
from pvlr.core.labels import LabelSet
from pvlr.core.masked import masked, require_finite, require_probabilities
from pvlr.core.shapes import expect

__all__ = [
    "MultiLabelReport",
    "PrecisionRecall",
    "average_precision",
    "mean_average_precision",
    "multilabel_report",
    "precision_recall",
    "top_k",
]

# Classes are ranked in slices of about this many scores, so that memory does not grow with the label list.
_SCORES_AT_ONCE = 2**24


@torch.no_grad()
def average_precision(
    scores: Float[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> Float64[Tensor, " c"]:
    """Average precision of every class: ``Σ_k (R_k − R_{k−1}) P_k`` over the distinct scores, best first.

    Not interpolated. Equal scores are one threshold, so the order of the rows never matters: this is
    scikit-learn's ``average_precision_score``, class by class over the rows that are known.

    Args:
        scores: ``n c`` over ``n`` images; only their order within a class matters, finite wherever known.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.

    Returns:
        ``c`` values in [0, 1], float64; NaN for a class without a known positive.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known score is not finite or a known target is neither 0 nor 1.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5], [0.8, 0.5], [0.7, 0.5]])
        >>> average_precision(scores, torch.tensor([[1, 1], [0, 0], [1, 0]]))
        tensor([0.8333, 0.3333], dtype=torch.float64)
    """
    scores, positive, counted = masked("scores", scores, target, known)
    step = max(1, _SCORES_AT_ONCE // max(1, scores.shape[0]))
    slices = [slice(start, start + step) for start in range(0, scores.shape[1], step)]
    found = [_average_precision(scores[:, part].T, positive[:, part].T, counted[:, part].T) for part in slices]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=scores.device)


def _average_precision(
    scores: Float[Tensor, "c n"], positive: Bool[Tensor, "c n"], counted: Bool[Tensor, "c n"]
) -> Float64[Tensor, " c"]:
    total = positive.sum(dim=1)
    if scores.shape[1] == 0:
        return torch.full_like(total, math.nan, dtype=torch.float64)
    scores, order = scores.contiguous().sort(dim=1, descending=True)
    positive = positive.gather(1, order)
    hits = positive.cumsum(dim=1)
    seen = counted.gather(1, order).cumsum(dim=1)
    # Position of the last row of each row's group of equal scores: precision is only defined there.
    last = torch.ones_like(positive)
    last[:, :-1] = scores[:, :-1] != scores[:, 1:]
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    ends = places.masked_fill(~last, scores.shape[1] - 1).flip(1).cummin(dim=1).values.flip(1)
    # A group of unknown rows at the very top has seen nothing; it has no positive either.
    precision = hits.gather(1, ends).double() / seen.gather(1, ends).clamp(min=1)
    return (precision * positive).sum(dim=1) / total  # 0 / 0 is the NaN of an absent class.


def mean_average_precision(ap: Float[Tensor, " c"]) -> Float64[Tensor, ""]:
    """Mean over the classes that have one (those that are not NaN); NaN if none has.

    Example:
        >>> mean_average_precision(torch.tensor([1.0, float("nan"), 0.5]))
        tensor(0.7500, dtype=torch.float64)
    """
    expect("ap", ap, "c", dtype="float")
    return ap.double().nanmean()


class PrecisionRecall(NamedTuple):
    """Precision and recall of decisions, as fractions in [0, 1].

    Attributes:
        CP: Mean over classes of the precision; a class never predicted has precision 0.
        CR: Mean over classes of the recall.
        CF1: ``2 CP CR / (CP + CR)`` of these means.
        mean_F1: Mean over classes of each class's own F1, which some works print under the name CF1.
        OP: Precision over all decisions together.
        OR: Recall over all decisions together.
        OF1: ``2 OP OR / (OP + OR)``.
    """

    CP: float
    CR: float
    CF1: float
    mean_F1: float
    OP: float
    OR: float
    OF1: float


@torch.no_grad()
def precision_recall(
    predicted: Bool[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> PrecisionRecall:
    """Precision, recall and F1 of decisions, per class (C) and overall (O).

    The means over classes run over the classes with a known positive, the same as mAP's: the recall of the others
    is not defined. Their false alarms count in OP. Without any positive, CP, CR, CF1, mean_F1, OR and OF1 are NaN.

    Args:
        predicted: Decisions ``n c``.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known target is neither 0 nor 1.

    Example:
        >>> precision_recall(torch.tensor([[True, True], [False, True]]), torch.tensor([[1, 0], [1, 1]]))
        PrecisionRecall(CP=0.75, CR=0.75, CF1=0.75, mean_F1=0.666..., OP=0.666..., OR=0.666..., OF1=0.666...)
    """
    expect("predicted", predicted, "n c", dtype="bool")
    _, positive, counted = masked("predicted", predicted.float(), target, known)
    predicted = predicted & counted
    right, said, true = ((x.sum(dim=0).double()) for x in (predicted & positive, predicted, positive))
    present = true > 0
    precision = (right / said.clamp(min=1))[present]
    recall = (right / true)[present]
    # 2PR / (P + R) of one class is 2 right / (said + true), which is defined for every class with a positive.
    f1 = (2 * right / (said + true))[present]
    cp, cr, op = precision.mean().item(), recall.mean().item(), (right.sum() / said.sum().clamp(min=1)).item()
    overall = (right.sum() / true.sum()).item()
    return PrecisionRecall(
        CP=cp, CR=cr, CF1=_harmonic(cp, cr), mean_F1=f1.mean().item(), OP=op, OR=overall, OF1=_harmonic(op, overall)
    )


@torch.no_grad()
def top_k(probabilities: Float[Tensor, "n c"], k: int, threshold: float | None = None) -> Bool[Tensor, "n c"]:
    """Decide for the ``k`` labels of the highest probability of each image; of equal ones, the first.

    Args:
        probabilities: ``n c``, finite.
        k: Number of labels, at least 1; with ``k ≥ c`` all of them.
        threshold: If given, only those of at least this probability. "Top-3" in the literature is sometimes the
            one (ML-GCN, with 0.5) and sometimes the other (DualCoOp): always say which.

    Raises:
        ShapeError: where ``probabilities`` is not ``n c``.
        ValueError: where ``k`` is less than 1 or a probability is not finite.

    Example:
        >>> top_k(torch.tensor([[0.1, 0.9, 0.4]]), k=2).int()
        tensor([[0, 1, 1]], dtype=torch.int32)
        >>> top_k(torch.tensor([[0.1, 0.9, 0.4]]), k=2, threshold=0.5).int()
        tensor([[0, 1, 0]], dtype=torch.int32)
    """
    expect("probabilities", probabilities, "n c", dtype="float")
    require_int("k", k, least=1)
    require_finite("probabilities", probabilities)
    best = probabilities.sort(dim=1, descending=True, stable=True).indices[:, :k]
    chosen = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, best, True)
    return chosen if threshold is None else chosen & (probabilities >= threshold)


@dataclass(frozen=True, kw_only=True)
class MultiLabelReport:
    """One evaluation, in fractions of 1; NaN where a value is not defined.

    Args:
        ap: Label name to average precision; NaN for absent labels.
        mAP: Mean over the labels that are present.
        CP: See :class:`PrecisionRecall`, as for the next six.
        CR: Mean recall over classes.
        CF1: F1 of the two means.
        mean_F1: Mean of the classes' F1.
        OP: Overall precision.
        OR: Overall recall.
        OF1: Overall F1.
        threshold: Probability from which on a label counts as predicted.
        absent: Names of labels without a known positive.
    """

    ap: Mapping[str, float]
    mAP: float
    CP: float
    CR: float
    CF1: float
    mean_F1: float
    OP: float
    OR: float
    OF1: float
    threshold: float
    absent: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A dictionary that any JSON parser reads: values that are not defined become None.

        Example:
            >>> report = multilabel_report(torch.tensor([[0.9, 0.2]]), torch.tensor([[1, 0]]))
            >>> report.to_json()["ap"], report.to_json()["absent"]
            ({'0': 1.0, '1': None}, ['1'])
        """
        names = ("mAP", "CP", "CR", "CF1", "mean_F1", "OP", "OR", "OF1", "threshold")
        values = {name: _plain(getattr(self, name)) for name in names}
        return {"ap": {name: _plain(value) for name, value in self.ap.items()}, **values, "absent": list(self.absent)}


def multilabel_report(
    probabilities: Float[Tensor, "n c"],
    target: Shaped[Tensor, "n c"],
    known: Bool[Tensor, "n c"] | None = None,
    labels: LabelSet | None = None,
    threshold: float = 0.5,
    scores: Float[Tensor, "n c"] | None = None,
) -> MultiLabelReport:
    """Everything the field reports about one set of predictions.

    Args:
        probabilities: ``n c`` in [0, 1]; a label is predicted from ``threshold`` on (``>=``).
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.
        labels: Names of the columns; None: their positions, as text.
        threshold: In [0, 1].
        scores: What AP ranks by, for instance the logits; None: the probabilities. Worth giving: a sigmoid in
            float32 maps all logits above 17 to the same 1, and ties are not a ranking.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a value is out of range, or ``labels`` has another length than the axis ``c``.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.6], [0.8, 0.1]])
        >>> report = multilabel_report(probabilities, torch.tensor([[1, 0], [0, 0]]), labels=LabelSet(("cat", "dog")))
        >>> report.mAP, report.absent, report.OP
        (1.0, ('dog',), 0.333...)
    """
    axes = expect("probabilities", probabilities, "n c", dtype="float")
    require_number("threshold", threshold, least=0.0)
    if threshold > 1:
        raise ValueError(f"threshold: expected a probability in [0, 1], got {threshold:g}")
    if labels is not None and len(labels) != axes["c"]:
        raise ValueError(f"labels: expected {axes['c']} names for the axis c of probabilities, got {len(labels)}")
    values, positive, _ = masked("probabilities", probabilities, target, known)
    require_probabilities("probabilities", values)
    names = tuple(labels) if labels is not None else tuple(str(index) for index in range(axes["c"]))
    ap = average_precision(probabilities if scores is None else scores, target, known)
    decided = precision_recall(probabilities >= threshold, target, known)
    return MultiLabelReport(
        ap=dict(zip(names, ap.tolist(), strict=True)),
        mAP=mean_average_precision(ap).item(),
        **decided._asdict(),
        threshold=threshold,
        absent=tuple(name for name, some in zip(names, positive.any(dim=0).tolist(), strict=True) if not some),
    )


def _harmonic(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
