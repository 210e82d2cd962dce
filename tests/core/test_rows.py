"""Long label lists and many patches are gone through in parts: what comes out, and when it is done at all."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from helpers.contract_cases import BLOCKS, FUNCTIONS, OPEN, TOGETHER, Case
from helpers.model_toys import HEADS, build, patches_for, switches
from helpers.strategies import Draw, draws, first, perturb, seeds, tensors
from helpers.toy_text import LABELS, ToyTower, prompts_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core import functional
from pvlr.core.attention import DualModalAttention
from pvlr.core.base import base_scores
from pvlr.core.functional import by_rows
from pvlr.core.head import SimilarityHead
from pvlr.core.prompts import ContextPrompter, PromptBank
from pvlr.core.semantic import SemanticPooling

# The same sums of the same numbers; a matrix product of fewer rows may only add them in another order.
SAME = {"rtol": 1e-12, "atol": 1e-12}
IN_PARTS = [
    case
    for case in BLOCKS + TOGETHER + FUNCTIONS
    if case.name.startswith(("dual", "semantic", "head", "base_scores", "assembled"))
]
ROWS = st.integers(1, 3)


def counted(call: Callable[[], object], rows: int) -> tuple[object, dict[str, int]]:
    """Result of a call where so many rows go at once, and the number of calls of the parts that are gone through."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(functional, "ROWS_AT_ONCE", rows))
        spies = {
            name: stack.enter_context(mock.patch(f"pvlr.core.{name}", wraps=getattr(functional, name.split(".")[1])))
            for name in ("attention.attend", "semantic.cosine_scores", "head.cosine_scores", "base.cosine_scores")
        }
        found = call()
    return found, {name: spy.call_count for name, spy in spies.items()}


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("case", IN_PARTS, ids=[case.name for case in IN_PARTS])
def test_parts_of_the_rows_make_the_whole(case: Case, rows: int) -> None:
    module, inputs = case.build(), case.inputs(c=5, n=7)
    whole, once = counted(lambda: module(*inputs), 7)
    parts, often = counted(lambda: module(*inputs), rows)
    for a, b in zip(parts, whole, strict=True):
        assert_close(a, b, **SAME)
    if case.name != "dual-none":
        assert sum(often.values()) > sum(once.values())


@given(switches(heads=HEADS, knowledge="text_tower"), draws(), ROWS)
def test_parts_of_the_rows_make_the_whole_model(chosen: dict, draw: Draw, rows: int) -> None:
    model, patches = build(chosen), patches_for(draw, 2, 7)
    with torch.no_grad():
        whole = model.forward_features(patches, maps=True)
        parts, calls = counted(lambda: model.forward_features(patches, maps=True), rows)
    for a, b in zip(tensors(parts), tensors(whole), strict=True):
        assert_close(a, b, **SAME)
    if model.config.learn:
        assert calls["semantic.cosine_scores"] == math.ceil(len(model.labels) / rows)
        # And once for the whole image, where the tower tells what its vector was made of.
        of_whole = getattr(model.image, "source_dim", 0) > 0
        assert calls["head.cosine_scores"] == math.ceil(len(model.labels) / rows) + of_whole
    else:
        assert calls["base.cosine_scores"] >= math.ceil(len(model.labels) / rows)


