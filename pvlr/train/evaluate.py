"""Predictions over a whole split, each image once, and what they are worth."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pvlr.core.labels import LabelSet
from pvlr.core.report import MultiLabelReport, multilabel_report
from pvlr.data.batch import Batch
from pvlr.train.distributed import World

__all__ = ["Predictions", "autocast", "evaluate", "output_of", "predict_logits"]


class Predictions(NamedTuple):
    """What a model says about a split, on the CPU.

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
    """The autocast context of ``float32`` (off) or ``bf16``."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def output_of(model: nn.Module, inputs: Tensor) -> Any:
    """A model's output for images ``b 3 s s``, or for patch vectors ``b n d`` that its tower gave before."""
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
    """Run a model over batches in evaluation mode; it is given back in the mode it came in.

    Several processes share the batches, process ``r`` of ``w`` has ``r``, ``r + w``, … of them; each is returned the
    predictions of all, in order. Batches are what one process alone would see, and so are their logits, to the last
    bit.

    Args:
        model: Images ``b 3 s s`` to an output with ``logits`` (``b c``).
        batches: The split, at least one batch.
        device: Where the model is; None: the CPU.
        precision: ``"float32"`` or ``"bf16"`` (inside autocast).
        world: The processes that share the batches; None: this one alone.

    Raises:
        ValueError: where there is no batch.
    """
    place = torch.device("cpu") if device is None else device
    everyone = World() if world is None else world

    def seen() -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        parts = []
        for batch in batches:
            with autocast(place, precision):
                logits = output_of(model, batch.image.to(place, non_blocking=True)).logits
            parts.append((logits.float().cpu(), batch.target, batch.known, batch.index))
        return parts

    training = model.training
    model.eval()
    try:
        shares = everyone.gather(everyone.together(seen))
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
    """Report a model's mAP, F1 family and AP per label on a split.

    Args:
        model: As for :func:`predict_logits`.
        batches: As there.
        labels: Names of the columns.
        device: As there.
        precision: As there.
        threshold: Probability from which on a label counts as predicted, in [0, 1].
        world: As there.
        seen: Is shown the predictions.

    Raises:
        ValueError: where a logit is not finite, or there is no batch.
    """
    found = predict_logits(model, batches, device=device, precision=precision, world=world)
    # Ranked by the logits: many of them share one probability once a sigmoid has rounded them.
    report = multilabel_report(
        found.logits.sigmoid(), found.target, found.known, labels, threshold=threshold, scores=found.logits
    )
    seen(found)
    return report
