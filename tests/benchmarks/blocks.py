"""Everything after the towers, beside plain layers that do less: time and memory per number of labels."""

import math
from collections.abc import Callable, Iterator

import torch
from measure import Measured, measure, table
from torch import Tensor, nn

BATCH, PATCHES, WIDTH, HEADS, HIDDEN = 16, 196, 512, 8, 2048


class Blocks(nn.Module):
    """Relation of both kinds of label vectors, fusion, attention both ways, similarity."""

    def __init__(self, labels: int, maps: bool, feedforward: int = 0) -> None:
        super().__init__()
        from pvlr.core import DualModalAttention, FusionBlock, KnowledgePrompter, LabelRelation, SimilarityHead

        self.knowledge, self.context = KnowledgePrompter(dim=WIDTH), LabelRelation(dim=WIDTH)
        self.fusion, self.head = FusionBlock(dim=WIDTH), SimilarityHead()
        self.attention = DualModalAttention(dim=WIDTH, feedforward=feedforward)
        self.vectors = nn.Parameter(torch.randn(labels, WIDTH))
        self.register_buffer("fixed", torch.randn(labels, WIDTH))
        self.maps = maps

    def label_vectors(self) -> Tensor:
        """Label vectors, which no image changes, ``c d``."""
        knowledge, knowledge_map = self.knowledge(self.fixed)
        context, context_map = self.context(self.vectors)
        return self.fusion(knowledge, context, knowledge_map, context_map)

    def forward(self, patches: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``b c``."""
        out = self.attention(self.label_vectors() if labels is None else labels, patches, maps=self.maps)
        return self.head(out.patches, out.labels)


class Complete(Blocks):
    """All of PVLR after the towers, compared as its forward pass does, with the sizes that `PVLRConfig` has."""

    def __init__(self, labels: int) -> None:
        super().__init__(labels, maps=False, feedforward=512)
        from pvlr.core import Mixture, SemanticPooling, VisualAdapter

        self.adapter, self.semantic = VisualAdapter(dim=WIDTH), SemanticPooling(dim=WIDTH, feedforward=512)
        self.mixture = Mixture(parts=3)
        self.own, self.bias = nn.Parameter(torch.randn(labels, WIDTH)), nn.Parameter(torch.zeros(labels))

    def forward(self, patches: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``b c``."""
        from pvlr.core.models.output import Comparison, LabelRows, Learned

        vectors, ones = self.label_vectors() if labels is None else labels, torch.ones_like(self.bias)
        compare = Comparison(
            mixture=self.mixture, parts=("competition", "focused", "pooled"), scale=10.0, anchors=self.fixed,
            sees="both", learned=Learned(self.adapter, self.attention, self.semantic, self.head),
        )  # fmt: skip
        rows = LabelRows(vectors, self.fixed, self.own, self.bias, 10 * ones, ones)
        return compare(torch.cat([patches[:, :1], patches], dim=1), rows).logits


class OneDirection(nn.Module):
    """One layer in which labels look at patches, with a feed-forward; then one product per label."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.queries, self.weight = (nn.Parameter(torch.randn(labels, WIDTH)) for _ in range(2))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, patches: Tensor) -> Tensor:
        """Logits ``b c``."""
        x = self.queries.expand(len(patches), -1, -1)
        x = self.norms[0](x + self.attention(x, patches, patches, need_weights=False)[0])
        x = self.norms[1](x + self.down(torch.relu(self.up(x))))
        return (x * self.weight).sum(dim=-1)


class Decoder(nn.Module):
    """``nn.TransformerDecoderLayer`` over one query per label, as in Query2Label; then one product per label."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.queries, self.weight = (nn.Parameter(torch.randn(labels, WIDTH)) for _ in range(2))
        self.layer = nn.TransformerDecoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits ``b c``."""
        x = self.layer(self.queries.expand(len(patches), -1, -1), patches)
        return (x * self.weight).sum(dim=-1)


class GroupDecoder(nn.Module):
    """ML-Decoder: at most 100 fixed group queries look at the patches, each then scores its share of labels."""

    def __init__(self, labels: int, groups: int = 100) -> None:
        super().__init__()
        groups = min(groups, labels)
        self.labels, share = labels, math.ceil(labels / groups)
        self.register_buffer("queries", torch.randn(groups, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.weight = nn.Parameter(torch.randn(groups, WIDTH, share))

    def forward(self, patches: Tensor) -> Tensor:
        """Logits ``b c``."""
        x = self.norms[0](2 * self.queries).expand(len(patches), -1, -1)
        x = self.norms[1](x + self.attention(x, patches, patches, need_weights=False)[0])
        x = self.norms[2](x + self.down(torch.relu(self.up(x))))
        return torch.einsum("bgd,gds->bgs", x, self.weight).flatten(1)[:, : self.labels]


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "pvlr, both directions": lambda labels: Blocks(labels, maps=False),
    "pvlr, with its attention maps": lambda labels: Blocks(labels, maps=True),
    "pvlr, complete": Complete,
    "pvlr, with the labels' feed-forward of 512": lambda labels: Blocks(labels, maps=False, feedforward=512),
    "one cross-attention layer": OneDirection,
    "nn.TransformerDecoderLayer": Decoder,
    "group decoder": GroupDecoder,
}


def training_step(kind: str, labels: int) -> Callable[[], object]:
    """Forward and backward to every parameter; the patches are those of a frozen tower."""
    model, patches = KINDS[kind](labels), torch.randn(BATCH, PATCHES, WIDTH)
    weight = torch.randn(BATCH, labels)

    def work() -> None:
        model.zero_grad()
        (model(patches) * weight).sum().backward()

    return work


def inference(labels: int, kept: bool) -> Callable[[], object]:
    """Forward alone, without gradients; with the label vectors kept from an earlier batch, or computed anew."""
    model, patches = Complete(labels).eval(), torch.randn(BATCH, PATCHES, WIDTH)
    with torch.no_grad():
        vectors = model.label_vectors() if kept else None

    def work() -> None:
        with torch.no_grad():
            model(patches, vectors)

    return work


def tower_or_head(part: str) -> Callable[[], object]:
    """ViT-B/16 at 224, or all that PVLR adds to it: 80 labels, forward alone, label vectors kept."""
    import open_clip

    from pvlr.core import PVLR, LabelSet, PVLRConfig
    from pvlr.core.towers.image.tower import OpenClipImageTower
    from pvlr.core.towers.text.open_clip import OpenClipTextTower

    clip = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).eval()
    text = OpenClipTextTower(clip, open_clip.get_tokenizer("ViT-B-16-quickgelu"))
    image = OpenClipImageTower(clip.visual)
    model = PVLR(PVLRConfig(), LabelSet(tuple(f"thing {i}" for i in range(80))), text, image).eval()
    images, regions = torch.randn(BATCH, 3, 224, 224), torch.randn(BATCH, 1 + PATCHES, WIDTH)

    def work() -> None:
        with torch.no_grad():
            clip.encode_image(images) if part == "tower" else model.forward_features(regions)

    return work


def report() -> Iterator[str]:
    """The tables, ratio first."""
    header = ("model", "time", "memory", "seconds", "MiB")
    said = f"batch {BATCH}, {PATCHES} patches, width {WIDTH}, {HEADS} heads, float32"
    for labels in (80, 1000):
        found = {kind: measure(training_step, repeat=5, kind=kind, labels=labels) for kind in KINDS}
        yield table(f"{labels:,} labels, forward + backward: {said}", header, _beside(found, "pvlr, both directions"))
    ways = {"label vectors kept": True, "label vectors anew": False}
    large = {way: measure(inference, repeat=2, labels=10_000, kept=kept) for way, kept in ways.items()}
    yield table(f"10,000 labels, forward alone: {said}", header, _beside(large, "label vectors kept"))
    parts = {part: measure(tower_or_head, repeat=5, part=part) for part in ("tower", "head")}
    rows = {"ViT-B/16 image tower at 224": parts["tower"], "all that PVLR adds, 80 labels": parts["head"]}
    share = parts["head"].seconds / parts["tower"].seconds
    title = f"Forward alone, batch {BATCH}, label vectors kept: PVLR adds {100 * share:.1f} % to its tower's time"
    yield table(title, header, _beside(rows, "ViT-B/16 image tower at 224"))


def _beside(found: dict[str, Measured], unit: str) -> list[tuple[str, ...]]:
    one = found[unit]
    return [
        (kind, f"{cost.seconds / one.seconds:.2f}×", f"{cost.megabytes / one.megabytes:.2f}×",
         f"{cost.seconds:.3f}", f"{cost.megabytes:,.0f}")
        for kind, cost in found.items()
    ]  # fmt: skip
