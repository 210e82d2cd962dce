"""Decoder heads of published methods: a query for each label (Query2Label) or group of labels (ML-Decoder)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_heads, require_int
from pvlr.core.attention import MultiHeadAttention
from pvlr.core.block import Block
from pvlr.core.shapes import expect

__all__ = ["GroupDecoder", "LabelDecoder", "sine_places"]


def sine_places(grid: int, dim: int, *, temperature: float = 10000.0) -> Float[Tensor, "n d"]:
    """Return sine and cosine position embeddings of patches: half of the width encodes the row, half the column.

    Carion et al., "End-to-End Object Detection with Transformers", arXiv 2005.12872: with ``y`` (then ``x``) running
    from ``2π/grid`` to ``2π``, channels ``2i`` and ``2i + 1`` are ``sin`` and ``cos`` of ``y / T^(4i/d)``.

    Args:
        grid: Patches along one side; ``n = grid²``, row by row.
        dim: Width ``d``, a multiple of 4.
        temperature: ``T``.

    Raises:
        ValueError: where the width is not a multiple of 4.

    Example:
        >>> places = sine_places(2, 4)
        >>> places.shape, places[0].round().tolist()  # sine and cosine of π, for the row and the column
        (torch.Size([4, 4]), [-0.0, -1.0, -0.0, -1.0])
    """
    require_int("grid", grid, least=1)
    require_int("dim", dim, least=1)
    if dim % 4:
        raise ValueError(f"dim: expected a multiple of 4, got {dim}")
    position = torch.arange(1, grid + 1) / grid * 2 * math.pi
    wavelength = temperature ** (torch.arange(0, dim // 2, 2) / (dim // 2))
    angle = position[:, None] / wavelength
    side = rearrange([angle.sin(), angle.cos()], "two grid i -> grid (i two)")
    row, column = side[:, None].expand(-1, grid, -1), side[None].expand(grid, -1, -1)
    return rearrange(torch.cat([row, column], dim=-1), "row column d -> (row column) d")


class _Layer(nn.Module):
    """Decoder layer ``x ← LN(x + MHA(q=x + p_x, k=s + p_s, v=s))``, then ``x ← LN(x + W2 relu(W1 x))``."""

    def __init__(self, *, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim=dim, heads=heads, zero_out=False)
        self.norm_attended, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, source: Tensor, places: Tensor | None, x_places: Tensor | None) -> Tensor:
        key, value = self.attention.project_key_value(source, places)
        query = self.attention.project_query(x if x_places is None else x + x_places)
        x = self.norm_attended(x + self.attention.combine(query, key, value))
        out: Tensor = self.norm(x + self.down(F.relu(self.up(x))))
        return out


class LabelDecoder(Block):
    """Decoder with a learned query and a classifier per label, attending to the patches, after Query2Label.

    Liu et al., "Query2Label: A Simple Transformer Way to Multi-Label Classification", arXiv 2107.10834, in the form
    of their code: post-norm layers, no self-attention among the queries, positions added to queries and keys alone,
    a norm after the last layer, ``logit_c = w_c · x_c + b_c``. Without dropout.

    Args:
        classes: Number of labels ``c``; it is fixed.
        grid: Patches along one side.
        source_dim: Width of the patches; they are projected where it is not ``dim``.
        dim: Width of the decoder, a multiple of 4 and of ``heads``.
        heads: Heads of every attention.
        hidden: Width of the feed-forwards.
        encoder_layers: Layers in which patches attend to each other first.
        decoder_layers: Layers in which queries attend to the patches.

    Example:
        >>> LabelDecoder(classes=3, grid=2, source_dim=6, dim=8, heads=2, hidden=16)(torch.ones(5, 4, 6)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        *,
        classes: int,
        grid: int,
        source_dim: int,
        dim: int,
        heads: int = 4,
        hidden: int = 2048,
        encoder_layers: int = 1,
        decoder_layers: int = 2,
    ) -> None:
        super().__init__(
            classes=classes, grid=grid, source_dim=source_dim, dim=dim, heads=heads, hidden=hidden,
            encoder_layers=encoder_layers, decoder_layers=decoder_layers,
        )  # fmt: skip
        for name, number in (("classes", classes), ("source_dim", source_dim), ("hidden", hidden)):
            require_int(name, number, least=1)
        require_heads(dim, heads)
        require_int("encoder_layers", encoder_layers, least=0)
        require_int("decoder_layers", decoder_layers, least=1)
        self.source_dim = source_dim
        self.register_buffer("places", sine_places(grid, dim), persistent=False)
        self.projection = None if source_dim == dim else nn.Linear(source_dim, dim)
        self.encoder, self.decoder = (
            nn.ModuleList(_Layer(dim=dim, heads=heads, hidden=hidden) for _ in range(count))
            for count in (encoder_layers, decoder_layers)
        )
        self.queries = nn.Parameter(torch.randn(classes, dim))
        self.norm = nn.LayerNorm(dim)
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(classes, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(classes).uniform_(-bound, bound))

    places: Tensor

    def forward(self, patches: Float[Tensor, "b n k"]) -> Float[Tensor, "b c"]:
        """Compute logits from the patches of the whole grid.

        Raises:
            ShapeError: where the patches are of another number or width.
        """
        expect("patches", patches, "b n k", dtype="float", like=self.bias, n=len(self.places), k=self.source_dim)
        memory = patches if self.projection is None else self.projection(patches)
        for layer in self.encoder:
            memory = layer(memory, memory, self.places, self.places)
        x = torch.zeros_like(self.queries).expand(patches.shape[0], -1, -1)
        for layer in self.decoder:
            x = layer(x, memory, self.places, self.queries)
        logits: Tensor = (self.norm(x) * self.weight).sum(dim=-1) + self.bias
        return logits


