import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, perturb, sizes, survives
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.attention import RelationMap
from pvlr.core.functional import fuse_maps, gate, merge_heads, split_heads, standardise
from pvlr.core.fusion import FusionBlock
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
modes = st.sampled_from(["gate", "sum", "knowledge", "context"])


def relation(draw: Draw, s: Sizes, *lead: int) -> RelationMap:
    return RelationMap(draw.normal(*lead, s.h, s.c, s.e), draw.normal(*lead, s.h, s.c, s.e))


def tensor(nested: list) -> Tensor:
    return torch.tensor(nested, dtype=torch.float64)


# --- definition


@given(sizes(), draws(), modes, st.booleans())
def test_it_is_its_formula(s: Sizes, draw: Draw, fusion: str, with_maps: bool) -> None:
    block = perturb(FusionBlock(dim=s.d, heads=s.h, fusion=fusion).double(), draw)
    knowledge, context = draw.normal(s.c, s.d), draw.normal(s.c, s.d)
    maps = (relation(draw, s), relation(draw, s)) if with_maps else (None, None)
    dense = tuple(one.dense().tolist() for one in maps) if with_maps else None
    wanted = reference.fusion(as_lists(block), knowledge.tolist(), context.tolist(), dense, fusion=fusion, heads=s.h)
    assert_close(block(knowledge, context, *maps), tensor(wanted), **EXACT)


@given(sizes(), draws())
def test_the_factors_give_what_the_fused_dense_map_gives(s: Sizes, draw: Draw) -> None:
    block = perturb(FusionBlock(dim=s.d, heads=s.h).double(), draw)
    knowledge, context = draw.normal(s.c, s.d), draw.normal(s.b, s.c, s.d)
    maps = relation(draw, s), relation(draw, s, s.b)
    both = torch.cat([knowledge.expand_as(context), context], dim=-1)
    labels = gate(block.gate(both), knowledge, context)
    fused = fuse_maps(maps[0].dense(), maps[1].dense(), block.mix)
    mixed = block.out_proj(merge_heads(fused @ split_heads(block.v_proj(standardise(labels)), s.h)))
    wanted = labels + labels.var(dim=-1, keepdim=True, correction=0).sqrt() * mixed
    assert_close(block(knowledge, context, *maps), wanted, **EXACT)


@given(sizes(), draws())
def test_the_opening_is_the_share_of_the_knowledge(s: Sizes, draw: Draw) -> None:
    block = perturb(FusionBlock(dim=s.d, heads=s.h, maps=False).double(), draw)
    knowledge, context = draw.normal(s.c, s.d), draw.normal(s.b, s.c, s.d)
    share = block.gate_weights(knowledge, context)
    assert share.min() > 0
    assert share.max() < 1
    assert_close(share * knowledge + (1 - share) * context, block(knowledge, context), **EXACT)


# --- law


@given(sizes(), draws(), modes)
def test_law_1_permuting_labels_permutes_the_output(s: Sizes, draw: Draw, fusion: str) -> None:
    block = perturb(FusionBlock(dim=s.d, heads=s.h, fusion=fusion).double(), draw)
    order, knowledge, context = draw.order(s.c), draw.normal(s.c, s.d), draw.normal(s.c, s.d)
    maps = relation(draw, s), relation(draw, s)
    turned = (RelationMap(one.query[:, order], one.key[:, order]) for one in maps)
    whole = block(knowledge, context, *maps)
    assert_close(block(knowledge[order], context[order], *turned), whole[order], **EXACT)


@given(sizes(), draws(), modes)
def test_law_2_fixed_knowledge_fuses_with_the_context_of_every_image_as_if_alone(
    s: Sizes, draw: Draw, fusion: str
) -> None:
    block = perturb(FusionBlock(dim=s.d, heads=s.h, fusion=fusion).double(), draw)
    knowledge, context = draw.normal(s.c, s.d), draw.normal(s.b, s.c, s.d)
    known, seen = relation(draw, s), relation(draw, s, s.b)
    together = block(knowledge, context, known, seen)
    swapped = block(context, knowledge, seen, known)
    for b in range(s.b):
        of_image = RelationMap(seen.query[b], seen.key[b])
        if fusion != "knowledge":
            assert_close(together[b], block(knowledge, context[b], known, of_image), **EXACT)
        if fusion != "context":
            assert_close(swapped[b], block(context[b], knowledge, of_image, known), **EXACT)


