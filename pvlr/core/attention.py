"""Attention of labels to labels, and of labels and patches to each other."""

from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_bool, require_choice, require_heads, require_int
from pvlr.core.block import Block
from pvlr.core.functional import attend, attention_map, by_rows, merge_heads, split_heads, spread, standardise
from pvlr.core.shapes import ShapeError, expect

__all__ = ["DualModalAttention", "DualModalOutput", "LabelRelation", "MultiHeadAttention", "RelationMap"]

Direction = Literal["both", "labels", "patches", "none"]
_Factors = tuple[Tensor, Tensor]


class RelationMap(NamedTuple):
    """Attention map over labels, stored as its two factors: ``softmax(query keyᵀ / √e)``.

    The factors grow with ``c``, the map with ``c²``; applying it to vectors does not compute the map itself.

    Attributes:
        query: ``... h c e``.
        key: ``... h c e``.

    Example:
        >>> import torch
        >>> relation = RelationMap(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))
        >>> relation.dense()
        tensor([[[0.5000, 0.5000], [0.5000, 0.5000]]])
        >>> relation.attend(torch.tensor([[[1.0], [3.0]]]))
        tensor([[[2.], [2.]]])
    """

    query: Float[Tensor, "... h c e"]
    key: Float[Tensor, "... h c e"]

    def attend(self, values: Float[Tensor, "... h c f"]) -> Float[Tensor, "... h c f"]:
        """Return the map times ``values``, by fused attention; leading axes broadcast.

        Raises:
            ShapeError: where ``values`` are not floats, or their axes do not fit.
        """
        expect("values", values, "... h c f", dtype="float")
        # The factors may have another dtype than the values (computed once in float32, then used under autocast).
        return attend(self.query.to(values.dtype), self.key.to(values.dtype), values)

    def dense(self) -> Float[Tensor, "... h c c"]:
        """Return the map itself, float32."""
        return attention_map(self.query, self.key)


class MultiHeadAttention(Block):
    """Multi-head attention by :func:`~pvlr.core.functional.attend`: ``Out(attend(Q x, K s, V s))``.

    The key projection has no bias: a constant added to all keys shifts every row of scores, which leaves the softmax
    unchanged.

    Args:
        dim: Joint width ``d``, a multiple of ``heads``.
        heads: Number of heads ``h``.
        zero_out: Start the output projection at zero, so that the branch adds nothing before the first step.
        width: Width of queries, keys and values over all heads, a multiple of ``heads``; None: ``d``.

    Example:
        >>> import torch
        >>> block = MultiHeadAttention(dim=8, heads=2, zero_out=True)
        >>> gathered, (query, key) = block(torch.ones(3, 8), torch.ones(2, 5, 8))
        >>> gathered.shape, query.shape, key.shape
        (torch.Size([2, 3, 8]), torch.Size([2, 3, 4]), torch.Size([2, 2, 5, 4]))
    """

    def __init__(self, *, dim: int, heads: int, zero_out: bool, width: int | None = None) -> None:
        super().__init__(dim=dim, heads=heads, zero_out=zero_out, width=width)
        inner = dim if width is None else width
        require_int("dim", dim, least=1)
        require_heads(inner, heads, name="dim" if width is None else "width")
        require_bool("zero_out", zero_out)
        self.dim, self.heads = dim, heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner, bias=False)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if zero_out:
            nn.init.zeros_(self.out_proj.weight)

    def forward(
        self, queries: Float[Tensor, "... q d"], source: Float[Tensor, "... k d"]
    ) -> tuple[Float[Tensor, "... q d"], tuple[Float[Tensor, "... h q e"], Float[Tensor, "... h k e"]]]:
        """Return the attention output for ``queries``, and the two factors (query, key) of the map.

        Raises:
            ShapeError: where an input is not ``... d`` of the width of the block.
        """
        expect("queries", queries, "... q d", dtype="float", like=self.q_proj.weight, d=self.dim)
        key, value = self.project_key_value(source)
        query = self.project_query(queries)
        return self.combine(query, key, value), (query, key)

    def project_query(self, queries: Float[Tensor, "... q d"]) -> Float[Tensor, "... h q e"]:
        """Return the query factor."""
        return split_heads(self.q_proj(queries), self.heads)

    def project_key_value(
        self, source: Float[Tensor, "... k d"], places: Float[Tensor, "... k d"] | None = None
    ) -> tuple[Float[Tensor, "... h k e"], Float[Tensor, "... h k e"]]:
        """Return the key factor and the values; ``places`` (position vectors of the source) are added to keys only."""
        expect("source", source, "... k d", dtype="float", like=self.q_proj.weight, d=self.dim)
        keys = source if places is None else source + places
        return split_heads(self.k_proj(keys), self.heads), split_heads(self.v_proj(source), self.heads)

    def combine(
        self, query: Float[Tensor, "... h q e"], key: Float[Tensor, "... h k e"], value: Float[Tensor, "... h k e"]
    ) -> Float[Tensor, "... q d"]:
        """Attend, and project the output."""
        out: Tensor = self.out_proj(merge_heads(attend(query, key, value)))
        return out


