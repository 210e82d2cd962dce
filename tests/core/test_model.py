"""The assembled model against its definition, its configuration and files; its laws are in test_model_laws.py."""

import copy
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_toys import (
    DIM,
    HEADS,
    LABELS,
    NAMES,
    SOURCE,
    Switches,
    ToyImage,
    ToyText,
    build,
    moved,
    patches_for,
    switches,
    write_vectors,
)
from strategies import Draw, as_lists, backward, draws, missing_gradients
from torch import Tensor
from torch.testing import assert_close

from pvlr.core import PVLR, LabelError, LabelSet, PVLRConfig, ShapeError
from pvlr.core.model import read_descriptions
from pvlr.core.prompts import PromptBank, encode_knowledge
from pvlr.core.weights import load_trained_state, trained_state

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors"))


# --- definition


def slow(model: PVLR, patches: Tensor) -> tuple[list, list, list]:
    """One image through the method's table, in loops; logits, labels and patches."""
    config, seen = model.config, patches.tolist()
    known, soft, maps = None, None, [None, None]
    if model.knowledge is not None:
        known = model.knowledge_vectors.tolist()
        if config.knowledge != "text_tower":
            state = as_lists(model.knowledge)
            known = [reference.linear(state, "projection", row) for row in known]
        if config.relation == "attention":
            state = as_lists(model.knowledge.relation)
            known, maps[0] = reference.label_relation(state, known, HEADS, config.residual)
    if model.context is not None:
        words = model.context.context.expand(len(model.labels), -1, -1).tolist()
        prompts = model.text.tokenize_prompts(
            [f"{config.context_words or ' '.join('X' * config.context_tokens)} {t}." for t in model.labels.texts], "", 0
        )
        spliced = reference.splice_context(model.text.embed(prompts.ids).tolist(), words, start=0)
        encoded = model.text.run(torch.tensor(spliced, dtype=torch.float64), prompts.end)
        soft = [reference.normalise(row) for row in encoded.tolist()]
        shared = {"heads": HEADS, "norm": config.residual}
        if config.image_conditioned_context:
            state, more = as_lists(model.context.condition), {"direction": "labels", "layers": 1, "feedforward": 0}
            soft = reference.dual_modal(state, soft, seen, **shared, **more)[0]
        if config.relation == "attention":
            soft, maps[1] = reference.label_relation(as_lists(model.context.relation), soft, HEADS, config.residual)
    fused = reference.fusion(
        as_lists(model.fusion),
        known,
        soft,
        None if config.relation == "none" else tuple(maps),
        mode=config.fusion,
        heads=HEADS,
        norm=config.residual,
    )
    labels, seen, _, _ = reference.dual_modal(
        as_lists(model.attention),
        fused,
        seen,
        heads=HEADS,
        direction=config.dma,
        layers=config.dma_layers,
        feedforward=config.dma_feedforward,
        norm=config.residual,
    )
    scores = reference.cosine_scores(seen, labels, model.head.log_scale.exp().item(), model.head.bias.item())
    return reference.pool_regions(scores, config.aggregation, config.aggregation_temperature), labels, seen


