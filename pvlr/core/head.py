"""Similarities of images and labels in both directions, combined into one score per label."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_number
from pvlr.core.block import Block
from pvlr.core.functional import by_rows, cosine_scores, pool_regions, upcast, without_autocast
from pvlr.core.shapes import expect

__all__ = ["SimilarityHead"]


class SimilarityHead(Block):
    """Classifier ``scale · (κ max_n cos(X'[n], T'[c]) + cos(V[c], T[c]) + λ cos(g, T[c])) + bias`` by label vectors.

    The first two are the similarities of the method's abstract: of context-aware label vectors (``T'``) with the
    image's patches, and of visual vectors related to a label's meaning (``V``) with the label; the third is that of
    the whole image (``g``). The last two are left out where they are not given. The parameters are four numbers, so
    that the head applies to any list of labels.

    Args:
        scale: Factor of the cosines at the start, above 0; stored as its logarithm, as ``κ`` and ``λ`` are. Of patches
            alone the factor is ``scale · κ``.
        bias: Added to every score at the start.
        patches: ``κ`` at the start, above 0.
        whole: ``λ`` at the start, above 0; None: the whole image is not compared, and there is no ``λ``, which without
            a whole image would have no gradient.

    Example:
        >>> head = SimilarityHead(scale=10.0, bias=-3.0, patches=0.5)
        >>> patches, labels = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]]), torch.tensor([[1.0, 0.0]])
        >>> round(head(patches, labels).item(), 4), round(head(patches, labels, visual=labels[None]).item(), 4)
        (0.0, 10.0)
    """

    def __init__(
        self, *, scale: float = 10.0, bias: float = 0.0, patches: float = 0.3, whole: float | None = None
    ) -> None:
        super().__init__(scale=scale, bias=bias, patches=patches, whole=whole)
        for name, value in (("scale", scale), ("patches", patches), ("whole", 1.0 if whole is None else whole)):
            require_number(name, value, above=0.0)
        require_number("bias", bias)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.log_patches = nn.Parameter(torch.tensor(math.log(patches)))
        self.log_whole = None if whole is None else nn.Parameter(torch.tensor(math.log(whole)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self,
        patches: Float[Tensor, "b n d"],
        labels: Float[Tensor, "c d"] | Float[Tensor, "b c d"],
        *,
        looked: Float[Tensor, "b c d"] | None = None,
        visual: Float[Tensor, "b c d"] | None = None,
        whole: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b c"]:
        """Compute scores ``b c``, float32 even under autocast (float64 for float64 inputs).

        Args:
            patches: ``X'``, at least one patch.
            labels: ``T``, the labels.
            looked: ``T'``, the labels after attention to the patches; None: the labels.
            visual: ``V``, a vector of the image for each label; None: it is not compared.
            whole: ``g``, the whole image; None: it is not compared.

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where the whole image is given to a head that does not compare it.
        """
        device = self.log_scale.device
        axes = expect("patches", patches, "b n d", dtype="float", device=device)
        axes |= expect("labels", labels, "... c d", dtype="float", device=device, d=axes["d"])
        b, c, d = axes["b"], axes["c"], axes["d"]
        if labels.dim() > 2:
            expect("labels", labels, "b c d", b=b)
        rows = labels
        if looked is not None:
            expect("looked", looked, "b c d", dtype="float", device=device, b=b, c=c, d=d)
            rows = looked
        with without_autocast(patches):
            best = by_rows(lambda part: pool_regions(cosine_scores(patches, part), "max"), rows, join=-1)
            score = upcast(self.log_patches).exp() * best
            if visual is not None:
                expect("visual", visual, "b c d", dtype="float", device=device, b=b, c=c, d=d)
                score = score + _paired(upcast(visual), upcast(labels))
            if whole is not None and self.log_whole is None:
                raise ValueError("whole: expected None, this head was made not to compare the whole image")
            if whole is not None and self.log_whole is not None:
                expect("whole", whole, "b d", dtype="float", device=device, b=b, d=d)
                of_whole = cosine_scores(whole.unsqueeze(1), labels).squeeze(1)
                score = score + upcast(self.log_whole).exp() * of_whole
            logits: Tensor = upcast(self.log_scale).exp() * score + upcast(self.bias)
            return logits


def _paired(a: Tensor, b: Tensor) -> Float[Tensor, "b c"]:
    """Return the cosines of vectors at the same position."""
    lengths = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    cosines: Tensor = (a * b).sum(dim=-1) / lengths.clamp_min(1e-12)
    return cosines
