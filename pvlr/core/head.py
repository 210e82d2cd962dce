"""Similarities of patches and labels, aggregated into one logit per label."""

import math
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_bool, require_choice, require_number
from pvlr.core.block import Block
from pvlr.core.functional import by_rows, cosine_scores, pool_regions, widened
from pvlr.core.shapes import expect

__all__ = ["SimilarityHead"]

AGGREGATIONS = ("max", "mean", "softmax")


class SimilarityHead(Block):
    """``logit[b, c] = aggregate_n (scale · cos(patch[b, n], label[b, c]) + bias)``: the labels are the classifier.

    With a vector ``g`` of the whole image too, it is the mean of that and ``scale · cos(g[b], label[b, c]) + bias``.

    Its parameters are two numbers, so that it serves any list of labels.

    Args:
        scale: Factor of the cosine at the start, above 0; kept as its logarithm.
        bias: Added to every score at the start.
        aggregation: How the scores of the patches become one, see :func:`~pvlr.core.functional.pool_regions`.
        temperature: Of the aggregation ``"softmax"``, in units of the scores.
        learnable: Whether scale and bias are trained.

    Example:
        >>> head = SimilarityHead(scale=10.0, bias=-3.0)
        >>> round(head(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0, 0.0]])).item(), 4)
        3.0
        >>> head
        SimilarityHead(scale=10.0, bias=-3.0, aggregation='max', temperature=0.1, learnable=True)
    """

    def __init__(
        self,
        *,
        scale: float = 10.0,
        bias: float = 0.0,
        aggregation: Literal["max", "mean", "softmax"] = "max",
        temperature: float = 0.1,
        learnable: bool = True,
    ) -> None:
        super().__init__(scale=scale, bias=bias, aggregation=aggregation, temperature=temperature, learnable=learnable)
        require_number("scale", scale, above=0.0)
        require_number("bias", bias)
        require_choice("aggregation", aggregation, AGGREGATIONS)
        require_number("temperature", temperature, above=0.0)
        require_bool("learnable", learnable)
        self.aggregation, self.temperature = aggregation, temperature
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    def forward(
        self,
        patches: Float[Tensor, "b n d"],
        labels: Float[Tensor, "b c d"] | Float[Tensor, "c d"],
        pooled: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b c"]:
        """Logits ``b c``, float32 whatever autocast chose (float64 for float64 inputs).

        Args:
            patches: Patch vectors ``b n d``, at least one patch.
            labels: Label vectors, ``c d`` for all images or ``b c d`` for each.
            pooled: One vector of the whole image, ``b d``: the logit is then the mean of its score and that of the
                patches.

        Raises:
            ShapeError: where the axes do not fit.
        """
        axes = expect("patches", patches, "b n d", dtype="float", device=self.log_scale.device)
        expect("labels", labels, "... c d", dtype="float", device=self.log_scale.device, d=axes["d"])
        if pooled is not None:
            expect("pooled", pooled, "b d", dtype="float", device=self.log_scale.device, b=axes["b"], d=axes["d"])
        return by_rows(partial(self._logits, patches, pooled), labels, join=-1)

    def _logits(self, patches: Tensor, pooled: Tensor | None, labels: Tensor) -> Tensor:
        scale, bias = widened(self.log_scale).exp(), widened(self.bias)
        logits = pool_regions(
            cosine_scores(patches, labels, scale=scale, bias=bias), self.aggregation, self.temperature
        )
        if pooled is None:
            return logits
        whole: Tensor = cosine_scores(pooled.unsqueeze(1), labels, scale=scale, bias=bias).squeeze(1)
        return (logits + whole) / 2