@given(draws(), st.integers(1, 9), st.integers(1, 4), st.sampled_from([-2, -1]))
def test_by_rows_gives_each_row_to_the_function_once_and_in_order(draw: Draw, count: int, rows: int, join: int) -> None:
    x, y, seen = draw.normal(2, count, 3), draw.normal(count, 1), []

    def compute(x: Tensor, y: Tensor) -> Tensor:
        seen.append(x.shape[-2])
        return x * y if join == -2 else (x * y).mT

    with torch.no_grad(), mock.patch.object(functional, "ROWS_AT_ONCE", rows):
        found = by_rows(compute, x, y, join=join)
    assert torch.equal(found, x * y if join == -2 else (x * y).mT)
    assert seen == [rows] * (count // rows) + [count % rows] * (count % rows > 0)


@pytest.mark.usefixtures("unchecked")
def test_rows_that_have_no_partner_are_refused_and_not_left_out() -> None:
    with torch.no_grad(), mock.patch.object(functional, "ROWS_AT_ONCE", 2), pytest.raises(ValueError, match="shorter"):
        by_rows(torch.mul, torch.ones(5, 1), torch.ones(2, 1))


def test_the_number_of_parts_is_that_of_the_rows_on_the_side_that_looks() -> None:
    labels, patches = Draw(0).normal(5, 4), Draw(0).normal(2, 7, 4)
    block, head = DualModalAttention(dim=4, heads=2, layers=3).double(), SimilarityHead().double()
    semantic, anchors, inputs = (
        SemanticPooling(dim=4, feedforward=3).double(),
        labels[:3],
        (patches, patches[:, 0], labels),
    )
    with torch.no_grad():
        assert counted(lambda: block(labels, patches), 2)[1]["attention.attend"] == 3 * (3 + 4)
        assert counted(lambda: block(labels, patches), 7)[1]["attention.attend"] == 3 * 2
        assert counted(lambda: head(patches, labels), 2)[1]["head.cosine_scores"] == 3
        assert counted(lambda: head(patches, labels), 5)[1]["head.cosine_scores"] == 1
        assert counted(lambda: semantic(patches, labels), 2)[1]["semantic.cosine_scores"] == 3
        assert counted(lambda: semantic(patches, labels), 5)[1]["semantic.cosine_scores"] == 1
        # What a patch has to share out is gone through as the labels are.
        for rivals, rows, calls in ((None, 2, 3 + 3), (None, 5, 2), (anchors, 2, 2 + 3), (anchors, 3, 1 + 2)):
            found = counted(lambda: base_scores(*inputs, parts=("competition",), anchors=rivals), rows)[1]  # noqa: B023
            assert found["base.cosine_scores"] == calls


@pytest.mark.parametrize("case", IN_PARTS, ids=[case.name for case in IN_PARTS])
def test_where_a_gradient_is_asked_for_few_rows_are_not_in_parts(case: Case) -> None:
    module, inputs = case.build(), case.inputs()
    assert counted(lambda: module(*inputs), 1)[1] == counted(lambda: module(*inputs), 99)[1]


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("case", IN_PARTS, ids=[case.name for case in IN_PARTS])
def test_parts_of_many_rows_are_computed_again_for_the_gradient_and_it_is_the_same(case: Case, rows: int) -> None:
    module, inputs = case.build(), case.inputs(c=5, n=7)
    values = [*(x.requires_grad_() for x in inputs if x.is_floating_point()), *module.parameters()]

    def slopes() -> tuple[Tensor | None, ...]:
        out = [x for x in module(*inputs) if x.requires_grad]
        found = torch.autograd.grad(sum(x.square().sum() for x in out), values, allow_unused=True)
        return tuple(found)

    whole, once = counted(slopes, 1)
    with mock.patch.object(functional, "ROWS_KEPT", 4):
        parts, often = counted(slopes, rows)
    for one, wanted in zip(parts, whole, strict=True):
        assert (one is None) == (wanted is None)
        assert one is None or torch.allclose(one, wanted, **SAME)
    if case.name != "dual-none":
        assert sum(often.values()) > 2 * sum(once.values())


@given(draws(), st.integers(1, 9), st.integers(1, 4), st.integers(0, 9))
def test_by_rows_with_gradients_has_parts_of_more_rows_than_it_keeps(
    draw: Draw, count: int, rows: int, kept: int
) -> None:
    x, y, seen = draw.normal(2, count, 3).requires_grad_(), draw.normal(count, 1), []

    def compute(x: Tensor, y: Tensor) -> Tensor:
        seen.append(x.shape[-2])
        return torch.sin(x * y)

    with mock.patch.multiple(functional, ROWS_AT_ONCE=rows, ROWS_KEPT=kept):
        found = by_rows(compute, x, y)
        parts = [rows] * (count // rows) + [count % rows] * (count % rows > 0) if count > kept else [count]
        assert seen == parts
        (slope,) = torch.autograd.grad(found.sum(), x)
    assert len(seen) == (1 if count <= kept else 2) * len(parts)
    assert_close(found, torch.sin(x * y), **SAME)
    assert_close(slope, torch.cos(x * y) * y, **SAME)


@given(seeds(), draws(), st.integers(1, 4), st.sampled_from([0, 2, 3]))
def test_many_prompts_are_encoded_in_parts_that_are_exact(seed: int, draw: Draw, rows: int, kept: int) -> None:
    tower, prompter = ToyTower(seed=seed), perturb(ContextPrompter(width=6, dim=8, heads=2).double(), draw)
    prompts = prompts_for(tower, PromptBank(LABELS))

    def slope() -> tuple[Tensor, Tensor]:
        found = prompter.encode(tower, prompts)
        return found, torch.autograd.grad(found.sum(), prompter.context)[0]

    whole, wanted = slope()
    spy = mock.patch.object(tower, "encode_context", wraps=tower.encode_context)
    with mock.patch.multiple(functional, ROWS_AT_ONCE=rows, ROWS_KEPT=kept), spy as called:
        with torch.no_grad():
            assert_close(prompter.encode(tower, prompts), whole.detach(), **SAME)
        assert called.call_count == math.ceil(3 / rows)
        called.reset_mock()
        found, moved = slope()
        assert called.call_count == (2 * math.ceil(3 / rows) if kept < 3 else 1)
    assert_close(found, whole, **SAME)
    assert_close(moved, wanted, **SAME)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", TOGETHER, ids=[case.name for case in TOGETHER])
def test_a_traced_program_has_no_parts_and_serves_any_number_of_rows(case: Case) -> None:
    module, inputs = case.build(), case.inputs(c=9, n=11)
    dynamic = case.dynamic({axis: torch.export.Dim(axis) for axis in OPEN})
    with torch.no_grad(), mock.patch.object(functional, "ROWS_AT_ONCE", 1):
        program = torch.export.export(module, case.inputs(), dynamic_shapes={"inputs": dynamic}).module()
    assert torch.ops.aten.cat.default not in {node.target for node in program.graph.nodes}
    assert_close(first(program(*inputs)), first(module(*inputs)), **SAME)