@given(switches(), draws(), st.integers(1, 3))
def test_it_is_the_table_of_the_method(file: Path, chosen: Switches, draw: Draw, n: int) -> None:
    model, patches = build(chosen, LABELS.select(NAMES[1:4]), file=file), patches_for(draw, 2, n)
    with torch.no_grad():
        out = model.forward_features(patches)
    for i in range(2):
        for found, wanted in zip(out[:3], slow(model, patches[i]), strict=True):
            assert_close(found[i], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(switches(), draws(), st.sampled_from(["pooled", "both"]))
def test_of_other_regions_it_is_the_table_with_the_pooled_vector(
    file: Path, chosen: Switches, draw: Draw, regions: str
) -> None:
    model, images = (
        build(chosen | {"regions": regions}, LABELS.select(NAMES[1:4]), file=file),
        draw.normal(2, 3, 12, 12),
    )
    with torch.no_grad():
        seen, logits = model.image(images), model(images).logits
    scale, bias = model.head.log_scale.exp().item(), model.head.bias.item()
    for i in range(2):
        wanted, labels, _ = slow(model, seen.pooled[i : i + 1] if regions == "pooled" else seen.patches[i])
        if regions == "both":
            whole = reference.cosine_scores([seen.pooled[i].tolist()], labels, scale, bias)[0]
            wanted = [(x + y) / 2 for x, y in zip(wanted, whole, strict=True)]
        assert_close(logits[i], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(switches(), draws())
def test_every_parameter_is_trained_and_no_tower(file: Path, chosen: Switches, draw: Draw) -> None:
    model = build(chosen, file=file)
    backward(model.train().forward_features(patches_for(draw, 3, 6)).logits)
    assert missing_gradients(model) == []
    assert all(p.grad is None for tower in (model.text, model.image) for p in tower.parameters())
    assert not any(p.requires_grad for p in model.text.parameters())
    assert not model.text.training


@given(switches(), draws())
def test_maps_come_when_asked_for(file: Path, chosen: Switches, draw: Draw) -> None:
    model, patches = build(chosen, file=file), patches_for(draw)
    without, out = model.forward_features(patches), model.forward_features(patches, maps=True)
    assert without.label_maps == without.patch_maps == ()
    assert torch.equal(out.logits, without.logits)
    layers, direction = chosen["dma_layers"], chosen["dma"]
    assert len(out.label_maps) == (layers if direction in ("both", "labels") else 0)
    assert len(out.patch_maps) == (layers if direction in ("both", "patches") else 0)
    for maps, shape in ((out.label_maps, (2, HEADS, 5, 4)), (out.patch_maps, (2, HEADS, 4, 5))):
        for one in maps:
            assert one.shape == shape
            assert_close(one.sum(dim=-1), torch.ones(shape[:3], dtype=one.dtype), **EXACT)
    images = draw.normal(1, 3, 12, 12)
    assert [len(maps) for maps in model(images, maps=True)[3:]] == [len(out.label_maps), len(out.patch_maps)]


@given(draws())
def test_a_conditioned_context_looks_at_the_patches(draw: Draw) -> None:
    model, patches = build({"heads": HEADS, "image_conditioned_context": True}), patches_for(draw)
    vectors = model.label_vectors(patches)
    assert vectors.shape == (2, 5, DIM)
    assert not torch.allclose(vectors[0], vectors[1])
    with pytest.raises(ValueError, match=r"^patches: expected patches 'b n d' with condition='image', got None$"):
        model.label_vectors()
    assert build({"heads": HEADS}).label_vectors().shape == (5, DIM)


@given(switches(), draws())
def test_given_label_vectors_are_used(file: Path, chosen: Switches, draw: Draw) -> None:
    model, patches = build(chosen, file=file), patches_for(draw)
    vectors = model.label_vectors(patches)
    wanted = model.forward_features(patches).logits
    assert_close(model.forward_features(patches, labels=vectors).logits, wanted, **EXACT)
    one = model.forward_features(patches, labels=vectors[..., :1, :]).logits
    assert one.shape == (2, 1)


# --- head


@given(switches(), draws(), st.sampled_from([0.01, 0.05, 0.4]))
def test_the_prior_is_the_mean_probability(file: Path, chosen: Switches, draw: Draw, prior: float) -> None:
    model, patches = build(chosen | {"prior": prior, "scale_from": "value"}, file=file), patches_for(draw, 3)
    model.fit_prior(patches)
    assert abs(model.forward_features(patches).logits.sigmoid().mean().item() - prior) < 1e-4


def towered(logit_bias: float, **chosen: Any) -> PVLR:
    config = PVLRConfig(heads=HEADS, prior=0.2, **chosen)
    return PVLR(config, LABELS, ToyText().float(), ToyImage(), logit_scale=7.0, logit_bias=logit_bias).eval()


def test_scale_and_bias_may_be_the_towers_own() -> None:
    patches = torch.randn(2, 4, DIM)
    logit = float(np.log(0.2 / 0.8))
    for model, scale, bias in (
        (towered(-1.5), 10.0, logit),
        (towered(-1.5, scale=3.0), 3.0, logit),
        (towered(-1.5, scale_from="tower"), 7.0, -1.5),
        (towered(0.0, scale_from="tower"), 7.0, logit),
    ):
        assert_close(model.head.log_scale.exp().item(), scale, rtol=1e-6, atol=0.0)
        assert_close(model.head.bias.item(), bias, rtol=1e-6, atol=0.0)
        model.fit_prior(patches)
        kept = bias == -1.5
        mean = model.forward_features(patches).logits.sigmoid().mean().item()
        assert (model.head.bias.item() == bias) == kept
        assert (abs(mean - 0.2) < 1e-4) != kept


# --- start


def test_the_context_starts_from_words_or_from_noise() -> None:
    words = build({"heads": HEADS}, seed=None)
    wanted = words.text.embed(words.text.tokenize_prompts(["a photo of a"], None, 0).ids[0, :4])
    assert_close(words.context.context, wanted, rtol=0, atol=1e-6)
    each = build({"heads": HEADS, "class_specific_context": True}, seed=None)
    assert_close(each.context.context, wanted.expand(5, -1, -1), rtol=0, atol=1e-6)
    noise = build({"heads": HEADS, "context_words": None, "context_tokens": 16 - 4}, seed=None)
    assert noise.context.context.shape == (12, 6)
    assert 0.005 < noise.context.context.std() < 0.05


def test_fixed_prompts_are_those_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps({"cat": ["It purrs."]}))
    for chosen, bank in (
        ({}, PromptBank(LABELS)),
        ({"templates": ("{} here", "two {}")}, PromptBank(LABELS, templates=("{} here", "two {}"))),
        ({"descriptions": str(path)}, PromptBank(LABELS, descriptions={"cat": ("It purrs.",)})),
    ):
        model = build({"heads": HEADS} | chosen)
        assert_close(model.knowledge_vectors, encode_knowledge(bank, model.text.encode).double(), **EXACT)


def test_towers_must_fit() -> None:
    text, image = ToyText(), ToyImage()
    image.dim = 12
    with pytest.raises(ValueError, match=r"^image: expected the text tower's joint width 8, got 12$"):
        PVLR(PVLRConfig(heads=2), LABELS, text, image)
    with pytest.raises(ValueError, match=r"^dim: expected a multiple of heads=3, got 8$"):
        PVLR(PVLRConfig(heads=3), LABELS, text, ToyImage())


@pytest.mark.usefixtures("unchecked")
def test_inputs_of_another_size_are_refused() -> None:
    model = build({"heads": HEADS})
    for images in (torch.zeros(1, 3, 12, 16), torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 12, 12)):
        found = re.escape(str(tuple(images.shape)))
        message = f"^images: expected axes 'b rgb height width' with .*, got shape {found}$"
        with pytest.raises(ShapeError, match=message):
            model(images)
    with pytest.raises(ShapeError, match=r"^regions: expected axes 'b m d' with d=8, got shape \(1, 2, 7\)$"):
        model.forward_features(torch.zeros(1, 2, 7))


