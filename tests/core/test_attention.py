import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, perturb, sizes, survives
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.attention import DualModalAttention, LabelRelation, MultiHeadAttention, RelationMap
from pvlr.core.functional import attend, attention_map, merge_heads, split_heads, standardise
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
directions = st.sampled_from(["both", "labels", "patches", "none"])
forms = st.fixed_dictionaries(
    {
        "direction": directions,
        "layers": st.integers(1, 2),
        "feedforward": st.sampled_from([0, 3]),
    }
)


def moved(module: torch.nn.Module, draw: Draw) -> torch.nn.Module:
    return perturb(module.double(), draw)


def tensor(nested: list) -> Tensor:
    return torch.tensor(nested, dtype=torch.float64)


# --- definition


@given(sizes(), draws())
def test_label_relation_is_its_formula(s: Sizes, draw: Draw) -> None:
    block = moved(LabelRelation(dim=s.d, heads=s.h), draw)
    labels = draw.normal(s.b, s.c, s.d)
    out, relation = block(labels)
    for b in range(s.b):
        wanted, maps = reference.label_relation(as_lists(block), labels[b].tolist(), s.h)
        assert_close(out[b], tensor(wanted), **EXACT)
        assert_close(relation.dense()[b], tensor(maps), **EXACT)
    alone, _ = block(labels[0])
    assert_close(alone, out[0], **EXACT)


@given(sizes(), draws(), forms, st.booleans(), st.sampled_from([None, 1, 3]))
def test_dual_modal_attention_is_its_formula(
    s: Sizes, draw: Draw, form: dict, own: bool, width_of_head: int | None
) -> None:
    width = None if width_of_head is None else s.h * width_of_head
    block = moved(DualModalAttention(dim=s.d, heads=s.h, width=width, **form), draw)
    labels, patches = draw.normal(s.b, s.c, s.d), draw.normal(s.b, s.n, s.d)
    out = block(labels if own else labels[0], patches, maps=True)
    for b in range(s.b):
        start = labels[b if own else 0].tolist(), patches[b].tolist()
        wanted = reference.dual_modal(as_lists(block), *start, heads=s.h, **form)
        assert_close(out.labels[b], tensor(wanted[0]), **EXACT)
        assert_close(out.patches[b], tensor(wanted[1]), **EXACT)
        if out.gathered is None:
            assert form["direction"] in ("patches", "none")
        else:
            assert_close(out.gathered[b], tensor(wanted[4]), **EXACT)
        for found, maps in ((out.label_maps, wanted[2]), (out.patch_maps, wanted[3])):
            assert len(found) == len(maps)
            for layer, per_head in zip(found, maps, strict=True):
                assert_close(layer[b], tensor(per_head), **EXACT)


@given(sizes(), draws(), st.booleans())
def test_the_module_is_the_function_with_its_parameters(s: Sizes, draw: Draw, wide: bool) -> None:
    width = s.h * (s.e + 2) if wide else None
    block = moved(MultiHeadAttention(dim=s.d, heads=s.h, zero_out=True, width=width), draw)
    x, y = draw.normal(s.b, s.c, s.d), draw.normal(s.b, s.n, s.d)
    out, (query, key) = block(x, y)
    q, k, v = (split_heads(f(z), s.h) for f, z in ((block.q_proj, x), (block.k_proj, y), (block.v_proj, y)))
    assert torch.equal(out, block.out_proj(merge_heads(attend(q, k, v))))
    assert torch.equal(query, q)
    assert torch.equal(key, k)
    assert query.shape[-1] == (s.e + 2 if wide else s.e)


@given(sizes(), draws())
def test_a_relation_map_is_its_factors(s: Sizes, draw: Draw) -> None:
    query, key, values = (draw.normal(s.b, s.h, s.c, s.e) for _ in range(3))
    relation = RelationMap(query, key)
    assert torch.equal(relation.dense(), attention_map(query, key))
    assert_close(relation.attend(values), relation.dense() @ values, **EXACT)
    narrow = RelationMap(query.bfloat16(), key.bfloat16()).attend(values)
    assert narrow.dtype == values.dtype


# --- law


