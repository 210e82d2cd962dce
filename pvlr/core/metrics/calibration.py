"""Calibration of scores: temperature, thresholds per label, and the reliability of probabilities."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from pvlr.core.arguments import require_choice, require_int, require_number
from pvlr.core.metrics.masks import masked, require_probabilities

__all__ = [
    "Reliability",
    "ThresholdRule",
    "calibration_error_of",
    "expected_calibration_error",
    "fit_temperature",
    "fit_thresholds",
    "reliability",
    "reliability_of",
    "reliability_sums",
]

ThresholdRule = Literal["f1", "precision"]

# Temperatures outside this range make all probabilities 0 and 1, or all of them one half.
_COLDEST, _WARMEST = 0.01, 100.0
# Fractions are summed as integers, in steps of this size, so that the sum does not depend on the order of the parts.
STEP = 2.0**-32


@torch.no_grad()
def fit_temperature(
    logits: Float[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None = None
) -> float:
    """Return the temperature ``T`` for which ``sigmoid(logits / T)`` gives the known labels the highest likelihood.

    ``T = argmin Σ_known −log p(y | x / T)``, one optimum since the sum is convex in ``1 / T``. It is searched for in
    [0.01, 100] and is an end of that range where the optimum lies beyond: 0.01 where every logit has the right sign
    (then no temperature is too low), 100 where the logits are uninformative; 1 where all of them are 0.

    Args:
        logits: ``n c`` of pictures that the model was not trained on, finite wherever known.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where nothing is known, a known logit is not finite or a known target is neither 0 nor 1.

    Example:
        >>> logits = torch.tensor([[4.0], [4.0], [4.0], [-4.0]])  # sigmoid(4) = 0.98, but three of four are right.
        >>> temperature = fit_temperature(logits, torch.tensor([[1], [1], [0], [0]]))
        >>> round(temperature, 3), round(torch.tensor(4 / temperature).sigmoid().item(), 3)
        (3.641, 0.75)
    """
    values, positive, counted = masked("logits", logits, target, known)
    if not bool(counted.any()):
        raise ValueError("known: expected at least one known label to fit a temperature on, got none")
    x, y = values[counted].double(), positive[counted].double()
    if not bool(x.any()):
        return 1.0
    # The derivative by 1 / T grows with 1 / T: find its zero by bisection over log T.
    low, high = math.log(_COLDEST), math.log(_WARMEST)
    for _ in range(60):
        middle = (low + high) / 2
        slope = x @ (torch.sigmoid(x * math.exp(-middle)) - y)
        low, high = (middle, high) if slope.item() > 0 else (low, middle)
    return math.exp((low + high) / 2)


@torch.no_grad()
def fit_thresholds(
    probabilities: Float[Tensor, "n c"],
    target: Shaped[Tensor, "n c"],
    known: Bool[Tensor, "n c"] | None = None,
    *,
    by: ThresholdRule = "f1",
    precision: float = 0.9,
) -> Float[Tensor, " c"]:
    """Return for each label the best threshold, the probability from which on (``>=``) it is predicted.

    All decisions that any threshold can make are compared, for each label over its known rows; rows of the same
    probability are predicted together or not at all. ``"f1"`` takes the decision of the highest F1, and of several the
    one with the fewest predictions. ``"precision"`` takes, of those of at least this precision, the one with the most
    predictions; where there is none, the one of the highest precision, and of several the one with the most
    predictions. The threshold lies halfway between the last probability that is predicted and the next one that is
    not; where all are predicted, it is the lowest of them.

    A label without a known positive gets 0.5, since there is nothing to fit.

    Args:
        probabilities: ``n c`` in [0, 1] of pictures that the model was not trained on.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.
        by: ``"f1"`` or ``"precision"``.
        precision: The least precision of ``"precision"``, in (0, 1].

    Returns:
        ``c`` values in [0, 1], float32 or (of float64 probabilities) float64.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a value is out of range or a known target is neither 0 nor 1.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.2], [0.6, 0.3], [0.4, 0.1]])
        >>> fit_thresholds(probabilities, torch.tensor([[1, 0], [1, 0], [0, 0]]))
        tensor([0.5000, 0.5000])
        >>> fit_thresholds(probabilities, torch.tensor([[1, 1], [0, 1], [1, 0]]), by="precision")
        tensor([0.7500, 0.1500])
    """
    require_choice("by", by, get_args(ThresholdRule))
    require_number("precision", precision, above=0.0)
    if precision > 1:
        raise ValueError(f"precision: expected a fraction in (0, 1], got {precision:g}")
    values, positive, counted = masked("probabilities", probabilities, target, known)
    require_probabilities("probabilities", values)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    least = None if by == "f1" else precision
    found = [_threshold(values[counted[:, i], i], positive[counted[:, i], i], least) for i in range(values.shape[1])]
    return torch.tensor(found, dtype=values.dtype, device=values.device)


def _threshold(values: Float[Tensor, " n"], positive: Bool[Tensor, " n"], precision: float | None) -> float:
    """Return the threshold of one label, over known rows: by F1, or by precision where one is given."""
    total = int(positive.sum())
    if total == 0:
        return 0.5
    values, order = values.sort(descending=True)
    # A threshold can lie only between groups of equal probabilities.
    ends = torch.cat([values[:-1] != values[1:], torch.ones_like(positive[:1])]).nonzero()[:, 0]
    hits, predicted = positive[order].cumsum(0)[ends].double(), (ends + 1).double()
    if precision is None:
        best = int((2 * hits / (predicted + total)).argmax())  # The first of equal ones.
    else:
        precisions = hits / predicted
        best = int((precisions >= min(precision, precisions.max().item())).nonzero()[-1])
    if best == len(ends) - 1:
        return values[-1].item()
    last, following = values[ends[best]].item(), values[ends[best + 1]].item()
    between = torch.tensor((last + following) / 2, dtype=values.dtype).item()
    return between if following < between else last  # There is no number between adjacent floats.


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Mean probability and frequency of labels, by ranges of the probability.

    Args:
        confidence: Mean probability in each bin; NaN in an empty one.
        frequency: Share of labels in each bin that are present; NaN in an empty one.
        count: Number of known labels in each bin.
    """

    confidence: Float64[Tensor, " bins"]
    frequency: Float64[Tensor, " bins"]
    count: Int64[Tensor, " bins"]


