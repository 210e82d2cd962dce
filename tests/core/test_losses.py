import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.losses import asymmetric_loss, binary_cross_entropy

axis = st.integers(1, 5)
gammas = st.sampled_from([0.0, 0.3, 1.0, 2.0, 2.5, 4.0])
clips = st.sampled_from([0.0, 1e-6, 0.05, 0.4])
reductions = st.sampled_from(["mean", "sum"])
options = st.fixed_dictionaries({"gamma_pos": gammas, "gamma_neg": gammas, "clip": clips, "reduction": reductions})


def loss_and_gradient(logits: Tensor, *arguments: Tensor | None, **options: object) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    loss = asymmetric_loss(logits, *arguments, **options)
    loss.backward()
    return loss.detach(), logits.grad


# --- definition


@given(draws(), axis, axis, options, st.sampled_from([1.0, 10.0, 80.0]), st.booleans())
def test_it_is_its_formula_at_any_logit(draw: Draw, b: int, c: int, options: dict, spread: float, soft: bool) -> None:
    logits = spread * (2 * draw.uniform(b, c) - 1)
    target = draw.uniform(b, c) if soft else draw.chance(0.4, b, c).double()
    known = draw.chance(0.7, b, c)
    wanted = reference.asymmetric_loss(logits.tolist(), target.tolist(), known.tolist(), **options)
    assert asymmetric_loss(logits, target, known, **options).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    everywhere = torch.ones(b, c, dtype=torch.bool)
    wanted = reference.asymmetric_loss(logits.tolist(), target.tolist(), everywhere.tolist(), **options)
    assert asymmetric_loss(logits, target, **options).item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("clip", [0.0, 1e-9, 0.05, 0.4])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 4.0])
def test_it_is_its_formula_far_out(gamma: float, clip: float) -> None:
    options = {"gamma_pos": gamma, "gamma_neg": gamma, "clip": clip, "reduction": "sum"}
    for y in (0.0, 0.3, 1.0):
        for logit in (-80.0, -40.0, -19.0, -8.0, -1e-6, 0.0, 1e-6, 8.0, 19.0, 40.0, 80.0):
            wanted = reference.asymmetric_loss([[logit]], [[y]], [[True]], **options)
            for dtype, close in ((torch.float64, 1e-7), (torch.float32, 2e-4)):
                found = asymmetric_loss(torch.tensor([[logit]], dtype=dtype), torch.tensor([[y]]).double(), **options)
                assert found.item() == pytest.approx(wanted, rel=close, abs=1e-9 if dtype == torch.float64 else 1e-6)


@given(draws(), axis, axis, reductions)
def test_without_focusing_it_is_binary_cross_entropy(draw: Draw, b: int, c: int, reduction: str) -> None:
    logits, target = 5 * draw.normal(b, c), draw.uniform(b, c)
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
    assert_close(binary_cross_entropy(logits, target, reduction=reduction), wanted)
    known = draw.chance(0.5, b, c)
    plain = {"gamma_pos": 0.0, "gamma_neg": 0.0, "clip": 0.0, "reduction": reduction}
    assert_close(
        binary_cross_entropy(logits, target, known, reduction=reduction),
        asymmetric_loss(logits, target, known, **plain),
    )


def test_unless_told_otherwise_easy_negatives_are_faded_with_their_square() -> None:
    logits, target = torch.tensor([[-1.0, 2.0, 0.5]]), torch.tensor([[0, 0, 1]])
    said = {"gamma_pos": 0.0, "gamma_neg": 2.0, "clip": 0.0, "reduction": "mean"}
    assert torch.equal(asymmetric_loss(logits, target), asymmetric_loss(logits, target, **said))


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_the_gradient_is_that_of_the_formula(gamma: float, clip: float) -> None:
    logits = torch.tensor([[-9.0, -3.5, -1.2, 0.3, 2.0, 9.0]], dtype=torch.float64, requires_grad=True)
    for target in (torch.zeros(1, 6), torch.ones(1, 6), torch.full((1, 6), 0.3)):
        options = {"gamma_pos": gamma, "gamma_neg": gamma, "clip": clip}
        assert torch.autograd.gradcheck(lambda x, y=target, o=options: asymmetric_loss(x, y, **o), (logits,))


# --- parity with published code