@given(sizes(), draws(), forms)
def test_law_1_permuting_labels_permutes_everything_about_labels(s: Sizes, draw: Draw, form: dict) -> None:
    order, labels, patches = draw.order(s.c), draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    relation = moved(LabelRelation(dim=s.d, heads=s.h), draw)
    (out, weights), (again, weights_again) = relation(labels), relation(labels[order])
    assert_close(again, out[order], **EXACT)
    assert_close(weights_again.dense(), weights.dense()[:, order][:, :, order], **EXACT)
    block = moved(DualModalAttention(dim=s.d, heads=s.h, **form), draw)
    whole, turned = block(labels, patches, maps=True), block(labels[order], patches, maps=True)
    assert_close(turned.labels, whole.labels[:, order], **EXACT)
    assert_close(turned.patches, whole.patches, **EXACT)
    for a, b in zip(turned.label_maps, whole.label_maps, strict=True):
        assert_close(a, b[:, :, order], **EXACT)
    for a, b in zip(turned.patch_maps, whole.patch_maps, strict=True):
        assert_close(a, b[..., order], **EXACT)


@given(sizes(), draws(), st.sampled_from([1e-1, 1.0, 50.0]))
def test_what_relates_labels_is_in_units_of_their_vectors(s: Sizes, draw: Draw, factor: float) -> None:
    # Joint spaces hold vectors of length 1, whose entries are small: what is added must not drown them.
    relation = moved(LabelRelation(dim=s.d, heads=s.h), draw)
    labels = 1e6 * draw.normal(s.c, s.d)  # The constant of the norm is nothing to them, even to equal entries.
    (out, weights), (scaled, same) = relation(labels), relation(factor * labels)
    assert_close(scaled, factor * out, rtol=1e-6, atol=factor)
    assert_close(same.dense(), weights.dense(), rtol=1e-6, atol=1e-6)
    assert torch.isfinite(relation(torch.zeros(s.c, s.d, dtype=torch.float64))[0]).all()


@given(sizes(), draws(), forms)
def test_permuting_patches_permutes_patches_and_nothing_else(s: Sizes, draw: Draw, form: dict) -> None:
    order, labels, patches = draw.order(s.n), draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    block = moved(DualModalAttention(dim=s.d, heads=s.h, **form), draw)
    whole, turned = block(labels, patches), block(labels, patches[:, order])
    assert_close(turned.patches, whole.patches[:, order], **EXACT)
    assert_close(turned.labels, whole.labels, **EXACT)


@given(sizes(), draws(), forms, st.booleans())
def test_law_2_an_image_is_treated_as_if_alone(s: Sizes, draw: Draw, form: dict, own: bool) -> None:
    labels, patches = draw.normal(s.b, s.c, s.d), draw.normal(s.b, s.n, s.d)
    block = moved(DualModalAttention(dim=s.d, heads=s.h, **form), draw)
    together = block(labels if own else labels[0], patches)
    for b in range(s.b):
        alone = block(labels[b : b + 1] if own else labels[0], patches[b : b + 1])
        assert_close(alone.labels, together.labels[b : b + 1], **EXACT)
        assert_close(alone.patches, together.patches[b : b + 1], **EXACT)


@given(sizes(), draws(), forms)
def test_labels_shared_by_all_images_are_labels_repeated_for_each(s: Sizes, draw: Draw, form: dict) -> None:
    labels, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    block = moved(DualModalAttention(dim=s.d, heads=s.h, **form), draw)
    shared, repeated = block(labels, patches), block(labels.expand(s.b, s.c, s.d), patches)
    assert_close(shared.labels, repeated.labels, **EXACT)
    assert_close(shared.patches, repeated.patches, **EXACT)


@given(sizes(), draws(), st.integers(1, 5))
def test_labels_that_only_look_at_patches_do_not_see_each_other(s: Sizes, draw: Draw, kept: int) -> None:
    block = moved(DualModalAttention(dim=s.d, heads=s.h, direction="labels", layers=2), draw)
    labels, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    chunks = [block(chunk, patches).labels for chunk in labels.split(kept)]
    assert_close(torch.cat(chunks, dim=1), block(labels, patches).labels, **EXACT)


