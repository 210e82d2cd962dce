"""Tensors that belong elsewhere: what every block, and every function of tensors, says of a wrong one."""

import re
from collections.abc import Callable

import pytest
import torch
from helpers.contract_cases import BLOCKS, Case
from helpers.messages import pinned
from torch import Tensor

from pvlr.core import functional as lib
from pvlr.core.attention import RelationMap
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.shapes import ShapeError

pytestmark = pytest.mark.usefixtures("unchecked")


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{pinned(message)}$") as caught:
        call()
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def arguments() -> list:
    """Every argument of every block that has parameters to be at odds with: the case, its position, its name."""
    return [
        pytest.param(case, position, name, id=f"{case.name}-{name}")
        for case in BLOCKS
        if any(True for _ in case.build().parameters())
        for position, name in enumerate(case.axes)
    ]


def given(case: Case, position: int, change: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    module, inputs = case.build(dtype=torch.float32), list(case.inputs(dtype=torch.float32))
    module(*inputs)  # Nothing else is wrong with them.
    inputs[position] = change(inputs[position])
    return lambda: module(*inputs)


# --- blocks


@pytest.mark.parametrize(("case", "position", "name"), arguments())
def test_a_tensor_on_another_device_than_the_block(case: Case, position: int, name: str) -> None:
    call = given(case, position, lambda x: x.to("meta"))
    refused(call, f"{name}: expected a tensor on cpu, got one on meta")


# Maps are used in the width of the vectors, and the head scores in the width of what it scores.
OF_ONE_WIDTH = [
    one for one in arguments() if one.values[0].widths and "." not in one.values[2] and one.values[2] != "members"
]


@pytest.mark.parametrize(("case", "position", "name"), OF_ONE_WIDTH)
def test_a_tensor_of_another_width_than_the_block(case: Case, position: int, name: str) -> None:
    call = given(case, position, torch.Tensor.double)
    refused(call, f"{name}: expected a tensor of dtype torch.float32, got torch.float64")


@pytest.mark.parametrize(("case", "position", "name"), arguments())
def test_numbers_of_another_kind(case: Case, position: int, name: str) -> None:
    if case.inputs()[position].is_floating_point():
        refused(given(case, position, torch.Tensor.long), f"{name}: expected a tensor of dtype float, got torch.int64")
    else:
        refused(given(case, position, torch.Tensor.float), f"{name}: expected a tensor of dtype int, got torch.float32")


@pytest.mark.parametrize(("case", "position", "name"), arguments())
def test_what_is_no_tensor(case: Case, position: int, name: str) -> None:
    module, inputs = case.build(), list(case.inputs())
    inputs[position] = "x"
    found = rf"{re.escape(name)}: expected a tensor with axes '.*', got str"
    with pytest.raises(ShapeError, match=f"^{found}$"):
        module(*inputs)


@pytest.mark.parametrize(("case", "position", "name"), OF_ONE_WIDTH)
def test_a_tensor_that_autocast_does_not_cast(case: Case, position: int, name: str) -> None:
    call = given(case, position, torch.Tensor.double)
    with torch.autocast("cpu", torch.bfloat16):
        refused(call, f"{name}: expected a tensor of dtype torch.float32, got torch.float64")


def test_maps_are_used_in_the_width_of_the_vectors() -> None:
    case = next(case for case in BLOCKS if case.name == "fusion")
    module, inputs = case.build(dtype=torch.float32), case.inputs(dtype=torch.float32)
    wide = (*inputs[:2], *(x.double() for x in inputs[2:]))
    assert torch.equal(module(*wide)[0], module(*inputs)[0])


# --- functions, and what blocks leave to them

X = torch.zeros
Q, K, V = X(2, 3, 4), X(2, 5, 4), X(2, 5, 6)
Q7, K7 = X(7, 2, 3, 4), X(7, 2, 5, 4)
META, LONG = {"device": "meta"}, {"dtype": torch.long}
OFF = "expected a tensor on cpu, got one on meta"
FUSION = FusionBlock(dim=8, heads=2)
LABELS, RELATION = X(2, 3, 8), RelationMap(X(2, 3, 4), X(2, 3, 4))
LEADING = "expected leading axes that broadcast"
TO_MAP = "mask: expected axes that broadcast to the map's"
FUNCTIONS = [
    (lambda: lib.attend(Q, K, V, [[True]]), "mask: expected a tensor with axes '... q k', got list"),
    (lambda: lib.attention_map(Q, K, [[True]]), "mask: expected a tensor with axes '... q k', got list"),
    (lambda: lib.gate(1.0, X(3), X(3)), "logits: expected a tensor with axes '...', got float"),
    (lambda: lib.prior_bias([1.0], 0.1), "scores: expected a tensor with axes '...', got list"),
    (lambda: lib.prior_bias(X(3, **LONG), 0.1), "scores: expected a tensor of dtype float, got torch.int64"),
    (lambda: RELATION.attend(X(2, 3, 4, **LONG)), "values: expected a tensor of dtype float, got torch.int64"),
    (lambda: RELATION.attend(X(3, 4)), "values: expected axes '... h c f', got shape (3, 4)"),
    (lambda: FUSION(LABELS, LABELS, X(2, 3, 3), RELATION), "knowledge_map: expected a RelationMap, got Tensor"),
    (lambda: FUSION(LABELS, LABELS, RELATION, tuple(RELATION)), "context_map: expected a RelationMap, got tuple"),
    (lambda: lib.split_heads(X(4), 2), "x: expected axes '... n d', got shape (4,)"),
    (lambda: lib.split_heads(X(3, 4), 3), "x: expected axes '... n (h e)' with h=3, got shape (3, 4)"),
    (lambda: lib.split_heads([[0.0]], 1), "x: expected a tensor with axes '... n d', got list"),
    (lambda: lib.merge_heads(X(3, 4)), "x: expected axes '... h n e', got shape (3, 4)"),
    (lambda: lib.attend(X(3, 4), K, V), "query: expected axes '... h q e', got shape (3, 4)"),
    (lambda: lib.attend(Q, X(5, 4), V), "key: expected axes '... h k e', got shape (5, 4)"),
    (lambda: lib.attend(Q, K, X(5, 6)), "value: expected axes '... h k f', got shape (5, 6)"),
    (lambda: lib.attend(Q, X(3, 5, 4), V), "key: expected axes '... h k e' with h=2, got shape (3, 5, 4)"),
    (lambda: lib.attend(Q, X(2, 5, 3), V), "key: expected axes '... h k e' with e=4, got shape (2, 5, 3)"),
    (lambda: lib.attend(Q, K, X(1, 5, 6)), "value: expected axes '... h k f' with h=2, got shape (1, 5, 6)"),
    (lambda: lib.attend(Q, K, X(2, 3, 6)), "value: expected axes '... h k f' with k=5, got shape (2, 3, 6)"),
    (lambda: lib.attend(Q.long(), K, V), "query: expected a tensor of dtype float, got torch.int64"),
    (lambda: lib.attend(Q, K.double(), V), "key: expected a tensor of dtype torch.float32, got torch.float64"),
    (lambda: lib.attend(Q, K, V.long()), "value: expected a tensor of dtype torch.float32, got torch.int64"),
    (lambda: lib.attend(Q, K.to("meta"), V), f"key: {OFF}"),
    (lambda: lib.attend(Q, K, V.to("meta")), f"value: {OFF}"),
    (
        lambda: lib.attend(Q7, K, V.expand(3, 2, 5, 6)),
        "query, key, value: expected leading axes that broadcast, got (7,) and () and (3,)",
    ),
    (lambda: lib.attend(Q, K, V, X(5)), "mask: expected axes '... q k', got shape (5,)"),
    (lambda: lib.attend(Q, K, V, X(3, 4)), f"{TO_MAP} (2, 3, 5), got shape (3, 4)"),
    (lambda: lib.attend(Q, K, V, X(7, 2, 3, 5)), f"{TO_MAP} (2, 3, 5), got shape (7, 2, 3, 5)"),
    (lambda: lib.attend(Q7, K, V, X(3, 1, 3, 5)), f"{TO_MAP} (7, 2, 3, 5), got shape (3, 1, 3, 5)"),
    (lambda: lib.attend(Q[:, :1], K, V, X(3, 5)), f"{TO_MAP} (2, 1, 5), got shape (3, 5)"),
    (lambda: lib.attend(Q, K, V, X(3, 5, **META)), f"mask: {OFF}"),
    (lambda: lib.attend(Q, K, V, X(3, 5, **LONG)), "mask: expected a tensor of dtype float, got torch.int64"),
    (lambda: lib.attention_map(X(3, 4), K), "query: expected axes '... h q e', got shape (3, 4)"),
    (lambda: lib.attention_map(Q, X(2, 5, 3)), "key: expected axes '... h k e' with e=4, got shape (2, 5, 3)"),
    (lambda: lib.attention_map(Q, K.to("meta")), f"key: {OFF}"),
    (lambda: lib.attention_map(Q, K.double()), "key: expected a tensor of dtype torch.float32, got torch.float64"),
    (
        lambda: lib.attention_map(Q7, K7[:3]),
        "query, key: expected leading axes that broadcast, got (7,) and (3,)",
    ),
    (lambda: lib.attention_map(Q, K, X(5) > 0), "mask: expected axes '... q k', got shape (5,)"),
    (lambda: lib.attention_map(Q, K, X(3, 4) > 0), f"{TO_MAP} (2, 3, 5), got shape (3, 4)"),
    (lambda: lib.attention_map(Q, K, X(7, 1, 3, 5) > 0), f"{TO_MAP} (2, 3, 5), got shape (7, 1, 3, 5)"),
    (lambda: lib.attention_map(Q[:, :1], K, X(3, 5)), f"{TO_MAP} (2, 1, 5), got shape (3, 5)"),
    (lambda: lib.attention_map(Q, K, X(3, 5, **META)), f"mask: {OFF}"),
    (lambda: lib.attention_map(Q, K, X(3, 5, **LONG)), "mask: expected a tensor of dtype float, got torch.int64"),
    (
        lambda: lib.gate(X(3, 4), X(3, 4), X(5, 4)),
        "logits, a, b: expected axes that broadcast, got (3, 4) and (3, 4) and (5, 4)",
    ),
    (lambda: lib.gate(X(3), X(3, **META), X(3)), f"a: {OFF}"),
    (lambda: lib.gate(X(3), X(3), X(3, **META)), f"b: {OFF}"),
    (lambda: lib.gate(X(3, **LONG), X(3), X(3)), "logits: expected a tensor of dtype float, got torch.int64"),
    (lambda: lib.gate(X(3), X(3) > 0, X(3)), "a: expected a tensor of dtype float, got torch.bool"),
    (lambda: lib.gate(X(3), X(3), 1.0), "b: expected a tensor with axes '...', got float"),
    (lambda: lib.fuse_maps(X(3, 5), X(2, 3, 5), X(2)), "map_a: expected axes '... h q k', got shape (3, 5)"),
    (lambda: lib.fuse_maps(X(2, 3, 5), X(3, 5), X(2)), "map_b: expected axes '... h q k', got shape (3, 5)"),
    (
        lambda: lib.fuse_maps(X(2, 3, 5), X(1, 3, 5), X(2)),
        "map_b: expected axes '... h q k' with h=2, got shape (1, 3, 5)",
    ),
    (
        lambda: lib.fuse_maps(X(2, 3, 5), X(2, 1, 5), X(2)),
        "map_b: expected axes '... h q k' with q=3, got shape (2, 1, 5)",
    ),
    (
        lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 4), X(2)),
        "map_b: expected axes '... h q k' with k=5, got shape (2, 3, 4)",
    ),
    (lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 5), X(2, 1)), "mix: expected axes 'h', got shape (2, 1)"),
    (lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 5), X(3)), "mix: expected axes 'h' with h=2, got shape (3,)"),
    (
        lambda: lib.fuse_maps(X(7, 2, 3, 5), X(4, 2, 3, 5), X(2)),
        "map_a, map_b: expected leading axes that broadcast, got (7,) and (4,)",
    ),
    (lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 5, **META), X(2)), f"map_b: {OFF}"),
    (lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 5), X(2, **META)), f"mix: {OFF}"),
    (lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 5), X(2) > 0), "mix: expected a tensor of dtype float, got torch.bool"),
    (lambda: lib.cosine_scores(X(2, 3, 4), X(5, 4, **META)), f"labels: {OFF}"),
    (lambda: lib.cosine_scores(X(2, 3, 4), X(2, 5, 4, **META)), f"labels: {OFF}"),
    (
        lambda: lib.cosine_scores(X(2, 3, 4).double(), X(5, 4)),
        "labels: expected a tensor of dtype torch.float64, got torch.float32",
    ),
    (
        lambda: SimilarityHead()(X(2, 3, 4), X(2, 5, 4).double()),
        "labels: expected a tensor of dtype torch.float32, got torch.float64",
    ),
    (lambda: lib.cosine_scores(X(2, 3, 4), [[0.0]]), "labels: expected a tensor with axes 'c d', got list"),
    (lambda: lib.attend(Q, K7, V.expand(3, 2, 5, 6)), f"query, key, value: {LEADING}, got () and (7,) and (3,)"),
    (lambda: lib.splice_context(X(3, 6, 2), X(4, 2, **META), 1), f"context: {OFF}"),
    (lambda: lib.splice_context(X(3, 6, 2), X(3, 4, 2, **META), 1), f"context: {OFF}"),
    (lambda: lib.splice_context(X(3, 6, 2), X(2, 3), 1), "context: expected axes 'm w' with w=2, got shape (2, 3)"),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(2, 4, 2), 1),
        "context: expected axes 'c m w' with c=3, got shape (2, 4, 2)",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(3, 4, 3), 1),
        "context: expected axes 'c m w' with w=2, got shape (3, 4, 3)",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(4, 2, **LONG), 1),
        "context: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(3, 4, 2, **LONG), 1),
        "context: expected a tensor of dtype float, got torch.int64",
    ),
    (lambda: lib.splice_context(X(3, 6, 2), None, 1), "context: expected a tensor with axes 'm w', got NoneType"),
    (
        lambda: lib.splice_context(X(3, 6, 2, **LONG), X(4, 2), 1),
        "embeddings: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: FUSION(LABELS, LABELS, RELATION, RelationMap(X(7, 2, 3, 4), X(7, 2, 3, 4))),
        "context_map.query: expected leading axes that broadcast against the labels', "
        "got (7, 2, 3, 4) against (2, 3, 8)",
    ),
    (
        lambda: FUSION(LABELS, LABELS, RelationMap(X(2, 3, 4), X(2, 5, 4)), RELATION),
        "knowledge_map.key: expected axes '... h c e' with c=3, got shape (2, 5, 4)",
    ),
    (lambda: FusionBlock(dim=8, fusion="sum")(X(3, 8), X(3, 8, **META)), f"context: {OFF}"),
]


@pytest.mark.parametrize(("call", "message"), FUNCTIONS, ids=[message for _, message in FUNCTIONS])
def test_a_function_names_the_argument_what_was_expected_and_what_was_found(call: Callable, message: str) -> None:
    refused(call, message)