class LabelRelation(Block):
    """Self-attention over the label axis, which also returns its map: ``x + σ(x) MHA(LN x)``.

    ``σ(x)`` is the standard deviation of a vector's entries, that ``LN`` divides by: what is added is in units of the
    vector, however short that is. Without it the first steps add the same long vector to all labels of a joint space,
    whose entries are small, and they can no longer be told apart. The output projection is zero at the start. Labels
    have no position: permuting them permutes the output. Each label may change the output of all others.

    Args:
        dim: Joint width ``d``, a multiple of ``heads``.
        heads: Number of heads ``h``.

    Example:
        >>> import torch
        >>> block = LabelRelation(dim=8, heads=2)
        >>> labels, relation = block(torch.ones(5, 8))
        >>> labels.shape, relation.dense().shape
        (torch.Size([5, 8]), torch.Size([2, 5, 5]))
        >>> block
        LabelRelation(dim=8, heads=2)
    """

    def __init__(self, *, dim: int, heads: int = 8) -> None:
        super().__init__(dim=dim, heads=heads)
        self.dim = dim
        self.attention = MultiHeadAttention(dim=dim, heads=heads, zero_out=True)

    def forward(self, labels: Float[Tensor, "*b c d"]) -> tuple[Float[Tensor, "*b c d"], RelationMap]:
        """Relate labels ``... c d`` to each other.

        Raises:
            ShapeError: where ``labels`` is not ``... c d`` of the width of the block.
        """
        expect("labels", labels, "... c d", dtype="float", like=self.attention.q_proj.weight, d=self.dim)
        inside = standardise(labels)
        gathered, factors = self.attention(inside, inside)
        return labels + spread(labels) * gathered, RelationMap(*factors)


class DualModalOutput(NamedTuple):
    """Label and patch vectors after attention to each other.

    Attributes:
        labels: ``b c d``.
        patches: ``b n d``.
        label_maps: Attention of labels to patches in each layer, ``b h c n``; empty unless requested.
        patch_maps: Attention of patches to labels in each layer, ``b h n c``; empty unless requested.
        gathered: Attention output for the labels in the last layer, before it is added to them, ``b c d``; None where
            labels do not attend.
    """

    labels: Float[Tensor, "b c d"]
    patches: Float[Tensor, "b n d"]
    label_maps: tuple[Float[Tensor, "b h c n"], ...] = ()
    patch_maps: tuple[Float[Tensor, "b h n c"], ...] = ()
    gathered: Float[Tensor, "b c d"] | None = None


class FeedForward(nn.Module):
    """Feed-forward ``x + W2 gelu(W1 LN x)``, ``W2`` zero at the start."""

    def __init__(self, *, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.gelu(self.up(standardise(x))))
        return out


