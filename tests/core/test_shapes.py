import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.shapes import ShapeError, expect, expect_broadcast


@given(st.dictionaries(st.sampled_from("bcndhetmwk"), st.integers(0, 5), min_size=1))
def test_sizes_of_every_named_axis_come_back_in_order(axes: dict[str, int]) -> None:
    found = expect("x", torch.zeros(*axes.values()), " ".join(axes), **axes)
    assert list(found.items()) == list(axes.items())


@given(st.lists(st.integers(0, 3), max_size=3), st.integers(1, 4), st.integers(1, 4))
def test_ellipsis_stands_for_any_axes_and_is_not_in_the_answer(lead: list[int], c: int, d: int) -> None:
    assert expect("x", torch.zeros(*lead, c, d), "... c d", d=d) == {"c": c, "d": d}


def test_underscore_takes_any_size_and_one_takes_one() -> None:
    assert expect("x", torch.zeros(2, 1, 5), "_ 1 d") == {"d": 5}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (torch.float32, "float"),
        (torch.float64, "float"),
        (torch.bfloat16, "float"),
        (torch.int64, "int"),
        (torch.uint8, "int"),
        (torch.bool, "bool"),
        (torch.complex64, None),
    ],
)
def test_every_dtype_is_of_one_kind(dtype: torch.dtype, kind: str | None) -> None:
    tensor = torch.zeros(2, dtype=dtype)
    for asked in ("float", "int", "bool"):
        if asked == kind:
            expect("x", tensor, "c", dtype=asked)
        else:
            with pytest.raises(ShapeError, match=f"^x: expected a tensor of dtype {asked}, got {dtype}$"):
                expect("x", tensor, "c", dtype=asked)


REFUSED = [
    (torch.zeros(2), "c d", {}, "labels: expected axes 'c d', got shape (2,)"),
    (torch.zeros(2, 3, 4), "c d", {}, "labels: expected axes 'c d', got shape (2, 3, 4)"),
    (torch.zeros(()), "... c d", {}, "labels: expected axes '... c d', got shape ()"),
    (torch.zeros(2, 3), "1 d", {}, "labels: expected axes '1 d', got shape (2, 3)"),
    (torch.zeros(2, 3), "c d", {"d": 4}, "labels: expected axes 'c d' with d=4, got shape (2, 3)"),
    (torch.zeros(2, 3), "c d", {"d": 2}, "labels: expected axes 'c d' with d=2, got shape (2, 3)"),
    (torch.zeros(2, 3), "... d", {"d": 4}, "labels: expected axes '... d' with d=4, got shape (2, 3)"),
    (
        torch.zeros(2, 3),
        "c d",
        {"q": 4},
        "labels: a size was asked for axis 'q', which is not in the pattern 'c d'",
    ),
    (torch.zeros(2, 6), "c (h e)", {}, "labels: expected axes 'c (h e)', got shape (2, 6)"),
    (
        torch.zeros(2, 3),
        "c d",
        {"device": torch.device("meta")},
        "labels: expected a tensor on meta, got one on cpu",
    ),
    ([[1.0]], "c d", {}, "labels: expected a tensor with axes 'c d', got list"),
    (None, "c d", {}, "labels: expected a tensor with axes 'c d', got NoneType"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("tensor", "pattern", "sizes", "message"), REFUSED)
def test_refusals_name_the_argument_the_pattern_and_what_was_found(
    tensor: object, pattern: str, sizes: dict, message: str
) -> None:
    with pytest.raises(ShapeError, match=f"^{re.escape(message)}$") as caught:
        expect("labels", tensor, pattern, **sizes)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("width", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("like", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_autocast_makes_up_for_another_width_where_it_casts_both(width: torch.dtype, like: torch.dtype) -> None:
    tensor, weight = torch.zeros(2, dtype=width), torch.zeros(2, dtype=like)
    cast = {torch.float16, torch.bfloat16, torch.float32}
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if width == like or (autocast and {width, like} <= cast):
                expect("x", tensor, "c", like=weight)
            else:
                with pytest.raises(ShapeError, match=f"^x: expected a tensor of dtype {like}, got {width}$"):
                    expect("x", tensor, "c", like=weight)


def test_shapes_that_broadcast_tell_to_what() -> None:
    assert expect_broadcast("a, b, c", "axes", (2, 1), (), (3,)) == (2, 3)
    with pytest.raises(ShapeError, match=r"^a, b: expected axes that broadcast, got \(2,\) and \(3,\)$") as caught:
        expect_broadcast("a, b", "axes", (2,), (3,))
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("unchecked")
def test_it_traces_through_compile_and_export() -> None:
    class Block(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            axes = expect("x", x, "... n d", dtype="float", d=4)
            return x @ y.T * expect("y", y, "c d", d=axes["d"])["c"]

    block = Block()
    compiled = torch.compile(block, fullgraph=True, backend="eager", dynamic=True)
    for lead, c in [((2, 3), 5), ((3, 6), 2)]:
        x, y = torch.randn(*lead, 4), torch.randn(c, 4)
        torch.testing.assert_close(compiled(x, y), block(x, y))
    dims = ({0: torch.export.Dim("b"), 1: torch.export.Dim("n")}, {0: torch.export.Dim("c")})
    exported = torch.export.export(block, (torch.randn(2, 3, 4), torch.randn(5, 4)), dynamic_shapes=dims)
    x, y = torch.randn(7, 2, 4), torch.randn(3, 4)
    torch.testing.assert_close(exported.module()(x, y), block(x, y))
