"""Every block and every differentiable function in its main configurations, for laws that hold for all of them.

A case takes tensors by name and axes, and yields a flat tuple of tensors, so that one test serves all cases.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from helpers.strategies import Draw, perturb, tensors
from helpers.toy_text import WordTower
from pvlr.core import functional as lib
from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, LabelRelation, MultiHeadAttention, RelationMap
from pvlr.core.base import base_scores
from pvlr.core.block import Block
from pvlr.core.functional import splice_context
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.losses import asymmetric_loss, binary_cross_entropy
from pvlr.core.mixture import Mixture, mixing_weights
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.protocols import PromptTokens
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling

HEADS, DIM, SOURCE, WIDTH, TOKENS, LENGTH = 2, 4, 9, 3, 2, 7
ANCHORS, PARTS = 3, 2
FIXED = {"h": HEADS, "d": DIM, "e": DIM // HEADS, "f": 3, "k": SOURCE, "w": WIDTH, "m": TOKENS, "t": LENGTH, "one": 1}
FIXED |= {"a": ANCHORS, "p": PARTS}
# The axes a program has to leave open; no two alike, and none 1, which tracers take for a constant.
OPEN = {"b": 2, "c": 3, "n": 4}
OTHER = ({"b": 6, "c": 8, "n": 10}, {"b": 1, "c": 1, "n": 1})
USED = LENGTH - 2


class TableTower(WordTower, nn.Module):
    """A text tower as a module, so that it moves and is saved as one; who reads it makes its own token ids."""

    def __init__(self) -> None:
        super().__init__()
        draw = Draw(0, torch.get_default_dtype())
        self.dim, self.width, self.context_length = DIM, WIDTH, LENGTH
        for name, shape in (("table", (11, WIDTH)), ("places", (LENGTH, WIDTH)), ("out", (WIDTH, DIM))):
            self.register_parameter(name, nn.Parameter(draw.normal(*shape)))

    def encode(self, sentences: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def encode_context(self, context: Tensor, prompts: PromptTokens) -> Tensor:
        return self.run(splice_context(self.embed(prompts.ids), context, prompts.start), prompts.end)


class Flat(nn.Module):
    """A block (or none) and what is done with it, as a module from tensors to a tuple of tensors."""

    def __init__(self, use: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.use, self.parts = use, nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors(self.use(*self.parts, *inputs)))


@dataclass(frozen=True)
class Case:
    """Case of a law: a block or function, and its tensors.

    Args:
        name: For the test's name.
        use: From the parts and the tensors to any nested output.
        axes: Argument as messages name it, to its axes.
        parts: What makes the parts.
        fixed: Open axes that this case holds at one size.
        kinds: Arguments of other contents than normal numbers, to what draws them.
        scores: Whether all outputs are float32 under autocast.
        widths: Whether the argument's width has to be that of the parameters.
    """

    name: str
    use: Callable[..., Any]
    axes: dict[str, str]
    parts: Callable[[], Iterable[nn.Module]] = tuple
    fixed: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, Callable[..., Tensor]] = field(default_factory=dict)
    scores: bool = False
    widths: bool = True

    def build(self, seed: int | None = 1, dtype: torch.dtype = torch.float64) -> Flat:
        """Build the module; with ``seed`` every parameter is away from its start."""
        module = Flat(self.use, *self.parts()).to(dtype)
        return module if seed is None else perturb(module, Draw(seed), 0.3)

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64, **open_axes: int) -> tuple[Tensor, ...]:
        sizes = FIXED | OPEN | open_axes | self.fixed
        draw = Draw(seed)
        made = (
            self.kinds.get(name, Draw.normal)(draw, *(sizes[axis] for axis in axes.split()))
            for name, axes in self.axes.items()
        )
        return tuple(x.to(dtype) if x.is_floating_point() else x for x in made)

    def dynamic(self, dims: dict[str, Any]) -> tuple[dict[int, Any], ...]:
        """Map every argument's positions of an open axis to its dimension."""
        open_axes = set(dims) - set(self.fixed)
        return tuple(
            {position: dims[axis] for position, axis in enumerate(axes.split()) if axis in open_axes}
            for axes in self.axes.values()
        )

    def floats(self) -> list[int]:
        """Positions of the arguments that gradient flows to."""
        return [i for i, x in enumerate(self.inputs()) if x.is_floating_point()]


