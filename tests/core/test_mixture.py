import math
from itertools import pairwise

import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import (
    Draw,
    Sizes,
    as_lists,
    backward,
    draws,
    missing_gradients,
    perturb,
    seeds,
    sizes,
    survives,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.mixture import Mixture, mixing_weights
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
shrinkages = st.sampled_from([0.5, 10.0, 20.0])
counts = st.integers(0, 4)


def mixture(draw: Draw, **form: object) -> Mixture:
    return perturb(Mixture(**form).double(), draw).eval()


def known(draw: Draw, c: int) -> Tensor:
    """Positives of labels, of some none."""
    return (40 * draw.uniform(c)).round() * draw.chance(0.7, c)


# --- definition


@given(sizes(), draws(), counts, shrinkages, st.booleans(), st.booleans())
def test_it_is_its_formula(
    s: Sizes, draw: Draw, parts: int, shrinkage: float, with_learned: bool, with_positives: bool
) -> None:
    block = mixture(draw, parts=parts, shrinkage=shrinkage, bias=-1.0)
    base = draw.normal(s.b, s.c, parts) if parts else None
    learned = draw.normal(s.b, s.c) if with_learned or not parts else None
    positives = known(draw, s.c) if with_positives else None
    found = block(base, learned, positives)
    for b in range(s.b):
        one = [None if x is None else x.tolist() for x in (base if base is None else base[b], None, positives)]
        of_image = None if learned is None else learned[b].tolist()
        wanted = reference.mixture(as_lists(block), one[0], of_image, one[2], shrinkage)
        assert_close(found[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(draws(), st.integers(1, 9), shrinkages)
def test_the_mixing_weight_is_the_share_of_positives(draw: Draw, c: int, shrinkage: float) -> None:
    positives = known(draw, c)
    wanted = [n / (n + shrinkage) for n in positives.tolist()]
    assert_close(mixing_weights(positives, shrinkage), torch.tensor(wanted, dtype=torch.float64), **EXACT)
    ends = mixing_weights(torch.tensor([0.0, shrinkage, math.inf]), shrinkage)
    assert ends.tolist() == [0.0, 0.5, 1.0]


def test_it_starts_at_the_mean_of_the_parts_and_the_bias_it_was_given() -> None:
    block = Mixture(parts=4, bias=-2.0).eval()
    base = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
    assert block(base, None).item() == 1.0
    assert Mixture(parts=0, bias=3.0).eval()(None, base[..., 0]).item() == 4.0
    assert Mixture(parts=0).weights is None


# --- law


@given(sizes(), draws(), st.integers(1, 4), shrinkages)
def test_between_no_and_all_positives_a_score_moves_from_the_base_to_all_that_is_known(
    s: Sizes, draw: Draw, parts: int, shrinkage: float
) -> None:
    block = mixture(draw, parts=parts, shrinkage=shrinkage)
    base, learned = draw.normal(s.b, s.c, parts), draw.normal(s.b, s.c)
    base_alone = block(base, None)
    ends = [block(base, learned, torch.full((s.c,), n, dtype=torch.float64)) for n in (0.0, math.inf)]
    assert torch.equal(ends[0], base_alone)
    assert torch.equal(block(base, learned), base_alone)
    assert_close(ends[1], base_alone + learned, **EXACT)
    between = [block(base, learned, torch.full((s.c,), n, dtype=torch.float64)) for n in (0.0, 1.0, 7.0, 1e3, math.inf)]
    for fewer, more in pairwise(between):
        assert bool(((more - fewer) * learned.sign() > 0).all())


@given(sizes(), draws(), st.integers(1, 4))
def test_positives_of_a_label_count_for_that_label_alone(s: Sizes, draw: Draw, parts: int) -> None:
    block = mixture(draw, parts=parts)
    base, learned, positives = draw.normal(s.b, s.c, parts), draw.normal(s.b, s.c), known(draw, s.c)
    whole, order = block(base, learned, positives), draw.order(s.c)
    assert_close(block(base[:, order], learned[:, order], positives[order]), whole[:, order], **EXACT)
    for c in range(s.c):
        alone = block(base[:, c : c + 1], learned[:, c : c + 1], positives[c : c + 1])
        assert_close(alone, whole[:, c : c + 1], **EXACT)
    assert_close(block(base[:1], learned[:1], positives), whole[:1], **EXACT)


@given(sizes(), draws())
def test_without_a_base_all_that_was_learned_counts_whatever_was_known(s: Sizes, draw: Draw) -> None:
    block, learned = mixture(draw, parts=0, bias=-1.0), draw.normal(s.b, s.c)
    wanted = learned + block.bias
    for positives in (None, torch.zeros(s.c), known(draw, s.c)):
        assert torch.equal(block(None, learned, positives), wanted)
    block.train()
    assert torch.equal(block(None, learned, torch.zeros(s.c)), wanted)


@pytest.mark.parametrize("drop", [0.2, 0.5, 0.9])
def test_in_training_a_share_of_the_pictures_is_without_its_base(drop: float) -> None:
    count, draw = 4000, Draw(0)
    block = mixture(draw, parts=2, drop=drop)
    base, learned = draw.normal(count, 3, 2), draw.normal(count, 3)
    with_base, without = block.complete(base, learned), learned + block.bias
    found = block.train()(base, learned, torch.zeros(3, dtype=torch.float64))
    # A picture has it for all labels and parts, or for none.
    left_out = (found == without).all(dim=-1)
    assert bool((left_out | (found == with_base).all(dim=-1)).all())
    # Four standard deviations of the share.
    assert abs(left_out.double().mean().item() - drop) < 4 * math.sqrt(drop * (1 - drop) / count)


@given(sizes(), draws(), st.integers(1, 4), shrinkages)
def test_in_training_all_that_was_learned_counts(s: Sizes, draw: Draw, parts: int, shrinkage: float) -> None:
    block = mixture(draw, parts=parts, drop=0.0, shrinkage=shrinkage)
    base, learned = draw.normal(s.b, s.c, parts), draw.normal(s.b, s.c)
    wanted = block(base, learned, torch.full((s.c,), math.inf))
    assert torch.equal(block.train()(base, learned, torch.zeros(s.c)), wanted)
    assert torch.equal(block(base, learned), wanted)
    # What does not learn has nothing but its base.
    never = Mixture(parts=parts, drop=0.9).double()
    assert torch.equal(never(base, None), never.eval()(base, None))


@given(sizes(), draws(), st.integers(1, 4))
def test_complete_is_all_that_was_learned_on_the_whole_base_in_any_mode(s: Sizes, draw: Draw, parts: int) -> None:
    block = mixture(draw, parts=parts, drop=0.9)
    base, learned = draw.normal(s.b, s.c, parts), draw.normal(s.b, s.c)
    wanted = block(base, learned, torch.full((s.c,), math.inf, dtype=torch.float64)), block(base, None)
    for training in (True, False):
        block.train(training)
        assert torch.equal(block.complete(base, learned), wanted[0])
        assert torch.equal(block.complete(base, None), wanted[1])
    without = mixture(draw, parts=0)
    assert torch.equal(without.complete(None, learned), without(None, learned))


@given(sizes(), draws(), st.integers(0, 3), st.integers(1, 3))
def test_each_of_several_answers_is_on_its_own_and_all_lack_the_base_of_the_same_pictures(
    s: Sizes, draw: Draw, parts: int, count: int
) -> None:
    block = mixture(draw, parts=parts, drop=0.5).train()
    base, answers = draw.normal(s.b, s.c, parts) if parts else None, [draw.normal(s.b, s.c) for _ in range(count)]
    for draws_of in (None, draw.uniform(s.b)):
        block.draws = draws_of
        torch.manual_seed(s.b)
        found = block.each(base, answers)
        assert len(found) == count
        for one, answer in zip(found, answers, strict=True):
            torch.manual_seed(s.b)
            assert_close(one, block(base, answer), **EXACT)


def test_given_draws_say_which_pictures_are_without_their_base() -> None:
    draw = Draw(0)
    block = mixture(draw, parts=2, drop=0.5).train()
    block.draws = torch.tensor([0.1, 0.5, 0.9, 0.0])
    base = draw.normal(4, 3, 2)
    kept = torch.tensor([0.0, 1.0, 1.0, 0.0]).double().reshape(4, 1, 1)
    assert torch.equal(block.dropped(base), base * kept)
    block.drop = 0.0
    assert block.dropped(base) is base


def test_in_evaluation_nothing_is_left_out() -> None:
    draw = Draw(0)
    block = mixture(draw, parts=2, drop=0.9, shrinkage=20.0)
    base, learned = draw.normal(200, 3, 2), draw.normal(200, 3)
    wanted = base @ block.weights + learned / 2 + block.bias
    assert_close(block(base, learned, torch.full((3,), 20.0)), wanted, **EXACT)


@given(sizes(), draws())
def test_law_8_logits_are_float32_under_autocast_and_in_half_precision(s: Sizes, draw: Draw) -> None:
    block = mixture(draw, parts=2).float()
    base, learned, positives = (x.float() for x in (draw.normal(s.b, s.c, 2), draw.normal(s.b, s.c), known(draw, s.c)))
    wanted = block(base, learned, positives)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(base, learned, positives), wanted)
    assert block.bfloat16()(base.bfloat16(), learned.bfloat16(), positives.bfloat16()).dtype == torch.float32


# --- life


def test_weights_and_bias_learn_and_the_shrinkage_is_kept() -> None:
    draw = Draw(1)
    block = Mixture(parts=3).double()
    base, learned = (x.requires_grad_() for x in (draw.normal(9, 4, 3), draw.normal(9, 4)))
    backward(block(base, learned))
    assert missing_gradients(block) == []
    assert learned.grad.abs().min() > 0
    assert {name for name, _ in block.named_parameters()} == {"weights", "bias"}
    assert set(block.state_dict()) == {"weights", "bias", "shrinkage", "spread"}


@given(seeds())
def test_parts_of_any_spread_weigh_the_same_once_it_is_measured(seed: int) -> None:
    draw = Draw(seed)
    base, factors = draw.normal(6, 5, 3), torch.tensor([0.1, 1.0, 30.0]).double()
    made = [Mixture(parts=3).double().eval() for _ in range(2)]
    made[0].fit_spread(base)
    made[1].fit_spread(base * factors)
    torch.testing.assert_close(made[1].spread, made[0].spread * factors)
    torch.testing.assert_close(made[0](base, None), made[1](base * factors, None))
    mean = (base / base.flatten(0, 1).std(dim=0, correction=0)).mean(dim=-1)
    torch.testing.assert_close(made[0](base, None), mean)


def test_a_part_that_is_the_same_everywhere_keeps_its_spread() -> None:
    block = Mixture(parts=2)
    block.fit_spread(torch.stack([torch.ones(4, 3), torch.randn(4, 3)], dim=-1))
    assert block.spread[0] == 1
    assert block.spread[1] != 1


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    made = [Mixture(parts=2, shrinkage=shrinkage).double().eval() for shrinkage in (5.0, 20.0)]
    survives(perturb(made[0], draw), made[1], draw.normal(2, 5, 2), draw.normal(2, 5), known(draw, 5))


# --- refusal

X = torch.zeros
REFUSED = [
    (2, (None, X(3, 5)), ValueError, "base: expected scores of 2 parts, got none"),
    (0, (X(3, 5, 2), X(3, 5)), ValueError, "base: expected scores of 0 parts, got some"),
    (0, (None, None), ValueError, "learned: expected scores where there is no base, got None"),
    (2, (X(3, 5), X(3, 5)), ShapeError, "base: expected axes 'b c p', got shape (3, 5)"),
    (2, (X(3, 5, 3), X(3, 5)), ShapeError, "base: expected axes 'b c p' with p=2, got shape (3, 5, 3)"),
    (2, (X(3, 5, 2), X(3, 4)), ShapeError, "learned: expected axes 'b c' with c=5, got shape (3, 4)"),
    (2, (X(3, 5, 2), X(1, 5)), ShapeError, "learned: expected axes 'b c' with b=3, got shape (1, 5)"),
    (0, (None, X(5)), ShapeError, "learned: expected axes 'b c', got shape (5,)"),
    (0, (None, X(3, 5).long()), ShapeError, "learned: expected a tensor of dtype float, got torch.int64"),
    (2, (X(3, 5, 2), X(3, 5), X(4)), ShapeError, "positives: expected axes 'c' with c=5, got shape (4,)"),
    (2, (X(3, 5, 2), X(3, 5), X(1)), ShapeError, "positives: expected axes 'c' with c=5, got shape (1,)"),
    (2, (X(3, 5, 2), X(3, 5), X(5) > 0), ShapeError, "positives: expected a tensor of dtype float, got torch.bool"),
    (2, ("x", X(3, 5)), ShapeError, "base: expected a tensor with axes 'b c p', got str"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("parts", "inputs", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(parts: int, inputs: tuple, kind: type, message: str, training: bool) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        Mixture(parts=parts).train(training)(*inputs)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("parts", "inputs", "kind", "message"), REFUSED)
def test_all_other_ways_to_mix_refuse_as_it_does(parts: int, inputs: tuple, kind: type, message: str) -> None:
    base, learned, *positives = inputs
    if positives:
        return
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        Mixture(parts=parts).complete(base, learned)
    if learned is not None:
        with pytest.raises(kind, match=f"^{pinned(message)}$"):
            Mixture(parts=parts).each(base, [learned])


@pytest.mark.usefixtures("unchecked")
def test_what_is_left_out_and_measured_has_a_score_for_each_part() -> None:
    for call in (Mixture(parts=2).dropped, Mixture(parts=2).fit_spread):
        with pytest.raises(ShapeError, match=r"^base: expected axes 'b c p' with p=2, got shape \(4, 3, 3\)$"):
            call(torch.zeros(4, 3, 3))


@pytest.mark.usefixtures("unchecked")
def test_mixing_weights_refuse_by_name() -> None:
    for inputs, message in (
        ((X(3, 5), 20.0), "positives: expected axes 'c', got shape (3, 5)"),
        ((X(5).long(), 20.0), "positives: expected a tensor of dtype float, got torch.int64"),
        ((X(5), 0.0), "shrinkage: expected a finite number > 0, got 0.0"),
    ):
        with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
            mixing_weights(*inputs)
