"""Baselines against slow references, and what every model that trains in PVLR's place has to do."""

import math
from typing import Any

import pytest
import torch
from helpers.messages import pinned
from helpers.model_toys import DIM, LABELS, ToyImage, ToyText
from helpers.reference import dot, normalise, softmax, splice_context, standardise
from helpers.strategies import Draw, perturb
from torch import nn
from torch.nn.functional import relu
from torch.testing import assert_close

from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.models.baselines import BaselineConfig, BaselineModel, LinearProbe, paired_scores
from pvlr.core.models.decoders import GroupDecoder, LabelDecoder, sine_places
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.protocols import join_regions
from pvlr.core.shapes import ShapeError

KINDS = ("linear_probe", "coop", "dualcoop", "query2label", "ml_decoder")
PROMPTED = ("coop", "dualcoop")
DECODERS = ("query2label", "ml_decoder")
SMALL: dict[str, Any] = {"context_tokens": 2, "width": 8, "heads": 2, "hidden": 5, "groups": 3}


def build(
    kind: str, labels: LabelSet = LABELS, *, source_dim: int = 0, own_dim: int = 0, **chosen: Any
) -> BaselineModel:
    image = ToyImage(source_dim=source_dim, own_dim=own_dim)
    config = BaselineConfig(kind=kind, **SMALL, **chosen)
    model = BaselineModel(config, labels, ToyText().float(), image, logit_scale=7.0)
    perturb(model.head, Draw(1), 0.3)
    return model.eval()


def pictures(count: int = 3) -> torch.Tensor:
    return Draw(0).normal(count, 3, 12, 12).float()


def test_paired_scores_are_their_formula() -> None:
    draw = Draw(0, torch.float64)
    patches, positive, negative = draw.normal(2, 3, 4), draw.normal(5, 4), draw.normal(5, 4)
    found = paired_scores(patches, positive, negative, scale=2.0, factor=3.0)
    for image in range(2):
        for label in range(5):
            cosines = [
                [2.0 * dot(normalise(patch), normalise(text[label].tolist())) for patch in patches[image].tolist()]
                for text in (positive, negative)
            ]
            weights = softmax(cosines[0])
            for sign in range(2):
                wanted = 3.0 * math.fsum(w * s for w, s in zip(weights, cosines[sign], strict=True))
                assert found[sign][image, label].item() == pytest.approx(wanted, abs=1e-9)


def test_the_linear_probe_is_its_formula() -> None:
    probe = perturb(LinearProbe(classes=3, dim=4).double(), Draw(0), 0.5)
    x = Draw(1, torch.float64).normal(2, 4)
    wanted = [
        [dot(w, standardise(row)) + b for w, b in zip(probe.weight.tolist(), probe.bias.tolist(), strict=True)]
        for row in x.tolist()
    ]
    assert_close(probe(x), torch.tensor(wanted, dtype=torch.float64))


def test_a_group_serves_its_labels_in_order() -> None:
    """Compare with torch's own attention, one label at a time; five labels in two groups of three."""
    head = perturb(GroupDecoder(classes=5, groups=2, source_dim=6, dim=8, heads=2, hidden=7).double(), Draw(0), 0.3)
    patches = Draw(1, torch.float64).normal(3, 4, 6)
    inner, theirs = head.layer.attention, nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([x.weight for x in (inner.q_proj, inner.k_proj, inner.v_proj)]))
        theirs.in_proj_bias.copy_(torch.cat([inner.q_proj.bias, torch.zeros(8), inner.v_proj.bias]))
        theirs.out_proj.load_state_dict(inner.out_proj.state_dict())
    memory = relu(head.projection(patches))
    x = head.norm(head.queries).expand(3, -1, -1)
    x = head.layer.norm_attended(x + theirs(x, memory, memory, need_weights=False)[0])
    x = head.layer.norm(x + head.layer.down(relu(head.layer.up(x))))
    for label in range(5):
        group, place = divmod(label, 3)
        assert_close(head(patches)[:, label], x[:, group] @ head.weight[group, :, place] + head.bias[label])


