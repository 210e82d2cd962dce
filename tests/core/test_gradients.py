"""Gradients in float64: of every case by finite differences, and as the slopes of the slow loops of the reference."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import reference
from helpers.contract_cases import MATRIX, Case
from helpers.strategies import Draw, Sizes, draws, perturb, tensors
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, LabelRelation, RelationMap
from pvlr.core.base import base_scores
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.losses import asymmetric_loss
from pvlr.core.mixture import Mixture
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling

# A slope asks the slow loops four times for every parameter: a fifth of the examples of other properties.
FEW = settings(max_examples=max(1, settings.default.max_examples // 5))
# Axes of one are where rounding hides the slope: a layer norm of one number, a cosine of two.
small = st.builds(
    Sizes, b=st.just(1), c=st.integers(1, 4), n=st.integers(1, 4), h=st.integers(1, 2), e=st.integers(2, 3),
    t=st.just(1), m=st.just(1), w=st.just(1), k=st.just(1),
)  # fmt: skip


# --- automatic differentiation against finite differences of the module itself


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", MATRIX, ids=[case.name for case in MATRIX])
def test_the_gradient_of_inputs_and_parameters_is_the_slope(case: Case) -> None:
    module, inputs = case.build(), case.inputs(b=2, c=3, n=2)
    learnt = {name: x.detach().clone() for name, x in module.named_parameters()}
    where = case.floats()
    leaves = [x.requires_grad_() for x in (*(inputs[i] for i in where), *learnt.values())]

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        for position, leaf in zip(where, leaves, strict=False):
            given[position] = leaf
        parameters = dict(zip(learnt, leaves[len(where) :], strict=True))
        out = functional_call(module, parameters, tuple(given))
        return tuple(x for x in out if x.requires_grad)

    # Along a random direction of each leaf, for two seeds; each number on its own would take minutes.
    for seed in range(2):
        torch.manual_seed(seed)
        assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


# --- automatic differentiation against finite differences of the reference

State = dict[str, list]
Flat = dict[str, Tensor]


def numbers(value: Any) -> list[float]:
    return [number for part in value for number in numbers(part)] if isinstance(value, list | tuple) else [value]


def weighted(output: Any, seed: int) -> float:
    values = numbers(output)
    return math.fsum(w * x for w, x in zip(Draw(seed).normal(len(values)).tolist(), values, strict=True))


def slopes_agree(
    module: nn.Module | None, inputs: Flat, run: Callable[..., tuple[Tensor, ...]], slow: Callable[[State, State], Any]
) -> None:
    """Compare every input's and parameter's gradient along a random direction with the reference's slope there.

    Args:
        module: Its parameters are leaves too.
        inputs: Leaves by name.
        run: From the inputs to the outputs, by the library.
        slow: From parameters and inputs as lists to the same numbers in the same order.
    """
    state = {} if module is None else dict(module.named_parameters())
    leaves = {**{f"input {name}": x.requires_grad_() for name, x in inputs.items()}, **state}
    outputs = torch.cat([x.flatten() for x in run(**inputs)])
    (outputs * Draw(9).normal(len(outputs))).sum().backward()
    assert math.isclose(weighted(outputs.tolist(), 9), weighted(slow(*lists(state, inputs)), 9), abs_tol=1e-9)
    for index, (name, leaf) in enumerate(leaves.items()):
        direction = Draw(index).normal(*leaf.shape)
        found = 0.0 if leaf.grad is None else (leaf.grad * direction).sum().item()

        def moved(step: float, leaf: Tensor = leaf, direction: Tensor = direction) -> float:
            with torch.no_grad():
                before = leaf.clone()
                leaf.add_(step * direction)
                value = weighted(slow(*lists(state, inputs)), 9)
                leaf.copy_(before)
            return value

        # Of fourth order, so that a step far above rounding is still exact to the digits asked for.
        h = 1e-4
        wanted = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
        assert math.isclose(found, wanted, rel_tol=1e-6, abs_tol=1e-7), f"{name}: {found} but the slope is {wanted}"


def lists(state: Flat, inputs: Flat) -> tuple[State, State]:
    return tuple({name: x.tolist() for name, x in part.items()} for part in (state, inputs))


@FEW
@given(small, draws())
def test_label_relation_learns_as_its_formula(s: Sizes, draw: Draw) -> None:
    block = perturb(LabelRelation(dim=s.d, heads=s.h).double(), draw)

    def run(labels: Tensor) -> tuple[Tensor, ...]:
        out, relation = block(labels)
        return out, relation.dense()

    slopes_agree(
        block,
        {"labels": draw.normal(s.c, s.d)},
        run,
        lambda state, x: reference.label_relation(state, x["labels"], s.h),
    )


@FEW
@given(small, draws(), st.sampled_from(["both", "labels", "patches"]), st.sampled_from([0, 3]), st.booleans())
def test_dual_modal_attention_learns_as_its_formula(
    s: Sizes, draw: Draw, direction: str, feedforward: int, wide: bool
) -> None:
    width = 4 * s.h if wide else None
    form = {"direction": direction, "layers": 1, "feedforward": feedforward}
    block = perturb(DualModalAttention(dim=s.d, heads=s.h, width=width, **form).double(), draw)

    def run(labels: Tensor, patches: Tensor) -> tuple[Tensor, ...]:
        out = block(labels, patches[None], maps=True)
        return out.labels, out.patches, *out.label_maps, *out.patch_maps, *tensors(out.gathered)

    slopes_agree(
        block,
        {"labels": draw.normal(s.c, s.d), "patches": draw.normal(s.n, s.d)},
        run,
        lambda state, x: reference.dual_modal(state, x["labels"], x["patches"], heads=s.h, **form),
    )


@FEW
@given(small, draws(), st.sampled_from(["gate", "gate", "sum"]))
def test_fusion_learns_as_its_formula_through_both_maps(s: Sizes, draw: Draw, fusion: str) -> None:
    block = perturb(FusionBlock(dim=s.d, heads=s.h, fusion=fusion).double(), draw)
    inputs = {"knowledge": draw.normal(s.c, s.d), "context": draw.normal(s.c, s.d)}
    inputs |= {name: draw.normal(s.h, s.c, s.e) for name in ("qa", "ka", "qb", "kb")}

    def run(knowledge: Tensor, context: Tensor, **factors: Tensor) -> tuple[Tensor, ...]:
        qa, ka, qb, kb = factors.values()
        return (block(knowledge, context, RelationMap(qa, ka), RelationMap(qb, kb)),)

    def slow(state: State, x: State) -> Any:
        maps = tuple(
            [reference.attention_map(q, k) for q, k in zip(x[f"q{side}"], x[f"k{side}"], strict=True)] for side in "ab"
        )
        return reference.fusion(state, x["knowledge"], x["context"], maps, fusion=fusion, heads=s.h)

    slopes_agree(block, inputs, run, slow)


def apart(patches: Tensor, rows: Tensor) -> bool:
    """Test whether one patch is most like each label: between two that are, a maximum has no slope."""
    columns = torch.tensor(reference.cosine_scores(patches.tolist(), rows.tolist(), 1.0, 0.0))
    return bool(((columns > columns.amax(dim=0) - 0.01).sum(dim=0) == 1).all())


@FEW
@given(small, draws(), st.sets(st.sampled_from(["looked", "visual", "whole"])))
def test_the_head_learns_as_its_formula(s: Sizes, draw: Draw, names: set[str]) -> None:
    head = perturb(SimilarityHead(scale=3.0, whole=0.3 if "whole" in names else None).double(), draw)
    inputs = {"patches": draw.normal(s.n, s.d), "labels": draw.normal(s.c, s.d)}
    others = {"looked": draw.normal(s.c, s.d), "visual": draw.normal(s.c, s.d), "whole": draw.normal(s.d)}
    inputs |= {name: x for name, x in others.items() if name in names}
    assume(apart(inputs["patches"], inputs.get("looked", inputs["labels"])))

    def run(patches: Tensor, labels: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
        return (head(patches[None], labels, **{name: x[None] for name, x in rest.items()}),)

    def slow(state: State, x: State) -> Any:
        return reference.similarity_head(state, **(dict.fromkeys(others) | x))

    slopes_agree(head, inputs, run, slow)


@FEW
@given(small, draws(), st.sampled_from([0, 3]))
def test_the_adapter_learns_as_its_formula(s: Sizes, draw: Draw, hidden: int) -> None:
    block = perturb(VisualAdapter(dim=s.d, adapter_width=hidden, source_dim=3).double(), draw)
    inputs = {"patches": draw.normal(s.n, s.d), "pooled": draw.normal(s.d), "source": draw.normal(3)}

    def run(patches: Tensor, pooled: Tensor, source: Tensor) -> tuple[Tensor, ...]:
        return block(patches[None]), block.whole(pooled[None], source[None])

    def slow(state: State, x: State) -> Any:
        return [reference.adapted(state, x["patches"]), reference.adapted_whole(state, x["pooled"], x["source"])]

    slopes_agree(block, inputs, run, slow)


@FEW
@given(small, draws(), st.sampled_from([0, 3]), st.booleans())
def test_semantic_pooling_learns_as_its_formula(s: Sizes, draw: Draw, hidden: int, brought: bool) -> None:
    block = perturb(SemanticPooling(dim=s.d, feedforward=hidden, sharpness=3.0).double(), draw)
    inputs = {"patches": draw.normal(s.n, s.d), "knowledge": draw.normal(s.c, s.d)}
    inputs |= {"gathered": draw.normal(s.c, s.d)} if brought else {}

    def run(patches: Tensor, knowledge: Tensor, gathered: Tensor | None = None) -> tuple[Tensor, ...]:
        return (block(patches[None], knowledge, None if gathered is None else gathered[None]),)

    slopes_agree(block, inputs, run, lambda state, x: reference.semantic_pooling(state, **({"gathered": None} | x)))


@FEW
@given(small, draws())
def test_residuals_learn_as_their_formula(s: Sizes, draw: Draw) -> None:
    block = perturb(LabelResidual(labels=3, dim=s.d, source_dim=2).double(), draw)
    members = (4 * draw.uniform(s.c)).long() - 1

    def run(vectors: Tensor) -> tuple[Tensor, ...]:
        return block(vectors, members), *block.rows(members)

    def slow(state: State, x: State) -> Any:
        added, own, bias = reference.label_residual(state, members.tolist())
        return [[reference.add(a, b) for a, b in zip(x["vectors"], added, strict=True)], own, bias]

    slopes_agree(block, {"vectors": draw.normal(s.c, s.d)}, run, slow)


@FEW
@given(small, draws(), st.sampled_from(["labels", "anchors", "members"]))
def test_scores_of_the_base_have_the_slope_of_their_formula(s: Sizes, draw: Draw, rivals: str) -> None:
    form = {"parts": ["competition", "focused", "pooled", "best"], "scale": 3.0}
    inputs = {"patches": draw.normal(s.n, s.d), "pooled": draw.normal(s.d), "labels": draw.normal(s.c, s.d)}
    assume(apart(inputs["patches"], inputs["labels"]))
    members = None
    if rivals != "labels":
        inputs["anchors"] = draw.normal(3, s.d)
    if rivals == "members":
        # Each label is the anchor that it is said to be, and moves with it.
        members = (4 * draw.uniform(s.c)).long() - 1

    def named(labels: Any, anchors: Any) -> Any:
        return (
            labels if members is None else [anchors[m] if m >= 0 else x for x, m in zip(labels, members, strict=True)]
        )

    def run(patches: Tensor, pooled: Tensor, labels: Tensor, anchors: Tensor | None = None) -> tuple[Tensor, ...]:
        labels = labels if members is None else torch.stack(named(labels, anchors))
        return (base_scores(patches[None], pooled[None], labels, anchors=anchors, members=members, **form),)

    def slow(_: State, x: State) -> Any:
        labels, anchors = named(x["labels"], x.get("anchors")), x.get("anchors")
        told = None if members is None else members.tolist()
        return reference.base_scores(x["patches"], x["pooled"], labels, anchors=anchors, members=told, **form)

    assume(members is None or apart(inputs["patches"], inputs["anchors"]))
    slopes_agree(None, inputs, run, slow)


@FEW
@given(small, draws(), st.integers(0, 3))
def test_the_mixture_learns_as_its_formula(s: Sizes, draw: Draw, parts: int) -> None:
    block = perturb(Mixture(parts=parts, shrinkage=10.0).double(), draw).eval()
    block.spread.copy_(1 + draw.uniform(parts))
    inputs = {"learned": draw.normal(s.c), "positives": 1 + 30 * draw.uniform(s.c)}
    inputs |= {"base": draw.normal(s.c, parts)} if parts else {}

    def run(learned: Tensor, positives: Tensor, base: Tensor | None = None) -> tuple[Tensor, ...]:
        return (block(None if base is None else base[None], learned[None], positives),)

    def slow(state: State, x: State) -> Any:
        measured = {"spread": block.spread.tolist()}  # Which is measured, and not learned.
        return reference.mixture(state | measured, x.get("base"), x["learned"], x["positives"], 10.0)

    slopes_agree(block, inputs, run, slow)


@FEW
@given(
    draws(),
    st.integers(1, 3),
    st.integers(1, 4),
    st.fixed_dictionaries(
        {
            "gamma_pos": st.sampled_from([0.0, 1.0, 2.5]),
            "gamma_neg": st.sampled_from([0.0, 0.3, 2.0]),
            "clip": st.sampled_from([0.0, 0.05, 0.4]),
            "reduction": st.sampled_from(["mean", "sum"]),
        }
    ),
)
def test_the_loss_teaches_as_its_formula(draw: Draw, b: int, c: int, options: dict) -> None:
    logits, target, known = 3 * draw.normal(b, c), draw.uniform(b, c), draw.chance(0.7, b, c)
    # At the clip itself the formula has no slope.
    assume(bool(((torch.sigmoid(logits) - options["clip"]).abs() > 0.01).all()))
    slopes_agree(
        None,
        {"logits": logits, "target": target},
        lambda logits, target: (asymmetric_loss(logits, target, known, **options),),
        lambda _, x: reference.asymmetric_loss(x["logits"], x["target"], known.tolist(), **options),
    )
