"""Refusals of the blocks' constructors, argument by argument, in the words of the message."""

import pytest
import torch
from helpers.messages import pinned

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, LabelRelation, MultiHeadAttention
from pvlr.core.block import Block
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.mixture import Mixture
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling
from pvlr.core.shapes import ShapeError

BLOCKS: dict[type[Block], dict] = {
    MultiHeadAttention: {"dim": 8, "heads": 2, "zero_out": True},
    LabelRelation: {"dim": 8, "heads": 2},
    DualModalAttention: {"dim": 8, "heads": 2},
    FusionBlock: {"dim": 8, "heads": 2},
    SimilarityHead: {},
    VisualAdapter: {"dim": 8},
    SemanticPooling: {"dim": 8},
    LabelResidual: {"labels": 3, "dim": 8},
    Mixture: {"parts": 2},
    # Without relation: its own checks must not be what refuses.
    KnowledgePrompter: {"dim": 8, "heads": 2, "relation": "none"},
    ContextPrompter: {"width": 6, "dim": 8, "heads": 2, "relation": "none"},
}
WHOLE = "expected a whole number of at least {least}, got {value!r}"
ONE_OF = "expected one of {choices}, got {value!r}"
RELATIONS = "'attention', 'none'"


def numbers(name: str, least: int, *blocks: type[Block]) -> list[tuple[type[Block], dict, str]]:
    values = (least - 1, 2.0, True, "2")
    return [
        (block, {name: value}, f"{name}: {WHOLE.format(least=least, value=value)}")
        for block in blocks
        for value in values
    ]


def choices(name: str, allowed: str, *blocks: type[Block]) -> list[tuple[type[Block], dict, str]]:
    return [(block, {name: "?"}, f"{name}: {ONE_OF.format(choices=allowed, value='?')}") for block in blocks]


def booleans(name: str, block: type[Block]) -> list[tuple[type[Block], dict, str]]:
    values = ("false", 1, None)
    return [(block, {name: value}, f"{name}: expected True or False, got {value!r}") for value in values]


def positive(name: str, *blocks: type[Block]) -> list[tuple[type[Block], dict, str]]:
    values = (0.0, -1.0, float("inf"), float("nan"), "2")
    return [
        (block, {name: value}, f"{name}: expected a finite number > 0, got {value!r}")
        for block in blocks
        for value in values
    ]


