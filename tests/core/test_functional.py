import re

import pytest
import torch
from helpers import reference
from helpers.strategies import Draw, Sizes, draws, sizes
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core import functional as lib

EXACT = {"rtol": 1e-10, "atol": 1e-10}
hows = st.sampled_from(["max", "mean", "softmax"])
temperatures = st.floats(0.05, 5.0)


# --- definition


@given(sizes(), draws())
def test_heads_are_contiguous_slices_of_the_width(s: Sizes, draw: Draw) -> None:
    x = draw.normal(s.b, s.n, s.d)
    split = lib.split_heads(x, s.h)
    for head in range(s.h):
        assert torch.equal(split[:, head], x[..., head * s.e : (head + 1) * s.e])
    assert torch.equal(lib.merge_heads(split), x)
    assert torch.equal(lib.merge_heads(lib.split_heads(x[0], s.h)), x[0])


@given(sizes(), draws())
def test_attention_is_its_formula(s: Sizes, draw: Draw) -> None:
    query, key, value = (
        draw.normal(s.b, s.h, s.c, s.e),
        draw.normal(s.b, s.h, s.n, s.e),
        draw.normal(s.b, s.h, s.n, s.k),
    )
    out, weights = lib.attend(query, key, value), lib.attention_map(query, key)
    for b in range(s.b):
        for h in range(s.h):
            q, k, v = (x[b, h].tolist() for x in (query, key, value))
            assert_close(weights[b, h], torch.tensor(reference.attention_map(q, k), dtype=torch.float64), **EXACT)
            assert_close(out[b, h], torch.tensor(reference.attend(q, k, v), dtype=torch.float64), **EXACT)


@given(sizes(), draws())
def test_gate_and_fuse_maps_are_their_formulas(s: Sizes, draw: Draw) -> None:
    logits, a, b = draw.normal(s.c, s.d) * 3, draw.normal(s.c, s.d), draw.normal(s.c, s.d)
    gated = lib.gate(logits, a, b)
    map_a, map_b, mix = draw.uniform(s.h, s.c, s.n), draw.uniform(s.h, s.c, s.n), draw.uniform(s.h)
    fused = lib.fuse_maps(map_a, map_b, mix)
    for i in range(s.c):
        for j in range(s.d):
            share = reference.sigmoid(logits[i, j].item())
            wanted = share * a[i, j].item() + (1 - share) * b[i, j].item()
            assert gated[i, j].item() == pytest.approx(wanted, rel=1e-10, abs=1e-10)
        for h in range(s.h):
            for j in range(s.n):
                wanted = mix[h].item() * map_a[h, i, j].item() + (1 - mix[h].item()) * map_b[h, i, j].item()
                assert fused[h, i, j].item() == pytest.approx(wanted, rel=1e-10, abs=1e-10)