# --- configuration

TEXT = "expected a text that is not empty, got"
WHOLE = "expected a whole number of at least"
REFUSED: list[tuple[str, Any, str]] = [
    ("heads", 0, f"{WHOLE} 1, got 0"),
    ("heads", 2.0, f"{WHOLE} 1, got 2.0"),
    ("relation", "mean", "expected one of 'attention', 'none', got 'mean'"),
    ("residual", "Pre", "expected one of 'pre', 'post', got 'Pre'"),
    ("templates", "a {}.", "expected a sequence of sentences, got 'a {}.'"),
    ("templates", 3, "expected a sequence of sentences, got 3"),
    ("templates", ("a {}", 3), "expected a sequence of sentences, got ('a {}', 3)"),
    ("templates", ("a photo",), "expected exactly one {} for the label, got 'a photo'"),
    ("descriptions", "", f"{TEXT} ''"),
    ("descriptions", 3, f"{TEXT} 3"),
    ("knowledge", " ", f"{TEXT} ' '"),
    ("knowledge", None, f"{TEXT} None"),
    ("context_tokens", 0, f"{WHOLE} 1, got 0"),
    ("context_words", " ", f"{TEXT} ' '"),
    ("class_specific_context", "yes", "expected True or False, got 'yes'"),
    ("image_conditioned_context", 1, "expected True or False, got 1"),
    ("regions", "all", "expected one of 'patches', 'pooled', 'both', got 'all'"),
    ("fusion", "product", "expected one of 'gate', 'sum', 'knowledge', 'context', got 'product'"),
    ("dma", None, "expected one of 'both', 'labels', 'patches', 'none', got None"),
    ("dma_layers", 0, f"{WHOLE} 1, got 0"),
    ("dma_feedforward", -1, f"{WHOLE} 0, got -1"),
    ("aggregation", "sum", "expected one of 'max', 'mean', 'softmax', got 'sum'"),
    ("aggregation_temperature", 0.0, "expected a finite number > 0, got 0.0"),
    ("scale_from", "clip", "expected one of 'value', 'tower', got 'clip'"),
    ("scale", -1.0, "expected a finite number > 0, got -1.0"),
    ("prior", 1.0, "expected a finite number > 0 and < 1, got 1.0"),
    ("prior", "low", "expected a finite number > 0 and < 1, got 'low'"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_a_wrong_field_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: {message}')}$"):
        PVLRConfig(**{name: value})


def test_every_field_is_checked() -> None:
    assert {name for name, _, _ in REFUSED} == set(PVLRConfig.__dataclass_fields__)
    assert PVLRConfig(templates=(), descriptions="told.json").templates == ()


@pytest.mark.usefixtures("unchecked")
def test_templates_may_come_as_a_list() -> None:
    assert PVLRConfig(templates=["a {}"]) == PVLRConfig(templates=("a {}",))


# --- files


def test_descriptions_are_read_per_label(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps({"cow": ["It moos.", "It eats."], "cat": []}))
    assert read_descriptions(path, LABELS) == {"cow": ("It moos.", "It eats.")}
    assert read_descriptions(path, LabelSet(("cat",)), others=True) == {}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a JSON file of label to sentences, .*No such file.*"),
        ("{", "expected a JSON file of label to sentences, .*"),
        ("[]", "expected an object of label to list of sentences"),
        ('{"cow": "moo"}', "expected an object of label to list of sentences"),
        ('{"cow": [""]}', "descriptions of 'cow': expected a non-empty text .*, got ''"),
        ('{"cow": [3]}', "descriptions of 'cow': expected a non-empty text .*, got 3"),
        ('{"coww": ["moo"]}', "descriptions: unknown label 'coww', the nearest known one is 'cow'"),
    ],
)
def test_a_broken_file_of_descriptions_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "told.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(LabelError, match=f"^descriptions {re.escape(str(path))}: {message}$"):
        build({"heads": HEADS, "descriptions": str(path)})


