"""Metrics of rankings and decisions: average precision, the precision and recall family, top-k."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from pvlr.core.arguments import require_int
from pvlr.core.metrics.masks import masked, require_finite
from pvlr.core.shapes import expect

__all__ = [
    "DecisionCounts",
    "PrecisionRecall",
    "average_precision",
    "average_precision_of",
    "decision_counts",
    "hamming_loss",
    "label_ranking_average_precision",
    "mean_average_precision",
    "precision_recall",
    "precision_recall_of",
    "ranking_keys",
    "top_k",
]

# Rows are ranked in slices of about this many scores, so that memory does not grow with their number.
SCORES_AT_ONCE = 2**22


@torch.no_grad()
def average_precision(
    scores: Float[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> Float64[Tensor, " c"]:
    """Compute the average precision of every class: ``Σ_k (R_k − R_{k−1}) P_k`` over the distinct scores, best first.

    Not interpolated. Equal scores are one threshold, so the order of the rows does not matter: this is
    scikit-learn's ``average_precision_score``, class by class over the known rows.

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
    return average_precision_of(*(part.T for part in masked("scores", scores, target, known)))


@torch.no_grad()
def label_ranking_average_precision(
    scores: Float[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> Float64[Tensor, " n"]:
    """Compute the average precision of every image: the ranking of its known labels.

    The same formula as :func:`average_precision`, along the other axis. The mean over the images that have a positive
    is scikit-learn's ``label_ranking_average_precision_score`` of these images; it counts the others as 1.

    Args:
        scores: ``n c``, comparable between labels, such as logits; finite wherever known.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.

    Returns:
        ``n`` values in [0, 1], float64; NaN for an image without a known positive.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known score is not finite or a known target is neither 0 nor 1.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
        >>> label_ranking_average_precision(scores, torch.tensor([[1, 0, 1], [0, 0, 0]]))
        tensor([0.8333,    nan], dtype=torch.float64)
    """
    return average_precision_of(*masked("scores", scores, target, known))


def average_precision_of(
    scores: Float[Tensor, "r m"], positive: Bool[Tensor, "r m"], known: Bool[Tensor, "r m"]
) -> Float64[Tensor, " r"]:
    """Compute the average precision of every row of checked inputs, bit-identical for any order within a row."""
    step = max(1, SCORES_AT_ONCE // max(1, scores.shape[1]))
    slices = [slice(start, start + step) for start in range(0, scores.shape[0], step)]
    found = [_average_precision(scores[part], positive[part], known[part]) for part in slices]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=scores.device)


def _average_precision(
    scores: Float[Tensor, "r m"], positive: Bool[Tensor, "r m"], known: Bool[Tensor, "r m"]
) -> Float64[Tensor, " r"]:
    ranked = _sorted(ranking_keys(*(part.contiguous() for part in (scores, positive, known))))
    row, column = (ranked & 1).nonzero(as_tuple=True)
    total = positive.sum(dim=1)
    hits = torch.arange(1, len(row) + 1, device=row.device) - (total.cumsum(0) - total)[row]
    retrieved = (ranked >> 1 & 1).cumsum(dim=1)[row, column]
    place = ranked[row, column] >> 2
    last = torch.ones_like(row, dtype=torch.bool)
    last[:-1] = (place[1:] != place[:-1]) | (row[1:] != row[:-1])
    row, hits, retrieved = row[last], hits[last], retrieved[last]
    before = hits.roll(1).masked_fill(row != row.roll(1), 0)
    before[:1] = 0
    found = torch.zeros_like(total, dtype=torch.float64)
    # 0 / 0 is NaN in a row without a positive.
    return found.index_add_(0, row, (hits - before) * (hits.double() / retrieved)) / total


def ranking_keys(
    scores: Float[Tensor, "r m"], positive: Bool[Tensor, "r m"], known: Bool[Tensor, "r m"]
) -> Int64[Tensor, "r m"]:
    """Return an integer per score: its place (the best lowest), whether it is known, and (last bit) whether positive.

    Sorted, a group of equal scores that has a positive ends with one, so that cumulative counts at that position
    include all scores of its threshold.
    """
    return (_places(scores) << 2).add_(known, alpha=2).add_(positive)


def _places(scores: Float[Tensor, "r m"]) -> Int64[Tensor, "r m"]:
    """Return integers of at most 32 bits in the opposite order of each row's scores, the same for equal ones."""
    if scores.dtype == torch.float64:  # Its bits do not fit; the number of distinct higher scores does.
        ordered, order = scores.sort(dim=1, descending=True)
        steps = torch.zeros_like(order)
        steps[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        return torch.empty_like(order).scatter_(1, order, steps.cumsum(dim=1))
    # The bits of floats are ordered like integers, those of negative floats reversed; -0 + 0 is 0.
    bits = (scores.float() + 0.0).view(torch.int32)
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)).bitwise_not_().long()


def _sorted(keys: Int64[Tensor, "r m"]) -> Int64[Tensor, "r m"]:
    """Sort each row in ascending order; the argument may be overwritten."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    keys.numpy().sort(axis=1)  # Twice as fast as torch, which also computes the indices.
    return keys


def mean_average_precision(ap: Float[Tensor, " c"]) -> Float64[Tensor, ""]:
    """Compute the mean over the classes that are not NaN; NaN if all are.

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
    """Compute precision, recall and F1 of decisions, per class (C) and overall (O).

    The means over classes run over the classes with a known positive, the same as mAP's: the recall of the others
    is not defined. Their false positives count in OP. Without any positive, CP, CR, CF1, mean_F1, OR and OF1 are NaN.

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
    return precision_recall_of(decision_counts(predicted, target, known))


class DecisionCounts(NamedTuple):
    """Counts of decisions, for each class over its known images; counts of parts add up.

    Attributes:
        right: Predicted and present.
        said: Predicted.
        true: Present.
    """

    right: Int64[Tensor, " c"]
    said: Int64[Tensor, " c"]
    true: Int64[Tensor, " c"]


def decision_counts(
    predicted: Bool[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> DecisionCounts:
    """Count decisions; arguments and errors as for :func:`precision_recall`.

    Example:
        >>> decision_counts(torch.tensor([[True, True], [False, True]]), torch.tensor([[1, 0], [1, 1]]))
        DecisionCounts(right=tensor([1, 1]), said=tensor([1, 2]), true=tensor([2, 1]))
    """
    expect("predicted", predicted, "n c", dtype="bool")
    _, positive, counted = masked("predicted", predicted.half(), target, known)
    decided = predicted & counted
    return DecisionCounts(*(part.sum(dim=0) for part in (decided & positive, decided, positive)))


def precision_recall_of(counts: DecisionCounts) -> PrecisionRecall:
    """Compute precision, recall and F1 from counts, as :func:`precision_recall` defines them."""
    right, said, true = (part.double() for part in counts)
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


def _harmonic(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


@torch.no_grad()
def hamming_loss(
    predicted: Bool[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> float:
    """Compute the share of the known labels that are decided wrongly; NaN where none is known.

    Args:
        predicted: Decisions ``n c``.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known target is neither 0 nor 1.

    Example:
        >>> hamming_loss(torch.tensor([[True, True], [False, True]]), torch.tensor([[1, 0], [1, 1]]))
        0.5
    """
    right, said, true = (part.sum() for part in decision_counts(predicted, target, known))
    number = torch.tensor(target.numel(), device=target.device) if known is None else known.sum()
    return ((said + true - 2 * right).double() / number).item()


@torch.no_grad()
def top_k(probabilities: Float[Tensor, "n c"], k: int, threshold: float | None = None) -> Bool[Tensor, "n c"]:
    """Predict the ``k`` labels of the highest probability in each image; of equal ones, the first.

    Args:
        probabilities: ``n c``, finite.
        k: Number of labels, at least 1; with ``k ≥ c`` all of them.
        threshold: If given, only those of at least this probability. "Top-3" in the literature is sometimes with a
            threshold (ML-GCN, 0.5) and sometimes without (DualCoOp): always state which.

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
    # The column is part of the keys: no two are equal, and of equal probabilities the first has the smallest.
    keys = (_places(probabilities) << 24) + torch.arange(probabilities.shape[1], device=probabilities.device)
    best = keys.topk(min(k, probabilities.shape[1]), dim=1, largest=False, sorted=False).indices
    chosen = torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, best, True)
    return chosen if threshold is None else chosen & (probabilities >= threshold)