@given(sizes(), draws(), st.floats(-30, 30), st.floats(-5, 5), st.booleans())
def test_cosine_scores_are_their_formula(s: Sizes, draw: Draw, scale: float, bias: float, own: bool) -> None:
    image, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.c, s.d)
    scores = lib.cosine_scores(image, labels if own else labels[0], scale=scale, bias=bias)
    for b in range(s.b):
        wanted = reference.cosine_scores(image[b].tolist(), labels[b if own else 0].tolist(), scale, bias)
        assert_close(scores[b], torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@given(sizes(), draws(), hows, temperatures)
def test_pooling_is_its_formula(s: Sizes, draw: Draw, how: str, temperature: float) -> None:
    scores = 3 * draw.normal(s.b, s.n, s.c)
    pooled = lib.pool_regions(scores, how, temperature)
    for b in range(s.b):
        wanted = reference.pool_regions(scores[b].tolist(), how, temperature)
        assert_close(pooled[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(sizes(), draws(), st.integers(0, 8), st.booleans())
def test_splicing_is_its_formula(s: Sizes, draw: Draw, start: int, own: bool) -> None:
    assume(start + s.m <= s.t)
    embeddings = draw.normal(s.c, s.t, s.w)
    context = draw.normal(s.c, s.m, s.w) if own else draw.normal(s.m, s.w)
    each = context.expand(s.c, s.m, s.w).tolist()
    wanted = torch.tensor(reference.splice_context(embeddings.tolist(), each, start), dtype=torch.float64)
    assert torch.equal(lib.splice_context(embeddings, context, start), wanted)


@given(draws(), st.integers(1, 40), st.floats(0.001, 0.999), st.floats(0.1, 100))
def test_prior_bias_gives_the_mean_probability_asked_for(draw: Draw, n: int, prior: float, spread: float) -> None:
    scores = spread * draw.normal(n)
    for values in (scores, scores.float()):
        bias = lib.prior_bias(values, prior)
        assert torch.sigmoid(values.double() + bias).mean().item() == pytest.approx(prior, rel=1e-9)


@given(sizes(), draws())
def test_unless_told_otherwise_pooling_is_the_maximum_and_softmax_is_sharp(s: Sizes, draw: Draw) -> None:
    scores = draw.normal(s.b, s.n, s.c)
    assert torch.equal(lib.pool_regions(scores), lib.pool_regions(scores, "max"))
    assert torch.equal(lib.pool_regions(scores, "softmax"), lib.pool_regions(scores, "softmax", 0.1))


def test_a_context_ends_where_the_prompt_ends_at_the_latest() -> None:
    embeddings, context = torch.zeros(3, 6, 2), torch.ones(4, 2)
    assert lib.splice_context(embeddings, context, 2)[:, 2:].eq(1).all()
    with pytest.raises(ValueError, match=r"^start: expected start \+ 4 context tokens within t=6, got start=3$"):
        lib.splice_context(embeddings, context, 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("scores", "said"),
    [((), "at least one score, got shape (0,)"), ((0.0, torch.nan), "finite scores, got nan")],
)
def test_prior_bias_tells_no_score_from_one_that_is_not_finite(scores: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=f"^scores: expected {re.escape(said)}$"):
        lib.prior_bias(torch.tensor(scores), 0.5)


def test_prior_bias_of_one_score_is_exact() -> None:
    assert lib.prior_bias(torch.tensor(7.0), 0.5) == pytest.approx(-7.0)
    assert lib.prior_bias(torch.full((2, 3), 7.0, dtype=torch.bfloat16), 0.05) == pytest.approx(-7 - 2.9444389791664403)


# --- law


@given(sizes(), draws())
def test_law_1_permuted_labels_permute_scores_and_maps(s: Sizes, draw: Draw) -> None:
    order = draw.order(s.c)
    image, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.c, s.d)
    scores = lib.cosine_scores(image, labels, scale=7.0)
    assert_close(lib.cosine_scores(image, labels[:, order], scale=7.0), scores[..., order], **EXACT)
    assert_close(
        lib.pool_regions(scores[..., order], "softmax"), lib.pool_regions(scores, "softmax")[:, order], **EXACT
    )
    query, key, value = draw.normal(s.h, s.c, s.e), draw.normal(s.h, s.c, s.e), draw.normal(s.h, s.c, s.e)
    permuted = lib.attention_map(query[:, order], key[:, order])
    assert_close(permuted, lib.attention_map(query, key)[:, order][:, :, order], **EXACT)
    permuted = lib.attend(query[:, order], key[:, order], value[:, order])
    assert_close(permuted, lib.attend(query, key, value)[:, order], **EXACT)


@given(sizes(), draws(), hows)
def test_law_2_rows_of_a_batch_are_scored_as_if_alone(s: Sizes, draw: Draw, how: str) -> None:
    image, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.c, s.d)
    together = lib.pool_regions(lib.cosine_scores(image, labels), how)
    for b in range(s.b):
        alone = lib.pool_regions(lib.cosine_scores(image[b : b + 1], labels[b : b + 1]), how)
        assert_close(together[b : b + 1], alone, **EXACT)


@given(sizes(), draws(), st.integers(1, 5), hows)
def test_a_label_scores_the_same_whatever_other_labels_are_asked(s: Sizes, draw: Draw, kept: int, how: str) -> None:
    image, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    whole = lib.pool_regions(lib.cosine_scores(image, labels), how)
    part = lib.pool_regions(lib.cosine_scores(image, labels[:kept]), how)
    assert_close(part, whole[:, :kept], **EXACT)


@given(sizes(), draws())
def test_unless_told_otherwise_a_score_is_the_cosine(s: Sizes, draw: Draw) -> None:
    labels = draw.normal(s.b, s.c, s.d)
    scores = lib.cosine_scores(labels, labels)
    assert_close(scores.diagonal(dim1=-2, dim2=-1), torch.ones(s.b, s.c).double(), **EXACT)


@given(sizes(), draws(), st.floats(0.01, 100))
def test_scores_do_not_see_the_length_of_vectors_and_stay_within_the_scale(s: Sizes, draw: Draw, by: float) -> None:
    image, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    scores = lib.cosine_scores(image, labels, scale=10.0)
    assert_close(lib.cosine_scores(by * image, labels / by, scale=10.0), scores, **EXACT)
    assert scores.abs().max() <= 10.0 + 1e-9


@given(sizes(), draws(), st.booleans())
def test_attend_is_the_map_times_the_values_with_and_without_a_mask(s: Sizes, draw: Draw, additive: bool) -> None:
    query, key, value = (
        draw.normal(s.b, s.h, s.c, s.e),
        draw.normal(s.b, s.h, s.n, s.e),
        draw.normal(s.b, s.h, s.n, s.k),
    )
    allowed = draw.chance(0.6, s.b, 1, s.c, s.n)
    mask = draw.normal(s.b, 1, s.c, s.n) if additive else allowed
    weights = lib.attention_map(query, key, mask)
    assert_close(lib.attend(query, key, value, mask), weights @ value, **EXACT)
    if not additive:
        assert (weights[~allowed.expand_as(weights)] == 0).all()
        nothing = ~allowed.any(-1).expand(s.b, s.h, s.c)
        assert_close(weights.sum(-1), (~nothing).double(), **EXACT)


@given(sizes(), draws(), st.sampled_from([torch.float32, torch.float64]))
def test_an_added_minus_infinity_closes_as_false_does_whatever_its_width(
    s: Sizes, draw: Draw, width: torch.dtype
) -> None:
    query, key = draw.normal(s.b, s.h, s.c, s.e).float(), draw.normal(s.b, s.h, s.n, s.e).float()
    allowed = draw.chance(0.4, s.b, 1, s.c, s.n)
    mask = torch.zeros(allowed.shape, dtype=width).masked_fill(~allowed, -torch.inf)
    found = []
    for given_mask in (mask, allowed):
        leaf = query.clone().requires_grad_()
        weights, gathered = lib.attention_map(leaf, key, given_mask), lib.attend(leaf, key, key, given_mask)
        ((weights @ key).sum() + 2 * gathered.sum()).backward()
        found.append((weights, gathered, leaf.grad))
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b)