@pytest.mark.parametrize("fusion", ["gate", "sum"])
def test_a_leading_axis_of_one_is_as_good_as_none(fusion: str) -> None:
    draw, s = Draw(0), Sizes(b=3, c=5, n=1, h=2, e=4, t=1, m=1, w=1, k=1)
    block = perturb(FusionBlock(dim=8, heads=2, fusion=fusion).double(), draw)
    knowledge, context, known, seen = draw.normal(5, 8), draw.normal(3, 5, 8), relation(draw, s), relation(draw, s, 3)
    wide = RelationMap(known.query[None], known.key[None])
    wanted = block(knowledge, context, known, seen)
    assert_close(block(knowledge[None], context, wide, seen), wanted, **EXACT)
    assert_close(block(context, knowledge[None], seen, wide), block(context, knowledge, seen, known), **EXACT)


@given(sizes(), draws())
def test_law_6_before_the_first_step_it_is_the_mean_of_both_inputs(s: Sizes, draw: Draw) -> None:
    block = FusionBlock(dim=s.d, heads=s.h).double()
    knowledge, context = draw.normal(s.c, s.d), draw.normal(s.c, s.d)
    maps = relation(draw, s), relation(draw, s)
    assert_close(block(knowledge, context, *maps), (knowledge + context) / 2, **EXACT)
    assert torch.equal(block(knowledge, knowledge, *maps), knowledge)
    assert torch.equal(block.mix, torch.full((s.h,), 0.5).double())


@given(sizes(), draws())
def test_one_input_alone_comes_out_unchanged_and_the_other_is_not_needed(s: Sizes, draw: Draw) -> None:
    x = draw.normal(s.c, s.d)
    assert FusionBlock(dim=s.d, heads=s.h, fusion="knowledge")(x, None) is x
    assert FusionBlock(dim=s.d, heads=s.h, fusion="context")(None, x) is x


def test_without_maps_there_is_no_branch_of_maps() -> None:
    draw = Draw(0)
    knowledge, context = draw.normal(5, 8), draw.normal(5, 8)
    block = perturb(FusionBlock(dim=8, heads=2, maps=False).double(), draw)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"gate"}
    wanted = gate(block.gate(torch.cat([knowledge, context], dim=-1)), knowledge, context)
    assert_close(block(knowledge, context), wanted, **EXACT)


# --- life


def test_parameters_exist_only_where_the_mode_uses_them_and_every_one_learns() -> None:
    draw = Draw(1)
    s = Sizes(b=2, c=5, n=1, h=2, e=4, t=1, m=1, w=1, k=1)
    for fusion in ("sum", "knowledge", "context"):
        assert list(FusionBlock(dim=8, heads=2, fusion=fusion).parameters()) == []
    block = perturb(FusionBlock(dim=8, heads=2).double(), draw)
    maps = relation(draw, s), relation(draw, s, 2)
    backward(block(draw.normal(5, 8), draw.normal(2, 5, 8), *maps))
    assert missing_gradients(block) == []
    assert "mix_logit" in dict(block.named_parameters())


def test_gradient_flows_to_both_inputs_and_both_maps() -> None:
    draw = Draw(1)
    block = perturb(FusionBlock(dim=4, heads=2).double(), draw)
    leaves = [draw.normal(*shape).requires_grad_() for shape in [(3, 4), (3, 4), *[(2, 3, 2)] * 4]]

    def fuse(k: Tensor, c: Tensor, *factors: Tensor) -> Tensor:
        return block(k, c, RelationMap(*factors[:2]), RelationMap(*factors[2:]))

    assert torch.autograd.gradcheck(fuse, leaves)


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    s = Sizes(b=2, c=5, n=1, h=2, e=4, t=1, m=1, w=1, k=1)
    made = [FusionBlock(dim=8, heads=2).double() for _ in range(2)]
    inputs = draw.normal(5, 8), draw.normal(5, 8), relation(draw, s), relation(draw, s)
    survives(perturb(made[0], draw), made[1], *inputs)


