"""What the same towers reach without PVLR: zero-shot, and a linear probe on the pooled vectors."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.losses import binary_cross_entropy
from pvlr.core.metrics import average_precision, mean_average_precision
from pvlr.core.protocols import ImageFeatures
from pvlr.core.report import MultiLabelReport, multilabel_report
from pvlr.data.batch import Batch
from pvlr.train.evaluate import autocast

__all__ = ["Baseline", "PooledFeatures", "linear_probe", "pooled_features", "zero_shot"]

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 0.2


class PooledFeatures(NamedTuple):
    """One vector per image of a split, and what is in the image.

    Attributes:
        vectors: ``n d``, normalised, float32, on the CPU.
        target: ``n c``, 0 or 1.
        known: ``n c``, True where the target is known.
        cosines: ``n c``, what zero-shot recognition compares; None: those of ``vectors``.
    """

    vectors: Float[Tensor, "n d"]
    target: Float[Tensor, "n c"]
    known: Bool[Tensor, "n c"]
    cosines: Float[Tensor, "n c"] | None = None

    def with_text(self, label_vectors: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """The cosines, computed where they are not given."""
        if self.cosines is not None:
            return self.cosines
        return self.vectors @ F.normalize(label_vectors.float().cpu(), dim=-1).T


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline's result.

    Attributes:
        report: On the test split.
        seconds: To fit it, without the time to encode the images, which all methods share.
        detail: What was fitted, in words.
    """

    report: MultiLabelReport
    seconds: float
    detail: str


@torch.no_grad()
def pooled_features(
    tower: Callable[[Tensor], ImageFeatures],
    batches: Iterable[Batch],
    *,
    compare: Callable[[ImageFeatures], Tensor] | None = None,
    device: torch.device | None = None,
    precision: str = "float32",
) -> PooledFeatures:
    """Encode a split by the image tower's pooled vector, L2-normalised.

    Args:
        tower: An image tower in evaluation mode.
        batches: The split, without augmentation.
        compare: From what the tower saw to the cosines of zero-shot recognition; None: none are kept.
        device: Where the tower is; None: the CPU.
        precision: ``"float32"`` or ``"bf16"``.
    """
    place = torch.device("cpu") if device is None else device
    vectors, targets, known, cosines = [], [], [], []
    for batch in batches:
        with autocast(place, precision):
            seen = tower(batch.image.to(place, non_blocking=True))
        vectors.append(F.normalize(seen.pooled.float(), dim=-1).cpu())
        targets.append(batch.target)
        known.append(batch.known)
        if compare is not None:
            cosines.append(compare(seen).float().cpu())
    return PooledFeatures(
        torch.cat(vectors), torch.cat(targets), torch.cat(known), torch.cat(cosines) if cosines else None
    )


def zero_shot(
    train: PooledFeatures,
    test: PooledFeatures,
    label_vectors: Float[Tensor, "c d"],
    labels: LabelSet,
    *,
    scale: float = 100.0,
) -> Baseline:
    """The towers as they come: the cosine of image and text, of the pooled vector where nothing else is given.

    AP ranks by the cosine itself and sees no training data. The F1 family needs probabilities: two numbers shared by
    all labels, ``σ(scale · cos + bias)``, are fitted on the training split by maximum likelihood.

    Args:
        train: For those two numbers.
        test: What is reported on.
        label_vectors: ``c d``, of any length but 0.
        labels: Names of the ``c`` labels.
        scale: Where the fit starts, above 0: the tower's own ``logit_scale``.
    """
    started = time.perf_counter()
    cosines = test.with_text(label_vectors)
    factor, bias = _fit_two(train.with_text(label_vectors), train, scale)
    probabilities = (factor * cosines.double() + bias).sigmoid().float()
    report = multilabel_report(probabilities, test.target, test.known, labels, scores=cosines)
    return Baseline(
        report=report,
        seconds=time.perf_counter() - started,
        detail=f"2 fitted numbers (scale {factor:.2f}, bias {bias:.2f}), for the F1 family only",
    )


def linear_probe(train: PooledFeatures, test: PooledFeatures, labels: LabelSet, *, seed: int = 0) -> Baseline:
    """One logistic regression per label on the standardised pooled vectors, fitted to the known labels.

    The strength of the L2 penalty, one for all labels, is the one of `1e-5 … 1e-1` with the best mAP on a fifth of the
    training split held out (an image set drawn by ``seed``); the probe is then fitted on all of it.

    Args:
        train: What it is fitted on, at least 2 images.
        test: What is reported on.
        labels: Names of the ``c`` labels.
        seed: Of the held-out images.

    Raises:
        ValueError: where there are fewer than 2 training images.
    """
    started = time.perf_counter()
    count = len(train.vectors)
    if count < 2:
        raise ValueError(f"train: expected at least 2 images, got {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    cut = max(1, round(HELD_OUT * count))
    held, fitted = (PooledFeatures(*(x[part] for x in train[:3])) for part in (order[:cut], order[cut:]))

    def quality(strength: float) -> float:
        scores = _fit_probe(fitted, strength)(held.vectors)
        value = mean_average_precision(average_precision(scores, held.target, held.known)).item()
        return value if value == value else 0.0  # No positive held out: every strength is as good.

    strength = max(STRENGTHS, key=quality)
    logits = _fit_probe(train, strength)(test.vectors)
    report = multilabel_report(logits.sigmoid(), test.target, test.known, labels, scores=logits)
    return Baseline(report=report, seconds=time.perf_counter() - started, detail=f"L2 strength {strength:g}")


def _fit_probe(train: PooledFeatures, strength: float) -> Callable[[Tensor], Tensor]:
    """Weights by L-BFGS in float64, where its line search is not disturbed by rounding."""
    vectors = train.vectors.double()
    mean, std = vectors.mean(dim=0), vectors.std(dim=0, correction=0).clamp(min=1e-8)
    weight = torch.zeros(train.target.shape[1], vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(train.target.shape[1], dtype=torch.float64, requires_grad=True)
    standardised = (vectors - mean) / std

    def objective() -> Tensor:
        logits = F.linear(standardised, weight, bias)
        loss = binary_cross_entropy(logits, train.target, train.known, reduction="sum") / len(vectors)
        # A label never (or always) present has no finite bias of its own; this keeps it finite, and near its optimum.
        return loss + 0.5 * strength * weight.square().sum() + 0.5e-6 * bias.square().sum()

    _minimise(objective, [weight, bias])
    w, b = weight.detach(), bias.detach()
    return lambda x: F.linear((x.double() - mean) / std, w, b).float()


def _fit_two(cosines: Float[Tensor, "n c"], train: PooledFeatures, scale: float) -> tuple[float, float]:
    x: Float64[Tensor, "n c"] = cosines.double()
    log_scale = torch.tensor(scale, dtype=torch.float64).log().requires_grad_()
    # From the probability one half at a typical cosine: from elsewhere the sigmoid may start out saturated.
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    centre = x.mean()

    def objective() -> Tensor:
        # The logarithm keeps the scale above 0, so that the ranking is the cosine's own.
        return binary_cross_entropy(log_scale.exp() * (x - centre) + shift, train.target, train.known)

    _minimise(objective, [log_scale, shift])
    factor = log_scale.detach().exp().item()
    return factor, shift.item() - factor * centre.item()


def _minimise(objective: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=100, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