def block(name: str, make: Callable[[], Block], use: Callable[..., Any] | None = None, **options: Any) -> Case:
    return Case(name, use or (lambda block, *inputs: block(*inputs)), parts=lambda: (make(),), **options)


def ids(draw: Draw, *shape: int) -> Tensor:
    return (draw.uniform(*shape) * 11).long()


def ends(draw: Draw, *shape: int) -> Tensor:
    return (TOKENS + draw.uniform(*shape) * (USED - TOKENS)).long()


def some(draw: Draw, *shape: int) -> Tensor:
    return draw.chance(0.6, *shape)


def members(draw: Draw, *shape: int) -> Tensor:
    return (draw.uniform(*shape) * (ANCHORS + 1)).long() - 1


def counts(draw: Draw, *shape: int) -> Tensor:
    return 1 + 30 * draw.uniform(*shape)


def relate(prompter: ContextPrompter, *inputs: Tensor) -> Any:
    return prompter.relate(*inputs)


def encode(prompter: ContextPrompter, tower: TableTower, tokens: Tensor, end: Tensor) -> Tensor:
    return prompter.encode(tower, PromptTokens(ids=tokens, start=0, length=TOKENS, end=end, used=USED))


def fuse(fusion: FusionBlock, knowledge: Tensor, context: Tensor, *factors: Tensor) -> Tensor:
    maps = (RelationMap(*factors[:2]), RelationMap(*factors[2:])) if factors else ()
    return fusion(knowledge, context, *maps)


def whole(adapter: VisualAdapter, *inputs: Tensor) -> Tensor:
    return adapter.whole(*inputs)


def rows(residual: LabelResidual, members: Tensor) -> Any:
    return residual.rows(members)


def compare(head: SimilarityHead, patches: Tensor, labels: Tensor, *rest: Tensor) -> Tensor:
    return head(patches, labels, **dict(zip(("looked", "visual", "whole"), rest, strict=True)))


def assembled(
    know: KnowledgePrompter,
    see: ContextPrompter,
    residual: LabelResidual,
    fusion: FusionBlock,
    adapter: VisualAdapter,
    look: DualModalAttention,
    semantic: SemanticPooling,
    head: SimilarityHead,
    mixture: Mixture,
    *inputs: Tensor,
) -> Tensor:
    """All blocks from label vectors and patches to logits."""
    hard, soft, members, positives, patches, pooled, source = inputs
    knowledge, knowledge_map = know(hard)
    context, context_map = see.relate(residual(soft, members))
    own, bias = residual.rows(members)
    labels = fusion(knowledge, context, knowledge_map, context_map)
    seen = adapter(patches)
    out = look(labels, seen)
    visual = semantic(seen, soft, out.gathered)
    of_whole = adapter.whole(pooled, source)
    learned = head(out.patches, labels, looked=out.labels, visual=visual, whole=of_whole)
    learned = learned + (lib.standardise(source).unsqueeze(1) * own).sum(dim=-1) + bias
    base = base_scores(patches, pooled, soft, parts=("competition", "focused"), scale=3.0) if mixture.parts else None
    return mixture(base, learned, positives)


SHARED = {"dim": DIM, "heads": HEADS}


def all_blocks(parts: int) -> Callable[[], Iterable[nn.Module]]:
    return lambda: (
        KnowledgePrompter(source_dim=SOURCE, **SHARED),
        ContextPrompter(width=WIDTH, **SHARED),
        LabelResidual(labels=ANCHORS, dim=DIM, source_dim=SOURCE),
        FusionBlock(**SHARED),
        VisualAdapter(dim=DIM, adapter_width=3, source_dim=SOURCE),
        DualModalAttention(feedforward=3, width=6, **SHARED),
        SemanticPooling(dim=DIM, feedforward=3, sharpness=2.0),
        SimilarityHead(scale=3.0, bias=-1.0, whole=0.3),
        Mixture(parts=parts).eval(),
    )


