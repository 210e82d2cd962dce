import math
import re

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Draw, Sizes, backward, draws, missing_gradients, perturb, sizes, survives
from torch.testing import assert_close

from pvlr.core.functional import cosine_scores, pool_regions
from pvlr.core.head import SimilarityHead
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
forms = st.fixed_dictionaries(
    {
        "scale": st.floats(0.5, 100),
        "bias": st.floats(-5, 5),
        "aggregation": st.sampled_from(["max", "mean", "softmax"]),
        "temperature": st.floats(0.05, 5),
    }
)


# --- definition


@given(sizes(), draws(), forms, st.booleans())
def test_it_is_its_formula(s: Sizes, draw: Draw, form: dict, own: bool) -> None:
    head = perturb(SimilarityHead(**form).double(), draw)
    patches, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.c, s.d)
    logits = head(patches, labels if own else labels[0])
    for b in range(s.b):
        vectors = labels[b if own else 0].tolist()
        scores = reference.cosine_scores(
            patches[b].tolist(), vectors, math.exp(head.log_scale.item()), head.bias.item()
        )
        wanted = reference.pool_regions(scores, form["aggregation"], form["temperature"])
        assert_close(logits[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(sizes(), draws(), forms, st.booleans())
def test_with_a_vector_of_the_whole_image_it_is_the_mean_of_two_scores(
    s: Sizes, draw: Draw, form: dict, own: bool
) -> None:
    head = perturb(SimilarityHead(**form).double(), draw)
    patches, pooled, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.d), draw.normal(s.b, s.c, s.d)
    logits = head(patches, labels if own else labels[0], pooled)
    scale, bias = math.exp(head.log_scale.item()), head.bias.item()
    for b in range(s.b):
        vectors = labels[b if own else 0].tolist()
        scores = reference.cosine_scores(patches[b].tolist(), vectors, scale, bias)
        of_patches = reference.pool_regions(scores, form["aggregation"], form["temperature"])
        of_whole = reference.cosine_scores([pooled[b].tolist()], vectors, scale, bias)[0]
        wanted = [(x + y) / 2 for x, y in zip(of_patches, of_whole, strict=True)]
        assert_close(logits[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(sizes(), draws(), forms)
def test_the_module_is_the_functions_with_its_parameters(s: Sizes, draw: Draw, form: dict) -> None:
    head = perturb(SimilarityHead(**form), draw)
    patches, labels = draw.normal(s.b, s.n, s.d).float(), draw.normal(s.c, s.d).float()
    scores = cosine_scores(patches, labels, scale=head.log_scale.exp(), bias=head.bias)
    assert torch.equal(head(patches, labels), pool_regions(scores, form["aggregation"], form["temperature"]))


def test_it_starts_at_the_scale_and_bias_it_was_given() -> None:
    head = SimilarityHead(scale=7.0, bias=-2.0)
    x = torch.tensor([[[0.0, 3.0]]])
    assert head(x, torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -2.0]])).tolist()[0] == pytest.approx([5, -2, -9])


# --- law


@given(sizes(), draws(), forms, st.integers(1, 5))
def test_laws_1_2_3_labels_and_images_are_scored_one_by_one(s: Sizes, draw: Draw, form: dict, kept: int) -> None:
    head = SimilarityHead(**form).double()
    patches, labels, order = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d), draw.order(s.c)
    logits = head(patches, labels)
    assert_close(head(patches, labels[order]), logits[:, order], **EXACT)
    assert_close(head(patches, labels[:kept]), logits[:, :kept], **EXACT)
    assert_close(head(patches[:1], labels), logits[:1], **EXACT)
    assert_close(head(patches, labels.expand(s.b, s.c, s.d)), logits, **EXACT)


@given(sizes(), draws(), forms)
def test_law_8_logits_are_float32_under_autocast(s: Sizes, draw: Draw, form: dict) -> None:
    head = SimilarityHead(**form)
    patches, labels = draw.normal(s.b, s.n, s.d).float(), draw.normal(s.c, s.d).float()
    logits = head(patches, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(patches, labels), logits)
        narrow = head(patches.bfloat16(), labels)
    assert logits.dtype == narrow.dtype == torch.float32
    assert head.double()(patches.double(), labels.double()).dtype == torch.float64


# --- life


@pytest.mark.parametrize("aggregation", ["max", "mean", "softmax"])
def test_scale_and_bias_learn_unless_they_are_told_not_to(aggregation: str) -> None:
    draw = Draw(0)
    patches, labels = (draw.normal(*shape).requires_grad_() for shape in [(2, 7, 8), (2, 5, 8)])
    head = perturb(SimilarityHead(aggregation=aggregation).double(), draw)
    backward(head(patches, labels))
    assert missing_gradients(head) == []
    assert patches.grad.abs().max() > 0
    assert labels.grad.abs().max() > 0
    fixed = SimilarityHead(aggregation=aggregation, learnable=False).double()
    backward(fixed(patches, labels))
    assert [x.grad for x in fixed.parameters()] == [None, None]
    assert set(fixed.state_dict()) == set(head.state_dict()) == {"log_scale", "bias"}


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    made = [SimilarityHead(aggregation="softmax", temperature=0.7).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(2, 7, 8), draw.normal(5, 8))


# --- refusal

X = torch.zeros
NAN = math.nan
REFUSED = [
    ({"scale": 0.0}, (), ValueError, "scale: expected a finite number > 0, got 0.0"),
    ({"bias": NAN}, (), ValueError, "bias: expected a finite number, got nan"),
    ({"temperature": -1.0}, (), ValueError, "temperature: expected a finite number > 0, got -1.0"),
    ({"aggregation": "sum"}, (), ValueError, "aggregation: expected one of 'max', 'mean', 'softmax', got 'sum'"),
    ({}, (X(3, 8), X(5, 8)), ShapeError, "patches: expected axes 'b n d', got shape (3, 8)"),
    ({}, (X(2, 3, 8), X(5, 7)), ShapeError, "labels: expected axes '... c d' with d=8, got shape (5, 7)"),
    (
        {},
        (X(2, 3, 8), X(5, 8), X(2, 7)),
        ShapeError,
        "pooled: expected axes 'b d' with d=8, got shape (2, 7)",
    ),
    (
        {},
        (X(2, 3, 8), X(5, 8), X(1, 8)),
        ShapeError,
        "pooled: expected axes 'b d' with b=2, got shape (1, 8)",
    ),
    (
        {},
        (X(2, 3, 8), X(5, 8), X(2, 8, dtype=torch.long)),
        ShapeError,
        "pooled: expected a tensor of dtype float, got torch.int64",
    ),
    (
        {},
        (X(2, 3, 8), X(5, 8), X(2, 8, device="meta")),
        ShapeError,
        "pooled: expected a tensor on cpu, got one on meta",
    ),
    ({}, (X(2, 3, 8), X(3, 5, 8)), ShapeError, "labels: expected axes 'b c d' with b=2, got shape (3, 5, 8)"),
    (
        {},
        (X(2, 0, 8), X(5, 8)),
        ShapeError,
        "scores: expected at least one patch on axis n of 'b n c', got shape (2, 0, 5)",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "inputs", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(options: dict, inputs: tuple, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        SimilarityHead(**options)(*inputs)
