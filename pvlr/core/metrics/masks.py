"""Checks of predictions and targets of which some are unknown, shared by all metrics."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pvlr.core.shapes import expect

__all__ = ["Masked", "masked", "require_finite", "require_probabilities"]


class Masked(NamedTuple):
    """Predictions and their targets, of which some are unknown.

    Attributes:
        values: The predictions, 0 wherever the target is unknown.
        positive: True where the target is known to be 1.
        known: True where the target is known.
    """

    values: Float[Tensor, "n c"]
    positive: Bool[Tensor, "n c"]
    known: Bool[Tensor, "n c"]


def masked(
    name: str, values: Float[Tensor, "n c"], target: Shaped[Tensor, "n c"], known: Bool[Tensor, "n c"] | None
) -> Masked:
    """Check predictions against their targets and mask the unknown ones.

    Args:
        name: Name of the predictions, for messages.
        values: ``n c``, finite wherever known.
        target: ``n c`` of any dtype, 0 or 1 wherever known.
        known: ``n c``, True where the target is known; None: everywhere.

    Raises:
        ShapeError: where shapes, dtypes or devices differ.
        ValueError: where a known value is not finite or a known target is neither 0 nor 1.

    Example:
        >>> scores, known = torch.tensor([[0.5, float("nan")]]), torch.tensor([[True, False]])
        >>> masked("scores", scores, torch.tensor([[1, -1]]), known)
        Masked(values=tensor([[0.5000, 0.0000]]), positive=tensor([[ True, False]]), known=tensor([[ True, False]]))
    """
    axes = expect(name, values, "n c", dtype="float")
    expect("target", target, "n c", device=values.device, n=axes["n"], c=axes["c"])
    if known is None:
        known = torch.ones_like(target, dtype=torch.bool)
    else:
        expect("known", known, "n c", dtype="bool", device=values.device, n=axes["n"], c=axes["c"])
    invalid = known & (target != 0) & (target != 1)
    if bool(invalid.any()):
        raise ValueError(f"target: expected 0 or 1 wherever known, got {target[invalid][0].item():g}")
    values = values.masked_fill(~known, 0.0)
    require_finite(name, values, " wherever known")
    return Masked(values, known & (target == 1), known)


def require_finite(name: str, values: Tensor, where: str = "") -> None:
    """Require finite values.

    Raises:
        ValueError: naming the argument and the first such value.

    Example:
        >>> require_finite("scores", torch.tensor([1.0, float("inf")]))
        Traceback (most recent call last):
            ...
        ValueError: scores: expected finite values, got inf
    """
    if not bool(values.isfinite().all()):
        found = values[~values.isfinite()][0].item()
        raise ValueError(f"{name}: expected finite values{where}, got {found:g}")


def require_probabilities(name: str, values: Tensor) -> None:
    """Require values in [0, 1].

    Raises:
        ValueError: naming the argument and the first such value.

    Example:
        >>> require_probabilities("probabilities", torch.tensor([0.5, 2.0]))
        Traceback (most recent call last):
            ...
        ValueError: probabilities: expected values in [0, 1], got 2: are these logits?
    """
    outside = (values < 0) | (values > 1)
    if bool(outside.any()):
        raise ValueError(f"{name}: expected values in [0, 1], got {values[outside][0].item():g}: are these logits?")
