"""Semantic-related visual representations: a vector of the image for each label."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_int, require_number
from pvlr.core.attention import FeedForward
from pvlr.core.block import Block
from pvlr.core.functional import by_rows, cosine_scores, upcast, without_autocast
from pvlr.core.shapes import expect

__all__ = ["SemanticPooling"]


class SemanticPooling(Block):
    """Pooling ``V[c] = Σ_n softmax_n(τ cos(X[n], t[c])) X̂[n] + A[c]``, then ``V + W2 gelu(W1 LN V)``.

    The evidence for a label is gathered by its text vector (``t``); the output of the label's own attention to the
    patches is added (``A``). ``W2`` is zero at the start. Each label is independent of the others.

    Args:
        dim: Joint width ``d``.
        feedforward: Hidden width of the feed-forward; 0: none.
        sharpness: ``τ`` at the start, above 0; learned, as its logarithm.

    Example:
        >>> import torch
        >>> block = SemanticPooling(dim=4, feedforward=8)
        >>> block(torch.ones(2, 3, 4), torch.ones(5, 4)).shape
        torch.Size([2, 5, 4])
    """

    def __init__(self, *, dim: int, feedforward: int = 512, sharpness: float = 20.0) -> None:
        super().__init__(dim=dim, feedforward=feedforward, sharpness=sharpness)
        require_int("dim", dim, least=1)
        require_int("feedforward", feedforward, least=0)
        require_number("sharpness", sharpness, above=0.0)
        self.dim = dim
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.feedforward = FeedForward(dim=dim, hidden=feedforward) if feedforward else None

    def forward(
        self,
        patches: Float[Tensor, "b n d"],
        knowledge: Float[Tensor, "c d"] | Float[Tensor, "b c d"],
        gathered: Float[Tensor, "b c d"] | None = None,
    ) -> Float[Tensor, "b c d"]:
        """Return one vector of each image for each label.

        Args:
            patches: ``b n d``, at least one patch; of any length, used at unit length.
            knowledge: Text vectors of the labels, ``c d`` or ``b c d``.
            gathered: Output of the labels' attention to the patches, ``b c d``; None: there is none.

        Raises:
            ShapeError: where the axes do not fit.
        """
        device, like = self.log_sharpness.device, None if self.feedforward is None else self.log_sharpness
        axes = expect("patches", patches, "b n d", dtype="float", device=device, like=like, d=self.dim)
        if not isinstance(knowledge, Tensor) or knowledge.dim() == 2:
            expect("knowledge", knowledge, "c d", dtype="float", device=device, like=like, d=self.dim)
        else:
            expect("knowledge", knowledge, "b c d", dtype="float", device=device, like=like, b=axes["b"], d=self.dim)
        if gathered is None:
            return by_rows(lambda rows: self._gathered(patches, rows, None), knowledge)
        count = knowledge.shape[-2]
        b, d = axes["b"], self.dim
        expect("gathered", gathered, "b c d", dtype="float", device=device, like=like, b=b, c=count, d=d)
        rows = knowledge.expand(axes["b"], -1, -1) if knowledge.dim() == 2 else knowledge
        return by_rows(lambda one, other: self._gathered(patches, one, other), rows, gathered)

    def _gathered(self, patches: Tensor, knowledge: Tensor, gathered: Tensor | None) -> Tensor:
        with without_autocast(patches):
            wide = upcast(patches)
            unit = wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(1e-12)
            weights = cosine_scores(unit, knowledge, scale=upcast(self.log_sharpness).exp()).softmax(dim=1)
            found = weights.transpose(1, 2) @ unit
        found = found.to(patches.dtype if gathered is None else gathered.dtype)
        found = found if gathered is None else found + gathered
        out: Tensor = found if self.feedforward is None else self.feedforward(found)
        return out