def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "losses.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def published(
    logits: Tensor, target: Tensor, *, gamma_pos: float, gamma_neg: float, clip: float, detach: bool
) -> Tensor:
    """The formula as code in circulation writes it: clamped after the sigmoid, the weight perhaps detached."""
    p = torch.sigmoid(logits)
    p_m = (p - clip).clamp(min=0)
    weight = (1 - p) ** gamma_pos * target + p_m**gamma_neg * (1 - target)
    weight = weight.detach() if detach else weight
    terms = target * p.clamp(min=1e-8).log() + (1 - target) * (1 - p_m).clamp(min=1e-8).log()
    return -(weight * terms).sum()


SETTINGS = {
    "gn4_gp0_clip0.05": {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05},
    "gn2_gp1_clip0.0": {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.0},
    "gn0_gp0_clip0.0": {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.0},
}


@pytest.mark.shared
@pytest.mark.parametrize("setting", SETTINGS)
def test_it_equals_published_asl_whose_focusing_weight_is_in_the_gradient(shared: Path, setting: str) -> None:
    files = golden(shared)
    name = f"asl.AsymmetricLoss.{setting}.detachFalse.float64"
    loss, gradient = loss_and_gradient(files["x"], files["y"], **SETTINGS[setting], reduction="sum")
    assert_close(loss, files[f"{name}.loss"], rtol=1e-9, atol=0)
    assert_close(gradient, files[f"{name}.grad"], rtol=1e-9, atol=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize("setting", SETTINGS)
def test_published_asl_that_detaches_the_weight_has_the_same_loss_and_another_gradient(
    shared: Path, setting: str
) -> None:
    """Show the reason, detaching: the same formula with the weight detached gives the published gradient."""
    files = golden(shared)
    name = f"asl.AsymmetricLoss.{setting}.detachTrue.float64"
    loss, gradient = loss_and_gradient(files["x"], files["y"], **SETTINGS[setting], reduction="sum")
    assert_close(loss, files[f"{name}.loss"], rtol=1e-9, atol=0)
    logits = files["x"].clone().requires_grad_()
    published(logits, files["y"], **SETTINGS[setting], detach=True).backward()
    assert_close(logits.grad, files[f"{name}.grad"], rtol=1e-9, atol=1e-12)
    focused = setting != "gn0_gp0_clip0.0"
    assert bool((gradient - files[f"{name}.grad"]).abs().max() > 0.4) == focused


@pytest.mark.shared
@pytest.mark.parametrize("setting", SETTINGS)
def test_query2labels_loss_is_the_same_on_another_scale(shared: Path, setting: str) -> None:
    """Compare with a loss that divides by images and labels, multiplies by 1000, and detaches its focusing weight."""
    files = golden(shared)
    name = f"q2l.AsymmetricLossOptimized.{setting}.float64"
    scale = 1000 / files["x"].numel()
    loss = asymmetric_loss(files["x"], files["y"], **SETTINGS[setting])
    assert_close(1000 * loss, files[f"{name}.loss"], rtol=1e-9, atol=0)
    logits = files["x"].clone().requires_grad_()
    published(logits, files["y"], **SETTINGS[setting], detach=True).backward()
    assert_close(scale * logits.grad, files[f"{name}.grad"], rtol=1e-9, atol=1e-12)


@pytest.mark.shared
def test_dualcoops_softmax_of_two_logits_is_the_sigmoid_of_their_difference(shared: Path) -> None:
    files = golden(shared)
    name = "dualcoop.AsymmetricLoss.softmax2.gn2_gp1.full.float64"
    setting = {"gamma_neg": 2.0, "gamma_pos": 1.0, "clip": 0.05}
    loss = asymmetric_loss(files["x2"][:, 1] - files["x2"][:, 0], files["y"], **setting, reduction="sum")
    assert_close(loss, files[f"{name}.loss"], rtol=1e-9, atol=0)
    pairs = files["x2"].clone().requires_grad_()
    published(pairs[:, 1] - pairs[:, 0], files["y"], **setting, detach=True).backward()
    assert_close(pairs.grad, files[f"{name}.grad"], rtol=1e-9, atol=1e-12)


@pytest.mark.shared
@pytest.mark.parametrize(("key", "unknown"), [("y_partial_m1_unknown", -1), ("y_pm1_0_unknown", 0)])
def test_both_spellings_of_partial_labels_are_one_known_mask(shared: Path, key: str, unknown: int) -> None:
    files = golden(shared)
    target, known = (files[key] == 1).double(), files[key] != unknown
    assert 0 < known.sum() < known.numel()
    loss = asymmetric_loss(files["x"], target, known, gamma_neg=2.0, reduction="sum")
    at_known = asymmetric_loss(files["x"][known][None], target[known][None], gamma_neg=2.0, reduction="sum")
    assert_close(loss, at_known)


@pytest.mark.parametrize("clip", [0.0, 1e-9])
@pytest.mark.parametrize("logit", [19.0, 50.0])
def test_a_false_alarm_however_sure_still_learns(logit: float, clip: float) -> None:
    loss, gradient = loss_and_gradient(torch.tensor([[logit]]), torch.zeros(1, 1), gamma_neg=2.0, clip=clip)
    assert loss.item() == pytest.approx(min(logit, -math.log(clip) if clip else math.inf), rel=0.1)
    assert gradient.isfinite()
    if clip == 0:
        assert gradient.item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("logit", [-19.0, -50.0, -1e4])
def test_a_hopeless_positive_still_learns_where_clamping_after_the_sigmoid_stops_it(logit: float) -> None:
    loss, gradient = loss_and_gradient(torch.tensor([[logit]]), torch.ones(1, 1))
    assert loss.item() == pytest.approx(-logit, rel=1e-6)
    assert gradient.item() == pytest.approx(-1.0, rel=1e-6)
    clamped = torch.tensor([[logit]], requires_grad=True)
    published(clamped, torch.ones(1, 1), gamma_pos=0.0, gamma_neg=2.0, clip=0.0, detach=False).backward()
    assert clamped.grad.item() == 0.0


# --- law


@given(draws(), axis, axis, options, st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e30]))
def test_law_7_unknown_labels_change_neither_loss_nor_gradient(
    draw: Draw, b: int, c: int, options: dict, junk: float
) -> None:
    logits, target, known = 4 * draw.normal(b, c), draw.chance(0.4, b, c).double(), draw.chance(0.6, b, c)
    loss, gradient = loss_and_gradient(logits, target, known, **options)
    for wrong in (-1.0, float("nan"), 7.0):
        spoilt = (logits.masked_fill(~known, junk), target.masked_fill(~known, wrong), known)
        again, gradient_again = loss_and_gradient(*spoilt, **options)
        assert torch.equal(loss, again)
        assert torch.equal(gradient, gradient_again)
    assert (gradient[~known] == 0).all()
    if known.any():
        dense, dense_gradient = loss_and_gradient(logits[known][None], target[known][None], **options)
        assert_close(loss, dense)
        assert_close(gradient[known], dense_gradient[0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_known_costs_nothing_and_moves_nothing(reduction: str) -> None:
    logits = torch.full((2, 3), float("nan"))
    loss, gradient = loss_and_gradient(logits, logits, torch.zeros(2, 3, dtype=torch.bool), reduction=reduction)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros(2, 3))
    assert asymmetric_loss(torch.zeros(0, 3), torch.zeros(0, 3), reduction=reduction).item() == 0


@given(draws(), axis, axis, options)
def test_law_1_and_2_the_order_of_labels_and_images_does_not_matter(draw: Draw, b: int, c: int, options: dict) -> None:
    logits, target, known = draw.normal(b, c), draw.chance(0.4, b, c), draw.chance(0.6, b, c)
    rows, columns = draw.order(b), draw.order(c)
    loss, gradient = loss_and_gradient(logits, target, known, **options)
    moved = [x[rows][:, columns] for x in (logits, target, known)]
    loss_moved, gradient_moved = loss_and_gradient(*moved, **options)
    assert_close(loss_moved, loss)
    assert_close(gradient_moved, gradient[rows][:, columns])


@given(draws(), st.integers(2, 5), axis, options)
def test_the_sums_of_parts_make_the_mean_of_the_whole(draw: Draw, b: int, c: int, options: dict) -> None:
    logits, target, known = draw.normal(b, c), draw.chance(0.4, b, c), draw.chance(0.6, b, c)
    cut = b // 2
    options = {**options, "reduction": "sum"}
    parts = sum(
        asymmetric_loss(*(x[part] for x in (logits, target, known)), **options) for part in (slice(cut), slice(cut, b))
    )
    whole = asymmetric_loss(logits, target, known, **{**options, "reduction": "mean"})
    assert_close(parts / max(int(known.sum()), 1), whole)


@given(st.floats(-1e4, 1e4), st.booleans(), options)
def test_loss_and_gradient_are_finite_in_float32_whatever_the_logit(logit: float, y: bool, options: dict) -> None:
    loss, gradient = loss_and_gradient(torch.tensor([[logit]]), torch.tensor([[y]]), **options)
    assert loss.isfinite()
    assert loss >= 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("clip", [1e-9, 0.05, 0.5])
def test_the_edge_of_the_clip_has_a_finite_gradient(clip: float) -> None:
    edge = torch.logit(torch.tensor(clip, dtype=torch.float64))
    logits = (edge + torch.tensor([[-1e-3, -1e-15, 0.0, 1e-15, 1e-3, 40.0]])).double()
    for gamma in (0.0, 0.3, 1.0, 2.0):
        loss, gradient = loss_and_gradient(logits, torch.zeros(1, 6), gamma_neg=gamma, clip=clip)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert gradient[0, 0] == 0  # Below the clip a negative costs nothing.


# --- life


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_law_8_it_is_float32_whatever_comes_in_and_whatever_autocast_says(dtype: torch.dtype) -> None:
    logits, target = torch.tensor([[-30.0, 12.0, 3.0]], dtype=dtype), torch.tensor([[1, 0, 1]])
    plain = asymmetric_loss(logits, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(asymmetric_loss(logits, target), plain)
    assert plain.dtype == torch.float32
    assert_close(plain, asymmetric_loss(logits.float(), target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool])
def test_targets_of_any_dtype_mean_the_same(dtype: torch.dtype) -> None:
    logits, target = torch.tensor([[0.3, -1.0]]), torch.tensor([[1, 0]])
    assert torch.equal(asymmetric_loss(logits, target.to(dtype)), asymmetric_loss(logits, target.float()))


@pytest.mark.usefixtures("unchecked")
def test_it_compiles_into_one_graph() -> None:
    compiled = torch.compile(asymmetric_loss, fullgraph=True, backend="eager", dynamic=True)
    for b, c in [(2, 3), (4, 5)]:
        logits, target, known = torch.randn(b, c), torch.rand(b, c), torch.rand(b, c) > 0.3
        for options in ({}, {"gamma_pos": 1.0, "gamma_neg": 4.0, "clip": 0.05, "reduction": "sum"}):
            assert_close(compiled(logits, target, known, **options), asymmetric_loss(logits, target, known, **options))


# --- refusal

X = torch.zeros(2, 3)
NAN = float("nan")
REFUSED = [
    ((X[0], X), {}, "logits: expected axes 'b c', got shape (3,)"),
    ((X.long(), X), {}, "logits: expected a tensor of dtype float, got torch.int64"),
    ((X, X[:1]), {}, "target: expected axes 'b c' with b=2, got shape (1, 3)"),
    ((X, X[:, :1]), {}, "target: expected axes 'b c' with c=3, got shape (2, 1)"),
    ((X, X, X[:, :1].bool()), {}, "known: expected axes 'b c' with c=3, got shape (2, 1)"),
    ((X, X, X[:1].bool()), {}, "known: expected axes 'b c' with b=2, got shape (1, 3)"),
    ((X, X, X.to("meta", torch.bool)), {}, "known: expected a tensor on cpu, got one on meta"),
    ((X, X, X), {}, "known: expected a tensor of dtype bool, got torch.float32"),
    ((X, X.to("meta")), {}, "target: expected a tensor on cpu, got one on meta"),
    ((X, X - 1), {}, "target: expected values in [0, 1] wherever known, got -1"),
    ((X[:1], torch.tensor([[0.0, 1.0, 1.5]])), {}, "target: expected values in [0, 1] wherever known, got 1.5"),
    ((X, X + 2, X == 0), {}, "target: expected values in [0, 1] wherever known, got 2"),
    ((X, X + NAN), {}, "target: expected values in [0, 1] wherever known, got nan"),
    ((X, X), {"gamma_pos": -1.0}, "gamma_pos: expected a finite number >= 0, got -1.0"),
    ((X, X), {"gamma_neg": NAN}, "gamma_neg: expected a finite number >= 0, got nan"),
    ((X, X), {"clip": 1.0}, "clip: expected a finite number >= 0 and < 1, got 1.0"),
    ((X, X), {"reduction": "none"}, "reduction: expected one of 'mean', 'sum', got 'none'"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED)
def test_refusals_name_the_argument(arguments: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        asymmetric_loss(*arguments, **options)