def test_places_tell_the_row_by_the_first_half_and_the_column_by_the_second() -> None:
    places = sine_places(3, 8).view(3, 3, 8)
    for row in range(3):
        for column in range(3):
            for half, position in enumerate((row, column)):
                angle = 2 * math.pi * (position + 1) / 3
                for i, slower in enumerate((1.0, 10000.0**0.5)):
                    found = places[row, column, 4 * half + 2 * i : 4 * half + 2 * i + 2]
                    wanted = torch.tensor([math.sin(angle / slower), math.cos(angle / slower)])
                    assert_close(found, wanted, rtol=0, atol=1e-6)


def test_zero_shot_is_pvlr_that_learns_nothing() -> None:
    text, image, images = ToyText().float().eval(), ToyImage(), pictures(2)
    texts = [normalise(row) for row in text.encode([f"a photo of a {name}." for name in LABELS.texts]).tolist()]
    for base in ("pooled", "best"):
        labels = LabelSet(LABELS.names)  # Without descriptions.
        model = PVLR(PVLRConfig(base=(base,), learn=False), labels, text, image, logit_scale=10.0).eval()
        trained = {name for name, x in model.named_parameters() if x.requires_grad}
        assert trained == {"mixture.weights", "mixture.bias"}
        seen, logits = image(images), model(images).logits
        shown = seen.pooled[:, None] if base == "pooled" else seen.patches
        bias = model.mixture.bias.item()
        for row, vectors in enumerate(shown.tolist()):
            for label, vector in enumerate(texts):
                wanted = 10.0 * max(dot(normalise(patch), vector) for patch in vectors) + bias
                assert logits[row, label].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("source_dim", [0, 11])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_baseline_is_used_as_pvlr_is(kind: str, base: bool, source_dim: int) -> None:
    model, images = build(kind, base=base, source_dim=source_dim), pictures()
    model.set_known_positives(torch.arange(1.0, 6.0))
    logits = model(images).logits
    assert logits.shape == (3, len(LABELS))
    seen = model.image(images)
    regions = "all" if base or kind == "linear_probe" else "pooled" if kind == "coop" else "patches"
    assert model.sees == regions
    assert_close(model.forward_features(join_regions(seen, regions)).logits, logits)
    assert_close(model(images[1:2]).logits, logits[1:2])
    if base:
        model.mixture.drop = 0.0
    model.train()(images).logits.sum().backward()
    parameters = dict(model.named_parameters())
    learning = {name for name, x in parameters.items() if x.requires_grad}
    assert learning == {name for name in parameters if name.startswith(("head.", "mixture."))}
    assert any(name.startswith("mixture.") for name in learning) == base
    assert all(parameters[name].grad is not None and parameters[name].grad.abs().sum() > 0 for name in learning)
    before = {name: x.clone() for name, x in parameters.items()}
    model.fit_prior(model.regions(images))
    assert all(torch.equal(x, before[name]) for name, x in parameters.items() if not name.endswith("bias"))
    if kind == "dualcoop" and not base:
        assert all(torch.equal(x, before[name]) for name, x in model.named_parameters())
    else:
        assert model(images).logits.sigmoid().mean().item() == pytest.approx(0.05, abs=1e-5)


def test_the_linear_probe_reads_what_the_pooled_vector_is_made_of() -> None:
    for source_dim in (0, 11):
        model, images = build("linear_probe", source_dim=source_dim), pictures()
        seen = model.image(images)
        vectors = seen.source if source_dim else seen.pooled
        assert model.head.weight.shape == (5, source_dim or DIM)
        weights = model.head.weight.tolist(), model.head.bias.tolist()
        wanted = [[dot(w, standardise(row)) + b for w, b in zip(*weights, strict=True)] for row in vectors.tolist()]
        assert_close(model(images).logits, torch.tensor(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("source_dim", [0, 11])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_reads_the_features_that_patches_were_projected_from(kind: str, base: bool, source_dim: int) -> None:
    chosen: dict[str, Any] = {"patches": "own", "base": base, "source_dim": source_dim, "own_dim": 19}
    model, images = build(kind, **chosen), pictures()
    model.set_known_positives(torch.arange(1.0, 6.0))
    assert model.head.source_dim == 19
    assert model.sees == ("all_own" if base else "own")
    seen, regions = model.image(images), model.regions(images)
    logits = model(images).logits
    assert_close(model.forward_features(regions).logits, logits)
    assert_close(model(images[1:2]).logits, logits[1:2])
    learned = model.head(seen.own)
    if not base:
        assert torch.equal(logits, learned)
        assert torch.equal(regions, seen.own)
    else:  # The base is that of the joint space, as without.
        joint = build(kind, **(chosen | {"patches": "joint"}))
        joint.set_known_positives(torch.arange(1.0, 6.0))
        share = torch.arange(1.0, 6.0) / (torch.arange(1.0, 6.0) + 5.0)
        zero = joint(images).logits - share * joint.head(seen.patches)
        assert_close(logits, zero + share * learned, rtol=1e-4, atol=1e-4)
    other = seen._replace(own=seen.own + 1.0)
    assert not torch.allclose(model.forward_features(join_regions(other, model.sees)).logits, logits)
    model.fit_prior(regions)
    if not base:  # With it, the prior is that of training, where learned scores count in full.
        assert model(images).logits.sigmoid().mean().item() == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DECODERS])
