import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, perturb, sizes, survives
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.residual import LabelResidual
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def drawn(draw: Draw, c: int, labels: int) -> Tensor:
    return (draw.uniform(c) * (labels + 1)).long() - 1


# --- definition


@given(sizes(), draws(), st.integers(1, 4), st.booleans())
def test_it_is_its_formula(s: Sizes, draw: Draw, labels: int, sourced: bool) -> None:
    block = LabelResidual(labels=labels, dim=s.d, source_dim=s.k if sourced else 0).double()
    perturb(block, draw)
    vectors, members = draw.normal(s.c, s.d), drawn(draw, s.c, labels)
    added, own, bias = (
        torch.tensor(x, dtype=torch.float64) for x in reference.label_residual(as_lists(block), members.tolist())
    )
    assert_close(block(vectors, members), vectors + added, **EXACT)
    found = block.rows(members)
    assert found[0].shape == (s.c, s.k if sourced else 0)
    assert_close(found[0], own.reshape(found[0].shape), **EXACT)
    assert_close(found[1], bias, **EXACT)


# --- law


@given(sizes(), draws(), st.integers(1, 4))
def test_law_6_before_the_first_step_nothing_is_added(s: Sizes, draw: Draw, labels: int) -> None:
    block = LabelResidual(labels=labels, dim=s.d, source_dim=s.k).double()
    vectors, members = draw.normal(s.c, s.d), drawn(draw, s.c, labels)
    assert torch.equal(block(vectors, members), vectors)
    for row in block.rows(members):
        assert not row.any()


@given(sizes(), draws(), st.integers(1, 4))
def test_labels_that_were_not_trained_on_are_left_alone(s: Sizes, draw: Draw, labels: int) -> None:
    block = perturb(LabelResidual(labels=labels, dim=s.d, source_dim=s.k).double(), draw)
    vectors, members = draw.normal(s.c, s.d), drawn(draw, s.c, labels)
    others, out, (own, bias) = members < 0, block(vectors, members), block.rows(members)
    assert torch.equal(out[others], vectors[others])
    assert not own[others].any()
    assert not bias[others].any()
    assert bool((out[~others] != vectors[~others]).any(dim=-1).all())


def test_training_on_some_labels_changes_nothing_of_the_others() -> None:
    draw = Draw(0)
    block = LabelResidual(labels=4, dim=8, source_dim=5).double()
    optimiser = torch.optim.SGD(block.parameters(), lr=1.0)
    members = torch.tensor([2, -1, 0])
    backward((block(draw.normal(3, 8), members), block.rows(members)))
    optimiser.step()
    for table in (block.vectors, block.source, block.bias[:, None]):
        assert table.any(dim=-1).tolist() == [True, False, True, False]


@given(sizes(), draws(), st.integers(1, 4), st.integers(1, 5))
def test_laws_1_and_3_each_label_is_on_its_own(s: Sizes, draw: Draw, labels: int, kept: int) -> None:
    block = perturb(LabelResidual(labels=labels, dim=s.d, source_dim=s.k).double(), draw)
    vectors, members, order = draw.normal(s.c, s.d), drawn(draw, s.c, labels), draw.order(s.c)
    out, rows = block(vectors, members), block.rows(members)
    assert torch.equal(block(vectors[order], members[order]), out[order])
    assert torch.equal(block(vectors[:kept], members[:kept]), out[:kept])
    for found, wanted in zip(block.rows(members[order]), rows, strict=True):
        assert torch.equal(found, wanted[order])


# --- life


def test_every_parameter_learns_from_the_first_step() -> None:
    draw, members = Draw(1), torch.tensor([0, -1, 1])
    block = LabelResidual(labels=2, dim=8, source_dim=5).double()
    backward((block(draw.normal(3, 8), members), block.rows(members)))
    assert missing_gradients(block) == []
    assert {name for name, _ in LabelResidual(labels=2, dim=8).named_parameters()} == {"vectors", "bias"}


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    made = [LabelResidual(labels=4, dim=8, source_dim=5).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(3, 8), torch.tensor([2, -1, 0]))


# --- refusal

X, BLOCK = torch.zeros, LabelResidual(labels=4, dim=8, source_dim=5)
MEMBERS = torch.tensor([2, -1, 0])
REFUSED = [
    (lambda: BLOCK(X(3, 7), MEMBERS), "vectors: expected axes 'c d' with d=8, got shape (3, 7)"),
    (lambda: BLOCK(X(2, 3, 8), MEMBERS), "vectors: expected axes 'c d', got shape (2, 3, 8)"),
    (lambda: BLOCK(X(4, 8), MEMBERS), "members: expected axes 'c' with c=4, got shape (3,)"),
    (lambda: BLOCK(X(3, 8), X(3)), "members: expected a tensor of dtype int, got torch.float32"),
    (lambda: BLOCK.rows(X(3)), "members: expected a tensor of dtype int, got torch.float32"),
    (lambda: BLOCK.rows(MEMBERS[None]), "members: expected axes 'c', got shape (1, 3)"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{pinned(message)}$"):
        call()
