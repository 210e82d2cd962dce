"""Report of all usual metrics of predictions: at once, or in parts of any size and order."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from pvlr.core.arguments import require_number
from pvlr.core.labels import LabelSet
from pvlr.core.metrics.calibration import STEP, calibration_error_of, reliability_of, reliability_sums
from pvlr.core.metrics.masks import Masked, masked, require_probabilities
from pvlr.core.metrics.ranking import (
    SCORES_AT_ONCE,
    DecisionCounts,
    PrecisionRecall,
    average_precision_of,
    mean_average_precision,
    precision_recall_of,
    top_k,
)
from pvlr.core.shapes import expect

__all__ = ["MultiLabelReport", "ReportAccumulator", "multilabel_report"]

# Number of bins of the calibration error.
BINS = 15


@dataclass(frozen=True, kw_only=True)
class MultiLabelReport:
    """Metrics of one evaluation, in fractions of 1 over the known labels; NaN where a value is not defined.

    Args:
        ap: Label name to average precision; NaN for absent labels.
        mAP: Mean over the labels that are present.
        CP: See :class:`~pvlr.core.metrics.ranking.PrecisionRecall`, as for the next six.
        CR: Mean recall over classes.
        CF1: F1 of the two means.
        mean_F1: Mean of the classes' F1.
        OP: Overall precision.
        OR: Overall recall.
        OF1: Overall F1.
        top3: The same where the three most probable labels of each image are predicted, whatever their probability.
        top3_from_threshold: The same where only those of them of at least ``threshold`` are predicted.
        ranking_ap: Mean of the images' :func:`~pvlr.core.metrics.ranking.label_ranking_average_precision`, ranked by
            the scores of ``ap``, over the images with a positive.
        hamming: Share of the labels that are decided wrongly.
        calibration_error: :func:`~pvlr.core.metrics.calibration.expected_calibration_error` with 15 bins.
        threshold: Probability from which on a label counts as predicted.
        images: Number of images.
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
    top3: PrecisionRecall
    top3_from_threshold: PrecisionRecall
    ranking_ap: float
    hamming: float
    calibration_error: float
    threshold: float
    images: int
    absent: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that any JSON parser reads: values that are not defined become None.

        Example:
            >>> report = multilabel_report(torch.tensor([[0.9, 0.2]]), torch.tensor([[1, 0]]))
            >>> data = report.to_json()
            >>> data["ap"], data["absent"], data["top3"]["OP"]
            ({'0': 1.0, '1': None}, ['1'], 0.5)
        """
        return {name: _plain(value) for name, value in vars(self).items()}


def multilabel_report(
    probabilities: Float[Tensor, "n c"],
    target: Shaped[Tensor, "n c"],
    known: Bool[Tensor, "n c"] | None = None,
    labels: LabelSet | None = None,
    threshold: float = 0.5,
    scores: Float[Tensor, "n c"] | None = None,
) -> MultiLabelReport:
    """Compute all usual metrics of one set of predictions.

    Args:
        probabilities: ``n c`` in [0, 1]; a label is predicted from ``threshold`` on (``>=``).
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.
        labels: Names of the columns; None: their positions, as text.
        threshold: In [0, 1].
        scores: Scores that AP ranks by, for instance the logits; None: the probabilities. Recommended, because a
            sigmoid in float32 maps all logits above 17 to the same 1, and ties are not a ranking.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a value is out of range, or ``labels`` has another length than the axis ``c``.

    Example:
        >>> probabilities = torch.tensor([[0.9, 0.6], [0.8, 0.1]])
        >>> report = multilabel_report(probabilities, torch.tensor([[1, 0], [0, 0]]), labels=LabelSet(("cat", "dog")))
        >>> report.mAP, report.absent, report.OP
        (1.0, ('dog',), 0.333...)
    """
    accumulator = ReportAccumulator(labels, threshold=threshold)
    accumulator.update(probabilities, target, known, scores=scores)
    return accumulator.compute()


class _Sums(NamedTuple):
    """Counts of an evaluation as integers, so that the sums of parts add up in any order.

    Attributes:
        images: Number of images.
        known: Number of known labels.
        decided: For each way to decide (by threshold, top-3, both) the fields of DecisionCounts.
        bins: Sums of :func:`~pvlr.core.metrics.calibration.reliability_sums`.
        ranked: Number of images with a positive, and the sum of their average precisions in steps of 2⁻³².
    """

    images: Int64[Tensor, ""]
    known: Int64[Tensor, ""]
    decided: Int64[Tensor, "ways counts c"]
    bins: Int64[Tensor, "kinds bins"]
    ranked: Int64[Tensor, " two"]


class ReportAccumulator:
    """Accumulator of a report over parts of the predictions: batches of images, of one process or of several.

    The result is bit-identical to :func:`multilabel_report` of all images at once, for any division and order of the
    images.

    Exact average precision needs every score. So memory is bounded as follows: 5 bytes per label of an image (a float32
    score and one byte for its target; 3 of half precision), which ``keep`` can store elsewhere, for instance in files;
    a few numbers per label; and while computing, one slice of labels with about 4 million scores. An accumulator can be
    pickled, and so gathered from other processes, and merged.

    Args:
        labels: Names of the columns; None: their positions, as text.
        threshold: Probability from which on a label counts as predicted, in [0, 1].
        keep: Stores a tensor and returns a function that returns it; None: in memory.

    Raises:
        ValueError: where ``threshold`` is out of range.

    Example:
        >>> ours, theirs = ReportAccumulator(), ReportAccumulator()
        >>> ours.update(torch.tensor([[0.9, 0.6]]), torch.tensor([[1, 0]]))
        >>> theirs.update(torch.tensor([[0.8, 0.1]]), torch.tensor([[0, 0]]))
        >>> ours.merge(theirs)
        >>> report = ours.compute()
        >>> report.mAP, report.images, report.absent
        (1.0, 2, ('1',))
    """

    def __init__(
        self,
        labels: LabelSet | None = None,
        *,
        threshold: float = 0.5,
        keep: Callable[[Tensor], Callable[[], Tensor]] | None = None,
    ) -> None:
        require_number("threshold", threshold, least=0.0)
        if threshold > 1:
            raise ValueError(f"threshold: expected a probability in [0, 1], got {threshold:g}")
        self.labels, self.threshold = labels, threshold
        self._keep = _in_memory if keep is None else keep
        self._sums: _Sums | None = None
        # For each part its scores and targets (0 unknown, 1 absent, 2 present), label by label.
        self._parts: list[tuple[Callable[[], Tensor], Callable[[], Tensor]]] = []

    @torch.no_grad()
    def update(
        self,
        probabilities: Float[Tensor, "b c"],
        target: Shaped[Tensor, "b c"],
        known: Bool[Tensor, "b c"] | None = None,
        *,
        scores: Float[Tensor, "b c"] | None = None,
    ) -> None:
        """Add some images, each of them once; arguments and errors as for :func:`multilabel_report`.

        Nothing is added where an error is raised.
        """
        axes = expect("probabilities", probabilities, "n c", dtype="float")
        self._require_labels("probabilities", axes["c"])
        values = masked("probabilities", probabilities, target, known)
        require_probabilities("probabilities", values.values)
        ranking = values if scores is None else masked("scores", scores, target, known)
        sums = _counted(values, ranking, self.threshold)
        state = (values.known.to(torch.int8) + values.positive).T.contiguous().cpu()
        part = (self._keep(ranking.values.T.contiguous().cpu()), self._keep(state))
        self._add(sums)
        self._parts.append(part)

    def merge(self, other: "ReportAccumulator") -> None:
        """Add the images of another accumulator; it must have the same labels and threshold.

        Raises:
            ValueError: where it has not.
        """
        if (self.labels, self.threshold) != (other.labels, other.threshold):
            raise ValueError("other: expected an accumulator with the same labels and threshold, got another")
        if other._sums is not None:
            self._require_labels("other", other._sums.decided.shape[2])
            self._add(other._sums)
            self._parts += other._parts

    @torch.no_grad()
    def compute(self) -> MultiLabelReport:
        """Return the report on all images added so far.

        Raises:
            ValueError: where there are none.
        """
        if self._sums is None:
            raise ValueError("batches: expected at least one batch to report on, got none")
        sums = self._sums
        ways = [precision_recall_of(DecisionCounts(*way)) for way in sums.decided]
        right, said, true = sums.decided[0]
        ap = self._average_precision(int(sums.images), len(true))
        names = tuple(str(index) for index in range(len(true))) if self.labels is None else tuple(self.labels)
        present, ranked = sums.ranked.double()
        return MultiLabelReport(
            ap=dict(zip(names, ap.tolist(), strict=True)),
            mAP=mean_average_precision(ap).item(),
            **ways[0]._asdict(),
            top3=ways[1],
            top3_from_threshold=ways[2],
            ranking_ap=(ranked * STEP / present).item(),
            hamming=((said + true - 2 * right).sum().double() / sums.known).item(),
            calibration_error=calibration_error_of(reliability_of(sums.bins)),
            threshold=self.threshold,
            images=int(sums.images),
            absent=tuple(name for name, count in zip(names, true.tolist(), strict=True) if count == 0),
        )

    def _require_labels(self, name: str, count: int) -> None:
        if self.labels is not None and len(self.labels) != count:
            raise ValueError(f"labels: expected {count} names for the axis c of {name}, got {len(self.labels)}")
        if self._sums is not None and self._sums.decided.shape[2] != count:
            raise ValueError(f"{name}: expected {self._sums.decided.shape[2]} labels as before, got {count}")

    def _add(self, sums: _Sums) -> None:
        self._sums = sums if self._sums is None else _Sums(*(a + b for a, b in zip(self._sums, sums, strict=True)))

    def _average_precision(self, images: int, labels: int) -> Float64[Tensor, " c"]:
        found = [torch.zeros(0, dtype=torch.float64)]
        step = max(1, SCORES_AT_ONCE // max(1, images))
        for start in range(0, labels, step):
            scores, state = (
                torch.cat([part[index]()[start : start + step] for part in self._parts], dim=1) for index in (0, 1)
            )
            found.append(average_precision_of(scores, state == 2, state > 0))
        return torch.cat(found)


def _counted(values: Masked, ranking: Masked, threshold: float) -> _Sums:
    probabilities, positive, known = values
    above = (probabilities >= threshold) & known
    # Unknown labels get a lower value than all others: the three labels are chosen among the known ones.
    best = top_k(probabilities.masked_fill(~known, -1.0), 3) & known
    ways = (above, best, best & above)
    ranked = average_precision_of(*ranking)
    ranked = ranked[~ranked.isnan()]
    return _Sums(
        images=torch.tensor(len(known)),
        known=known.sum().cpu(),
        decided=torch.stack(
            [torch.stack([(decided & positive).sum(0), decided.sum(0), positive.sum(0)]) for decided in ways]
        ).cpu(),
        bins=reliability_sums(probabilities[known], positive[known], BINS).cpu(),
        ranked=torch.stack([torch.tensor(len(ranked)), (ranked / STEP).round().long().sum().cpu()]),
    )


def _in_memory(tensor: Tensor) -> Callable[[], Tensor]:
    return partial(_same, tensor)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _plain(value: Any) -> Any:
    """Return a value in types of JSON."""
    if isinstance(value, PrecisionRecall):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and math.isnan(value) else value
