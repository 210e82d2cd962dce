"""Mixture of the towers' base scores and the learned scores into one logit."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_int, require_number
from pvlr.core.block import Block
from pvlr.core.functional import upcast, without_autocast
from pvlr.core.shapes import expect

__all__ = ["Mixture", "mixing_weights"]


def mixing_weights(positives: Float[Tensor, " c"], shrinkage: float) -> Float[Tensor, " c"]:
    """Compute ``α_c = n_c / (n_c + K)``, the weight of a label's learned score, from its known positives.

    The weight of a mean of ``n`` observations against a prior that is worth ``K`` of them. A label without a known
    positive has 0: it is scored like a name that was never trained on.

    Args:
        positives: ``n_c``, at least 0.
        shrinkage: ``K``, above 0.

    Example:
        >>> mixing_weights(torch.tensor([0.0, 20.0, 60.0]), 20.0)
        tensor([0.0000, 0.5000, 0.7500])
    """
    expect("positives", positives, "c", dtype="float")
    require_number("shrinkage", shrinkage, above=0.0)
    weights: Tensor = _share(positives, shrinkage)
    return weights


LEAST = 1e-6
"""Least spread of a part that is not constant."""
ALL = math.inf
"""Number of positives with which the weight of the learned score is 1."""


class Mixture(Block):
    """Sum of base and learned scores: ``logit = Σ_p w_p base_p / σ_p + α_c · learned + bias``.

    In evaluation, ``α`` is :func:`mixing_weights` of how many positives of the label were known (interpolating between
    the pre-trained and the trained model preserves zero-shot knowledge: WiSE-FT, arXiv 2109.01903). In training it is
    1, and for a share of the pictures the base is left out, so that the learned scores do not rely on it. ``σ`` is 1
    until :meth:`fit_spread` has measured it, so that no part dominates the others, or the learned scores.

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
    """A number in [0, 1) for each picture of the next training batch, ``b``; below ``drop`` its base is left out. None:
    they are drawn by torch's generator, and so depend on which pictures share a batch."""

    @torch.no_grad()
    def fit_spread(self, base: Float[Tensor, "b c p"]) -> None:
        """Set ``σ`` to the standard deviation of each part over some images and all labels; no targets are needed.

        For a constant part it is 1.

        Raises:
            ShapeError: where there is not one score for each part.
        """
        expect("base", base, "b c p", dtype="float", device=self.bias.device, p=self.parts)
        spread = upcast(base).flatten(0, 1).std(dim=0, correction=0)
        self.spread.copy_(torch.where(spread > LEAST, spread, 1.0))

    def forward(
        self,
        base: Float[Tensor, "b c p"] | None,
        learned: Float[Tensor, "b c"] | None,
        positives: Float[Tensor, " c"] | None = None,
    ) -> Float[Tensor, "b c"]:
        """Compute logits ``b c``, float32 even under autocast (float64 for float64 inputs).

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
        return self._mixed(base, learned, ALL)

    def each(
        self, base: Float[Tensor, "b c p"] | None, answers: Sequence[Float[Tensor, "b c"]]
    ) -> tuple[Float[Tensor, "b c"], ...]:
        """Return the logits of several learned scores in training, each alone; the same pictures lack the base in all.

        Args:
            base: As for :meth:`forward`.
            answers: Scores that were learned, one or more.

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where the base is missing.
        """
        for answer in answers:
            self._check(base, answer, None)
        base = None if base is None else self.dropped(base)
        return tuple(self._mixed(base, answer, ALL) for answer in answers)

    def dropped(self, base: Float[Tensor, "b c p"]) -> Float[Tensor, "b c p"]:
        """Return the base of a training batch, with zeros for a share of the pictures.

        Raises:
            ShapeError: where there is not one score for each part.
        """
        expect("base", base, "b c p", dtype="float", device=self.bias.device, p=self.parts)
        if not self.drop:
            return base
        draws = torch.rand(len(base), device=base.device) if self.draws is None else self.draws
        return base * (draws >= self.drop).reshape(-1, 1, 1)

    def complete(self, base: Tensor | None, learned: Tensor | None) -> Float[Tensor, "b c"]:
        """Return the logits with learned scores of weight 1, whatever the mode, and no base left out.

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where base or learned is missing.
        """
        self._check(base, learned, None)
        return self._mixed(base, learned, ALL)

    def _mixed(self, base: Tensor | None, learned: Tensor | None, positives: Tensor | float | None) -> Tensor:
        like = cast(Tensor, base if learned is None else learned)
        with without_autocast(like):
            bias = upcast(self.bias)
            if base is None or self.weights is None:
                return upcast(cast(Tensor, learned)) + bias
            wide = upcast(base)
            known = wide @ (upcast(self.weights) / upcast(self.spread)).to(wide.dtype)
            if learned is None or positives is None:
                return known + bias
            mixed: Tensor = known + _share(positives, self.shrinkage) * upcast(learned) + bias
            return mixed

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
        if positives is not None:
            expect("positives", positives, "c", dtype="float", device=device, c=axes["c"])


def _share(positives: Tensor | float, shrinkage: Tensor | float) -> Any:
    # Not n / (n + K), which is NaN for an infinite n.
    return 1 / (1 + shrinkage / positives)
