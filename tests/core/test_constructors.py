"""What the blocks' constructors refuse, argument by argument, in the words of the message."""

import re

import pytest
import torch

from pvlr.core.attention import DualModalAttention, LabelRelation, MultiHeadAttention
from pvlr.core.block import Block
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.shapes import ShapeError

BLOCKS: dict[type[Block], dict] = {
    MultiHeadAttention: {"dim": 8, "heads": 2, "zero_out": True},
    LabelRelation: {"dim": 8, "heads": 2},
    DualModalAttention: {"dim": 8, "heads": 2},
    FusionBlock: {"dim": 8, "heads": 2},
    SimilarityHead: {},
    # Without relation and condition: their own checks must not be what refuses.
    KnowledgePrompter: {"dim": 8, "heads": 2, "relation": "none"},
    ContextPrompter: {"width": 6, "dim": 8, "heads": 2, "relation": "none"},
}
WHOLE = "expected a whole number of at least {least}, got {value!r}"
ONE_OF = "expected one of {choices}, got {value!r}"
NORMS, RELATIONS = "'pre', 'post'", "'attention', 'none'"


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


WITH_HEADS = (MultiHeadAttention, LabelRelation, DualModalAttention, FusionBlock)
REFUSED = [
    *numbers("dim", 1, *WITH_HEADS, KnowledgePrompter, ContextPrompter),
    *numbers("heads", 1, *WITH_HEADS),
    *((block, {"dim": 9}, "dim: expected a multiple of heads=2, got 9") for block in WITH_HEADS),
    (DualModalAttention, {"dim": 9, "direction": "none"}, "dim: expected a multiple of heads=2, got 9"),
    (FusionBlock, {"dim": 9, "mode": "sum"}, "dim: expected a multiple of heads=2, got 9"),
    *numbers("layers", 1, DualModalAttention),
    *numbers("feedforward", 0, DualModalAttention),
    *numbers("source_dim", 1, KnowledgePrompter),
    *numbers("width", 1, ContextPrompter),
    *numbers("tokens", 1, ContextPrompter),
    *numbers("classes", 1, ContextPrompter),
    *choices("norm", NORMS, LabelRelation, DualModalAttention, FusionBlock, KnowledgePrompter, ContextPrompter),
    *choices("relation", RELATIONS, KnowledgePrompter, ContextPrompter),
    *choices("condition", "'none', 'image'", ContextPrompter),
    *choices("direction", "'both', 'labels', 'patches', 'none'", DualModalAttention),
    *choices("mode", "'gate', 'sum', 'knowledge', 'context'", FusionBlock),
    *choices("aggregation", "'max', 'mean', 'softmax'", SimilarityHead),
    *booleans("zero_out", MultiHeadAttention),
    *booleans("maps", FusionBlock),
    *booleans("learnable", SimilarityHead),
    (FusionBlock, {"mode": "sum", "maps": "false"}, "maps: expected True or False, got 'false'"),
    (SimilarityHead, {"scale": 0.0}, "scale: expected a finite number > 0, got 0.0"),
    (SimilarityHead, {"bias": float("inf")}, "bias: expected a finite number, got inf"),
    (SimilarityHead, {"temperature": 0.0}, "temperature: expected a finite number > 0, got 0.0"),
    (ContextPrompter, {"std": -0.5}, "std: expected a finite number >= 0, got -0.5"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("block", "wrong", "message"), REFUSED)
def test_wrong_arguments_are_refused_by_name(block: type[Block], wrong: dict, message: str) -> None:
    assert block(**BLOCKS[block])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        block(**(BLOCKS[block] | wrong))


@pytest.mark.usefixtures("unchecked")
def test_smallest_sizes_are_allowed() -> None:
    assert KnowledgePrompter(dim=1, heads=1, source_dim=1)(torch.ones(1, 1))[0].shape == (1, 1)
    assert ContextPrompter(width=1, dim=1, heads=1, tokens=1, classes=1).context.shape == (1, 1, 1)
    assert ContextPrompter(width=1, dim=1, heads=1, std=0.0).context.eq(0).all()
    assert DualModalAttention(dim=1, heads=1, layers=1, feedforward=1)(torch.ones(1, 1), torch.ones(1, 1, 1))


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
