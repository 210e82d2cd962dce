"""Bootstrap of an mAP over images: its variation between samples of images."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64, Shaped
from torch import Tensor

from pvlr.core.arguments import require_int, require_number
from pvlr.core.metrics.masks import masked
from pvlr.core.metrics.ranking import ranking_keys
from pvlr.core.shapes import expect

__all__ = ["Interval", "bootstrap_map", "percentile_interval", "resampled_counts"]

# Resamples are computed in groups of about this many counts.
_COUNTS_AT_ONCE = 2**21


class Interval(NamedTuple):
    """A range of values.

    Attributes:
        low: Its lower end.
        high: Its upper end.
    """

    low: float
    high: float


@torch.no_grad()
def bootstrap_map(
    scores: Float[Tensor, "n c"],
    target: Shaped[Tensor, "n c"],
    known: Bool[Tensor, "n c"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Float64[Tensor, " resamples"]:
    """Compute the mAP of sets of ``n`` images drawn from these ``n`` with replacement.

    An image is drawn with all its labels, since they belong together. Every value is the mAP of that set, its images
    repeated as often as they were drawn: equal scores, of the same image as of others, are one threshold, and a class
    whose positives were not drawn is left out of the mean. Each class is sorted once for all sets.

    Args:
        scores: ``n c``, finite wherever known.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.
        resamples: Number of sets, at least 1.
        seed: Seed of the drawing; the sets depend on it and on ``n`` alone.

    Returns:
        One mAP per set; NaN for a set without any positive.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where there is no image, a known score is not finite or a known target is neither 0 nor 1.

    Example:
        >>> scores = torch.tensor([[0.9], [0.8], [0.3], [0.1]])
        >>> values = bootstrap_map(scores, torch.tensor([[1], [0], [1], [0]]), resamples=500)
        >>> percentile_interval(values, level=0.9)
        Interval(low=0.5, high=1.0)
    """
    require_int("resamples", resamples, least=1)
    require_int("seed", seed, least=0)
    values, positive, counted = masked("scores", scores, target, known)
    if len(values) == 0:
        raise ValueError("scores: expected at least one image to draw from, got none")
    classes = [
        _ranked_class(values[:, i], positive[:, i], counted[:, i]) for i in positive.any(dim=0).nonzero()[:, 0].tolist()
    ]
    generator = torch.Generator().manual_seed(seed)
    step, found = max(1, _COUNTS_AT_ONCE // len(values)), []
    for start in range(0, resamples, step):
        counts = resampled_counts(len(values), min(step, resamples - start), generator).to(values.device)
        ap = [_weighted_average_precision(counts, ranked) for ranked in classes]
        nothing = torch.full((len(counts),), torch.nan, dtype=torch.float64, device=values.device)
        found.append(torch.stack(ap).nanmean(dim=0) if ap else nothing)
    return torch.cat(found)


def resampled_counts(n: int, resamples: int, generator: torch.Generator) -> Int32[Tensor, "resamples n"]:
    """Count how often each of ``n`` images is drawn, in ``resamples`` sets of ``n`` draws.

    Example:
        >>> resampled_counts(5, 3, torch.Generator().manual_seed(0)).sum(dim=1)
        tensor([5, 5, 5])
    """
    drawn = torch.randint(n, (resamples, n), generator=generator)
    counts = torch.zeros(resamples, n, dtype=torch.int32)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.int32))


def percentile_interval(values: Float[Tensor, " resamples"], *, level: float = 0.95) -> Interval:
    """Return the middle ``level`` of the values but NaN, from quantile ``(1 − level) / 2`` to ``(1 + level) / 2``.

    Raises:
        ShapeError: where ``values`` is not one axis of floats.
        ValueError: where there is no value, or ``level`` is outside (0, 1).

    Example:
        >>> percentile_interval(torch.arange(101.0), level=0.5)
        Interval(low=25.0, high=75.0)
    """
    require_number("level", level, above=0.0, below=1.0)
    if expect("values", values, "resamples", dtype="float")["resamples"] == 0:
        raise ValueError("values: expected at least one value, got none")
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=values.device)
    low, high = values.double().nanquantile(ends).tolist()
    return Interval(low, high)


class _Ranked(NamedTuple):
    """The known images of a class, best first and, of equal scores, the positives last."""

    order: Int64[Tensor, " m"]
    positives: Int64[Tensor, " p"]
    last: Bool[Tensor, " p"]


def _ranked_class(values: Float[Tensor, " n"], positive: Bool[Tensor, " n"], counted: Bool[Tensor, " n"]) -> _Ranked:
    rows = counted.nonzero()[:, 0]
    keys, order = ranking_keys(values[None], positive[None], counted[None])[0, rows].sort()
    positives = (keys & 1).nonzero()[:, 0]
    places = keys[positives] >> 2
    last = torch.ones_like(positives, dtype=torch.bool)
    last[:-1] = places[1:] != places[:-1]
    return _Ranked(rows[order], positives, last)


def _weighted_average_precision(counts: Int32[Tensor, "resamples n"], ranked: _Ranked) -> Float64[Tensor, " resamples"]:
    drawn = counts[:, ranked.order]
    retrieved = drawn.cumsum(dim=1, dtype=torch.int32)[:, ranked.positives][:, ranked.last]
    hits = drawn[:, ranked.positives].cumsum(dim=1, dtype=torch.int32)[:, ranked.last]
    gained = hits.diff(dim=1, prepend=torch.zeros_like(hits[:, :1]))
    precision = hits.double() / retrieved.clamp(min=1)
    return (gained * precision).sum(dim=1) / hits[:, -1]  # 0 / 0 is NaN, where no positive was drawn.
