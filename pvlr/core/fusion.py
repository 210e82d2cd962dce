"""Fusion of the fixed and the learnable label vectors, and of their relations."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_bool, require_choice, require_heads
from pvlr.core.attention import RelationMap
from pvlr.core.block import Block
from pvlr.core.functional import gate, merge_heads, split_heads, spread, standardise
from pvlr.core.shapes import ShapeError, expect

__all__ = ["FusionBlock"]

Fusion = Literal["gate", "sum", "knowledge", "context"]


class FusionBlock(Block):
    """Fusion of knowledge vectors and context vectors of the same labels.

    ``gate``: ``g = σ(W [T_ka ; T_ca] + b)``, ``T = g ⊙ T_ka + (1 − g) ⊙ T_ca`` with ``W``, ``b`` at zero at the start,
    so that ``g`` starts at one half; then the relations: ``M = λ M_ka + (1 − λ) M_ca`` with one ``λ ∈ (0, 1)`` per
    head, ½ at the start, and ``T + σ(T) Out(M V(LN T))``, with ``σ`` as in :class:`~pvlr.core.attention.LabelRelation`.
    ``M`` is never computed, since the product is linear in it.
    ``sum``: ``T_ka + T_ca``. ``knowledge`` and ``context``: that input, unchanged.

    Args:
        dim: Joint width ``d``, a multiple of ``heads``.
        heads: Number of heads ``h``, that of the maps.
        fusion: As above; all but ``"gate"`` have no parameters and read no map.
        maps: Whether ``gate`` has the part that mixes relations; False where the label vectors have no maps.

    Example:
        >>> block = FusionBlock(dim=4, heads=2, maps=False)
        >>> block(torch.full((3, 4), 1.0), torch.full((3, 4), 3.0))[0]
        tensor([2., 2., 2., 2.], grad_fn=...)
        >>> block
        FusionBlock(dim=4, heads=2, fusion='gate', maps=False)
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 8,
        fusion: Fusion = "gate",
        maps: bool = True,
    ) -> None:
        super().__init__(dim=dim, heads=heads, fusion=fusion, maps=maps)
        require_heads(dim, heads)
        require_choice("fusion", fusion, get_args(Fusion))
        require_bool("maps", maps)
        self.dim, self.heads, self.fusion, self.maps = dim, heads, fusion, maps
        if fusion != "gate":
            return
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        if not maps:
            return
        self.mix_logit = nn.Parameter(torch.zeros(heads))
        self.v_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.v_proj.weight)
        for zeros in (self.v_proj.bias, self.out_proj.weight, self.out_proj.bias):
            nn.init.zeros_(zeros)

    @property
    def mix(self) -> Float[Tensor, " h"]:
        """The share ``λ`` of the knowledge map in each head, in (0, 1)."""
        if self.fusion != "gate" or not self.maps:
            raise ValueError(f"mix: only a FusionBlock with fusion 'gate' and maps mixes maps, this is {self!r}")
        return torch.sigmoid(self.mix_logit)

    def gate_weights(
        self, knowledge: Float[Tensor, "*#b c d"], context: Float[Tensor, "*#b c d"]
    ) -> Float[Tensor, "... c d"]:
        """Return ``g``, the share of the knowledge in each channel of each label vector, in (0, 1).

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where the block has no gate.

        Example:
            >>> FusionBlock(dim=2, heads=1).gate_weights(torch.ones(1, 2), torch.ones(1, 2))
            tensor([[0.5000, 0.5000]], grad_fn=...)
        """
        if self.fusion != "gate":
            raise ValueError(f"gate_weights: only a FusionBlock with fusion 'gate' has a gate, this is {self!r}")
        knowledge = self._given("knowledge", knowledge)
        context = self._given("context", context, c=knowledge.shape[-2])
        _require_broadcast("context", context, 2, "knowledge's", knowledge)
        return torch.sigmoid(self._gate_logits(knowledge, context))

    def _gate_logits(self, knowledge: Tensor, context: Tensor) -> Tensor:
        # W [a ; b] = W_a a + W_b b, so that vectors without a batch axis are multiplied once, not for every image.
        of_knowledge, of_context = self.gate.weight.chunk(2, dim=1)
        return F.linear(knowledge, of_knowledge) + F.linear(context, of_context, self.gate.bias)

    def forward(
        self,
        knowledge: Float[Tensor, "*#b c d"] | None,
        context: Float[Tensor, "*#b c d"] | None,
        knowledge_map: RelationMap | None = None,
        context_map: RelationMap | None = None,
    ) -> Float[Tensor, "... c d"]:
        """Fuse label vectors.

        Args:
            knowledge: ``... c d``; None if the fusion does not read it.
            context: ``... c d``; None if the fusion does not read it. Leading axes broadcast against knowledge's.
            knowledge_map: Relation of the knowledge vectors, ``... h c e``.
            context_map: Relation of the context vectors; both maps or neither; without them relations are left out.

        Raises:
            ShapeError: where the axes do not fit.
            ValueError: where an input the fusion reads, or one of two maps, is missing.
        """
        if self.fusion == "knowledge":
            return self._given("knowledge", knowledge)
        if self.fusion == "context":
            return self._given("context", context)
        knowledge = self._given("knowledge", knowledge)
        context = self._given("context", context, c=knowledge.shape[-2])
        _require_broadcast("context", context, 2, "knowledge's", knowledge)
        if knowledge.device != context.device:
            raise ShapeError(f"context: expected a tensor on {knowledge.device}, got one on {context.device}")
        if self.fusion == "sum":
            return knowledge + context
        labels = gate(self._gate_logits(knowledge, context), knowledge, context)
        if (knowledge_map is None) != (context_map is None):
            missing = "knowledge_map" if knowledge_map is None else "context_map"
            raise ValueError(f"{missing}: expected both maps or neither, got only the other one")
        if knowledge_map is None or context_map is None:
            return labels
        if not self.maps:
            raise ValueError(f"knowledge_map, context_map: expected none, got both, but this is {self!r}")
        for name, relation in (("knowledge_map", knowledge_map), ("context_map", context_map)):
            if not isinstance(relation, RelationMap):
                raise ShapeError(f"{name}: expected a RelationMap, got {type(relation).__name__}")
            for factor, tensor in zip(relation._fields, relation, strict=True):
                full, count = f"{name}.{factor}", labels.shape[-2]
                expect(full, tensor, "... h c e", dtype="float", device=labels.device, h=self.heads, c=count)
                _require_broadcast(full, tensor, 3, "the labels'", labels)
        values = split_heads(self.v_proj(standardise(labels)), self.heads)
        share = self.mix[:, None, None]
        mixed = share * knowledge_map.attend(values) + (1 - share) * context_map.attend(values)
        fused: Tensor = labels + spread(labels) * self.out_proj(merge_heads(mixed))
        return fused

    def _given(self, name: str, vectors: Tensor | None, **sizes: int) -> Tensor:
        if vectors is None:
            raise ValueError(f"{name}: expected vectors '... c d' with fusion {self.fusion!r}, got None")
        like = self.gate.weight if self.fusion == "gate" else None
        expect(name, vectors, "... c d", dtype="float", like=like, d=self.dim, **sizes)  # type: ignore[arg-type]
        return vectors


def _require_broadcast(name: str, tensor: Tensor, own: int, other: str, against: Tensor) -> None:
    """Require leading axes (all but the last ``own``, of ``against`` all but two) that broadcast."""
    for a, b in zip(tensor.shape[-own - 1 :: -1], against.shape[-3::-1], strict=False):
        if a != b and 1 not in (a, b):
            shapes = f"{tuple(tensor.shape)} against {tuple(against.shape)}"
            raise ShapeError(f"{name}: expected leading axes that broadcast against {other}, got {shapes}")