MAPS = {f"{side}_map.{factor}": "h c e" for side in ("knowledge", "context") for factor in ("query", "key")}
BOTH = {"knowledge": "c d", "context": "c d"}
OF_IMAGE = {"knowledge": "c d", "context": "b c d"}
MAPS_OF_IMAGE = MAPS | {f"context_map.{factor}": "b h c e" for factor in ("query", "key")}
LOOK = {"labels": "c d", "patches": "b n d"}
LOOK_OWN = {"labels": "b c d", "patches": "b n d"}
SCORE = {"patches": "b n d", "labels": "c d"}
SCORE_OWN = {"patches": "b n d", "labels": "b c d"}

SCORE_ALL = SCORE | {"looked": "b c d", "visual": "b c d", "whole": "b d"}
GATHER = {"patches": "b n d", "knowledge": "c d"}
GATHER_OWN = {"patches": "b n d", "knowledge": "b c d", "gathered": "b c d"}
MIX = {"base": "b c p", "learned": "b c", "positives": "c"}
MEMBERS, POSITIVES = {"members": members}, {"positives": counts}

KNOW, CONTEXT, FUSE, DUAL = KnowledgePrompter, ContextPrompter, FusionBlock, DualModalAttention
BLOCKS = [
    block(
        "multi-head", lambda: MultiHeadAttention(zero_out=False, **SHARED), axes={"queries": "c d", "source": "b n d"}
    ),
    block(
        "multi-head-zero", lambda: MultiHeadAttention(zero_out=True, **SHARED), axes={"queries": "c d", "source": "n d"}
    ),
    block(
        "multi-head-wide",
        lambda: MultiHeadAttention(zero_out=False, width=6, **SHARED),
        axes={"queries": "c d", "source": "b n d"},
    ),
    block("relation", lambda: LabelRelation(**SHARED), axes={"labels": "c d"}),
    block("relation-batch", lambda: LabelRelation(**SHARED), axes={"labels": "b c d"}),
    block("knowledge", lambda: KNOW(**SHARED), axes={"vectors": "c d"}),
    block("knowledge-projected", lambda: KNOW(source_dim=SOURCE, **SHARED), axes={"vectors": "c k"}),
    block("knowledge-unrelated", lambda: KNOW(source_dim=SOURCE, relation="none", **SHARED), axes={"vectors": "c k"}),
    block("knowledge-as-it-is", lambda: KNOW(relation="none", **SHARED), axes={"vectors": "c d"}),
    block("context", lambda: CONTEXT(width=WIDTH, std=0.5, **SHARED), relate, axes={"vectors": "c d"}),
    block(
        "context-unrelated",
        lambda: CONTEXT(width=WIDTH + 1, relation="none", **SHARED),
        relate,
        axes={"vectors": "c d"},
    ),
    Case(
        "encode",
        encode,
        {"prompts.ids": "c t", "prompts.end": "c"},
        lambda: (CONTEXT(width=WIDTH, context_tokens=TOKENS, **SHARED), TableTower()),
        kinds={"prompts.ids": ids, "prompts.end": ends},
        scores=True,
        widths=False,
    ),
    block("fusion", lambda: FUSE(**SHARED), fuse, axes=BOTH | MAPS),
    block("fusion-of-image", lambda: FUSE(**SHARED), fuse, axes=OF_IMAGE | MAPS_OF_IMAGE),
    block("fusion-not-given-maps", lambda: FUSE(**SHARED), fuse, axes=OF_IMAGE),
    block("fusion-without-maps", lambda: FUSE(maps=False, **SHARED), fuse, axes=OF_IMAGE),
    *(
        block(f"fusion-{fusion}", lambda fusion=fusion: FUSE(fusion=fusion, **SHARED), fuse, axes=BOTH)
        for fusion in ("sum", "knowledge", "context")
    ),
    block("dual", lambda: DUAL(**SHARED), axes=LOOK),
    block("dual-maps", lambda: DUAL(**SHARED), lambda block, *inputs: block(*inputs, maps=True), axes=LOOK_OWN),
    block("dual-deep", lambda: DUAL(layers=2, feedforward=3, **SHARED), axes=LOOK),
    block("dual-own", lambda: DUAL(feedforward=3, **SHARED), axes=LOOK_OWN),
    block("dual-labels", lambda: DUAL(direction="labels", **SHARED), axes=LOOK),
    block("dual-patches", lambda: DUAL(direction="patches", **SHARED), axes=LOOK),
    block("dual-none", lambda: DUAL(direction="none", **SHARED), axes=LOOK),
    block("dual-wide", lambda: DUAL(width=6, layers=2, **SHARED), axes=LOOK),
    block("adapter", lambda: VisualAdapter(dim=DIM, adapter_width=3), axes={"patches": "b n d"}),
    block("adapter-length", lambda: VisualAdapter(dim=DIM, adapter_width=0), axes={"patches": "b n d"}),
    block(
        "adapter-whole",
        lambda: VisualAdapter(dim=DIM, adapter_width=0, source_dim=SOURCE),
        whole,
        axes={"pooled": "b d", "source": "b k"},
    ),
    block("semantic", lambda: SemanticPooling(dim=DIM, feedforward=3, sharpness=2.0), axes=GATHER),
    block("semantic-gathered", lambda: SemanticPooling(dim=DIM, feedforward=3, sharpness=2.0), axes=GATHER_OWN),
    block("semantic-alone", lambda: SemanticPooling(dim=DIM, feedforward=0, sharpness=3.0), axes=GATHER, widths=False),
    block(
        "residual",
        lambda: LabelResidual(labels=ANCHORS, dim=DIM),
        axes={"vectors": "c d", "members": "c"},
        kinds=MEMBERS,
    ),
    block(
        "residual-rows",
        lambda: LabelResidual(labels=ANCHORS + 1, dim=DIM, source_dim=SOURCE),
        rows,
        axes={"members": "c"},
        kinds=MEMBERS,
    ),
    block("head", lambda: SimilarityHead(scale=3.0, bias=-1.0), axes=SCORE, scores=True, widths=False),
    block("head-own", lambda: SimilarityHead(patches=2.0), axes=SCORE_OWN, scores=True, widths=False),
    block("head-all", lambda: SimilarityHead(scale=3.0, whole=0.7), compare, axes=SCORE_ALL, scores=True, widths=False),
    block("mixture", lambda: Mixture(parts=PARTS).eval(), axes=MIX, kinds=POSITIVES, scores=True, widths=False),
    block(
        "mixture-training",
        lambda: Mixture(parts=PARTS, drop=0.0, shrinkage=7.0, bias=-1.0).train(),
        axes=MIX,
        kinds=POSITIVES,
        scores=True,
        widths=False,
    ),
    block(
        "mixture-no-base",
        lambda: Mixture(parts=0).eval(),
        lambda block, learned: block(None, learned),
        axes={"learned": "b c"},
        scores=True,
        widths=False,
    ),
    block(
        "mixture-base-alone",
        lambda: Mixture(parts=PARTS).eval(),
        lambda block, base: block(base, None),
        axes={"base": "b c p"},
        scores=True,
        widths=False,
    ),
]