@given(sizes(), draws())
def test_both_directions_read_the_same_inputs(s: Sizes, draw: Draw) -> None:
    """One direction alone, with the same weights, does what it does beside the other: they run in parallel."""
    both = moved(DualModalAttention(dim=s.d, heads=s.h, feedforward=3), draw)
    labels, patches = draw.normal(s.b, s.c, s.d), draw.normal(s.b, s.n, s.d)
    out = both(labels, patches)
    for direction in ("labels", "patches"):
        one = DualModalAttention(dim=s.d, heads=s.h, feedforward=3, direction=direction).double()
        one.load_state_dict({name: both.state_dict()[name] for name in one.state_dict()})
        alone = one(labels, patches)
        # The bias of the side that is looked at is there in "both" alone, and a softmax does not see it.
        assert_close(getattr(alone, direction), getattr(out, direction), **EXACT)
        untouched = {"labels": patches, "patches": labels}[direction]
        assert torch.equal(alone.patches if direction == "labels" else alone.labels, untouched)


@given(sizes(), draws(), st.integers(1, 2), st.booleans(), st.sampled_from([None, 1, 3]))
def test_both_directions_read_one_matrix_of_scores(
    s: Sizes, draw: Draw, layers: int, own: bool, width_of_head: int | None
) -> None:
    """One map along rows, the other along columns: their logarithms differ by a number of each label and each patch."""
    width = None if width_of_head is None else s.h * width_of_head
    block = moved(DualModalAttention(dim=s.d, heads=s.h, layers=layers, width=width), draw)
    labels, patches = draw.normal(s.b, s.c, s.d), draw.normal(s.b, s.n, s.d)
    out = block(labels if own else labels[0], patches, maps=True)
    assert len(out.label_maps) == len(out.patch_maps) == layers
    for label_map, patch_map in zip(out.label_maps, out.patch_maps, strict=True):
        apart = label_map.log() - patch_map.mT.log()
        assert apart.shape == (s.b, s.h, s.c, s.n)
        twice = apart - apart[..., :1, :] - apart[..., :1] + apart[..., :1, :1]
        assert_close(twice, torch.zeros_like(twice), **EXACT)


def test_who_only_is_looked_at_needs_no_bias_because_a_softmax_does_not_see_one() -> None:
    biases = {
        direction: (layer.label_proj.bias is not None, layer.patch_proj.bias is not None)
        for direction in ("both", "labels", "patches")
        for layer in DualModalAttention(dim=8, heads=2, direction=direction, layers=2).layers
    }
    assert biases == {"both": (True, True), "labels": (True, False), "patches": (False, True)}


@given(sizes(), draws(), st.sampled_from([0, 3]), directions)
def test_law_6_before_the_first_step_nothing_is_changed(s: Sizes, draw: Draw, feedforward: int, direction: str) -> None:
    labels, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    related, _ = LabelRelation(dim=s.d, heads=s.h).double()(labels)
    assert torch.equal(related, labels)
    form = {"feedforward": feedforward, "direction": direction, "layers": 2}
    out = DualModalAttention(dim=s.d, heads=s.h, **form).double()(labels, patches)
    assert torch.equal(out.labels, labels.expand(s.b, s.c, s.d))
    assert torch.equal(out.patches, patches)


@given(sizes(), draws(), st.integers(1, 2))
def test_what_labels_gathered_is_what_they_brought_in_the_last_layer(s: Sizes, draw: Draw, layers: int) -> None:
    labels, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    block = moved(DualModalAttention(dim=s.d, heads=s.h, layers=layers), draw)
    out = block(labels, patches)
    last = block.layers[-1]
    block.layers = block.layers[:-1]
    before = block(labels, patches)
    x = standardise(before.patches)
    looking, seen = last.label_proj(standardise(before.labels)), last.patch_proj(x)
    parts = (split_heads(part, s.h) for part in (looking, seen, last.labels.v_proj(x)))
    assert_close(out.gathered, last.labels.out_proj(merge_heads(attend(*parts))), **EXACT)
    assert_close(out.labels, before.labels + out.gathered, **EXACT)
    # Before the first step a branch brings nothing.
    fresh = DualModalAttention(dim=s.d, heads=s.h, layers=layers).double()(labels, patches).gathered
    assert torch.equal(fresh, torch.zeros(s.b, s.c, s.d, dtype=torch.float64))


