import math

import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, perturb, sizes, survives
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.functional import cosine_scores, pool_regions
from pvlr.core.head import SimilarityHead
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
forms = st.fixed_dictionaries(
    {
        "scale": st.floats(0.5, 100),
        "bias": st.floats(-5, 5),
        "patches": st.floats(0.1, 3),
        "whole": st.floats(0.1, 3),
    }
)
# Which of the tensors that may be left out are given.
given_ones = st.sets(st.sampled_from(["looked", "visual", "whole"]))


def others(s: Sizes, draw: Draw, names: set[str]) -> dict[str, Tensor]:
    made = {"looked": draw.normal(s.b, s.c, s.d), "visual": draw.normal(s.b, s.c, s.d), "whole": draw.normal(s.b, s.d)}
    return {name: made[name] for name in made if name in names}


def of_images(inputs: dict[str, Tensor], images: slice) -> dict[str, Tensor]:
    return {name: x[images] for name, x in inputs.items()}


# --- definition


@given(sizes(), draws(), forms, st.booleans(), given_ones)
def test_it_is_its_formula(s: Sizes, draw: Draw, form: dict, own: bool, names: set[str]) -> None:
    head = perturb(SimilarityHead(**form).double(), draw)
    patches, labels, inputs = draw.normal(s.b, s.n, s.d), draw.normal(s.b, s.c, s.d), others(s, draw, names)
    logits = head(patches, labels if own else labels[0], **inputs)
    for b in range(s.b):
        rest = {name: inputs[name][b].tolist() if name in inputs else None for name in ("looked", "visual", "whole")}
        wanted = reference.similarity_head(
            as_lists(head), patches[b].tolist(), labels[b if own else 0].tolist(), **rest
        )
        assert_close(logits[b], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(sizes(), draws(), forms)
def test_of_patches_alone_it_is_the_functions_with_its_parameters(s: Sizes, draw: Draw, form: dict) -> None:
    head = perturb(SimilarityHead(**form).double(), draw)
    patches, labels = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d)
    scale = (head.log_scale + head.log_patches).exp()
    scores = cosine_scores(patches, labels, scale=scale, bias=head.bias)
    assert_close(head(patches, labels), pool_regions(scores, "max"), **EXACT)


def test_it_starts_at_the_numbers_it_was_given() -> None:
    head = SimilarityHead(scale=7.0, bias=-2.0, patches=0.5, whole=2.0)
    x, labels = torch.tensor([[[0.0, 3.0]]]), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -2.0]])
    assert head(x, labels).tolist()[0] == pytest.approx([1.5, -2, -5.5])
    assert head(x, labels, visual=labels[None]).tolist()[0] == pytest.approx([8.5, 5, 1.5])
    assert head(x, labels, whole=x[0]).tolist()[0] == pytest.approx([15.5, -2, -19.5])
    turned = labels[None, [1, 0, 2]]
    assert head(x, labels, looked=turned).tolist()[0] == pytest.approx([-2, 1.5, -5.5])
    # What is compared with an image's patches is no longer the label; what its own vectors are compared with is.
    assert head(x, labels, looked=turned, visual=labels[None]).tolist()[0] == pytest.approx([5, 8.5, 1.5])


# --- law


@given(sizes(), draws(), forms, st.integers(1, 5), given_ones)
def test_laws_1_2_3_labels_and_images_are_scored_one_by_one(
    s: Sizes, draw: Draw, form: dict, kept: int, names: set[str]
) -> None:
    head = SimilarityHead(**form).double()
    patches, labels, order = draw.normal(s.b, s.n, s.d), draw.normal(s.c, s.d), draw.order(s.c)
    inputs = others(s, draw, names)

    def of_labels(chosen: object) -> dict[str, Tensor]:
        return {name: x if name == "whole" else x[:, chosen] for name, x in inputs.items()}

    logits = head(patches, labels, **inputs)
    assert_close(head(patches, labels[order], **of_labels(order)), logits[:, order], **EXACT)
    assert_close(head(patches, labels[:kept], **of_labels(slice(kept))), logits[:, :kept], **EXACT)
    assert_close(head(patches[:1], labels, **of_images(inputs, slice(1))), logits[:1], **EXACT)
    assert_close(head(patches, labels.expand(s.b, s.c, s.d), **inputs), logits, **EXACT)
    assert_close(head(patches[:, draw.order(s.n)], labels, **inputs), logits, **EXACT)


@given(sizes(), draws(), forms, given_ones)
def test_no_vector_has_to_be_normalised(s: Sizes, draw: Draw, form: dict, names: set[str]) -> None:
    head = SimilarityHead(**form).double()
    inputs = {"patches": draw.normal(s.b, s.n, s.d), "labels": draw.normal(s.c, s.d)} | others(s, draw, names)
    longer = {name: x * (0.1 + 5 * draw.uniform(*x.shape[:-1], 1)) for name, x in inputs.items()}
    assert_close(head(**longer), head(**inputs), **EXACT)


