"""Refusals of the pure functions, argument by argument, and their words."""

import pytest
import torch
from helpers.messages import pinned

from pvlr.core import functional as lib
from pvlr.core.shapes import ShapeError

X = torch.zeros
REFUSED = [
    (
        lambda: lib.attend(X(2, 3, 4), X(7, 2, 5, 4), X(3, 2, 5, 4)),
        ShapeError,
        "query, key, value: expected leading axes that broadcast, got () and (7,) and (3,)",
    ),
    (lambda: lib.split_heads(X(3, 4), 0), ValueError, "heads: expected a whole number of at least 1, got 0"),
    (lambda: lib.cosine_scores(X(3, 4), X(5, 4)), ShapeError, "image: expected axes 'b n d', got shape (3, 4)"),
    (
        lambda: lib.cosine_scores(X(2, 3, 4), X(5, 3)),
        ShapeError,
        "labels: expected axes 'c d' with d=4, got shape (5, 3)",
    ),
    (
        lambda: lib.cosine_scores(X(2, 3, 4), X(3, 5, 4)),
        ShapeError,
        "labels: expected axes 'b c d' with b=2, got shape (3, 5, 4)",
    ),
    (
        lambda: lib.cosine_scores(X(2, 3, 4), X(5, 4).long()),
        ShapeError,
        "labels: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: lib.cosine_scores(X(2, 3, 4), X(2, 5, 3)),
        ShapeError,
        "labels: expected axes 'b c d' with d=4, got shape (2, 5, 3)",
    ),
    (
        lambda: lib.cosine_scores(X(2, 3, 4), X(2, 5, 4).long()),
        ShapeError,
        "labels: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: lib.cosine_scores(X(2, 3, 4).long(), X(5, 4)),
        ShapeError,
        "image: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: lib.fuse_maps(X(2, 3, 5).long(), X(2, 3, 5), X(2)),
        ShapeError,
        "map_a: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: lib.fuse_maps(X(2, 3, 5), X(2, 3, 5).long(), X(2)),
        ShapeError,
        "map_b: expected a tensor of dtype float, got torch.int64",
    ),
    (lambda: lib.pool_regions(X(2, 3)), ShapeError, "scores: expected axes 'b n c', got shape (2, 3)"),
    (
        lambda: lib.pool_regions(X(2, 0, 3)),
        ShapeError,
        "scores: expected at least one patch on axis n of 'b n c', got shape (2, 0, 3)",
    ),
    (
        lambda: lib.pool_regions(X(2, 3, 4), "sum"),
        ValueError,
        "how: expected one of 'max', 'mean', 'softmax', got 'sum'",
    ),
    (
        lambda: lib.pool_regions(X(2, 3, 4), "softmax", 0.0),
        ValueError,
        "temperature: expected a finite number > 0, got 0.0",
    ),
    (
        lambda: lib.pool_regions(X(2, 3, 4), "softmax", float("nan")),
        ValueError,
        "temperature: expected a finite number > 0, got nan",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(2, 3), 1),
        ShapeError,
        "context: expected axes 'm w' with w=2, got shape (2, 3)",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(2, 4, 2), 1),
        ShapeError,
        "context: expected axes 'c m w' with c=3, got shape (2, 4, 2)",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(4, 2), 3),
        ValueError,
        "start: expected start + 4 context tokens within t=6, got start=3",
    ),
    (
        lambda: lib.splice_context(X(3, 6, 2), X(4, 2), -1),
        ValueError,
        "start: expected a whole number of at least 0, got -1",
    ),
    (lambda: lib.prior_bias(X(3), 1.0), ValueError, "prior: expected a finite number > 0 and < 1, got 1.0"),
    (
        lambda: lib.prior_bias(X(0), 0.5),
        ValueError,
        "scores: expected at least one score, got shape (0,)",
    ),
    (
        lambda: lib.prior_bias(torch.tensor([0.0, float("nan")]), 0.5),
        ValueError,
        "scores: expected finite scores, got nan",
    ),
    (
        lambda: lib.prior_bias(torch.tensor([[0.0, float("-inf")]]), 0.5),
        ValueError,
        "scores: expected finite scores, got -inf",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_refusals_say_what_was_expected_and_what_was_found(call: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        call()
