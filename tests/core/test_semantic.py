import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, perturb, sizes, survives
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core.semantic import SemanticPooling
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
forms = st.fixed_dictionaries({"feedforward": st.sampled_from([0, 1, 6]), "sharpness": st.floats(0.1, 50)})


# --- definition


@given(sizes(), draws(), forms, st.booleans(), st.booleans())
def test_it_is_its_formula(s: Sizes, draw: Draw, form: dict, own: bool, brought: bool) -> None:
    block = perturb(SemanticPooling(dim=s.d, **form).double(), draw)
    patches, knowledge = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.c, s.d)
    gathered = draw.normal(s.b, s.c, s.d) if brought else None
    found = block(patches, knowledge if own else knowledge[0], gathered)
    for b in range(s.b):
        wanted = reference.semantic_pooling(
            as_lists(block),
            patches[b].tolist(),
            knowledge[b if own else 0].tolist(),
            None if gathered is None else gathered[b].tolist(),
        )
        assert_close(found[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


def test_it_starts_at_the_sharpness_it_was_given() -> None:
    block = SemanticPooling(dim=2, feedforward=0, sharpness=7.0)
    found = block(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), torch.tensor([[5.0, 0.0]]))
    weights = torch.tensor([7.0, 0.0]).softmax(dim=0)
    assert_close(found[0, 0], weights)


# --- law


@given(sizes(), draws(), forms, st.booleans(), st.integers(1, 5))
def test_laws_1_2_3_each_label_is_on_its_own_and_each_image_too(
    s: Sizes, draw: Draw, form: dict, brought: bool, kept: int
) -> None:
    block = perturb(SemanticPooling(dim=s.d, **form).double(), draw)
    patches, knowledge = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    gathered = draw.normal(s.b, s.c, s.d) if brought else None

    def some(images: object, labels: object) -> torch.Tensor:
        return block(patches[images], knowledge[labels], None if gathered is None else gathered[images][:, labels])

    everything, order = slice(None), draw.order(s.c)
    whole = some(everything, everything)
    assert_close(some(everything, order), whole[:, order], **EXACT)
    assert_close(some(everything, slice(kept)), whole[:, :kept], **EXACT)
    assert_close(some(slice(1), everything), whole[:1], **EXACT)
    assert_close(block(patches, knowledge.expand(s.b, s.c, s.d), gathered), whole, **EXACT)


@given(sizes(), draws(), forms)
def test_neither_order_nor_length_of_the_patches_matters(s: Sizes, draw: Draw, form: dict) -> None:
    block = perturb(SemanticPooling(dim=s.d, **form).double(), draw)
    patches, knowledge = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    whole = block(patches, knowledge)
    assert_close(block(patches[:, draw.order(s.n)], knowledge), whole, **EXACT)
    assert_close(block(patches * (0.1 + 5 * draw.uniform(s.b, s.n, 1)), 3 * knowledge), whole, **EXACT)


@given(sizes(), draws(), st.booleans())
def test_law_6_before_the_first_step_the_feed_forward_adds_nothing(s: Sizes, draw: Draw, brought: bool) -> None:
    patches, knowledge = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    gathered = draw.normal(s.b, s.c, s.d) if brought else None
    with_it, without = (SemanticPooling(dim=s.d, feedforward=hidden).double() for hidden in (6, 0))
    assert torch.equal(with_it(patches, knowledge, gathered), without(patches, knowledge, gathered))


# --- life


@pytest.mark.parametrize("own", [True, False])
def test_every_parameter_learns_and_so_do_all_that_are_given(own: bool) -> None:
    draw = Draw(1)
    block = perturb(SemanticPooling(dim=8, feedforward=6, sharpness=2.0).double(), draw)
    shapes = ((2, 7, 8), (2, 5, 8) if own else (5, 8), (2, 5, 8))
    inputs = [draw.normal(*shape).requires_grad_() for shape in shapes]
    backward(block(*inputs))
    assert missing_gradients(block) == []
    assert all(x.grad.abs().max() > 1e-6 for x in inputs)


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    made = [SemanticPooling(dim=8, feedforward=6).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(2, 7, 8), draw.normal(5, 8), draw.normal(2, 5, 8))


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [0, 6])
def test_in_half_precision_it_is_close_and_stays_in_it(width: torch.dtype, hidden: int) -> None:
    draw = Draw(3, torch.float32)
    block = perturb(SemanticPooling(dim=8, feedforward=hidden, sharpness=2.0), draw, 0.1)
    inputs = draw.normal(2, 7, 8), draw.normal(5, 8), draw.normal(2, 5, 8)
    wanted = block(*inputs)
    found = block.to(width)(*(x.to(width) for x in inputs))
    assert found.dtype == width
    assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


def test_without_a_feed_forward_vectors_need_not_have_the_dtype_of_the_sharpness() -> None:
    draw, block = Draw(4), SemanticPooling(dim=8, feedforward=0)
    inputs = draw.normal(2, 7, 8), draw.normal(5, 8)
    assert block.log_sharpness.dtype == torch.float32
    assert inputs[0].dtype == block(*inputs).dtype == torch.float64
    with pytest.raises(ShapeError, match="dtype"):
        SemanticPooling(dim=8, feedforward=6)(*inputs)


# --- refusal

X = torch.zeros
P, K = X(2, 3, 8), X(5, 8)
REFUSED = [
    ((X(3, 8), K), "patches: expected axes 'b n d', got shape (3, 8)"),
    ((X(2, 3, 7), K), "patches: expected axes 'b n d' with d=8, got shape (2, 3, 7)"),
    ((P, X(5, 7)), "knowledge: expected axes 'c d' with d=8, got shape (5, 7)"),
    ((P, X(3, 5, 8)), "knowledge: expected axes 'b c d' with b=2, got shape (3, 5, 8)"),
    ((P, X(2, 5, 7)), "knowledge: expected axes 'b c d' with d=8, got shape (2, 5, 7)"),
    ((P, X(8)), "knowledge: expected axes 'b c d', got shape (8,)"),
    ((P, K, X(5, 8)), "gathered: expected axes 'b c d', got shape (5, 8)"),
    ((P, K, X(2, 4, 8)), "gathered: expected axes 'b c d' with c=5, got shape (2, 4, 8)"),
    ((P, K, X(1, 5, 8)), "gathered: expected axes 'b c d' with b=2, got shape (1, 5, 8)"),
    ((P, K, X(2, 5, 7)), "gathered: expected axes 'b c d' with d=8, got shape (2, 5, 7)"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("hidden", [0, 6])
@pytest.mark.parametrize(("inputs", "message"), REFUSED)
def test_refusals_name_the_argument(inputs: tuple, message: str, hidden: int) -> None:
    with pytest.raises(ShapeError, match=f"^{pinned(message)}$"):
        SemanticPooling(dim=8, feedforward=hidden)(*inputs)