@torch.no_grad()
def reliability(
    probabilities: Float[Tensor, "n c"],
    target: Shaped[Tensor, "n c"],
    known: Bool[Tensor, "n c"] | None = None,
    *,
    bins: int = 15,
) -> Reliability:
    """Compare probabilities with frequencies in ``bins`` ranges of equal width, over all known labels together.

    Bin ``i`` of ``B`` holds the probabilities in ``(i / B, (i + 1) / B]``, the first one 0 as well.

    Args:
        probabilities: ``n c`` in [0, 1].
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.
        bins: Number of ranges, at least 1.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a value is out of range or a known target is neither 0 nor 1.

    Example:
        >>> reliability(torch.tensor([[0.25, 0.75, 0.5]]), torch.tensor([[0, 1, 1]]), bins=2)
        Reliability(confidence=tensor([0.3750, 0.7500], dtype=torch.float64),
                    frequency=tensor([0.5000, 1.0000], dtype=torch.float64), count=tensor([2, 1]))
    """
    require_int("bins", bins, least=1)
    values, positive, counted = masked("probabilities", probabilities, target, known)
    require_probabilities("probabilities", values)
    return reliability_of(reliability_sums(values[counted], positive[counted], bins))


def reliability_sums(
    values: Float[Tensor, " m"], positive: Bool[Tensor, " m"], bins: int
) -> Int64[Tensor, "kinds bins"]:
    """Return per bin the number of labels, of those present, and the sum of probabilities in steps of 2⁻³².

    All are integers, so that the sums of parts add up to the same for any division and order of the parts.
    """
    sums = torch.zeros(3, bins, dtype=torch.int64, device=values.device)
    # Parts of a size for which a float64 holds the sum of the steps exactly.
    for part, present in zip(torch.split(values, 2**20), torch.split(positive, 2**20), strict=True):
        exact = part.double()
        index = (exact * bins).ceil_().long().sub_(1).clamp_(min=0)
        steps = torch.bincount(index, (exact / STEP).round_(), minlength=bins).long()
        sums += torch.stack(
            [torch.bincount(index, minlength=bins), torch.bincount(index[present], minlength=bins), steps]
        )
    return sums


def reliability_of(sums: Int64[Tensor, "kinds bins"]) -> Reliability:
    """Return the means from the sums of :func:`reliability_sums`."""
    count, present, steps = sums
    # 0 / 0 is NaN in an empty bin.
    return Reliability(confidence=steps.double() * STEP / count, frequency=present.double() / count, count=count)


def expected_calibration_error(
    probabilities: Float[Tensor, "n c"],
    target: Shaped[Tensor, "n c"],
    known: Bool[Tensor, "n c"] | None = None,
    *,
    bins: int = 15,
) -> float:
    """Compute ``Σ_bins (count / total) |frequency − confidence|`` of :func:`reliability`, over all known labels.

    Most labels are absent from most pictures and are given a probability near 0, so most of the weight lies in the
    first bin: compare it between models on the same labels, and inspect the bins.

    Args:
        probabilities: ``n c`` in [0, 1].
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.
        bins: Number of ranges, at least 1.

    Returns:
        A fraction of 1; NaN where nothing is known.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a value is out of range or a known target is neither 0 nor 1.

    Example:
        >>> round(expected_calibration_error(torch.tensor([[0.25, 0.75, 0.5]]), torch.tensor([[0, 1, 1]]), bins=2), 4)
        0.1667
    """
    return calibration_error_of(reliability(probabilities, target, known, bins=bins))


def calibration_error_of(found: Reliability) -> float:
    """Return the expected calibration error of bins."""
    gaps = (found.frequency - found.confidence).abs().nan_to_num()
    return ((gaps * found.count).sum() / found.count.sum()).item()