NARROW = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("far", [-1e9, 1e9, -1e300, 1e300])
def test_an_added_number_stays_finite_in_every_width(width: torch.dtype, far: float) -> None:
    draw = Draw(0)
    query, key, value = (draw.normal(2, 4, 8).to(width) for _ in range(3))
    mask = torch.zeros(5, 4, dtype=torch.float64)
    mask[0], mask[1, 1:], mask[2], mask[3, ::3], mask[4, 0] = far, far, -torch.inf, far, 1.5
    query = torch.cat([query, query[:, :1]], dim=1)
    weights, gathered = lib.attention_map(query, key, mask), lib.attend(query, key, value, mask)
    assert weights.dtype == torch.float32
    assert_close(gathered.float(), weights @ value.float(), rtol=0.02, atol=0.02)
    assert_close(weights.sum(-1), torch.tensor([1.0, 1, 0, 1, 1]).expand(2, 5))
    opened = weights[:, 1, 0] if far < 0 else weights[:, 1, 1:].sum(-1)
    assert_close(opened, torch.ones(2))


def test_a_mask_takes_part_in_the_width_of_the_query() -> None:
    draw = Draw(0, torch.float32)
    query, key = draw.normal(1, 3, 4), draw.normal(1, 5, 4)
    mask = draw.normal(3, 5)
    for width in NARROW[:2]:
        found = lib.attention_map(query.to(width), key.to(width), mask)
        assert torch.equal(found, lib.attention_map(query.to(width), key.to(width), mask.to(width)))


def test_gradients_reach_an_added_mask_of_another_width() -> None:
    draw = Draw(0, torch.float32)
    query, key, gradients = draw.normal(1, 3, 4), draw.normal(1, 5, 4), []
    for width in (torch.float32, torch.float64):
        mask = torch.ones(3, 5, dtype=width, requires_grad=True)
        (lib.attend(query, key, key, mask)[0] * key[0, :3]).sum().backward()
        gradients.append(mask.grad.float())
    assert gradients[0].abs().max() > 0
    assert_close(*gradients)


