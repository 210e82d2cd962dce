import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.arguments import require_bool, require_choice, require_heads, require_int, require_number


@given(st.floats(allow_nan=True), st.floats(-5, 5), st.floats(-5, 5), st.floats(-5, 5))
def test_numbers_pass_exactly_within_their_bounds(value: float, above: float, least: float, below: float) -> None:
    inside = math.isfinite(value) and above < value < below and least <= value
    if inside:
        require_number("x", value, above=above, least=least, below=below)
    else:
        with pytest.raises(ValueError, match=r"^x: expected a finite number > "):
            require_number("x", value, above=above, least=least, below=below)


@given(st.integers(1, 40), st.integers(1, 40))
def test_heads_pass_exactly_where_they_divide_the_width(dim: int, heads: int) -> None:
    if dim % heads == 0:
        require_heads(dim, heads)
    else:
        with pytest.raises(ValueError, match=f"^dim: expected a multiple of heads={heads}, got {dim}$"):
            require_heads(dim, heads)


REFUSED = [
    (lambda: require_number("x", True, least=0.0), "x: expected a finite number >= 0, got True"),
    (lambda: require_number("x", "1"), "x: expected a finite number, got '1'"),
    (lambda: require_number("x", math.inf, above=0.0), "x: expected a finite number > 0, got inf"),
    (lambda: require_number("x", 1.0, least=0.0, below=1.0), "x: expected a finite number >= 0 and < 1, got 1.0"),
    (lambda: require_int("x", True, least=0), "x: expected a whole number of at least 0, got True"),
    (lambda: require_int("x", 2.0, least=0), "x: expected a whole number of at least 0, got 2.0"),
    (lambda: require_int("x", -1, least=0), "x: expected a whole number of at least 0, got -1"),
    (lambda: require_heads(8, 0), "heads: expected a whole number of at least 1, got 0"),
    (lambda: require_bool("x", "false"), "x: expected True or False, got 'false'"),
    (lambda: require_bool("x", 1), "x: expected True or False, got 1"),
    (lambda: require_bool("x", None), "x: expected True or False, got None"),
    (lambda: require_choice("x", "c", ("a", "b")), "x: expected one of 'a', 'b', got 'c'"),
    (lambda: require_choice("x", None, ("a",)), "x: expected one of 'a', got None"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals_are_one_sentence(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_true_and_false_pass() -> None:
    require_bool("x", True)
    require_bool("x", False)


@pytest.mark.usefixtures("unchecked")
def test_checks_trace_through_compile_with_numbers_it_does_not_know() -> None:
    def scaled(x: torch.Tensor, by: float, times: int) -> torch.Tensor:
        require_number("by", by, above=0.0, below=10.0)
        require_int("times", times, least=1)
        return x * by * times

    compiled = torch.compile(scaled, fullgraph=True, backend="eager", dynamic=True)
    for by, times in [(0.5, 2), (3.25, 7)]:
        x = torch.ones(3)
        assert torch.equal(compiled(x, by, times), scaled(x, by, times))
