"""Residual adapter of image vectors to the labels of a task."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_int
from pvlr.core.block import Block
from pvlr.core.functional import standardise, upcast, without_autocast
from pvlr.core.shapes import expect

__all__ = ["VisualAdapter"]


class VisualAdapter(Block):
    """Adapter ``X ← norm(X̂ + W2 gelu(W1 LN X))`` of patches and ``g ← norm(ĝ + W3 LN f)`` of the whole image.

    ``X̂``, ``ĝ`` are the vectors at unit length, ``f`` is the vector that the tower computes the pooled one from, where
    it is wider than the joint space and its projection loses information. ``W2`` and ``W3`` are zero at the start:
    nothing is changed before the first step.

    Args:
        dim: Joint width ``d``.
        adapter_width: Hidden width of the patch branch; 0: patches are only scaled to unit length.
        source_dim: Width ``k`` of ``f``; 0: there is none.

    Example:
        >>> import torch
        >>> adapter = VisualAdapter(dim=4, adapter_width=8, source_dim=6)
        >>> adapter(torch.ones(2, 3, 4))[0, 0]
        tensor([0.5000, 0.5000, 0.5000, 0.5000], grad_fn=...)
        >>> adapter.whole(torch.ones(2, 4), torch.ones(2, 6)).shape
        torch.Size([2, 4])
    """

    def __init__(self, *, dim: int, adapter_width: int = 256, source_dim: int = 0) -> None:
        super().__init__(dim=dim, adapter_width=adapter_width, source_dim=source_dim)
        require_int("dim", dim, least=1)
        require_int("adapter_width", adapter_width, least=0)
        require_int("source_dim", source_dim, least=0)
        self.dim, self.source_dim = dim, source_dim
        self.up = nn.Linear(dim, adapter_width) if adapter_width else None
        self.down = nn.Linear(adapter_width, dim) if adapter_width else None
        self.source = nn.Linear(source_dim, dim, bias=False) if source_dim else None
        for layer in (self.down, self.source):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        if self.down is not None:
            nn.init.zeros_(self.down.bias)

    def forward(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Return the adapted patch vectors, at unit length.

        Raises:
            ShapeError: where they are not of the block's width.
        """
        expect("patches", patches, "b n d", dtype="float", like=None if self.up is None else self.up.weight, d=self.dim)
        unit = _unit(patches)
        if self.up is None or self.down is None:
            return unit
        return _unit(unit + self.down(F.gelu(self.up(standardise(patches)))))

    def whole(self, pooled: Float[Tensor, "b d"], source: Float[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """Return the adapted vector of the whole image, at unit length.

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where the block was made without ``source_dim``.
        """
        if self.source is None:
            raise ValueError("source: expected a block with a source_dim, this one has none")
        axes = expect("pooled", pooled, "b d", dtype="float", like=self.source.weight, d=self.dim)
        expect("source", source, "b k", dtype="float", like=self.source.weight, b=axes["b"], k=self.source_dim)
        return _unit(_unit(pooled) + self.source(standardise(source)))


def _unit(vectors: Tensor) -> Tensor:
    with without_autocast(vectors):
        return F.normalize(upcast(vectors), dim=-1).to(vectors.dtype)