WITH_HEADS = (MultiHeadAttention, LabelRelation, DualModalAttention, FusionBlock)
WITH_WIDTH = (MultiHeadAttention, DualModalAttention)
ADDED = (VisualAdapter, SemanticPooling, LabelResidual)
REFUSED = [
    *numbers("dim", 1, *WITH_HEADS, KnowledgePrompter, ContextPrompter, *ADDED),
    *numbers("heads", 1, *WITH_HEADS),
    *((block, {"dim": 9}, "dim: expected a multiple of heads=2, got 9") for block in WITH_HEADS),
    *numbers("width", 1, *WITH_WIDTH),
    *((block, {"width": 9}, "width: expected a multiple of heads=2, got 9") for block in WITH_WIDTH),
    # Where a width is given the joint one does not have to split.
    *((block, {"dim": 0, "width": 8}, "dim: expected a whole number of at least 1, got 0") for block in WITH_WIDTH),
    (DualModalAttention, {"dim": 9, "direction": "none"}, "dim: expected a multiple of heads=2, got 9"),
    (FusionBlock, {"dim": 9, "fusion": "sum"}, "dim: expected a multiple of heads=2, got 9"),
    *numbers("layers", 1, DualModalAttention),
    *numbers("feedforward", 0, DualModalAttention, SemanticPooling),
    *numbers("source_dim", 1, KnowledgePrompter),
    *numbers("source_dim", 0, VisualAdapter, LabelResidual),
    *numbers("adapter_width", 0, VisualAdapter),
    *numbers("labels", 1, LabelResidual),
    *numbers("parts", 0, Mixture),
    *numbers("width", 1, ContextPrompter),
    *numbers("context_tokens", 1, ContextPrompter),
    *choices("relation", RELATIONS, KnowledgePrompter, ContextPrompter),
    *choices("direction", "'both', 'labels', 'patches', 'none'", DualModalAttention),
    *choices("fusion", "'gate', 'sum', 'knowledge', 'context'", FusionBlock),
    *booleans("zero_out", MultiHeadAttention),
    *booleans("maps", FusionBlock),
    (FusionBlock, {"fusion": "sum", "maps": "false"}, "maps: expected True or False, got 'false'"),
    *positive("scale", SimilarityHead),
    *positive("patches", SimilarityHead),
    *positive("whole", SimilarityHead),
    *positive("sharpness", SemanticPooling),
    *positive("shrinkage", Mixture),
    (SimilarityHead, {"bias": float("inf")}, "bias: expected a finite number, got inf"),
    (Mixture, {"bias": float("inf")}, "bias: expected a finite number, got inf"),
    (Mixture, {"drop": 1.0}, "drop: expected a finite number >= 0 and < 1, got 1.0"),
    (Mixture, {"drop": -0.1}, "drop: expected a finite number >= 0 and < 1, got -0.1"),
    (ContextPrompter, {"std": -0.5}, "std: expected a finite number >= 0, got -0.5"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("block", "wrong", "message"), REFUSED)
def test_wrong_arguments_are_refused_by_name(block: type[Block], wrong: dict, message: str) -> None:
    assert block(**BLOCKS[block])
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        block(**(BLOCKS[block] | wrong))


@pytest.mark.usefixtures("unchecked")
def test_smallest_sizes_are_allowed() -> None:
    assert KnowledgePrompter(dim=1, heads=1, source_dim=1)(torch.ones(1, 1))[0].shape == (1, 1)
    assert ContextPrompter(width=1, dim=1, heads=1, context_tokens=1).context.shape == (1, 1)
    assert ContextPrompter(width=1, dim=1, heads=1, std=0.0).context.eq(0).all()
    one, patches = torch.ones(1, 1), torch.ones(1, 1, 1)
    assert DualModalAttention(dim=1, heads=1, layers=1, feedforward=1)(one, patches)
    # An odd width has heads where there is an inner one.
    assert DualModalAttention(dim=3, heads=2, width=2)(torch.ones(1, 3), torch.ones(1, 1, 3))
    assert VisualAdapter(dim=1, adapter_width=1, source_dim=1).whole(one, one).shape == (1, 1)
    assert VisualAdapter(dim=1, adapter_width=0)(patches).shape == (1, 1, 1)
    assert SemanticPooling(dim=1, feedforward=1)(patches, one).shape == (1, 1, 1)
    assert LabelResidual(labels=1, dim=1, source_dim=1)(one, torch.zeros(1, dtype=torch.int64)).shape == (1, 1)
    assert Mixture(parts=1, drop=0.0)(patches, one).shape == (1, 1)


@pytest.mark.usefixtures("unchecked")
def test_attention_refuses_other_widths_by_name() -> None:
    block = MultiHeadAttention(dim=8, heads=2, zero_out=False)
    with pytest.raises(ShapeError, match=r"^queries: expected axes '\.\.\. q d' with d=8, got shape \(3, 7\)$"):
        block(torch.ones(3, 7), torch.ones(3, 8))
    with pytest.raises(ShapeError, match=r"^source: expected axes '\.\.\. k d' with d=8, got shape \(3, 7\)$"):
        block(torch.ones(3, 8), torch.ones(3, 7))


def test_a_projection_of_knowledge_is_linear() -> None:
    block = KnowledgePrompter(dim=8, heads=2, source_dim=5, relation="none")
    assert set(block.state_dict()) == {"projection.weight"}
    assert block.projection is not None
    assert KnowledgePrompter(dim=8, heads=2, relation="none").projection is None