@given(sizes(), draws())
def test_each_head_may_have_a_mask_of_its_own(s: Sizes, draw: Draw) -> None:
    query, key, value = draw.normal(s.h, s.c, s.e), draw.normal(s.h, s.n, s.e), draw.normal(s.h, s.n, s.k)
    allowed = draw.chance(0.3, s.h, s.c, s.n)
    weights = lib.attention_map(query, key, allowed)
    assert (weights[~allowed] == 0).all()
    assert_close(weights.sum(-1), allowed.any(-1).double(), **EXACT)
    assert_close(lib.attend(query, key, value, allowed), weights @ value, **EXACT)


@given(sizes(), draws())
def test_attention_without_a_batch_axis_broadcasts_against_one_with(s: Sizes, draw: Draw) -> None:
    query, key, value = draw.normal(s.h, s.c, s.e), draw.normal(s.b, s.h, s.n, s.e), draw.normal(s.b, s.h, s.n, s.k)
    wide = query.expand(s.b, s.h, s.c, s.e)
    assert_close(lib.attend(query, key, value), lib.attend(wide, key, value), **EXACT)
    assert_close(lib.attention_map(query, key), lib.attention_map(wide, key), **EXACT)
    alone = lib.attend(query, key[0], value[0])
    assert_close(alone, lib.attend(wide, key, value)[0], **EXACT)


@given(sizes(), draws())
def test_any_of_query_key_and_value_may_be_the_only_one_with_a_batch_axis(s: Sizes, draw: Draw) -> None:
    shapes = (s.h, s.c, s.e), (s.h, s.n, s.e), (s.h, s.n, s.k)
    for batched in range(3):
        parts = [draw.normal(*(s.b, *shape)[i != batched :]) for i, shape in enumerate(shapes)]
        wide = [x.expand(s.b, *x.shape[-3:]) for x in parts]
        assert_close(lib.attend(*parts), lib.attend(*wide), **EXACT)
        found, wanted = lib.attention_map(*parts[:2]), lib.attention_map(*wide[:2])
        assert_close(found.expand_as(wanted), wanted, **EXACT)


@given(sizes(), draws())
def test_fusing_maps_keeps_rows_a_distribution_and_has_its_inputs_as_ends(s: Sizes, draw: Draw) -> None:
    map_a, map_b = (draw.normal(s.h, s.c, s.n).softmax(-1) for _ in range(2))
    assert_close(lib.fuse_maps(map_a, map_b, draw.uniform(s.h)).sum(-1), torch.ones(s.h, s.c).double(), **EXACT)
    assert torch.equal(lib.fuse_maps(map_a, map_b, torch.ones(s.h).double()), map_a)
    assert torch.equal(lib.fuse_maps(map_a, map_b, torch.zeros(s.h).double()), map_b)


@given(sizes(), draws())
def test_gate_of_equal_inputs_is_that_input_and_swaps_with_its_sign(s: Sizes, draw: Draw) -> None:
    logits, a, b = draw.normal(s.c, s.d), draw.normal(s.c, s.d), draw.normal(s.c, s.d)
    assert_close(lib.gate(logits, a, a), a, **EXACT)
    assert_close(lib.gate(logits, a, b), lib.gate(-logits, b, a), **EXACT)


@given(sizes(), draws())
def test_softmax_pooling_lies_between_mean_and_maximum_and_tends_to_both(s: Sizes, draw: Draw) -> None:
    scores = draw.normal(s.b, s.n, s.c)
    mean, largest = lib.pool_regions(scores, "mean"), lib.pool_regions(scores, "max")
    between = lib.pool_regions(scores, "softmax", 0.5)
    assert (between >= mean - 1e-9).all()
    assert (between <= largest + 1e-9).all()
    assert_close(lib.pool_regions(scores, "softmax", 1e6), mean, rtol=1e-4, atol=1e-4)
    assert_close(lib.pool_regions(scores, "softmax", 1e-9), largest, rtol=1e-4, atol=1e-4)


@given(sizes(), draws(), hows)
def test_pooling_does_not_see_the_order_of_patches(s: Sizes, draw: Draw, how: str) -> None:
    scores = draw.normal(s.b, s.n, s.c)
    assert_close(lib.pool_regions(scores[:, draw.order(s.n)], how), lib.pool_regions(scores, how), **EXACT)


