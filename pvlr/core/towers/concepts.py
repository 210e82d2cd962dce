"""Classification head that returns the classes' text vectors: images in the space of texts."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_int, require_number

__all__ = ["ConceptHead"]


class ConceptHead(nn.Module):
    """Head ``Σ_k softmax_k(W f + b) a_k``: the mean of the classes' vectors ``a``, weighted by class probabilities.

    ConSE (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", arXiv 1312.5650) with all
    classes, whose classifier ``W, b`` was trained on whole pictures. A single position shows less than a picture, so
    that the classifier is overconfident on it: for patches its logits are divided by a temperature.

    Args:
        width: Width of the features ``f``.
        classes: Number of classes.
        dim: Width of their vectors (``d``).
        patch_temperature: Divisor of the logits of single positions, above 0.

    Example:
        >>> head = ConceptHead(width=1280, classes=1000, dim=384)
        >>> head(torch.zeros(2, 1280)).shape
        torch.Size([2, 384])
    """

    def __init__(self, *, width: int, classes: int, dim: int, patch_temperature: float = 1.0) -> None:
        super().__init__()
        for name, value in (("width", width), ("classes", classes), ("dim", dim)):
            require_int(name, value, least=1)
        require_number("patch_temperature", patch_temperature, above=0.0)
        self.width, self.patch_temperature = width, float(patch_temperature)
        self.proj = nn.Linear(width, classes)
        self.concepts = nn.Linear(classes, dim, bias=False)

    def forward(self, features: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        """Compute vectors of whole images."""
        vectors: Tensor = self.concepts(torch.softmax(self.proj(features), dim=-1))
        return vectors

    def of_patches(self, features: Float[Tensor, "r w"]) -> Float[Tensor, "r d"]:
        """Compute vectors of single positions."""
        vectors: Tensor = self.concepts(torch.softmax(self.proj(features) / self.patch_temperature, dim=-1))
        return vectors

    def extra_repr(self) -> str:
        """Return the temperature, for ``repr``."""
        return f"patch_temperature={self.patch_temperature:g}"
