"""The assembled model against its definition, its configuration and files; its laws are in test_model_laws.py."""

import copy
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.model_reference import slow
from helpers.model_toys import (
    BASES,
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
    regions_for,
    seen_for,
    switches,
    write_vectors,
)
from helpers.strategies import Draw, backward, draws, missing_gradients
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core import PVLR, LabelError, LabelSet, PVLRConfig, ShapeError
from pvlr.core.models.network import read_descriptions
from pvlr.core.models.output import LabelRows
from pvlr.core.models.state import load_trained_state, trained_state
from pvlr.core.prompts import PromptBank, encode_knowledge
from pvlr.core.protocols import ImageFeatures, join_regions

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors"))


# --- definition


def is_the_table(model: PVLR, seen: ImageFeatures) -> None:
    with torch.no_grad():
        out = model.forward_features(join_regions(seen, model.sees))
    for i in range(len(seen.pooled)):
        alone = ImageFeatures(*(None if x is None else x[i] for x in seen))
        for found, wanted in zip(out[:3], slow(model, alone), strict=True):
            assert_close(found[i], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(switches(), draws(), st.integers(1, 3))
def test_it_is_the_table_of_the_method(file: Path, chosen: Switches, draw: Draw, n: int) -> None:
    model = build(chosen, LABELS.select(NAMES[1:4]), file=file)
    is_the_table(model, seen_for(model, draw, 2, n))


@given(switches(knowledge="text_tower"), draws())
def test_of_other_labels_it_is_the_table_too(chosen: Switches, draw: Draw) -> None:
    others = LabelSet(("zebra", "cow", "garden_hose", "traffic_light"), descriptions=LABELS.descriptions)
    model = build(chosen, LABELS.select(NAMES[1:4])).with_labels(others)
    is_the_table(model, seen_for(model, draw, 1, 3))


@given(draws(), st.sampled_from([*BASES, ("pooled",)]), st.sampled_from([0, 5]))
def test_without_learning_it_is_the_base(draw: Draw, base: tuple[str, ...], source_dim: int) -> None:
    model = build({"heads": HEADS, "learn": False, "base": base, "source_dim": source_dim})
    assert {name for name, x in model.named_parameters() if x.requires_grad} == {"mixture.bias", "mixture.weights"}
    assert model.sees == ("pooled" if base == ("pooled",) else "both")
    seen = seen_for(model, draw)
    if base == ("pooled",):  # Which is then the only patch.
        seen = ImageFeatures(seen.pooled.unsqueeze(1), seen.pooled)
    with torch.no_grad():
        logits = model.forward_features(join_regions(seen, model.sees)).logits
        images = draw.normal(2, 3, 12, 12)
        assert torch.equal(model(images).logits, model.forward_features(model.regions(images)).logits)
    for i in range(2):
        wanted = slow(model, ImageFeatures(seen.patches[i], seen.pooled[i]))[0]
        assert_close(logits[i], torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(switches(), draws())
def test_every_parameter_is_trained_and_no_tower(file: Path, chosen: Switches, draw: Draw) -> None:
    model = build(chosen, file=file)
    model.mixture.drop = 0.0  # Or the weights of the base have no gradient where no image keeps it.
    backward(model.train().forward_features(regions_for(model, draw, 3, 6)).logits)
    assert missing_gradients(model) == []
    assert all(p.grad is None for tower in (model.text, model.image) for p in tower.parameters())
    assert not any(p.requires_grad for p in model.text.parameters())
    assert not model.text.training


@given(switches(), draws())
def test_maps_come_when_asked_for(file: Path, chosen: Switches, draw: Draw) -> None:
    model = build(chosen, file=file)
    regions = regions_for(model, draw, 2, 4)
    without, out = model.forward_features(regions), model.forward_features(regions, maps=True)
    assert without.label_maps == without.patch_maps == ()
    assert torch.equal(out.logits, without.logits)
    direction = chosen["direction"]
    assert len(out.label_maps) == (direction in ("both", "labels"))
    assert len(out.patch_maps) == (direction in ("both", "patches"))
    for maps, shape in ((out.label_maps, (2, HEADS, 5, 4)), (out.patch_maps, (2, HEADS, 4, 5))):
        for one in maps:
            assert one.shape == shape
            assert_close(one.sum(dim=-1), torch.ones(shape[:3], dtype=one.dtype), **EXACT)
    images = draw.normal(1, 3, 12, 12)
    assert [len(maps) for maps in model(images, maps=True)[3:5]] == [len(out.label_maps), len(out.patch_maps)]


@given(switches(), draws(), st.sampled_from([0.0, 0.5]))
def test_in_training_each_answer_is_told(file: Path, chosen: Switches, draw: Draw, drop: float) -> None:
    model = build(chosen, file=file)
    regions = regions_for(model, draw, 3)
    assert model.forward_features(regions).answers == ()
    model.train().mixture.drop, model.mixture.draws = drop, torch.tensor([0.1, 0.6, 0.4]).double()
    rows = model.label_rows()
    out = model.forward_features(regions)
    several = model.residual is not None
    assert len(out.answers) == (2 if several else 0)
    if not several:
        return
    base = model.comparison.scores(regions, rows)[0]
    kept = None if base is None else base * (torch.tensor([0.1, 0.6, 0.4]) >= drop).double().reshape(3, 1, 1)
    for found, learned in zip(out.answers, model.comparison.answers(regions, rows)[1], strict=True):
        assert_close(found, model.mixture.complete(kept, learned), **EXACT)
    assert_close(out.logits, (out.answers[0] + out.answers[1]) / 2, **EXACT)
    backward(out.answers[1])
    assert model.residual.source.grad is not None
    assert all(x.grad is None for block in (model.attention, model.head, model.adapter) for x in block.parameters())


@given(switches(), draws())
def test_given_label_rows_are_used(file: Path, chosen: Switches, draw: Draw) -> None:
    model, patches = build(chosen, file=file), patches_for(draw)
    rows = model.label_rows()
    wanted = model.forward_features(patches).logits
    assert_close(model.forward_features(patches, labels=rows.joined()).logits, wanted, **EXACT)
    assert torch.equal(rows.fused, model.label_vectors())
    assert rows.fused.shape == rows.name.shape == (5, DIM)
    assert rows.own.shape == (5, (chosen["source_dim"] or DIM) if model.residual is not None else 0)
    one = model.forward_features(patches, labels=rows.joined()[:1]).logits
    assert one.shape == (2, 1)


@given(draws(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([0, 1, 4, 7, 40]))
def test_label_rows_are_joined_and_split_again(draw: Draw, c: int, d: int, k: int) -> None:
    vectors = draw.normal(c, d), draw.normal(c, d), draw.normal(c, k)
    rows = LabelRows(*vectors, draw.normal(c), draw.levels(9, c), draw.chance(0.5, c).double())
    joined = rows.joined()
    assert joined.shape == (c, 2 * d + k + 3)
    for found, wanted in zip(LabelRows.split(joined, d), rows, strict=True):
        assert torch.equal(found, wanted)
    half = LabelRows(*(x.half() for x in rows)).joined()
    assert half.dtype == torch.float32
    assert torch.equal(half, joined.half().float())


@given(switches(), draws())
def test_what_is_computed_of_images_is_what_of_their_vectors(file: Path, chosen: Switches, draw: Draw) -> None:
    model, images = build(chosen, file=file), draw.normal(2, 3, 12, 12)
    seen = model.image(images)
    assert (seen.source is None) == (chosen["source_dim"] == 0)
    assert torch.equal(model.regions(images), join_regions(seen, "all"))
    assert_close(model(images).logits, model.forward_features(model.regions(images)).logits, **EXACT)


# --- scale and bias


@given(switches(), draws(), st.sampled_from([0.01, 0.05, 0.4]))
def test_the_prior_is_the_mean_probability(file: Path, chosen: Switches, draw: Draw, prior: float) -> None:
    model = build(chosen | {"prior": prior}, file=file)
    regions = regions_for(model, draw, 3)
    model.fit_prior(regions)
    assert abs(model.comparison.answers(regions, model.label_rows())[1][0].mean().item()) < 1e-9
    model.train().mixture.drop = 0.0
    assert abs(model.forward_features(regions).logits.sigmoid().mean().item() - prior) < 1e-4


def towered(logit_bias: float, **chosen: Any) -> PVLR:
    config = PVLRConfig(heads=HEADS, prior=0.2, **chosen)
    return PVLR(config, LABELS, ToyText().float(), ToyImage(), logit_scale=7.0, logit_bias=logit_bias).eval()


def test_scale_and_bias_may_be_the_towers_own() -> None:
    regions, labels = torch.randn(2, 4, DIM), LABELS.texts
    logit = float(np.log(0.2 / 0.8))
    for model, scale, bias in (
        (towered(-1.5), 7.0, logit),
        (towered(-1.5, base_scale=3.0), 3.0, logit),
        (towered(-1.5, learn=False), 7.0, -1.5),
        (towered(0.0, learn=False), 7.0, logit),
    ):
        assert_close(model.mixture.bias.item(), bias, rtol=1e-6, atol=0.0)
        alone = replace(model.config, learn=False, base=("pooled",))
        pooled = PVLR(alone, LABELS, model.text, model.image, logit_scale=7.0).eval()
        cosines = F.cosine_similarity(regions[:, :1], model.base_vectors, dim=-1)
        assert cosines.shape == (2, len(labels))
        assert_close(pooled.forward_features(regions[:, :1]).logits - logit, scale * cosines, rtol=0, atol=1e-5)
        model.fit_prior(regions)
        kept = bias == -1.5
        mean = model.forward_features(regions).logits.sigmoid().mean().item()
        assert (model.mixture.bias.item() == bias) == kept
        assert model.config.learn or (abs(mean - 0.2) < 1e-4) != kept


@pytest.mark.usefixtures("unchecked")
def test_positives_are_told_for_the_labels_it_was_made_for() -> None:
    model = build({"heads": HEADS}, seed=None)
    assert torch.equal(model.known_positives, torch.zeros(5).double())
    other = model.with_labels(["zebra", "bus"])
    other.set_known_positives(torch.arange(5))
    assert model.known_positives.tolist() == [0, 1, 2, 3, 4]
    assert other.label_rows().positives.tolist() == [0, 3]
    assert other.label_rows().member.tolist() == [0, 1]
    with pytest.raises(ShapeError, match=r"^counts: expected axes 'c' with c=5, got shape \(2,\)$"):
        other.set_known_positives(torch.ones(2))


# --- start


def test_the_context_starts_from_words_or_from_noise() -> None:
    words = build({"heads": HEADS}, seed=None)
    wanted = words.text.embed(words.text.tokenize_prompts(["a photo of a"], None, 0).ids[0, :4])
    assert_close(words.context.context, wanted, rtol=0, atol=1e-6)
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
        wanted = encode_knowledge(bank, model.text.encode).double()
        for found in (model.knowledge_vectors, model.base_vectors, model.anchors):
            assert_close(found, wanted, **EXACT)


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
    ("fusion", "product", "expected one of 'gate', 'sum', 'knowledge', 'context', got 'product'"),
    ("base", "pooled", "expected a sequence of scores, none of them twice, got 'pooled'"),
    ("base", 3, "expected a sequence of scores, none of them twice, got 3"),
    ("base", ("best", "best"), "expected a sequence of scores, none of them twice, got ('best', 'best')"),
    ("base", ("worst",), "expected one of 'competition', 'focused', 'pooled', 'best', got 'worst'"),
    ("base_scale", 0.0, "expected a finite number > 0, got 0.0"),
    ("learn", "yes", "expected True or False, got 'yes'"),
    ("shrinkage", 0.0, "expected a finite number > 0, got 0.0"),
    ("adapter_width", -1, f"{WHOLE} 0, got -1"),
    ("direction", None, "expected one of 'both', 'labels', 'patches', 'none', got None"),
    ("feedforward", -1, f"{WHOLE} 0, got -1"),
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
@pytest.mark.parametrize("without", [{"base": ()}, {"fusion": "context"}])
def test_where_nothing_is_learned_there_is_a_base(without: Any) -> None:
    message = r"^learn: expected True where there is no base \(base is empty, or fusion 'context'\)$"
    with pytest.raises(ValueError, match=message):
        PVLRConfig(learn=False, **without)
    assert PVLRConfig(**without).parts == ()


@pytest.mark.usefixtures("unchecked")
def test_templates_and_scores_may_come_as_a_list() -> None:
    assert PVLRConfig(templates=["a {}"]) == PVLRConfig(templates=("a {}",))
    assert PVLRConfig(base=["best", "pooled"]) == PVLRConfig(base=("best", "pooled"))


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
    counted = {"known_positives", "mixture.shrinkage", "mixture.spread"}
    assert state.keys() == ({name for name, _ in model.named_parameters()} - towers) | counted
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
