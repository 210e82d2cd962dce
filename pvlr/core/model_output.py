"""What PVLR yields, the vectors on the way there, and the end of the way."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pvlr.core.attention import DualModalAttention, RelationMap
from pvlr.core.head import SimilarityHead
from pvlr.core.protocols import Regions, split_regions

__all__ = ["LabelParts", "LabelSide", "PVLROutput", "compare"]


class PVLROutput(NamedTuple):
    """What a forward pass yields.

    Attributes:
        logits: `b c`, float32; their sigmoid are the probabilities.
        labels: context-aware label vectors, `b c d`.
        patches: semantic-related patch vectors, `b n d`.
        label_maps: per layer where the labels looked, `b h c n`; empty unless asked for.
        patch_maps: per layer where the patches looked, `b h n c`; empty unless asked for.
    """

    logits: Float[Tensor, "b c"]
    labels: Float[Tensor, "b c d"]
    patches: Float[Tensor, "b n d"]
    label_maps: tuple[Tensor, ...]
    patch_maps: tuple[Tensor, ...]


class LabelParts(NamedTuple):
    """What the label vectors are fused from; None where the fusion does not read it.

    Attributes:
        knowledge: vectors of the fixed prompts, `c d`.
        knowledge_map: how they relate, `h c c`.
        context: vectors of the learnable prompts, `c d`, or `b c d` where they are conditioned on patches.
        context_map: how they relate, `h c c` or `b h c c`.
    """

    knowledge: Tensor | None
    knowledge_map: RelationMap | None
    context: Tensor | None
    context_map: RelationMap | None


class LabelSide(NamedTuple):
    """The part of the label vectors that no image changes."""

    knowledge: Tensor | None
    knowledge_map: RelationMap | None
    soft: Tensor | None
    fused: Tensor | None


def compare(
    attention: DualModalAttention,
    head: SimilarityHead,
    labels: Float[Tensor, "c d"] | Float[Tensor, "b c d"],
    regions: Float[Tensor, "b m d"],
    *,
    sees: Regions,
    maps: bool = False,
) -> PVLROutput:
    """The end of every forward pass: labels and patches change each other, and are compared.

    Args:
        attention: Where they meet.
        head: What compares them.
        labels: Label vectors.
        regions: Vectors of the images, as :func:`~pvlr.core.protocols.join_regions` joined them.
        sees: How they were joined. A pooled vector beside the patches is compared with the labels that have looked at
            the patches, and is changed by none.
        maps: Whether to return the attention maps too.
    """
    patches, pooled = split_regions(regions, sees)
    attended = attention(labels, patches, maps=maps)
    # A head of one's own need not know of a pooled vector where there is none.
    beside = () if pooled is None else (pooled,)
    return PVLROutput(head(attended.patches, attended.labels, *beside), *attended)