@given(sizes(), draws(), forms, given_ones)
def test_law_8_logits_are_float32_under_autocast(s: Sizes, draw: Draw, form: dict, names: set[str]) -> None:
    head = SimilarityHead(**form)
    patches, labels = draw.normal(s.b, s.n, s.d).float(), draw.normal(s.c, s.d).float()
    inputs = {name: x.float() for name, x in others(s, draw, names).items()}
    logits = head(patches, labels, **inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(patches, labels, **inputs), logits)
        narrow = head(patches.bfloat16(), labels, **inputs)
    assert logits.dtype == narrow.dtype == torch.float32
    wide = {name: x.double() for name, x in inputs.items()}
    assert head.double()(patches.double(), labels.double(), **wide).dtype == torch.float64


# --- life


def test_every_parameter_and_all_that_is_given_learns() -> None:
    draw = Draw(0)
    shapes = {"patches": (2, 7, 8), "labels": (5, 8), "visual": (2, 5, 8), "whole": (2, 8)}
    head = perturb(SimilarityHead(whole=0.3).double(), draw)
    for more in ({}, {"looked": (2, 5, 8)}):
        inputs = {name: draw.normal(*shape).requires_grad_() for name, shape in (shapes | more).items()}
        head.zero_grad()
        backward(head(**inputs))
        assert missing_gradients(head) == []
        assert all(x.grad.abs().max() > 0 for x in inputs.values())
    assert set(head.state_dict()) == {"log_scale", "log_patches", "log_whole", "bias"}


def test_of_patches_alone_every_parameter_learns() -> None:
    head, draw = SimilarityHead().double(), Draw(1)
    backward(head(draw.normal(2, 7, 8), draw.normal(5, 8)))
    assert missing_gradients(head) == []


def test_a_head_that_compares_no_whole_image_has_no_share_for_it() -> None:
    head, draw = SimilarityHead().double(), Draw(3)
    assert set(head.state_dict()) == {"log_scale", "log_patches", "bias"}
    patches, labels = draw.normal(2, 7, 8), draw.normal(5, 8)
    torch.testing.assert_close(head(patches, labels), SimilarityHead(whole=0.3).double()(patches, labels))
    with pytest.raises(ValueError, match=r"^whole: expected None, this head was made not to compare the whole image$"):
        head(patches, labels, whole=draw.normal(2, 8))


def test_save_load_pickle_and_copy() -> None:
    draw = Draw(2)
    made = [SimilarityHead().double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(2, 7, 8), draw.normal(5, 8))


# --- refusal

X = torch.zeros
P, L = X(2, 3, 8), X(5, 8)
NAN = math.nan
REFUSED = [
    ({"scale": 0.0}, (), ValueError, "scale: expected a finite number > 0, got 0.0"),
    ({"bias": NAN}, (), ValueError, "bias: expected a finite number, got nan"),
    ({"patches": 0.0}, (), ValueError, "patches: expected a finite number > 0, got 0.0"),
    ({"whole": -1.0}, (), ValueError, "whole: expected a finite number > 0, got -1.0"),
    ({}, (X(3, 8), X(5, 8)), ShapeError, "patches: expected axes 'b n d', got shape (3, 8)"),
    ({}, (X(2, 3, 8), X(5, 7)), ShapeError, "labels: expected axes '... c d' with d=8, got shape (5, 7)"),
    ({"whole": 0.3}, (P, L, {"whole": X(2, 7)}), ShapeError, "whole: expected axes 'b d' with d=8, got shape (2, 7)"),
    ({"whole": 0.3}, (P, L, {"whole": X(1, 8)}), ShapeError, "whole: expected axes 'b d' with b=2, got shape (1, 8)"),
    (
        {"whole": 0.3},
        (P, L, {"whole": X(2, 8).long()}),
        ShapeError,
        "whole: expected a tensor of dtype float, got torch.int64",
    ),
    (
        {"whole": 0.3},
        (P, L, {"whole": X(2, 8).to("meta")}),
        ShapeError,
        "whole: expected a tensor on cpu, got one on meta",
    ),
    *(
        ({}, (P, L, {name: x}), ShapeError, f"{name}: expected {message}")
        for name in ("looked", "visual")
        for x, message in (
            (X(5, 8), "axes 'b c d', got shape (5, 8)"),
            (X(1, 5, 8), "axes 'b c d' with b=2, got shape (1, 5, 8)"),
            (X(2, 4, 8), "axes 'b c d' with c=5, got shape (2, 4, 8)"),
            (X(2, 5, 7), "axes 'b c d' with d=8, got shape (2, 5, 7)"),
        )
    ),
    *(
        ({}, (P, X(1, 5, 8), more), ShapeError, "labels: expected axes 'b c d' with b=2, got shape (1, 5, 8)")
        for more in ({"looked": X(2, 5, 8)}, {"looked": X(2, 5, 8), "visual": X(2, 5, 8)})
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
    more = inputs[2] if len(inputs) > 2 else {}
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        SimilarityHead(**options)(*inputs[:2], **more)