class GroupDecoder(Block):
    """Decoder with a fixed random query per group of labels, attending to the patches, after ML-Decoder.

    Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", arXiv 2111.12933: patches are projected
    and passed through a ReLU, queries attend to them in one post-norm layer, and each group's vector is mapped to the
    logits of its labels. Two deviations from their code, which change no number: where they removed the self-attention
    they left ``q + q`` before a layer norm, which cancels the factor; and they compute each group's logits in a loop,
    whose backward pass grows with the square of the number of groups. Without dropout.

    Args:
        classes: Number of labels ``c``; it is fixed.
        groups: Number of queries, at most ``c``, each for ``⌈c / groups⌉`` labels. As many as labels: full decoding.
        source_dim: Width of the patches.
        dim: Width of the decoder, a multiple of ``heads``.
        heads: Heads of the attention.
        hidden: Width of the feed-forward.

    Example:
        >>> GroupDecoder(classes=5, groups=2, source_dim=6, dim=8, heads=2, hidden=16)(torch.ones(3, 4, 6)).shape
        torch.Size([3, 5])
    """

    def __init__(
        self, *, classes: int, groups: int, source_dim: int, dim: int = 768, heads: int = 8, hidden: int = 2048
    ) -> None:
        super().__init__(classes=classes, groups=groups, source_dim=source_dim, dim=dim, heads=heads, hidden=hidden)
        for name, number in (("classes", classes), ("groups", groups), ("source_dim", source_dim), ("hidden", hidden)):
            require_int(name, number, least=1)
        if groups > classes:
            raise ValueError(f"groups: expected at most one for each of the {classes} labels, got {groups}")
        require_heads(dim, heads)
        self.source_dim, self.classes = source_dim, classes
        self.projection = nn.Linear(source_dim, dim)
        self.register_buffer("queries", torch.randn(groups, dim))
        self.norm = nn.LayerNorm(dim)
        self.layer = _Layer(dim=dim, heads=heads, hidden=hidden)
        labels_per_group = -(-classes // groups)
        self.weight = nn.Parameter(torch.empty(groups, dim, labels_per_group))
        nn.init.xavier_normal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(classes))

    queries: Tensor

    def forward(self, patches: Float[Tensor, "b n k"]) -> Float[Tensor, "b c"]:
        """Compute logits from any number of patches.

        Raises:
            ShapeError: where the patches are of another width.
        """
        expect("patches", patches, "b n k", dtype="float", like=self.bias, k=self.source_dim)
        x = self.norm(self.queries).expand(patches.shape[0], -1, -1)
        x = self.layer(x, F.relu(self.projection(patches)), None, None)
        logits = torch.einsum("b g d, g d s -> b g s", x, self.weight).flatten(1)
        return logits[:, : self.classes] + self.bias
