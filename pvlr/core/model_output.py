"""What PVLR yields, and the vectors on the way there."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pvlr.core.attention import RelationMap

__all__ = ["LabelParts", "LabelSide", "PVLROutput"]


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