@given(sizes(), draws())
def test_law_8_scores_and_maps_are_float32_under_autocast(s: Sizes, draw: Draw) -> None:
    draw.dtype = torch.float32
    image, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    query, key = draw.normal(s.h, s.c, s.e), draw.normal(s.h, s.n, s.e)
    scores = lib.pool_regions(lib.cosine_scores(image, labels, scale=10.0), "softmax")
    weights = lib.attention_map(query, key)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lib.pool_regions(lib.cosine_scores(image, labels, scale=10.0), "softmax"), scores)
        assert torch.equal(lib.attention_map(query, key), weights)
        assert lib.attend(query, key, key).dtype == torch.bfloat16
        narrow = lib.cosine_scores(image.bfloat16(), labels.bfloat16())
    assert scores.dtype == weights.dtype == narrow.dtype == torch.float32
    wide = lib.cosine_scores(image.double(), labels.double())
    assert wide.dtype == torch.float64


@given(sizes(), draws(), hows)
def test_law_8_narrow_scores_are_pooled_in_float32(s: Sizes, draw: Draw, how: str) -> None:
    scores = draw.normal(s.b, s.n, s.c).bfloat16()
    assert torch.equal(lib.pool_regions(scores, how), lib.pool_regions(scores.float(), how))


# --- life


def test_a_context_takes_the_width_of_the_embeddings_around_it() -> None:
    assert lib.splice_context(torch.zeros(3, 6, 2).bfloat16(), torch.ones(2, 2), 1).dtype == torch.bfloat16


def test_a_short_vector_is_normalised_like_any_other() -> None:
    short = torch.tensor([[[3e-13, 1e-12]]]).double()
    assert_close(lib.cosine_scores(short, short[0]), torch.ones(1, 1, 1).double())


def test_gradients_are_those_of_the_formulas() -> None:
    draw = Draw(0)
    image, labels, logits = (draw.normal(*shape).requires_grad_() for shape in [(2, 3, 4), (2, 5, 4), (5, 4)])
    for how in ("max", "mean", "softmax"):
        assert torch.autograd.gradcheck(
            lambda x, y, h=how: lib.pool_regions(lib.cosine_scores(x, y), h, 0.7), (image, labels)
        )
    assert torch.autograd.gradcheck(lib.gate, (logits, *(draw.normal(5, 4).requires_grad_() for _ in range(2))))
    q, k, v = (draw.normal(2, 3, 4).requires_grad_() for _ in range(3))
    assert torch.autograd.gradcheck(lib.attend, (q, k, v))
    allowed = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    assert torch.autograd.gradcheck(lambda x, y: lib.attention_map(x, y, allowed), (q, k))


def test_gradient_reaches_the_context_and_every_position_around_it() -> None:
    draw = Draw(0)
    embeddings, context = draw.normal(3, 6, 2).requires_grad_(), draw.normal(2, 2).requires_grad_()
    lib.splice_context(embeddings, context, 1).sum().backward()
    assert torch.equal(context.grad, torch.full((2, 2), 3.0).double())
    assert torch.equal(embeddings.grad[0, :, 0], torch.tensor([1, 0, 0, 1, 1, 1]).double())


def test_a_zero_vector_scores_the_bias_and_has_a_finite_gradient() -> None:
    image = torch.zeros(1, 1, 4, requires_grad=True)
    scores = lib.cosine_scores(image, torch.ones(2, 4), scale=10.0, bias=-1.0)
    assert torch.equal(scores, torch.full((1, 1, 2), -1.0))
    scores.sum().backward()
    assert image.grad.isfinite().all()


@pytest.mark.usefixtures("unchecked")
def test_everything_compiles_into_one_graph() -> None:
    def scores(image: torch.Tensor, labels: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        labels = lib.gate(labels, labels, lib.merge_heads(lib.attend(query, query, query)))
        return lib.pool_regions(lib.cosine_scores(image, labels), "softmax", 0.3)

    compiled = torch.compile(scores, fullgraph=True, backend="eager", dynamic=True)
    for b, c, n in [(2, 3, 4), (3, 5, 2)]:
        arguments = (torch.randn(b, n, 8), torch.randn(c, 8), torch.randn(2, c, 4))
        assert_close(compiled(*arguments), scores(*arguments))