def test_only_decoders_read_patches_of_their_own(kind: str) -> None:
    message = f"patches: expected 'joint' for kind '{kind}', which is no decoder, got 'own'"
    with pytest.raises(ValueError, match=pinned(message)):
        BaselineConfig(kind=kind, patches="own")


@pytest.mark.parametrize("kind", DECODERS)
def test_a_tower_without_patches_of_their_own_is_refused(kind: str) -> None:
    message = "patches: expected 'joint' for this image tower, whose joint space is 8 wide, got 'own'"
    with pytest.raises(ValueError, match=pinned(message)):
        build(kind, patches="own")


def test_coop_is_the_cosine_of_the_pooled_vector_and_a_learnable_prompt() -> None:
    model, images = build("coop"), pictures()
    sentences = [f"X X {text}." for text in LABELS.texts]
    prompts = model.text.tokenize_prompts(sentences, "", 0)
    spliced = splice_context(model.text.embed(prompts.ids).tolist(), [model.head.prompter.context.tolist()] * 5, 0)
    texts = [normalise(row) for row in model.text.run(torch.tensor(spliced), prompts.end).tolist()]
    scale, bias, logits = model.head.log_scale.exp().item(), model.head.bias.item(), model(images).logits
    for row, vector in enumerate(model.image(images).pooled.tolist()):
        for label, text in enumerate(texts):
            wanted = scale * dot(normalise(vector), text) + bias
            assert logits[row, label].item() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("source_dim", [0, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_base_it_is_mixed_as_pvlr_is(kind: str, source_dim: int) -> None:
    model, images = build(kind, base=True, source_dim=source_dim, shrinkage=4.0), pictures()
    alone = build(kind, source_dim=source_dim)
    alone.head.load_state_dict(model.head.state_dict())
    config = PVLRConfig(base=("competition", "focused", "pooled"), learn=False)
    zero_shot = PVLR(config, LABELS, model.text, model.image, logit_scale=7.0).eval()
    base = zero_shot(images).logits - zero_shot.mixture.bias
    assert model.mixture.bias.item() == 0.0
    assert_close(model(images).logits, base, rtol=0, atol=1e-4)
    counts = torch.tensor([0.0, 1.0, 4.0, 12.0, 1e9])
    model.set_known_positives(counts)
    wanted = base + torch.tensor([0.0, 0.2, 0.5, 0.75, 1.0]) * alone(images).logits
    assert_close(model(images).logits, wanted, rtol=1e-5, atol=1e-4)
    model.mixture.drop = 0.0
    assert_close(model.train()(images).logits, base + alone.train()(images).logits, rtol=1e-5, atol=1e-4)


def test_on_the_base_both_prompts_of_a_label_begin_alike() -> None:
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"kind": "dualcoop", **SMALL}
    towers, images = (ToyText().float(), ToyImage()), pictures()
    model, alone = (BaselineModel(BaselineConfig(base=base, **chosen), LABELS, *towers) for base in (True, False))
    base = model.eval()(images).logits  # No positive is known: what is learned does not count.
    model.set_known_positives(torch.full((len(LABELS),), 9.0))
    assert_close(model(images).logits, base, rtol=0, atol=1e-4)
    model.mixture.drop = 0.0
    model.train()(images).logits.square().sum().backward()
    assert model.head.positive.context.grad.abs().max() > 0
    assert model.head.negative.context.grad.abs().max() > 0
    assert not torch.equal(alone.head.positive.context, alone.head.negative.context)


@pytest.mark.parametrize("kind", PROMPTED)
def test_other_labels_keep_the_base_they_have(kind: str) -> None:
    model, images = build(kind, base=True), pictures()
    model.set_known_positives(torch.arange(1.0, 6.0))
    wanted = model(images).logits
    other = model.with_labels(["zebra", "bus", "cat"])
    found, alone = other(images).logits, model.with_labels(["zebra"])(images).logits
    assert_close(found[:, 1:], wanted[:, [LABELS.names.index("bus"), LABELS.names.index("cat")]])
    assert_close(found[:, :1], alone)
    assert model.labels == LABELS
    # Of a new name its text is all that is known: what was learned does not count.
    with torch.no_grad():
        for value in model.head.parameters():
            value.add_(0.3)
    assert torch.equal(other(images).logits[:, 0], found[:, 0])
    assert not torch.equal(other(images).logits[:, 1], found[:, 1])


@pytest.mark.parametrize("kind", ["linear_probe", "coop", "query2label", "ml_decoder"])
def test_a_prior_that_cannot_be_fitted_changes_nothing(kind: str) -> None:
    model = build(kind)
    before = model.head.bias.clone()
    assert before.abs().min() > 0
    patches = model.regions(Draw(0).normal(3, 3, 12, 12).float())
    with pytest.raises(ValueError, match=r"^scores: expected finite scores, got nan$"):
        model.fit_prior(patches * math.nan)
    assert torch.equal(model.head.bias, before)


def test_there_are_no_more_groups_than_labels() -> None:
    config = BaselineConfig(kind="ml_decoder", **(SMALL | {"groups": 100}))
    for names, wanted in ((("cow", "boat"), 2), (tuple(f"label{i}" for i in range(101)), 100)):
        assert BaselineModel(config, LabelSet(names), ToyText(), ToyImage()).head.config["groups"] == wanted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_says_about_the_same(kind: str, width: torch.dtype) -> None:
    model = build(kind)
    images = Draw(0).normal(3, 3, 12, 12).float()
    wanted = model(images).logits
    found = model.to(width)(images.to(width)).logits.float()
    # The cosines of `dualcoop` are multiplied by 100.
    assert_close(found, wanted, rtol=0.1, atol=200 * torch.finfo(width).eps)


@torch.no_grad()
def test_text_vectors_are_made_once_and_again_when_the_prompts_changed() -> None:
    model, patches = build("dualcoop"), Draw(0).normal(2, 4, DIM).float()
    before = model.forward_features(patches).logits
    model.forward_features(patches)
    assert model.text.contexts == 2  # One of each sign.
    model.head.positive.context.add_(1.0)
    assert not torch.equal(model.forward_features(patches).logits, before)


def test_other_labels_by_their_texts_alone() -> None:
    model = build("dualcoop")
    other = model.with_labels(LabelSet(("cow", "boat")))
    patches = Draw(0).normal(2, 4, DIM).float()
    assert_close(other.forward_features(patches).logits[:, 0], model.forward_features(patches).logits[:, 2])
    names = model.with_labels(["cow", "boat"])
    assert names.labels == other.labels
    assert torch.equal(names.forward_features(patches).logits, other.forward_features(patches).logits)
    with pytest.raises(
        ValueError, match=r"^labels: cannot be exchanged in a model of kind 'query2label', which fixes them$"
    ):
        build("query2label").with_labels(LABELS)


X = torch.zeros


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X(3, 4), X(5, 4), X(5, 4)), "patches: expected axes 'b n d', got shape (3, 4)"),
        ((X(2, 3, 4).long(), X(5, 4), X(5, 4)), "patches: expected a tensor of dtype float, got torch.int64"),
        (
            (X(2, 0, 4), X(5, 4), X(5, 4)),
            "patches: expected at least one patch on axis n of 'b n d', got shape (2, 0, 4)",
        ),
        ((X(2, 3, 4), X(2, 5, 4), X(5, 4)), "positive: expected axes 'c d', got shape (2, 5, 4)"),
        ((X(2, 3, 4), X(5, 3), X(5, 4)), "positive: expected axes 'c d' with d=4, got shape (5, 3)"),
        ((X(2, 3, 4), X(2, 4), X(5, 4)), "negative: expected axes 'c d' with c=2, got shape (5, 4)"),
        ((X(2, 3, 4), X(5, 4), X(5, 3)), "negative: expected axes 'c d' with d=4, got shape (5, 3)"),
        ((X(2, 3, 4), X(5, 4).long(), X(5, 4)), "positive: expected a tensor of dtype float, got torch.int64"),
        ((X(2, 3, 4), X(5, 4), X(5, 4).long()), "negative: expected a tensor of dtype float, got torch.int64"),
        (
            (X(2, 3, 4), X(5, 4, device="meta"), X(5, 4)),
            "positive: expected a tensor on cpu, got one on meta",
        ),
        (
            (X(2, 3, 4), X(5, 4), X(5, 4, device="meta")),
            "negative: expected a tensor on cpu, got one on meta",
        ),
        (
            (X(2, 3, 4), X(5, 4).double(), X(5, 4)),
            "positive: expected a tensor of dtype torch.float32, got torch.float64",
        ),
        (
            (X(2, 3, 4), X(5, 4).half(), X(5, 4).double()),
            "negative: expected a tensor of dtype torch.float32, got torch.float64",
        ),
    ],
)
def test_paired_scores_refuse_by_the_name_of_the_argument(inputs: tuple, message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{pinned(message)}$"):
        paired_scores(*inputs)


@pytest.mark.usefixtures("unchecked")
def test_a_text_is_no_list_of_names() -> None:
    with pytest.raises(LabelError, match=r"^names: expected a sequence of names, got the single text 'cow'$"):
        build("dualcoop").with_labels("cow")


def decoder(**options: Any) -> LabelDecoder:
    return LabelDecoder(**({"classes": 3, "grid": 2, "source_dim": 6, "dim": 8, "hidden": 4} | options))


def groups(**options: Any) -> GroupDecoder:
    return GroupDecoder(**({"classes": 3, "groups": 2, "source_dim": 6, "dim": 8, "hidden": 4} | options))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BaselineConfig(kind="clip"), "kind: expected one of 'none', 'linear_probe', 'coop', 'dualcoop', "),
        (lambda: BaselineConfig(base=1), "base: expected True or False, got 1"),
        (lambda: BaselineConfig(shrinkage=0.0), "shrinkage: expected a finite number > 0, got 0.0"),
        (lambda: BaselineConfig(width=10, heads=2), "width: expected a multiple of 4, got 10"),
        (lambda: BaselineConfig(width=12, heads=5), "width: expected a multiple of heads=5, got 12"),
        (lambda: BaselineConfig(encoder_layers=-1), "encoder_layers: expected a whole number of at least 0, got -1"),
        (lambda: BaselineConfig(groups=0), "groups: expected a whole number of at least 1, got 0"),
        (lambda: BaselineConfig(prior=1.0), "prior: expected a finite number > 0 and < 1, got 1.0"),
        (lambda: build("none"), "kind: expected a baseline, got 'none', which is PVLR"),
        (lambda: sine_places(2, 6), "dim: expected a multiple of 4, got 6"),
        (lambda: decoder(dim=12, heads=5), "dim: expected a multiple of heads=5, got 12"),
        (lambda: decoder(decoder_layers=0), "decoder_layers: expected a whole number of at least 1, got 0"),
        (lambda: groups(groups=4), "groups: expected at most one for each of the 3 labels, got 4"),
        (lambda: groups(hidden=0), "hidden: expected a whole number of at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}"):
        call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("head", "shape", "message"),
    [
        (decoder(), (1, 5, 6), "patches: expected axes 'b n k' with n=4, got shape (1, 5, 6)"),
        (decoder(), (1, 4, 5), "patches: expected axes 'b n k' with k=6, got shape (1, 4, 5)"),
        (groups(), (1, 4, 5), "patches: expected axes 'b n k' with k=6, got shape (1, 4, 5)"),
        (LinearProbe(classes=3, dim=6), (1, 2, 6), "vectors: expected axes 'b d', got shape (1, 2, 6)"),
        (LinearProbe(classes=3, dim=6), (2, 5), "vectors: expected axes 'b d' with d=6, got shape (2, 5)"),
    ],
)
def test_wrong_shapes_are_refused(head: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=f"^{pinned(message)}$"):
        head(torch.zeros(shape))
