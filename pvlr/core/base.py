"""Base scores of a prediction: similarities of the towers' vectors of images and label names, without training."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pvlr.core.arguments import require_choice, require_number
from pvlr.core.functional import by_rows, cosine_scores, pool_regions, upcast, without_autocast
from pvlr.core.shapes import ShapeError, expect

__all__ = ["BasePart", "are_anchors", "base_scores"]

BasePart = Literal["competition", "focused", "pooled", "best"]
"""A score of the base, see :func:`base_scores`."""

FOCUS = 20.0
"""Inverse temperature of the patches' weights for a label; DualCoOp's (arXiv 2206.09541)."""

NEAR = 1e-6
"""Squared distance below which two unit vectors count as encodings of the same text."""

LEAST = 1e-6
"""Lower bound of a label's mean share in the competition: smaller values are rounding errors."""


def base_scores(
    patches: Float[Tensor, "b n d"],
    pooled: Float[Tensor, "b d"],
    labels: Float[Tensor, "c d"],
    *,
    parts: Sequence[BasePart] = ("competition", "focused", "pooled"),
    scale: float = 1.0,
    anchors: Float[Tensor, "a d"] | None = None,
    members: Int[Tensor, " c"] | None = None,
) -> Float[Tensor, "b c p"]:
    """Compute scores of labels by their names alone, one for each part, all in units of ``scale · cos``.

    | part | score of label ``c`` |
    |---|---|
    | ``competition`` | ``log mean_n p[n, c]``, ``p`` the softmax of ``scale · cos`` over the anchors and ``c`` |
    | ``focused`` | ``scale · Σ_n w[n, c] cos[n, c]`` with ``w = softmax_n(20 cos)``: the most similar patches |
    | ``pooled`` | ``scale · cos`` of the pooled vector: CLIP's own |
    | ``best`` | ``scale · max_n cos[n, c]`` |

    In the competition a patch is divided among the labels, as in RAM (CVPR 2025), TagCLIP and SPARC; ``focused`` is
    DualCoOp's weighting (arXiv 2206.09541). Labels compete with the anchors: by default the labels themselves, and
    then adding a label changes the ``competition`` of the others. With fixed anchors it does not; a label that is an
    anchor itself is not counted twice. All other parts are independent of other labels.

    Args:
        patches: Patch vectors ``b n d``, at least one; none of the vectors has to be normalised.
        pooled: One vector per image, ``b d``.
        labels: Label vectors, ``c d``.
        parts: The scores to compute, in this order.
        scale: Factor of the cosines, above 0: the tower's own, with which it was trained to discriminate texts.
        anchors: Label vectors ``a d`` to compete with; None: the labels.
        members: Index of each label among the anchors, ``c``, -1 for none; None: no label is an anchor.

    Returns:
        ``b c p``, float32 (float64 for float64 inputs).

    Raises:
        ShapeError: where the axes do not fit, or there is no patch.
        ValueError: where a part is unknown, or the scale not positive.

    Example:
        >>> patches, labels = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.eye(2)
        >>> base_scores(patches, torch.tensor([[3.0, 4.0]]), labels, parts=("pooled", "best"), scale=10.0)
        tensor([[[ 6., 10.],
                 [ 8., 10.]]])
    """
    axes = expect("patches", patches, "b n d", dtype="float")
    if axes["n"] == 0:
        raise ShapeError(f"patches: expected at least one patch on axis n of 'b n d', got shape {tuple(patches.shape)}")
    expect("pooled", pooled, "b d", dtype="float", device=patches.device, b=axes["b"], d=axes["d"])
    count = expect("labels", labels, "c d", dtype="float", device=patches.device, d=axes["d"])["c"]
    if anchors is not None:
        expect("anchors", anchors, "a d", dtype="float", device=patches.device, d=axes["d"])
    if members is not None:
        expect("members", members, "c", dtype="int", device=patches.device, c=count)
    require_number("scale", scale, above=0.0)
    for part in parts:
        require_choice("parts", part, get_args(BasePart))
    total = None
    if "competition" in parts:
        rivals = labels if anchors is None else anchors
        total = _log_total(patches, rivals, scale)
        if anchors is None:
            members = torch.zeros(count, dtype=torch.int64, device=patches.device)
        elif members is None:
            members = torch.full((count,), -1, device=patches.device)
    member = None if members is None else (members >= 0).to(labels.dtype).unsqueeze(-1)
    inputs = (labels,) if member is None else (labels, member)
    return by_rows(partial(_parts, patches, pooled, total, tuple(parts), scale), *inputs, join=-2)


def are_anchors(
    labels: Float[Tensor, "c d"], anchors: Float[Tensor, "a d"], members: Int[Tensor, " c"]
) -> Bool[Tensor, " c"]:
    """Return which labels are among the anchors, by name and by vector: a name with another text is not its anchor.

    Args:
        labels: Unit vectors, ``c d``.
        anchors: The same, ``a d``.
        members: The anchor of each label's name, ``c``, -1 for none.

    Example:
        >>> are_anchors(torch.eye(2), torch.eye(2), torch.tensor([0, -1]))
        tensor([ True, False])
    """
    # The same text is rounded differently when it is encoded in another batch.
    same = (labels - anchors[members.clamp_min(0)]).square().sum(dim=-1) < NEAR
    return same & (members >= 0)


def _log_total(patches: Tensor, rivals: Tensor, scale: float) -> Float[Tensor, "b n 1"]:
    """Return ``log Σ_a exp(scale · cos)``, the denominator of a patch's shares."""
    with without_autocast(patches):
        rows = by_rows(
            lambda part: cosine_scores(patches, part, scale=scale).logsumexp(dim=-1, keepdim=True), rivals, join=-1
        )
        return rows.logsumexp(dim=-1, keepdim=True)


def _parts(
    patches: Tensor,
    pooled: Tensor,
    total: Tensor | None,
    parts: tuple[BasePart, ...],
    scale: float,
    labels: Tensor,
    member: Tensor | None = None,
) -> Float[Tensor, "b c p"]:
    with without_autocast(patches):
        cosines = labels.new_zeros(0) if set(parts) == {"pooled"} else cosine_scores(patches, labels)
        found: list[Tensor] = []
        for part in parts:
            if part == "pooled":
                found.append(cosine_scores(pooled.unsqueeze(1), labels, scale=scale).squeeze(1))
            elif part == "focused":
                found.append(scale * pool_regions(cosines, "softmax", 1 / FOCUS))
            elif part == "best":
                found.append(scale * pool_regions(cosines, "max"))
            elif total is not None and member is not None:
                own = scale * cosines
                denominator = torch.where(member.squeeze(-1) > 0, total, torch.logaddexp(total, own))
                # No share is above 1, and shares that underflow are below the bound.
                found.append((own - denominator).exp().mean(dim=1).clamp_min(LEAST).log())
        return torch.stack([upcast(part) for part in found], dim=-1)
