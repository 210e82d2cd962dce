"""Predictions over a whole split, each image once, and their evaluation."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pvlr.core.labels import LabelSet
from pvlr.core.metrics.report import MultiLabelReport, multilabel_report
from pvlr.data.batch import Batch
from pvlr.train.distributed import World

__all__ = ["Predictions", "autocast", "evaluate", "output_of", "predict_logits"]


class Predictions(NamedTuple):
    """Predictions of a model for a split, on the CPU.

    Attributes:
        logits: ``n c``, float32.
        target: ``n c``, 0 or 1.
        known: ``n c``, True where the target is known.
        indices: Position of each image in its data set, ``n``.
    """

    logits: Float[Tensor, "n c"]
    target: Float[Tensor, "n c"]
    known: Bool[Tensor, "n c"]
    indices: Int[Tensor, " n"]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of ``float32`` (off) or ``bf16``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def output_of(model: nn.Module, inputs: Tensor) -> Any:
    """Return a model's output for images ``b 3 s s``, or for patch vectors ``b n d`` of its tower."""
    return model.forward_features(inputs) if inputs.dim() == 3 else model(inputs)  # type: ignore[operator]


@torch.no_grad()
def predict_logits(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device | None = None,
    precision: str = "float32",
    world: World | None = None,
) -> Predictions:
    """Run a model over batches in evaluation mode, then restore its former mode.

    Several ranks share the batches: rank ``r`` of world size ``w`` has batches ``r``, ``r + w``, …; all return the
    predictions of all ranks, in order. The batches are those of a single process, and so are their logits, bit for
    bit.

    Args:
        model: Images ``b 3 s s`` to an output with ``logits`` (``b c``).
        batches: The split, at least one batch.
        device: Device of the model; None: the CPU.
        precision: ``"float32"`` or ``"bf16"`` (inside autocast).
        world: The ranks that share the batches; None: this process alone.

    Raises:
        ValueError: if there is no batch.
    """
    device = torch.device("cpu") if device is None else device
    world = World() if world is None else world

    def predicted() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        parts = []
        for batch in batches:
            with autocast(device, precision):
                logits = output_of(model, batch.image.to(device, non_blocking=True)).logits
            parts.append((logits.float().cpu(), batch.target, batch.known, batch.index))
        return parts

    training = model.training
    model.eval()
    try:
        shares = world.all_gather(world.on_all_ranks(predicted))
    finally:
        model.train(training)
    parts = [share[number] for number in range(len(shares[0])) for share in shares if number < len(share)]
    if not parts:
        raise ValueError("batches: expected at least one batch to evaluate, got none")
    return Predictions(*(torch.cat(column) for column in zip(*parts, strict=True)))


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    labels: LabelSet,
    *,
    device: torch.device | None = None,
    precision: str = "float32",
    threshold: float = 0.5,
    world: World | None = None,
    seen: Callable[[Predictions], object] = lambda found: None,
) -> MultiLabelReport:
    """Return the report of a model on a split: mAP, F1 family, AP per label.

    Args:
        model: As for :func:`predict_logits`.
        batches: As for :func:`predict_logits`.
        labels: Names of the columns.
        device: As for :func:`predict_logits`.
        precision: As for :func:`predict_logits`.
        threshold: Probability from which on a label counts as predicted, in [0, 1].
        world: As for :func:`predict_logits`.
        seen: Function called with the predictions.

    Raises:
        ValueError: if a logit is not finite, or there is no batch.
    """
    found = predict_logits(model, batches, device=device, precision=precision, world=world)
    # Ranked by the logits, since the sigmoid rounds many of them to the same probability.
    report = multilabel_report(
        found.logits.sigmoid(), found.target, found.known, labels, threshold=threshold, scores=found.logits
    )
    seen(found)
    return report
