import math
from unittest import mock

import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, backward, draws, sizes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core import functional
from pvlr.core.base import base_scores
from pvlr.core.functional import ROWS_AT_ONCE, ROWS_KEPT, cosine_scores
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
# The same sums of the same numbers; a matrix product of fewer rows may only add them in another order.
SAME = {"rtol": 1e-12, "atol": 1e-12}
ALL = ("competition", "focused", "pooled", "best")
ALONE = ("focused", "pooled", "best")
parts = st.lists(st.sampled_from(ALL), min_size=1, unique=True)
# So low that no label's share falls to the least one.
LOW = st.floats(0.1, 5)


def vectors(s: Sizes, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    return draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.d), draw.normal(s.c, s.d)


def members_of(draw: Draw, c: int, anchors: int) -> Tensor:
    return (draw.uniform(c) * (anchors + 1)).long() - 1


# --- definition


@given(sizes(), draws(), parts, st.floats(0.1, 100), st.sampled_from(["labels", "anchors", "members"]))
def test_they_are_their_formulas(s: Sizes, draw: Draw, parts: list[str], scale: float, rivals: str) -> None:
    patches, pooled, labels = vectors(s, draw)
    anchors = None if rivals == "labels" else draw.normal(s.k, s.d)
    members = members_of(draw, s.c, s.k) if rivals == "members" else None
    if members is not None:
        labels = torch.where(members.unsqueeze(-1) >= 0, anchors[members.clamp_min(0)], labels)
    found = base_scores(patches, pooled, labels, parts=parts, scale=scale, anchors=anchors, members=members)
    for b in range(s.b):
        wanted = reference.base_scores(
            patches[b].tolist(),
            pooled[b].tolist(),
            labels.tolist(),
            parts=parts,
            scale=scale,
            anchors=None if anchors is None else anchors.tolist(),
            members=None if members is None else members.tolist(),
        )
        assert_close(found[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


def test_a_label_that_no_patch_goes_to_has_the_least_share_and_no_less() -> None:
    patches, labels = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    scores = base_scores(patches, patches[0], labels, parts=("competition",), scale=100.0)
    assert_close(scores[0, :, 0], torch.tensor([0.0, math.log(1e-6)]))


def test_the_parts_are_those_of_the_method_unless_others_are_asked_for() -> None:
    inputs = vectors(Sizes(b=2, c=3, n=4, h=1, e=5, t=5, m=1, w=1, k=1), Draw(0))
    assert torch.equal(
        base_scores(*inputs), base_scores(*inputs, parts=("competition", "focused", "pooled"), scale=1.0)
    )


# --- law


@given(sizes(), draws(), st.floats(0.1, 100), st.integers(1, 5), st.booleans())
def test_against_fixed_anchors_another_label_changes_no_score(
    s: Sizes, draw: Draw, scale: float, kept: int, told: bool
) -> None:
    patches, pooled, labels = vectors(s, draw)
    anchors, members = draw.normal(s.k, s.d), members_of(draw, s.c, s.k) if told else None
    fixed = {"parts": ALL, "scale": scale, "anchors": anchors}
    whole = base_scores(patches, pooled, labels, members=members, **fixed)
    some = base_scores(patches, pooled, labels[:kept], members=None if members is None else members[:kept], **fixed)
    assert_close(some, whole[:, :kept], **SAME)


@given(sizes(), draws(), LOW)
def test_an_anchor_that_is_asked_for_is_not_counted_twice(s: Sizes, draw: Draw, scale: float) -> None:
    patches, pooled, anchors = vectors(s, draw)
    members = torch.arange(s.c)
    found = base_scores(
        patches, pooled, anchors, parts=("competition",), scale=scale, anchors=anchors, members=members
    )[..., 0]
    of_patch = cosine_scores(patches, anchors, scale=scale).log_softmax(dim=-1)
    assert_close(found, of_patch.exp().mean(dim=1).log(), **EXACT)
    # So the labels themselves are anchors, where there are no others.
    alone = base_scores(patches, pooled, anchors, parts=("competition",), scale=scale)[..., 0]
    assert_close(alone, found, **EXACT)
    # As no anchor, the same label competes with itself.
    twice = base_scores(patches, pooled, anchors, parts=("competition",), scale=scale, anchors=anchors)[..., 0]
    assert bool((twice < found).all())


@given(sizes(), draws(), LOW)
def test_without_anchors_a_patch_is_shared_out_among_the_labels(s: Sizes, draw: Draw, scale: float) -> None:
    patches, pooled, labels = vectors(s, draw)
    for b in range(s.b):
        of_patch = [
            base_scores(patches[b : b + 1, n : n + 1], pooled[:1], labels, parts=("competition",), scale=scale).exp()
            for n in range(s.n)
        ]
        for share in of_patch:
            assert share.sum().item() == pytest.approx(1, rel=1e-9)
        together = base_scores(patches[b : b + 1], pooled[:1], labels, parts=("competition",), scale=scale).exp()
        assert_close(together, torch.stack(of_patch).mean(dim=0), **EXACT)


@given(sizes(), draws(), st.floats(0.1, 100), st.integers(1, 5))
def test_all_but_the_competition_know_no_other_label(s: Sizes, draw: Draw, scale: float, kept: int) -> None:
    patches, pooled, labels = vectors(s, draw)
    whole = base_scores(patches, pooled, labels, parts=ALONE, scale=scale)
    assert_close(base_scores(patches, pooled, labels[:kept], parts=ALONE, scale=scale), whole[:, :kept], **SAME)
    anchored = base_scores(patches, pooled, labels, parts=ALONE, scale=scale, anchors=draw.normal(s.k, s.d))
    assert torch.equal(anchored, whole)


def test_without_anchors_another_label_takes_its_share_from_the_others() -> None:
    draw = Draw(0)
    patches, pooled, labels = draw.normal(2, 4, 8), draw.normal(2, 8), draw.normal(5, 8)
    whole, some = (base_scores(patches, pooled, x, parts=("competition",), scale=3.0) for x in (labels, labels[:4]))
    assert bool((whole[:, :4] < some).all())


@given(sizes(), draws(), parts, st.booleans())
def test_laws_1_and_2_order_of_labels_and_patches_and_other_images_do_not_matter(
    s: Sizes, draw: Draw, parts: list[str], anchored: bool
) -> None:
    patches, pooled, labels = vectors(s, draw)
    form = {"parts": parts, "scale": 7.0, "anchors": draw.normal(s.k, s.d) if anchored else None}
    members, order = members_of(draw, s.c, s.k) if anchored else None, draw.order(s.c)
    whole = base_scores(patches, pooled, labels, members=members, **form)
    turned = base_scores(patches, pooled, labels[order], members=members[order] if anchored else None, **form)
    assert_close(turned, whole[:, order], **EXACT)
    assert_close(base_scores(patches[:, draw.order(s.n)], pooled, labels, members=members, **form), whole, **EXACT)
    for b in range(s.b):
        alone = base_scores(patches[b : b + 1], pooled[b : b + 1], labels, members=members, **form)
        assert_close(alone, whole[b : b + 1], **EXACT)


@given(sizes(), draws(), parts)
def test_no_vector_has_to_be_normalised(s: Sizes, draw: Draw, parts: list[str]) -> None:
    inputs, form = vectors(s, draw), {"parts": parts, "scale": 7.0}
    anchors = draw.normal(s.k, s.d)
    longer = [x * (0.1 + 5 * draw.uniform(*x.shape[:-1], 1)) for x in (*inputs, anchors)]
    wanted = base_scores(*inputs, anchors=anchors, **form)
    assert_close(base_scores(*longer[:3], anchors=longer[3], **form), wanted, **EXACT)


@pytest.mark.parametrize("rivals", ["labels", "anchors", "members"])
def test_thousands_of_labels_go_through_in_parts_and_that_is_exact(rivals: str) -> None:
    draw, c, a = Draw(0), ROWS_AT_ONCE + 300, ROWS_KEPT - 7
    patches, pooled, labels = draw.normal(2, 3, 4), draw.normal(2, 4), draw.normal(c, 4)
    form = {"parts": ALL, "scale": 3.0, "anchors": None if rivals == "labels" else draw.normal(a, 4)}
    form["members"] = members_of(draw, c, a) if rivals == "members" else None
    with mock.patch("pvlr.core.base.cosine_scores", wraps=functional.cosine_scores) as called:
        whole = base_scores(patches, pooled, labels, **form)
        assert max(call.args[1].shape[0] for call in called.mock_calls) == max(c, a if rivals != "labels" else 0)
        called.reset_mock()
        with torch.no_grad():
            in_parts = base_scores(patches, pooled, labels, **form)
        assert max(call.args[1].shape[0] for call in called.mock_calls) == ROWS_AT_ONCE
    assert_close(in_parts, whole, **SAME)


# --- life


def test_gradient_flows_to_every_vector() -> None:
    draw = Draw(1)
    for part in ALL:
        inputs = [draw.normal(*shape).requires_grad_() for shape in ((2, 7, 8), (2, 8), (5, 8), (3, 8))]
        backward(base_scores(*inputs[:3], parts=(part,), scale=3.0, anchors=inputs[3]))
        learns = [x.grad is not None and bool(x.grad.abs().max() > 1e-9) for x in inputs]
        assert learns == [part != "pooled", part == "pooled", True, part == "competition"]


@given(sizes(), draws(), parts)
def test_law_8_scores_are_float32_under_autocast_and_in_half_precision(s: Sizes, draw: Draw, parts: list[str]) -> None:
    inputs = [x.float() for x in vectors(s, draw)]
    wanted = base_scores(*inputs, parts=parts, scale=7.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = base_scores(*inputs, parts=parts, scale=7.0)
    assert torch.equal(found, wanted)
    narrow = [x.bfloat16() for x in inputs]
    assert found.dtype == torch.float32
    assert torch.equal(
        base_scores(*narrow, parts=parts, scale=7.0), base_scores(*(x.float() for x in narrow), parts=parts, scale=7.0)
    )


# --- refusal

X = torch.zeros
P, G, L, A = X(2, 3, 8), X(2, 8), X(5, 8), X(4, 8)
INTS = {"dtype": torch.long}
REFUSED = [
    ((X(3, 8), G, L), {}, ShapeError, "patches: expected axes 'b n d', got shape (3, 8)"),
    (
        (X(2, 0, 8), G, L),
        {},
        ShapeError,
        "patches: expected at least one patch on axis n of 'b n d', got shape (2, 0, 8)",
    ),
    ((P, X(3, 8), L), {}, ShapeError, "pooled: expected axes 'b d' with b=2, got shape (3, 8)"),
    ((P, X(2, 7), L), {}, ShapeError, "pooled: expected axes 'b d' with d=8, got shape (2, 7)"),
    ((P, G.long(), L), {}, ShapeError, "pooled: expected a tensor of dtype float, got torch.int64"),
    ((P, G, X(5, 7)), {}, ShapeError, "labels: expected axes 'c d' with d=8, got shape (5, 7)"),
    ((P, G, X(2, 5, 8)), {}, ShapeError, "labels: expected axes 'c d', got shape (2, 5, 8)"),
    ((P, G, L.to("meta")), {}, ShapeError, "labels: expected a tensor on cpu, got one on meta"),
    ((P, G, L), {"anchors": X(4, 7)}, ShapeError, "anchors: expected axes 'a d' with d=8, got shape (4, 7)"),
    ((P, G, L), {"anchors": X(2, 4, 8)}, ShapeError, "anchors: expected axes 'a d', got shape (2, 4, 8)"),
    (
        (P, G, L),
        {"anchors": A, "members": X(4, **INTS)},
        ShapeError,
        "members: expected axes 'c' with c=5, got shape (4,)",
    ),
    (
        (P, G, L),
        {"anchors": A, "members": X(5)},
        ShapeError,
        "members: expected a tensor of dtype int, got torch.float32",
    ),
    ((P, G, L), {"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
    ((P, G, L), {"scale": math.inf}, ValueError, "scale: expected a finite number > 0, got inf"),
    (
        (P, G, L),
        {"parts": ("best", "worst")},
        ValueError,
        "parts: expected one of 'competition', 'focused', 'pooled', 'best', got 'worst'",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("inputs", "options", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(inputs: tuple, options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        base_scores(*inputs, **options)
