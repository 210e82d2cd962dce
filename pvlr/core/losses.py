"""Losses over labels of which some may be unknown; in log space, in float32, exact at any logit."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pvlr.core.arguments import require_choice, require_number
from pvlr.core.functional import upcast, without_autocast
from pvlr.core.shapes import expect

__all__ = ["asymmetric_loss", "binary_cross_entropy"]


def asymmetric_loss(
    logits: Float[Tensor, "b c"],
    target: Shaped[Tensor, "b c"],
    known: Bool[Tensor, "b c"] | None = None,
    *,
    gamma_pos: float = 0.0,
    gamma_neg: float = 2.0,
    clip: float = 0.0,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Compute the asymmetric loss over the known labels.

    Per label, with ``p = σ(logit)`` and ``p_m = max(p − clip, 0)``:
    ``− y (1 − p)^γ+ log p − (1 − y) p_m^γ− log(1 − p_m)``.

    Ridnik et al., "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119. The gradient is that of the
    formula, focusing weights included: common implementations may detach them, and clamp the probability after the
    sigmoid, so that a positive at logit −19 has almost no gradient. Here all terms are computed with ``logsigmoid``.

    Args:
        logits: ``b c``; values at unknown labels, NaN included, change neither the loss nor any gradient.
        target: ``b c`` of any dtype, in [0, 1] wherever known.
        known: ``b c``, True where the target is known; None: everywhere.
        gamma_pos: ``γ+ ≥ 0``, strength of the down-weighting of easy positives.
        gamma_neg: ``γ− ≥ 0``, strength of the down-weighting of easy negatives.
        clip: In [0, 1): negatives of a probability up to this have no loss.
        reduction: ``"mean"``: the sum over the known labels divided by their number; ``"sum"``: that sum.

    Returns:
        A scalar, float32 (float64 for float64 logits). Where nothing is known it is 0, with gradient 0.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known target is outside [0, 1] (not checked under ``torch.compile`` and
            ``torch.vmap``, where values are not available), or an option is out of range.

    Example:
        >>> logits, target = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> asymmetric_loss(logits, target, gamma_neg=2.0, reduction="sum")
        tensor(0.8664)
        >>> asymmetric_loss(logits, target, torch.tensor([[True, False]]), reduction="sum")
        tensor(0.6931)
    """
    axes = expect("logits", logits, "b c", dtype="float")
    expect("target", target, "b c", device=logits.device, b=axes["b"], c=axes["c"])
    if known is not None:
        expect("known", known, "b c", dtype="bool", device=logits.device, b=axes["b"], c=axes["c"])
    require_number("gamma_pos", gamma_pos, least=0.0)
    require_number("gamma_neg", gamma_neg, least=0.0)
    require_number("clip", clip, least=0.0, below=1.0)
    require_choice("reduction", reduction, ("mean", "sum"))

    with without_autocast(logits):
        x = upcast(logits)
        y = target.to(x.dtype)
        if known is not None:
            # Masked before the formula: a NaN that is multiplied by zero later stays NaN, forwards and backwards.
            x, y = x.masked_fill(~known, 0.0), y.masked_fill(~known, 0.0)
        if not torch.compiler.is_compiling():
            _require_targets(y)

        positive = F.logsigmoid(x)
        if gamma_pos > 0:
            positive = torch.exp(gamma_pos * F.logsigmoid(-x)) * positive
        loss = -(y * positive + (1 - y) * _negative(x, gamma_neg, clip))

        if known is not None:
            loss = loss.masked_fill(~known, 0.0)
        total = loss.sum()
        if reduction == "sum":
            return total
        if known is None:
            return loss.mean() if loss.numel() else total  # The mean of no values is NaN.
        return total / known.sum().clamp(min=1)


def binary_cross_entropy(
    logits: Float[Tensor, "b c"],
    target: Shaped[Tensor, "b c"],
    known: Bool[Tensor, "b c"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    """Compute the binary cross-entropy over the known labels: :func:`asymmetric_loss` without focusing and clipping.

    Args:
        logits: See :func:`asymmetric_loss`, as for all arguments.
        target: ``b c``, in [0, 1] wherever known.
        known: ``b c``, True where the target is known; None: everywhere.
        reduction: ``"mean"`` or ``"sum"``.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known target is outside [0, 1], or the reduction is unknown.

    Example:
        >>> binary_cross_entropy(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor(0.6931)
    """
    return asymmetric_loss(logits, target, known, gamma_pos=0.0, gamma_neg=0.0, clip=0.0, reduction=reduction)


def _negative(x: Tensor, gamma: float, clip: float) -> Tensor:
    """Compute ``p_m^γ log(1 − p_m)``, finite with a finite gradient at any finite logit."""
    if clip == 0:
        log = F.logsigmoid(-x)
        return torch.exp(gamma * F.logsigmoid(x)) * log if gamma > 0 else log
    # Up to the clip the term is 0, and so is its gradient. The placeholder 0.5 keeps the power of zero, whose slope is
    # infinite for γ < 1, out of the backward pass.
    p = torch.sigmoid(x)
    active = p > clip
    p_m = torch.where(active, p - clip, 0.5)
    # log(1 − p_m) two ways: 1 − p + clip never reaches 0 but loses small p_m; log1p is exact for small p_m.
    log = torch.where(p_m > 0.5, torch.log(torch.sigmoid(-x) + clip), torch.log1p(-p_m.clamp(max=0.5)))
    return torch.where(active, p_m**gamma * log if gamma > 0 else log, 0.0)


def _require_targets(target: Tensor) -> None:
    outside = ~((target >= 0) & (target <= 1))  # Written so that NaN is outside.
    try:
        invalid = bool(outside.any())
    except RuntimeError:  # Values are not available: under vmap, on the meta device.
        return
    if invalid:
        found = target[outside][0].item()
        raise ValueError(f"target: expected values in [0, 1] wherever known, got {found:g}")
