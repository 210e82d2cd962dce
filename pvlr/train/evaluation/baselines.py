"""Baselines on the same towers without PVLR: zero-shot, and a linear probe on the pooled vectors."""

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
from pvlr.core.metrics.ranking import average_precision, mean_average_precision
from pvlr.core.metrics.report import MultiLabelReport, multilabel_report
from pvlr.core.protocols import ImageFeatures
from pvlr.data.batch import Batch
from pvlr.train.distributed import World
from pvlr.train.evaluation.predictions import autocast

__all__ = ["Baseline", "PooledFeatures", "linear_probe", "pooled_features", "zero_shot"]

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 0.2


class PooledFeatures(NamedTuple):
    """Vectors of a split, one per image, with its labels.

    Attributes:
        vectors: ``n d``, normalised, float32, on the CPU.
        target: ``n c``, 0 or 1.
        known: ``n c``, True where the target is known.
        cosines: ``n c``, the scores of zero-shot recognition; None: those of ``vectors``.
    """

    vectors: Float[Tensor, "n d"]
    target: Float[Tensor, "n c"]
    known: Bool[Tensor, "n c"]
    cosines: Float[Tensor, "n c"] | None = None

    def with_text(self, label_vectors: Float[Tensor, "c d"]) -> Float[Tensor, "n c"]:
        """Return the cosines, computed if they are not given."""
        if self.cosines is not None:
            return self.cosines
        return self.vectors @ F.normalize(label_vectors.float().cpu(), dim=-1).T


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Result of a baseline.

    Attributes:
        report: Report on the test split.
        seconds: Time to fit it, without that to encode the images, which all methods share.
        detail: Description of the fitted values.
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
    world: World | None = None,
) -> PooledFeatures:
    """Encode a split by the image tower's L2-normalised pooled vector.

    Several ranks share the batches as in :func:`~pvlr.train.evaluation.predictions.predict_logits`: all return the
    features of all pictures, bit for bit those of a single process.

    Args:
        tower: An image tower in evaluation mode.
        batches: The split, without augmentation.
        compare: Function from the tower's features to the cosines of zero-shot recognition; None: none are stored.
        device: Device of the tower; None: the CPU.
        precision: ``"float32"`` or ``"bf16"``.
        world: The ranks that share the batches; None: this process alone.

    Raises:
        ValueError: if there is no batch.
    """
    device = torch.device("cpu") if device is None else device
    world = World() if world is None else world

    def encoded() -> list[PooledFeatures]:
        parts = []
        for batch in batches:
            with autocast(device, precision):
                features = tower(batch.image.to(device, non_blocking=True))
            cosines = None if compare is None else compare(features).float().cpu()
            vectors = F.normalize(features.pooled.float(), dim=-1).cpu()
            parts.append(PooledFeatures(vectors, batch.target, batch.known, cosines))
        return parts

    shares = world.all_gather(world.on_all_ranks(encoded))
    parts = [share[number] for number in range(len(shares[0])) for share in shares if number < len(share)]
    if not parts:
        raise ValueError("batches: expected at least one batch, got none")
    vectors, target, known, cosines = zip(*parts, strict=True)
    return PooledFeatures(
        torch.cat(vectors), torch.cat(target), torch.cat(known), None if compare is None else torch.cat(cosines)
    )


def zero_shot(
    train: PooledFeatures,
    test: PooledFeatures,
    label_vectors: Float[Tensor, "c d"],
    labels: LabelSet,
    *,
    scale: float = 100.0,
) -> Baseline:
    """Evaluate the towers without training: by the cosines of image and text, by default of the pooled vectors.

    AP ranks by the cosine itself and uses no training data. The F1 family needs probabilities: two numbers shared by
    all labels, ``σ(scale · cos + bias)``, are fitted on the training split by maximum likelihood.

    Args:
        train: The training split, for those two numbers.
        test: The test split.
        label_vectors: ``c d``, of any norm but 0.
        labels: Names of the ``c`` labels.
        scale: Initial value of the fit, above 0: the tower's own ``logit_scale``.
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
    """Fit one logistic regression per label to the known labels, on the standardised pooled vectors.

    The strength of the L2 penalty, one for all labels, is the one of `1e-5 … 1e-1` with the best mAP on a fifth of the
    training split held out (images drawn by ``seed``); the probe is then fitted on all of it.

    Args:
        train: The training split, at least 2 images.
        test: The test split.
        labels: Names of the ``c`` labels.
        seed: Seed of the draw of held-out images.

    Raises:
        ValueError: if there are fewer than 2 training images.
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
        return value if value == value else 0.0  # No held-out positive: all strengths are equal.

    strength = max(STRENGTHS, key=quality)
    logits = _fit_probe(train, strength)(test.vectors)
    report = multilabel_report(logits.sigmoid(), test.target, test.known, labels, scores=logits)
    return Baseline(report=report, seconds=time.perf_counter() - started, detail=f"L2 strength {strength:g}")


def _fit_probe(train: PooledFeatures, strength: float) -> Callable[[Tensor], Tensor]:
    """Fit weights by L-BFGS, in float64 so that rounding does not disturb its line search."""
    vectors = train.vectors.double()
    mean, std = vectors.mean(dim=0), vectors.std(dim=0, correction=0).clamp(min=1e-8)
    weight = torch.zeros(train.target.shape[1], vectors.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(train.target.shape[1], dtype=torch.float64, requires_grad=True)
    standardised = (vectors - mean) / std

    def objective() -> Tensor:
        logits = F.linear(standardised, weight, bias)
        loss = binary_cross_entropy(logits, train.target, train.known, reduction="sum") / len(vectors)
        # A label never (or always) present has no finite optimal bias; this keeps it finite, others near their optimum.
        return loss + 0.5 * strength * weight.square().sum() + 0.5e-6 * bias.square().sum()

    _minimise(objective, [weight, bias])
    w, b = weight.detach(), bias.detach()
    return lambda x: F.linear((x.double() - mean) / std, w, b).float()


def _fit_two(cosines: Float[Tensor, "n c"], train: PooledFeatures, scale: float) -> tuple[float, float]:
    x: Float64[Tensor, "n c"] = cosines.double()
    log_scale = torch.tensor(scale, dtype=torch.float64).log().requires_grad_()
    # Start at the probability one half at the mean cosine: elsewhere the sigmoid may be saturated.
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    centre = x.mean()

    def objective() -> Tensor:
        # The logarithm keeps the scale above 0, so that the ranking is that of the cosine.
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
