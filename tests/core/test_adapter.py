import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, perturb, sizes, survives
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core.adapter import VisualAdapter
from pvlr.core.functional import cosine_scores
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
hiddens = st.sampled_from([0, 1, 6])


# --- definition


@given(sizes(), draws(), hiddens)
def test_patches_become_what_the_formula_says(s: Sizes, draw: Draw, hidden: int) -> None:
    adapter = perturb(VisualAdapter(dim=s.d, adapter_width=hidden).double(), draw)
    patches = draw.normal(s.b, s.n, s.d)
    found = adapter(patches)
    for b in range(s.b):
        wanted = reference.adapted(as_lists(adapter), patches[b].tolist())
        assert_close(found[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(sizes(), draws(), hiddens)
def test_the_whole_image_becomes_what_the_formula_says(s: Sizes, draw: Draw, hidden: int) -> None:
    adapter = perturb(VisualAdapter(dim=s.d, adapter_width=hidden, source_dim=s.k).double(), draw)
    pooled, source = draw.normal(s.b, s.d), draw.normal(s.b, s.k)
    found = adapter.whole(pooled, source)
    for b in range(s.b):
        wanted = reference.adapted_whole(as_lists(adapter), pooled[b].tolist(), source[b].tolist())
        assert_close(found[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


# --- law


@given(sizes(), draws(), hiddens)
def test_law_6_before_the_first_step_nothing_but_the_length_is_changed(s: Sizes, draw: Draw, hidden: int) -> None:
    adapter = VisualAdapter(dim=s.d, adapter_width=hidden, source_dim=s.k).double()
    patches, pooled, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.d), draw.normal(s.c, s.d)
    assert_close(adapter(patches), patches / patches.norm(dim=-1, keepdim=True), **EXACT)
    whole = adapter.whole(pooled, draw.normal(s.b, s.k))
    assert_close(whole, pooled / pooled.norm(dim=-1, keepdim=True), **EXACT)
    assert_close(cosine_scores(adapter(patches), labels), cosine_scores(patches, labels), **EXACT)


@given(sizes(), draws(), hiddens)
def test_what_comes_out_is_of_unit_length_and_does_not_know_how_long_it_was(s: Sizes, draw: Draw, hidden: int) -> None:
    adapter = perturb(VisualAdapter(dim=s.d, adapter_width=hidden, source_dim=s.k).double(), draw)
    patches, pooled, source = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.d), draw.normal(s.b, s.k)
    for out in (adapter(patches), adapter.whole(pooled, source)):
        assert_close(out.norm(dim=-1), torch.ones(out.shape[:-1], dtype=torch.float64), **EXACT)
    assert_close(adapter.whole(3 * pooled, source), adapter.whole(pooled, source), **EXACT)


@given(sizes(), draws(), hiddens)
def test_law_2_patches_and_images_are_changed_one_by_one(s: Sizes, draw: Draw, hidden: int) -> None:
    adapter = perturb(VisualAdapter(dim=s.d, adapter_width=hidden, source_dim=s.k).double(), draw)
    patches, pooled, source = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.d), draw.normal(s.b, s.k)
    out, whole, order = adapter(patches), adapter.whole(pooled, source), draw.order(s.n)
    assert_close(adapter(patches[:, order]), out[:, order], **EXACT)
    assert_close(adapter(patches[:, :1]), out[:, :1], **EXACT)
    for b in range(s.b):
        assert_close(adapter(patches[b : b + 1]), out[b : b + 1], **EXACT)
        assert_close(adapter.whole(pooled[b : b + 1], source[b : b + 1]), whole[b : b + 1], **EXACT)


# --- life


def test_every_parameter_learns_and_the_first_step_starts_at_the_last_projections() -> None:
    draw = Draw(1)
    adapter = VisualAdapter(dim=8, adapter_width=6, source_dim=5).double()
    inputs = draw.normal(2, 7, 8), draw.normal(2, 8), draw.normal(2, 5)

    def learns() -> set[str]:
        adapter.zero_grad()
        backward((adapter(inputs[0]), adapter.whole(*inputs[1:])))
        return {name for name, _ in adapter.named_parameters()} - set(missing_gradients(adapter))

    assert learns() == {"down.weight", "down.bias", "source.weight"}
    perturb(adapter, draw)
    assert learns() == {name for name, _ in adapter.named_parameters()}
    assert list(VisualAdapter(dim=8, adapter_width=0).parameters()) == []


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    made = [VisualAdapter(dim=8, adapter_width=6, source_dim=5).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(2, 7, 8))


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_close_and_stays_in_it(width: torch.dtype) -> None:
    draw = Draw(3, torch.float32)
    adapter = perturb(VisualAdapter(dim=8, adapter_width=6, source_dim=5), draw, 0.1)
    inputs = draw.normal(2, 7, 8), draw.normal(2, 8), draw.normal(2, 5)
    wanted = adapter(inputs[0]), adapter.whole(*inputs[1:])
    narrow = [x.to(width) for x in inputs]
    adapter.to(width)
    for found, right in zip((adapter(narrow[0]), adapter.whole(*narrow[1:])), wanted, strict=True):
        assert found.dtype == width
        assert_close(found.float(), right, rtol=0.05, atol=0.05)


# --- refusal

X = torch.zeros
BLOCK = VisualAdapter(dim=8, adapter_width=6, source_dim=5)
REFUSED = [
    (lambda: BLOCK(X(3, 8)), ShapeError, "patches: expected axes 'b n d', got shape (3, 8)"),
    (lambda: BLOCK(X(2, 3, 7)), ShapeError, "patches: expected axes 'b n d' with d=8, got shape (2, 3, 7)"),
    # Where nothing is projected, no projection would find out.
    (
        lambda: VisualAdapter(dim=8, adapter_width=0)(X(2, 3, 7)),
        ShapeError,
        "patches: expected axes 'b n d' with d=8, got shape (2, 3, 7)",
    ),
    (lambda: BLOCK.whole(X(2, 7), X(2, 5)), ShapeError, "pooled: expected axes 'b d' with d=8, got shape (2, 7)"),
    (lambda: BLOCK.whole(X(2, 8), X(2, 4)), ShapeError, "source: expected axes 'b k' with k=5, got shape (2, 4)"),
    (lambda: BLOCK.whole(X(2, 8), X(1, 5)), ShapeError, "source: expected axes 'b k' with b=2, got shape (1, 5)"),
    (
        lambda: VisualAdapter(dim=8).whole(X(2, 8), X(2, 5)),
        ValueError,
        "source: expected a block with a source_dim, this one has none",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(call: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        call()
