"""What the towers know and what was learned, as one logit."""

import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_int, require_number
from pvlr.core.block import Block
from pvlr.core.functional import full_width, widened
from pvlr.core.shapes import expect

__all__ = ["Mixture", "mixing_weights"]


def mixing_weights(positives: Float[Tensor, " c"], shrinkage: float) -> Float[Tensor, " c"]:
    """``α_c = n_c / (n_c + K)``: how far what was learned of a label counts, by how many positives it was learned from.

    The weight of a mean of ``n`` observations against a guess that is worth ``K`` of them. A label without a known
    positive has 0: it scores as a name that was never trained on.

    Args:
        positives: ``n_c``, at least 0.
        shrinkage: ``K``, above 0.

    Example:
        >>> mixing_weights(torch.tensor([0.0, 20.0, 60.0]), 20.0)
        tensor([0.0000, 0.5000, 0.7500])
    """
    expect("positives", positives, "c", dtype="float")
    require_number("shrinkage", shrinkage, above=0.0)
    return _share(positives, shrinkage)


LEAST = 1e-6
"""Least spread of a part that says anything."""


class Mixture(Block):
    """``logit = Σ_p w_p base_p / σ_p + α_c · learned + bias``: what was known stays, what is learned is added.

    In evaluation, ``α`` is :func:`mixing_weights` of how many positives of the label were known (interpolating between
    the model as it came and as it was trained keeps what it knew: WiSE-FT, arXiv 2109.01903). In training it is 1,
    and for a share of the pictures the base is left out, so that what is learned does not lean on it. ``σ`` is 1 until
    :meth:`fit_spread` has measured it, so that no part drowns the others, or what is to be learned.

    Args:
        parts: Number of scores the base has; 0: there is no base, and ``α`` is 1.
        drop: Share of the training pictures without their base, in [0, 1).
        shrinkage: ``K`` of the mixing weights, above 0.
        bias: Added to every logit at the start.

    Example:
        >>> mixture = Mixture(parts=2, shrinkage=20.0).eval()
        >>> base, learned = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[10.0]])
        >>> mixture(base, learned, torch.tensor([20.0])).item(), mixture(base, learned, torch.tensor([0.0])).item()
        (7.0, 2.0)
    """

    def __init__(self, *, parts: int, drop: float = 0.5, shrinkage: float = 5.0, bias: float = 0.0) -> None:
        super().__init__(parts=parts, drop=drop, shrinkage=shrinkage, bias=bias)
        require_int("parts", parts, least=0)
        require_number("drop", drop, least=0.0, below=1.0)
        require_number("shrinkage", shrinkage, above=0.0)
        require_number("bias", bias)
        self.parts, self.drop = parts, drop
        self.weights = nn.Parameter(torch.full((parts,), 1 / max(parts, 1))) if parts else None
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.register_buffer("shrinkage", torch.tensor(float(shrinkage)))
        self.register_buffer("spread", torch.ones(parts))

    shrinkage: Tensor
    spread: Tensor
    draws: Tensor | None = None
    """For each picture of the next training batch a number in [0, 1), ``b``; below ``drop`` it has no base. None: they
    are drawn by torch's generator, and so depend on which pictures share a batch."""

    @torch.no_grad()
    def fit_spread(self, base: Float[Tensor, "b c p"]) -> None:
        """Take the standard deviation of each part over some images and all labels for ``σ``; no label is asked for.

        A part that is the same everywhere keeps 1.

        Raises:
            ShapeError: where there is not one score for each part.
        """
        expect("base", base, "b c p", dtype="float", device=self.bias.device, p=self.parts)
        spread = widened(base).flatten(0, 1).std(dim=0, correction=0)
        self.spread.copy_(torch.where(spread > LEAST, spread, 1.0))

    def forward(
        self,
        base: Float[Tensor, "b c p"] | None,
        learned: Float[Tensor, "b c"] | None,
        positives: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, "b c"]:
        """Logits ``b c``, float32 whatever autocast chose (float64 for float64 inputs).

        Args:
            base: Scores by name, from :func:`~pvlr.core.base.base_scores`; None where there are no parts.
            learned: Scores that were learned; None: none were.
            positives: Known positives of each label in training; None: none of any. Not read in training.

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where base or learned is missing.
        """
        self._check(base, learned, positives)
        if not self.training:
            return self._mixed(base, learned, positives)
        if base is not None and learned is not None:
            base = self.dropped(base)
        return self._mixed(base, learned, torch.full_like(self.bias, math.inf))

    def dropped(self, base: Float[Tensor, "b c p"]) -> Float[Tensor, "b c p"]:
        """The base of a training batch: zeros for a share of the pictures.

        Raises:
            ShapeError: where there is not one score for each part.
        """
        expect("base", base, "b c p", dtype="float", device=self.bias.device, p=self.parts)
        if not self.drop:
            return base
        draws = torch.rand(len(base), device=base.device) if self.draws is None else self.draws
        return base * (draws >= self.drop).reshape(-1, 1, 1)

    def mixed(self, base: Tensor | None, learned: Tensor | None, positives: Tensor | None) -> Float[Tensor, "b c"]:
        """The same as in evaluation, whatever the mode; ∞ positives: all that was learned counts."""
        self._check(base, learned, positives)
        return self._mixed(base, learned, positives)

    def _mixed(self, base: Tensor | None, learned: Tensor | None, positives: Tensor | None) -> Tensor:
        like = cast(Tensor, base if learned is None else learned)
        with full_width(like):
            bias = widened(self.bias)
            if base is None or self.weights is None:
                return widened(cast(Tensor, learned)) + bias
            wide = widened(base)
            known = wide @ (widened(self.weights) / widened(self.spread)).to(wide.dtype)
            if learned is None or positives is None:
                return known + bias
            return known + _share(positives, self.shrinkage) * widened(learned) + bias

    def _check(self, base: Tensor | None, learned: Tensor | None, positives: Tensor | None) -> None:
        if (base is None) != (self.parts == 0):
            raise ValueError(f"base: expected scores of {self.parts} parts, got {'none' if base is None else 'some'}")
        if base is None and learned is None:
            raise ValueError("learned: expected scores where there is no base, got None")
        device = self.bias.device
        axes: dict[str, int] = {}
        if base is not None:
            axes = expect("base", base, "b c p", dtype="float", device=device, p=self.parts)
        if learned is not None:
            shape = {axis: axes[axis] for axis in "bc" if axes}
            axes = expect("learned", learned, "b c", dtype="float", device=device, **shape)  # type: ignore[arg-type]
        # One number stands for every label.
        if positives is not None and not (isinstance(positives, Tensor) and positives.dim() == 0):
            expect("positives", positives, "c", dtype="float", device=device, c=axes["c"])


def _share(positives: Tensor, shrinkage: Tensor | float) -> Tensor:
    # Not n / (n + K), which is not a number for all there are.
    return 1 / (1 + shrinkage / positives)