TOGETHER = [
    Case(
        f"assembled-{name}",
        assembled,
        {"hard": "c k", "soft": "c d", "members": "c", "positives": "c"}
        | {"patches": "b n d", "pooled": "b d", "source": "b k"},
        all_blocks(parts),
        kinds=MEMBERS | POSITIVES,
        scores=True,
    )
    for name, parts in (("on-base", 2), ("alone", 0))
]

QK = {"query": "h c e", "key": "b h n e"}
QKV = QK | {"value": "b h n f"}
TARGET = {"logits": "b c", "target": "b c"}
PARTIAL = TARGET | {"known": "b c"}
NAMED = {"patches": "b n d", "pooled": "b d", "labels": "c d"}
ANCHORED = NAMED | {"anchors": "a d"}
BASE = ("best", "competition", "pooled", "focused")


def against_anchors(patches: Tensor, pooled: Tensor, labels: Tensor, anchors: Tensor, *members: Tensor) -> Tensor:
    return base_scores(
        patches, pooled, labels, parts=BASE, scale=3.0, anchors=anchors, members=members[0] if members else None
    )


FUNCTIONS = [
    Case("split_heads", lambda x: lib.split_heads(x, HEADS), {"x": "b n d"}),
    Case("merge_heads", lib.merge_heads, {"x": "b h n e"}),
    Case("attend", lib.attend, QKV),
    Case("attend-alone", lib.attend, {"query": "h c e", "key": "h n e", "value": "h n f"}),
    Case("attend-mask", lib.attend, QKV | {"mask": "b one c n"}, kinds={"mask": some}),
    Case("attend-bias", lib.attend, QKV | {"mask": "c n"}),
    Case("attention_map", lib.attention_map, QK, scores=True),
    Case("attention_map-mask", lib.attention_map, QK | {"mask": "b one c n"}, kinds={"mask": some}, scores=True),
    Case("attention_map-bias", lib.attention_map, QK | {"mask": "c n"}, scores=True),
    Case("gate", lib.gate, {"logits": "b c d", "a": "c d", "b": "b c d"}),
    Case("fuse_maps", lib.fuse_maps, {"map_a": "h c n", "map_b": "b h c n", "mix": "h"}),
    Case("cosine_scores", lib.cosine_scores, {"image": "b n d", "labels": "c d"}, scores=True),
    Case("cosine_scores-own", lib.cosine_scores, {"image": "b n d", "labels": "b c d"}, scores=True),
    *(
        Case(f"pool_regions-{how}", lambda x, how=how: lib.pool_regions(x, how, 0.7), {"scores": "b n c"}, scores=True)
        for how in ("max", "mean", "softmax")
    ),
    Case("base_scores", lambda *x: base_scores(*x, parts=BASE, scale=3.0), NAMED, scores=True),
    Case("base_scores-pooled", lambda *x: base_scores(*x, parts=("pooled",), scale=3.0), NAMED, scores=True),
    Case("base_scores-anchors", against_anchors, ANCHORED, scores=True),
    Case("base_scores-members", against_anchors, ANCHORED | {"members": "c"}, kinds=MEMBERS, scores=True),
    Case("mixing_weights", lambda x: mixing_weights(x, 20.0), {"positives": "c"}, kinds=POSITIVES, scores=True),
    Case("splice_context", lambda e, c: lib.splice_context(e, c, 1), {"embeddings": "c t w", "context": "m w"}),
    Case("splice_context-own", lambda e, c: lib.splice_context(e, c, 1), {"embeddings": "c t w", "context": "c m w"}),
    Case(
        "asymmetric_loss",
        lambda *x: asymmetric_loss(*x, gamma_pos=1.0, gamma_neg=2.0, clip=0.05),
        PARTIAL,
        kinds={"target": Draw.uniform, "known": some},
        scores=True,
    ),
    Case("asymmetric_loss-whole", asymmetric_loss, TARGET, kinds={"target": Draw.uniform}, scores=True),
    Case(
        "binary_cross_entropy",
        binary_cross_entropy,
        PARTIAL,
        kinds={"target": Draw.uniform, "known": some},
        scores=True,
    ),
]

MATRIX = [*BLOCKS, *TOGETHER, *FUNCTIONS]


def again(module: Block) -> Block:
    """Another of the same configuration, which went through JSON."""
    return type(module)(**json.loads(json.dumps(module.config)))