def test_other_labels_need_not_be_in_the_file_of_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps({"cow": ["It moos."], "cat": ["It purrs."]}))
    other = build({"heads": HEADS, "descriptions": str(path)}).with_labels(LabelSet(("zebra", "cow")))
    bank = PromptBank(other.labels, descriptions={"cow": ("It moos.",)})
    assert_close(other.knowledge_vectors, encode_knowledge(bank, other.text.encode).double(), **EXACT)


def test_label_vectors_come_from_a_file(file: Path, tmp_path: Path) -> None:
    model = build({"heads": HEADS, "knowledge": "file"}, LABELS.select(["cow", "cat"]), file=file)
    wanted = Draw(3).normal(5, SOURCE)[[2, 0]]
    assert_close(model.knowledge_vectors, wanted.float().double(), **EXACT)
    assert model.knowledge.projection.weight.shape == (DIM, SOURCE)
    with pytest.raises(LabelError, match=r"vectors\.npz: unknown label 'zebra'"):
        model.with_labels(LabelSet(("zebra",)))
    missing = tmp_path / "missing.npz"
    with pytest.raises(LabelError, match=r"missing\.npz: expected a readable \.npz file"):
        build({"heads": HEADS, "knowledge": str(missing)})


# --- state


@given(switches(), draws())
def test_the_head_is_saved_and_loaded_without_the_towers(file: Path, chosen: Switches, draw: Draw) -> None:
    model, fresh, patches = build(chosen, file=file), build(chosen, file=file, seed=None), patches_for(draw)
    state = trained_state(model)
    towers = {name for name, _ in model.named_parameters() if name.startswith(("text.", "image."))}
    assert state.keys() == {name for name, _ in model.named_parameters()} - towers
    assert len(towers) == 5
    wanted = model.forward_features(patches).logits
    assert not torch.equal(fresh.forward_features(patches).logits, wanted)
    load_trained_state(fresh, {name: value.clone() for name, value in state.items()})
    assert torch.equal(fresh.forward_features(patches).logits, wanted)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(other.forward_features(patches).logits, wanted)


def test_another_models_state_is_refused_and_changes_nothing() -> None:
    model = build({"heads": HEADS})
    state = {name: value + 1 for name, value in trained_state(model).items()}
    before = {name: value.clone() for name, value in trained_state(model).items()}
    for wrong, message in (
        ({n: v for n, v in state.items() if n != "head.bias"}, "expected 'head.bias', which is missing"),
        (state | {"text.table": torch.zeros(1)}, "'text.table' belongs to no part of this model"),
        (state | {"head.bias": torch.zeros(2)}, "expected 'head.bias' of shape (), got (2,)"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(f'weights: {message}')}$"):
            load_trained_state(model, wrong)
    assert all(torch.equal(value, before[name]) for name, value in trained_state(model).items())


def test_copies_do_not_carry_what_was_kept() -> None:
    model, patches = build({"heads": HEADS}), patches_for(Draw(0))
    size = len(pickle.dumps(model))
    with torch.no_grad():
        model.forward_features(patches)
        other = copy.deepcopy(model)
        assert len(pickle.dumps(model)) == size
        moved(other, 1)
        assert not torch.equal(other.forward_features(patches).logits, model.forward_features(patches).logits)
