"""Start of the blocks: the defaults of their constructors, and the values of their parameters before the first step."""

import math

import pytest
import torch
from torch import Tensor, nn

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, LabelRelation, MultiHeadAttention
from pvlr.core.block import Block
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.mixture import Mixture
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling

# The method's table of switches, as the constructors have it.
DEFAULTS: list[tuple[type[Block], dict, dict]] = [
    (
        SimilarityHead,
        {},
        {"scale": 10.0, "bias": 0.0, "patches": 0.3, "whole": None},
    ),
    (LabelRelation, {"dim": 8}, {"heads": 8}),
    (FusionBlock, {"dim": 8}, {"heads": 8, "fusion": "gate", "maps": True}),
    (
        DualModalAttention,
        {"dim": 8},
        {"heads": 8, "direction": "both", "layers": 1, "width": None, "feedforward": 0},
    ),
    (KnowledgePrompter, {"dim": 8}, {"heads": 8, "source_dim": None, "relation": "attention"}),
    (
        ContextPrompter,
        {"width": 6, "dim": 8},
        {"context_tokens": 4, "heads": 8, "relation": "attention", "std": 0.02},
    ),
    (VisualAdapter, {"dim": 8}, {"adapter_width": 256, "source_dim": 0}),
    (SemanticPooling, {"dim": 8}, {"feedforward": 512, "sharpness": 20.0}),
    (LabelResidual, {"labels": 3, "dim": 8}, {"source_dim": 0}),
    (Mixture, {"parts": 3}, {"drop": 0.5, "shrinkage": 5.0, "bias": 0.0}),
]


@pytest.mark.parametrize(("block", "given", "defaults"), DEFAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_defaults_are_those_of_the_method(block: type[Block], given: dict, defaults: dict) -> None:
    assert block(**given).config == given | defaults


def spread(weight: Tensor) -> Tensor:
    """Largest value, as a share of the bound of Glorot and Bengio's uniform distribution."""
    return weight.abs().max() / math.sqrt(6 / sum(weight.shape))


@pytest.mark.parametrize(
    ("make", "adds_nothing"),
    [
        (lambda: MultiHeadAttention(dim=64, heads=4, zero_out=True), True),
        (lambda: MultiHeadAttention(dim=64, heads=4, zero_out=False), False),
        (lambda: LabelRelation(dim=64, heads=4), True),
        (lambda: DualModalAttention(dim=64, heads=4, layers=2), True),
        (lambda: FusionBlock(dim=64, heads=4), True),
        (lambda: DualModalAttention(dim=64, heads=4, width=256), True),
    ],
    ids=["attention", "attention-adding", "relation", "dual", "fusion", "dual-wide"],
)
def test_projections_start_uniform_but_the_last_of_a_branch_at_zero(make: object, adds_nothing: bool) -> None:
    block: nn.Module = make()  # type: ignore[operator]
    projections = {name: layer for name, layer in block.named_modules() if name.endswith("_proj")}
    assert projections
    for name, layer in projections.items():
        if name.endswith("out_proj") and adds_nothing:
            assert not layer.weight.any(), name
        else:
            assert 0.95 < spread(layer.weight) <= 1, name
        assert layer.bias is None or not layer.bias.any(), name


def test_a_feed_forward_starts_at_nothing() -> None:
    block = DualModalAttention(dim=64, heads=4, feedforward=128)
    for layer in block.layers:
        down = layer.labels.feedforward.down
        assert not down.weight.any()
        assert not down.bias.any()
        assert layer.labels.feedforward.up.weight.any()
        assert layer.patches.feedforward is None


def test_what_is_added_to_what_the_towers_gave_starts_at_zero() -> None:
    adapter = VisualAdapter(dim=64, adapter_width=32, source_dim=16)
    residual = LabelResidual(labels=3, dim=64, source_dim=16)
    down = SemanticPooling(dim=64, feedforward=32).feedforward.down
    zeros = [adapter.down.weight, adapter.down.bias, adapter.source.weight, down.weight, down.bias]
    for parameter in (*zeros, *residual.parameters()):
        assert not parameter.any()
    # What comes before is not: two layers of zeros would never learn.
    assert adapter.up.weight.any()
    assert SemanticPooling(dim=64, feedforward=32).feedforward.up.weight.any()


def test_scores_of_the_base_start_with_the_same_weight() -> None:
    assert torch.equal(Mixture(parts=4).weights, torch.full((4,), 0.25))


def test_the_gate_opens_at_one_half_for_every_channel_and_head() -> None:
    block = FusionBlock(dim=64, heads=4)
    assert not block.gate.weight.any()
    assert not block.gate.bias.any()
    assert torch.equal(block.mix, torch.full((4,), 0.5))


@pytest.mark.usefixtures("unchecked")
def test_a_head_starts_at_whole_numbers_as_well() -> None:
    head = SimilarityHead(scale=2, bias=-3, patches=1, whole=4)
    assert {x.dtype for x in head.parameters()} == {torch.float32}
    logs = head.log_scale, head.log_patches, head.log_whole
    assert [x.exp().item() for x in logs] == pytest.approx([2.0, 1.0, 4.0])
    assert head.bias.item() == -3.0
    mixture, pooling = Mixture(parts=2, shrinkage=5, bias=-3), SemanticPooling(dim=8, sharpness=20)
    assert {x.dtype for x in mixture.state_dict().values()} == {pooling.log_sharpness.dtype} == {torch.float32}


def test_a_half_precision_head_scores_at_full_width() -> None:
    # The parameters themselves are widened before they meet the scores: e^x in bfloat16 would be off by percents.
    head = SimilarityHead(scale=10.0, bias=-3.1).bfloat16()
    log_scale, bias = head.log_scale.float() + head.log_patches.float(), head.bias.float()
    logits = head(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0, 0.0]]))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, (0.6 * log_scale.exp() + bias)[None, None], rtol=1e-6, atol=1e-6)