def test_a_block_takes_any_number_of_labels_and_patches() -> None:
    draw = Draw(0, torch.float32)
    block, relation = DualModalAttention(dim=8, heads=2, feedforward=4), LabelRelation(dim=8, heads=2)
    for c, n in [(1, 1), (3, 9), (11, 2)]:
        out = block(relation(draw.normal(c, 8))[0], draw.normal(2, n, 8))
        assert (out.labels.shape, out.patches.shape) == ((2, c, 8), (2, n, 8))
        assert (out.label_maps, out.patch_maps) == ((), ())  # Not made unless asked for.


def test_ten_thousand_labels_need_no_map_in_memory() -> None:
    draw, c = Draw(0, torch.float32), 10_000
    relation = RelationMap(draw.normal(1, c, 4), draw.normal(1, c, 4))
    values = draw.normal(1, c, 4)
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        out = relation.attend(values)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < c * c  # Bytes: the map would be four times that.
    assert_close(out[:, :3], attention_map(relation.query[:, :3], relation.key) @ values, rtol=1e-4, atol=1e-4)


# --- life


@pytest.mark.parametrize("own", [True, False])
def test_every_parameter_learns(own: bool) -> None:
    draw = Draw(1)
    labels, patches = draw.normal(2, 5, 8), draw.normal(2, 7, 8)
    relation = moved(LabelRelation(dim=8, heads=2), draw)
    backward(relation(labels if own else labels[0])[0])
    assert missing_gradients(relation) == []
    for direction in ("both", "labels", "patches"):
        form = {"direction": direction, "layers": 2, "feedforward": 3}
        block = moved(DualModalAttention(dim=8, heads=2, **form), draw)
        out = block(labels if own else labels[0], patches)
        backward((out.labels, out.patches))
        assert missing_gradients(block) == []
    assert list(DualModalAttention(dim=8, direction="none").parameters()) == []


def test_the_first_step_starts_at_the_output_projections() -> None:
    draw = Draw(1, torch.float32)
    block = DualModalAttention(dim=8, heads=2, feedforward=4)
    out = block(draw.normal(5, 8), draw.normal(2, 7, 8))
    backward((out.labels, out.patches))
    learns = {name for name, _ in block.named_parameters()} - set(missing_gradients(block))
    parts = ("labels.out_proj", "labels.feedforward.down", "patches.out_proj")
    assert learns == {f"layers.0.{part}.{what}" for part in parts for what in ("weight", "bias")}


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    labels, patches = draw.normal(5, 8), draw.normal(2, 7, 8)
    made = [LabelRelation(dim=8, heads=2).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], labels)
    form = {"layers": 2, "feedforward": 3}
    made = [DualModalAttention(dim=8, heads=2, **form).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], labels, patches, True)


def test_bf16_autocast_is_close_and_its_maps_are_float32() -> None:
    draw = Draw(3, torch.float32)
    block, relation = (
        perturb(x, draw, 0.1) for x in (DualModalAttention(dim=16, heads=2), LabelRelation(dim=16, heads=2))
    )
    labels, patches = draw.normal(5, 16), draw.normal(2, 7, 16)
    wanted = block(relation(labels)[0], patches, maps=True)
    with torch.autocast("cpu", torch.bfloat16):
        related, weights = relation(labels)
        found = block(related, patches, maps=True)
        assert weights.dense().dtype == torch.float32
    for a, b in zip(found[:-1], wanted[:-1], strict=True):
        a, b = (a[0], b[0]) if isinstance(a, tuple) else (a, b)
        assert a.dtype == torch.float32
        assert_close(a, b, rtol=0.05, atol=0.05)
    # What was gathered is an operand of the next sum, as a projection's output is.
    assert_close(found.gathered.float(), wanted.gathered, rtol=0.05, atol=0.05)
    # A map made under autocast may be used outside of it.
    assert weights.attend(draw.normal(2, 5, 8)).dtype == torch.float32


