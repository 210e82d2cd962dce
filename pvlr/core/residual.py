"""Residuals that training adds to the vectors of its labels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pvlr.core.arguments import require_int
from pvlr.core.block import Block
from pvlr.core.shapes import expect

__all__ = ["LabelResidual", "rows_of_members"]


class LabelResidual(Block):
    """Learned vectors of the trained labels, for ``t_c + r_c`` and ``q_c · LN f + b_c``, zero at the start.

    A residual after the text encoder (TaskRes, arXiv 2211.10277; PositiveCoOp, arXiv 2409.08381), and weights for the
    features ``f`` of the whole image: the pooled vector, or the features the tower computes it from. Other labels have
    neither, only the vector of their name.

    Args:
        labels: Number ``a`` of labels that are trained on.
        dim: Joint width ``d``.
        source_dim: Width ``k`` of ``f``; 0: there is none.

    Example:
        >>> residual = LabelResidual(labels=2, dim=3)
        >>> residual(torch.ones(4, 3), torch.tensor([1, -1, 0, -1])).shape
        torch.Size([4, 3])
    """

    def __init__(self, *, labels: int, dim: int, source_dim: int = 0) -> None:
        super().__init__(labels=labels, dim=dim, source_dim=source_dim)
        require_int("labels", labels, least=1)
        require_int("dim", dim, least=1)
        require_int("source_dim", source_dim, least=0)
        self.labels, self.dim, self.source_dim = labels, dim, source_dim
        self.vectors = nn.Parameter(torch.zeros(labels, dim))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.source = nn.Parameter(torch.zeros(labels, source_dim)) if source_dim else None

    def forward(self, vectors: Float[Tensor, "c d"], members: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        """Return label vectors plus their residuals.

        Args:
            vectors: ``c d``.
            members: Index of each among the trained labels, -1 for none.

        Raises:
            ShapeError: where the axes do not fit.
        """
        count = expect("vectors", vectors, "c d", dtype="float", like=self.vectors, d=self.dim)["c"]
        expect("members", members, "c", dtype="int", device=self.vectors.device, c=count)
        return vectors + rows_of_members(self.vectors, members)

    def rows(self, members: Int[Tensor, " c"]) -> tuple[Float[Tensor, "c k"], Float[Tensor, " c"]]:
        """Return ``q_c`` and ``b_c`` of labels; zeros for those that were not trained on.

        Raises:
            ShapeError: where the axes do not fit.
        """
        expect("members", members, "c", dtype="int", device=self.vectors.device)
        own = self.vectors[:, :0] if self.source is None else self.source
        return rows_of_members(own, members), rows_of_members(self.bias, members)


def rows_of_members(table: Float[Tensor, "a ..."], members: Int[Tensor, " c"]) -> Float[Tensor, "c ..."]:
    """Return the rows of the labels that were trained on, and 0 for the others.

    Example:
        >>> rows_of_members(torch.tensor([3.0, 5.0]), torch.tensor([1, -1]))
        tensor([5., 0.])
    """
    found = table[members.clamp_min(0)]
    return found * (members >= 0).to(found.dtype).reshape(-1, *[1] * (found.dim() - 1))