def test_bf16_autocast_is_close() -> None:
    draw = Draw(3, torch.float32)
    s = Sizes(b=2, c=5, n=1, h=2, e=4, t=1, m=1, w=1, k=1)
    block = perturb(FusionBlock(dim=8, heads=2), draw, 0.1)
    inputs = draw.normal(5, 8), draw.normal(2, 5, 8), relation(draw, s), relation(draw, s, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = block(*inputs)
    assert found.dtype == torch.float32
    assert_close(found, block(*inputs), rtol=0.05, atol=0.05)


# --- refusal

X = torch.zeros
MAP = RelationMap(X(2, 3, 4), X(2, 3, 4))
SMALL = RelationMap(X(2, 2, 4), X(2, 2, 4))
ONE_HEAD = RelationMap(X(1, 3, 8), X(1, 3, 8))
BLOCK = "FusionBlock(dim=8, heads=2, fusion='gate', maps=False)"
REFUSED = [
    ({"dim": 10, "heads": 4}, (), ValueError, "dim: expected a multiple of heads=4, got 10"),
    (
        {"fusion": "mean"},
        (),
        ValueError,
        "fusion: expected one of 'gate', 'sum', 'knowledge', 'context', got 'mean'",
    ),
    ({}, (None, X(3, 8)), ValueError, "knowledge: expected vectors '... c d' with fusion 'gate', got None"),
    ({}, (X(3, 8), None), ValueError, "context: expected vectors '... c d' with fusion 'gate', got None"),
    (
        {"fusion": "knowledge"},
        (None, X(3, 8)),
        ValueError,
        "knowledge: expected vectors '... c d' with fusion 'knowledge', got None",
    ),
    (
        {"fusion": "context"},
        (X(3, 8), None),
        ValueError,
        "context: expected vectors '... c d' with fusion 'context', got None",
    ),
    ({}, (X(3, 7), X(3, 8)), ShapeError, "knowledge: expected axes '... c d' with d=8, got shape (3, 7)"),
    ({}, (X(3, 8), X(4, 8)), ShapeError, "context: expected axes '... c d' with c=3, got shape (4, 8)"),
    ({"fusion": "sum"}, (X(3, 8), X(1, 8)), ShapeError, "context: expected axes '... c d' with c=3, got shape (1, 8)"),
    (
        {},
        (X(2, 3, 8), X(4, 3, 8)),
        ShapeError,
        "context: expected leading axes that broadcast against knowledge's, got (4, 3, 8) against (2, 3, 8)",
    ),
    (
        {},
        (X(2, 1, 3, 8), X(4, 5, 3, 8)),
        ShapeError,
        "context: expected leading axes that broadcast against knowledge's, got (4, 5, 3, 8) against (2, 1, 3, 8)",
    ),
    ({}, (X(3, 8), X(3, 8), MAP), ValueError, "context_map: expected both maps or neither, got only the other one"),
    (
        {},
        (X(3, 8), X(3, 8), None, MAP),
        ValueError,
        "knowledge_map: expected both maps or neither, got only the other one",
    ),
    (
        {},
        (X(3, 8), X(3, 8), MAP, SMALL),
        ShapeError,
        "context_map.query: expected axes '... h c e' with c=3, got shape (2, 2, 4)",
    ),
    (
        {},
        (X(3, 8), X(3, 8), ONE_HEAD, MAP),
        ShapeError,
        "knowledge_map.query: expected axes '... h c e' with h=2, got shape (1, 3, 8)",
    ),
    (
        {"maps": False},
        (X(3, 8), X(3, 8), MAP, MAP),
        ValueError,
        f"knowledge_map, context_map: expected none, got both, but this is {BLOCK}",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "inputs", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(options: dict, inputs: tuple, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        FusionBlock(**{"dim": 8, "heads": 2, **options})(*inputs)


@pytest.mark.usefixtures("unchecked")
def test_what_the_weights_of_the_gate_refuse() -> None:
    with pytest.raises(
        ValueError, match=r"^gate_weights: only a FusionBlock with fusion 'gate' has a gate, this is Fusion"
    ):
        FusionBlock(dim=8, fusion="sum").gate_weights(torch.ones(2, 8), torch.ones(2, 8))
    block = FusionBlock(dim=8)
    with pytest.raises(ShapeError, match=r"^context: expected axes '... c d' with c=2, got shape \(3, 8\)$"):
        block.gate_weights(torch.ones(2, 8), torch.ones(3, 8))
    with pytest.raises(ShapeError, match=r"^context: expected leading axes that broadcast against knowledge's, got "):
        block.gate_weights(torch.ones(2, 1, 8), torch.ones(3, 1, 8))


def test_only_a_block_that_mixes_maps_has_a_mix() -> None:
    with pytest.raises(
        ValueError, match=r"^mix: only a FusionBlock with fusion 'gate' and maps mixes maps, this is Fus"
    ):
        _ = FusionBlock(dim=8, fusion="sum").mix