def test_keys_have_no_bias_because_a_softmax_does_not_see_one() -> None:
    draw = Draw(4)
    query, key, shift = draw.normal(2, 5, 4), draw.normal(2, 5, 4), draw.normal(2, 1, 4)
    assert_close(attention_map(query, key + shift), attention_map(query, key))
    assert LabelRelation(dim=8, heads=2).attention.k_proj.bias is None


@pytest.mark.usefixtures("unchecked")
def test_blocks_compile_into_one_graph() -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relation, self.block = LabelRelation(dim=8, heads=2), DualModalAttention(dim=8, heads=2)

        def forward(self, labels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
            out = self.block(self.relation(labels)[0], patches, maps=True)
            return out.labels, out.patch_maps[0]

    model = perturb(Both(), Draw(0))
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    for b, c, n in [(2, 3, 4), (3, 5, 2)]:
        labels, patches = torch.randn(c, 8), torch.randn(b, n, 8)
        for found, wanted in zip(compiled(labels, patches), model(labels, patches), strict=True):
            assert_close(found, wanted)


# --- refusal

X = torch.zeros
REFUSED = [
    (lambda: LabelRelation(dim=10, heads=4), ValueError, "dim: expected a multiple of heads=4, got 10"),
    (lambda: LabelRelation(dim=8, heads=0), ValueError, "heads: expected a whole number of at least 1, got 0"),
    (
        lambda: DualModalAttention(dim=8, direction="all"),
        ValueError,
        "direction: expected one of 'both', 'labels', 'patches', 'none', got 'all'",
    ),
    (lambda: DualModalAttention(dim=8, layers=0), ValueError, "layers: expected a whole number of at least 1, got 0"),
    (
        lambda: DualModalAttention(dim=8, feedforward=-1),
        ValueError,
        "feedforward: expected a whole number of at least 0, got -1",
    ),
    (
        lambda: DualModalAttention(dim=8, heads=2, width=7),
        ValueError,
        "width: expected a multiple of heads=2, got 7",
    ),
    (lambda: LabelRelation(dim=8)(X(8)), ShapeError, "labels: expected axes '... c d', got shape (8,)"),
    (lambda: LabelRelation(dim=8)(X(3, 7)), ShapeError, "labels: expected axes '... c d' with d=8, got shape (3, 7)"),
    (
        lambda: DualModalAttention(dim=8)(X(3, 8), X(5, 8)),
        ShapeError,
        "patches: expected axes 'b n d', got shape (5, 8)",
    ),
    (
        lambda: DualModalAttention(dim=8)(X(3, 7), X(2, 5, 8)),
        ShapeError,
        "labels: expected axes 'c d' with d=8, got shape (3, 7)",
    ),
    # Where nothing looks at anything, no projection would find out.
    (
        lambda: DualModalAttention(dim=8, direction="none")(X(3, 8), X(2, 5, 7)),
        ShapeError,
        "patches: expected axes 'b n d' with d=8, got shape (2, 5, 7)",
    ),
    (
        lambda: DualModalAttention(dim=8, direction="none")(X(2, 3, 7), X(2, 5, 8)),
        ShapeError,
        "labels: expected axes 'b c d' with d=8, got shape (2, 3, 7)",
    ),
    (
        lambda: DualModalAttention(dim=8)(X(3, 4, 8), X(2, 5, 8)),
        ShapeError,
        "labels: expected axes 'b c d' with b=2, got shape (3, 4, 8)",
    ),
    (
        lambda: DualModalAttention(dim=8)(X(0, 8), X(2, 5, 8)),
        ShapeError,
        "labels, patches: expected one of each or more, got c=0, n=5",
    ),
    (
        lambda: DualModalAttention(dim=8)(X(3, 8).long(), X(2, 5, 8)),
        ShapeError,
        "labels: expected a tensor of dtype float, got torch.int64",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(call: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        call()


def test_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="positional"):
        LabelRelation(8)
    with pytest.raises(TypeError, match="positional"):
        DualModalAttention(8)