class _Side(nn.Module):
    """One direction of one layer: attention of ``x`` to ``source`` by the common map, then a feed-forward."""

    def __init__(self, *, dim: int, heads: int, width: int, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        self.v_proj, self.out_proj = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.xavier_uniform_(self.v_proj.weight)
        for zeros in (self.v_proj.bias, self.out_proj.weight, self.out_proj.bias):
            nn.init.zeros_(zeros)
        self.feedforward = FeedForward(dim=dim, hidden=feedforward) if feedforward else None

    def forward(self, x: Tensor, source: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x`` after the layer, and the attention output added to it."""
        value = split_heads(self.v_proj(source), self.heads)
        gathered = by_rows(lambda rows: self.out_proj(merge_heads(attend(rows, key, value))), query)
        return by_rows(self._changed, x.expand_as(gathered), gathered), gathered

    def _changed(self, x: Tensor, gathered: Tensor) -> Tensor:
        x = x + gathered
        return x if self.feedforward is None else self.feedforward(x)


class _DualModalLayer(nn.Module):
    """Both directions in parallel, from the same inputs; a direction that is switched off has no parameters."""

    def __init__(self, *, dim: int, heads: int, width: int, direction: str, feedforward: int) -> None:
        super().__init__()
        self.heads = heads
        attends = {name: direction in ("both", name) for name in ("labels", "patches")}
        # A side that is only attended to needs no bias: a constant added to all keys leaves a softmax unchanged.
        self.label_proj = nn.Linear(dim, width, bias=attends["labels"])
        self.patch_proj = nn.Linear(dim, width, bias=attends["patches"])
        for layer in (self.label_proj, self.patch_proj):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        shared = {"dim": dim, "heads": heads, "width": width}
        self.labels = _Side(feedforward=feedforward, **shared) if attends["labels"] else None
        # A feed-forward of the many patches would cost most of the block, and gained nothing (docs/results.md).
        self.patches = _Side(feedforward=0, **shared) if attends["patches"] else None

    def forward(self, labels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, _Factors, Tensor | None]:
        """Return both after the layer, the factors of the map, and the attention output for the labels."""
        inside = standardise(labels), standardise(patches)
        of_labels, of_patches = (
            split_heads(project(x), self.heads)
            for project, x in zip((self.label_proj, self.patch_proj), inside, strict=True)
        )
        new_labels, new_patches, gathered = labels, patches, None
        if self.labels is not None:
            new_labels, gathered = self.labels(labels, inside[1], of_labels, of_patches)
        if self.patches is not None:
            new_patches, _ = self.patches(patches, inside[0], of_patches, of_labels)
        return new_labels, new_patches, (of_labels, of_patches), gathered


class DualModalAttention(Block):
    """Attention of labels to patches and of patches to labels, in parallel, from the same inputs, by one matrix.

    With ``S = (Q LN T)(K LN X)ᵀ / √e`` for each head, ``T' = T + Out_t(softmax(S) V_x LN X)`` and ``X' = X +
    Out_x(softmax(Sᵀ) V_t LN T)``, then optionally for the labels ``T' + W2 gelu(W1 LN T')``; the last projection of
    every branch is zero at the start. Both directions share one matrix of similarities (as in GLIP, arXiv 2112.03857);
    a matrix for each direction gained nothing (docs/results.md).

    Patches that attend to labels mix them: adding a label then changes the others' scores. Labels that attend to
    patches do not.

    Args:
        dim: Joint width ``d``, a multiple of ``heads``.
        heads: Number of heads ``h``.
        direction: The sides that attend: ``"both"``, ``"labels"`` or ``"patches"`` alone, or ``"none"``.
        layers: Number of layers.
        width: Width of the attention inside, a multiple of ``heads``; None: ``d``.
        feedforward: Hidden width of the labels' feed-forward after the attention; 0 for none.

    Example:
        >>> import torch
        >>> block = DualModalAttention(dim=8, heads=2, direction="labels")
        >>> out = block(torch.ones(5, 8), torch.ones(3, 7, 8), maps=True)
        >>> out.labels.shape, out.patches.shape, out.label_maps[0].shape, out.patch_maps
        (torch.Size([3, 5, 8]), torch.Size([3, 7, 8]), torch.Size([3, 2, 5, 7]), ())
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 8,
        direction: Direction = "both",
        layers: int = 1,
        width: int | None = None,
        feedforward: int = 0,
    ) -> None:
        super().__init__(dim=dim, heads=heads, direction=direction, layers=layers, width=width, feedforward=feedforward)
        inner = dim if width is None else width
        require_int("dim", dim, least=1)
        require_heads(inner, heads, name="dim" if width is None else "width")
        require_choice("direction", direction, get_args(Direction))
        require_int("layers", layers, least=1)
        require_int("feedforward", feedforward, least=0)
        self.dim, self.direction = dim, direction
        self.layers = nn.ModuleList(
            _DualModalLayer(dim=dim, heads=heads, width=inner, direction=direction, feedforward=feedforward)
            for _ in range(layers if direction != "none" else 0)
        )

    def forward(
        self, labels: Float[Tensor, "c d"] | Float[Tensor, "b c d"], patches: Float[Tensor, "b n d"], maps: bool = False
    ) -> DualModalOutput:
        """Attend from labels to patches and from patches to labels.

        Args:
            labels: ``c d``, shared by all images and projected once; or ``b c d``.
            patches: ``b n d``.
            maps: Whether to return the attention maps, float32.

        Raises:
            ShapeError: where the axes do not fit.
        """
        like = next(self.parameters(), patches)
        axes = expect("patches", patches, "b n d", dtype="float", like=like, d=self.dim)
        if not isinstance(labels, Tensor) or labels.dim() == 2:
            expect("labels", labels, "c d", dtype="float", like=like, d=self.dim)
        else:
            expect("labels", labels, "b c d", dtype="float", like=like, b=axes["b"], d=self.dim)
        if axes["n"] == 0 or labels.shape[-2] == 0:
            # A softmax over an empty axis is NaN.
            raise ShapeError(f"labels, patches: expected one of each or more, got c={labels.shape[-2]}, n={axes['n']}")
        label_maps: list[Tensor] = []
        patch_maps: list[Tensor] = []
        gathered: Tensor | None = None
        for layer in self.layers:
            labels, patches, factors, gathered = layer(labels, patches)
            if maps and layer.labels is not None:
                label_maps.append(attention_map(*factors))
            if maps and layer.patches is not None:
                patch_maps.append(attention_map(*factors[::-1]))
        if labels.dim() == 2:
            labels = labels.expand(axes["b"], -1, -1)
        return DualModalOutput(labels, patches, tuple(label_maps), tuple(patch_maps), gathered)
