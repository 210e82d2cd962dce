"""The laws of the method, on the assembled model and over its switches."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from model_toys import (
    LABELS,
    NAMES,
    BareText,
    Switches,
    ToyImage,
    build,
    moved,
    patches_for,
    switches,
    write_vectors,
)
from strategies import Draw, draws, seeds
from torch import Tensor
from torch.testing import assert_close
from tower_models import small_model, tokenizer_for

from pvlr.core import PVLR, LabelSet, PVLRConfig, asymmetric_loss, load_towers
from pvlr.core.towers.image import OpenClipImageTower
from pvlr.core.towers.text import OpenClipTextTower
from pvlr.core.weights import load_trained_state, trained_state

EXACT = {"rtol": 1e-9, "atol": 1e-9}
CLOSE = {"rtol": 0.0, "atol": 1e-5}
OTHERS = ("zebra", "cow", "garden_hose")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors"), (*NAMES, "zebra", "garden_hose"))


@given(switches(), draws(), st.integers(1, 5))
def test_law_1_permuting_labels_permutes_the_logits(file: Path, chosen: Switches, draw: Draw, count: int) -> None:
    labels, order = LABELS.select(NAMES[:count]), draw.order(count)
    model = build(chosen, labels, file=file)
    permuted = build(chosen, labels.select([labels.names[i] for i in order]), file=file, seed=None)
    state = dict(trained_state(model))
    if chosen["class_specific_context"] and model.context is not None:
        state["context.context"] = state["context.context"][order]
    load_trained_state(permuted, state)
    patches = patches_for(draw)
    wanted, found = model.forward_features(patches), permuted.forward_features(patches)
    assert_close(found.logits, wanted.logits[:, order], **EXACT)
    assert_close(found.labels, wanted.labels[:, order], **EXACT)
    assert_close(found.patches, wanted.patches, **EXACT)


@given(switches(), draws(), st.integers(1, 3), st.integers(1, 5))
def test_law_2_a_row_alone_is_the_row_in_the_batch(file: Path, chosen: Switches, draw: Draw, b: int, n: int) -> None:
    model, patches = build(chosen, file=file), patches_for(draw, b, n)
    together = model.forward_features(patches)
    for i in range(b):
        alone = model.forward_features(patches[i : i + 1])
        for name in ("logits", "labels", "patches"):
            assert_close(getattr(alone, name)[0], getattr(together, name)[i], **EXACT)


@given(switches(class_specific_context=False), draws(), st.integers(1, 3))
def test_law_3_a_model_takes_other_labels(file: Path, chosen: Switches, draw: Draw, count: int) -> None:
    model, labels, patches = build(chosen, file=file), LabelSet(OTHERS[:count]), patches_for(draw)
    other = model.with_labels(labels)
    fresh = build(chosen, labels, file=file, seed=None)
    load_trained_state(fresh, trained_state(model))
    assert other.labels is labels
    assert not other.training
    assert_close(other.forward_features(patches).logits, fresh.forward_features(patches).logits, **EXACT)
    own, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert own.keys() == theirs.keys()
    assert all(own[name] is theirs[name] for name in own)
    before = model.forward_features(patches).logits
    assert before.shape[1] == len(LABELS)
    moved(other, seed=1)  # What one learns, the other knows.
    load_trained_state(fresh, trained_state(model))
    assert_close(other.forward_features(patches).logits, fresh.forward_features(patches).logits, **EXACT)
    assert not torch.equal(model.forward_features(patches).logits, before)


def test_law_3_but_not_with_a_context_for_every_label() -> None:
    message = "^labels: cannot be exchanged in a model with class_specific_context, which fixes them$"
    with pytest.raises(ValueError, match=message):
        build({"heads": 2, "class_specific_context": True}).with_labels(LABELS)
    # Where the fusion does not read the context there is none, and nothing fixes the labels.
    build({"heads": 2, "class_specific_context": True, "fusion": "knowledge"}).with_labels(LabelSet(OTHERS))


def test_law_3_holds_in_training_and_for_towers_that_are_no_modules() -> None:
    model = PVLR(PVLRConfig(heads=2), LABELS, BareText(), ToyImage()).train()
    other = model.with_labels(LabelSet(OTHERS))
    assert other.training
    assert other.text is model.text
    model.text.table = model.text.table.float()
    model.text.places, model.text.out = model.text.places.float(), model.text.out.float()
    other(torch.zeros(1, 3, 12, 12)).logits.sum().backward()
    assert model.context.context.grad is not None


def clear(model: PVLR) -> PVLR:
    model.text.contexts = 0
    return model


READS = switches().filter(lambda chosen: chosen["fusion"] != "knowledge")


@given(READS, draws(), st.sampled_from([torch.no_grad, torch.inference_mode]))
def test_law_5_texts_are_encoded_once(file: Path, chosen: Switches, draw: Draw, mode: Callable) -> None:
    model = clear(build(chosen, file=file))
    encoded = model.text.encoded
    batches = [patches_for(draw, b) for b in (2, 1, 3)]
    with mode():
        kept = [model.forward_features(batch).logits for batch in batches]
    assert model.text.contexts == 1
    assert model.text.encoded == encoded
    for batch, logits in zip(batches, kept, strict=True):
        assert_close(logits, model.forward_features(batch).logits, **EXACT)  # With gradients nothing is kept.
    assert model.text.contexts == 4


@given(READS, draws(), st.data())
def test_law_5_and_again_after_a_parameter_changed_in_place(
    file: Path, chosen: Switches, draw: Draw, data: st.DataObject
) -> None:
    model, patches = build(chosen, file=file), patches_for(draw)
    name = data.draw(st.sampled_from(sorted(trained_state(model))))
    with torch.no_grad():
        model.forward_features(patches)
        clear(model).get_parameter(name).add_(0.1)
        found = model.forward_features(patches).logits
        assert model.text.contexts == (name.split(".")[0] in ("knowledge", "context", "fusion"))
        assert_close(found, copy.deepcopy(model).forward_features(patches).logits, **EXACT)


CHANGES: dict[str, Callable[[PVLR], object]] = {
    "load_head_state_dict": lambda model: load_trained_state(model, trained_state(model)),
    "float": lambda model: model.float(),
    "to": lambda model: model.to(torch.float32),
    "there and back": lambda model: moved(model.float(), 1).double(),
    "assign": lambda model: model.load_state_dict(
        {name: value.clone() + 0.1 for name, value in model.state_dict().items()}, assign=True
    ),
    "train": lambda model: model.train().eval(),
    "deepcopy": lambda model: None,
}


@pytest.mark.parametrize("how", CHANGES)
def test_law_5_and_again_after_any_other_change(how: str) -> None:
    model, patches = build({"heads": 2}), patches_for(Draw(0))
    with torch.no_grad():
        model.forward_features(patches)
        if how == "deepcopy":
            model = pickle.loads(pickle.dumps(copy.deepcopy(model)))  # noqa: S301
        CHANGES[how](clear(model))
        patches = patches.to(model.knowledge_vectors.dtype)
        for _ in range(2):
            found = model.forward_features(patches).logits
    assert model.text.contexts == 1
    assert_close(found, model.forward_features(patches).logits.detach(), **EXACT)


@torch.no_grad()
def test_law_5_no_parameter_can_come_to_lie_in_the_place_of_the_one_that_was_read() -> None:
    model = build({"heads": 2, "fusion": "context", "relation": "none"})
    memory = np.full((4, 6), 0.1)
    model.context.context = torch.nn.Parameter(torch.from_numpy(memory))
    taken = weakref.ref(memory)
    del memory
    before = model.label_vectors().clone()
    model.context.context = torch.nn.Parameter(torch.full((4, 6), 0.2, dtype=torch.float64))
    gc.collect()
    # What is told apart by its place must not give the place away, until it is no longer compared with.
    assert taken() is not None
    assert not torch.allclose(model.label_vectors(), before)
    gc.collect()
    assert taken() is None


@pytest.mark.usefixtures("unchecked")
def test_law_5_holds_for_a_compiled_model() -> None:
    # torch 2.11 says so of every graph, and the texts of an exported model have to be in it.
    if torch.compile(lambda: torch.compiler.is_exporting(), backend="eager")():
        pytest.skip("this version of torch takes compiling for exporting: texts are encoded for every batch")
    model, patches = build({"heads": 2}), patches_for(Draw(0))
    with torch.no_grad():
        wanted = model.forward_features(patches).logits
        vectors = model.label_vectors()
        compiled = torch.compile(model.forward_features, backend="eager")
        whole = torch.compile(model.forward_features, backend="eager", fullgraph=True)
        clear(model)
        for _ in range(2):
            assert_close(compiled(patches).logits, wanted, **EXACT)
        assert_close(whole(patches, labels=vectors).logits, wanted, **EXACT)
    assert model.text.contexts == 0
    torch.compiler.reset()


def cosines(texts: Tensor, patches: Tensor) -> Tensor:
    return torch.einsum("bnd,cd->bnc", F.normalize(patches, dim=-1), F.normalize(texts, dim=-1))


def is_zero_shot(model: PVLR, texts: Tensor, patches: Tensor, pooled_vector: Tensor | None = None) -> None:
    """The logits are the cosines of the tower's own vectors, but for the scale and the bias of the head."""
    with torch.no_grad():
        whole = None if pooled_vector is None else cosines(texts, pooled_vector[:, None])[:, 0]
        regions = patches if pooled_vector is None else torch.cat([pooled_vector[:, None], patches], dim=1)
        logits = model.forward_features(regions).logits
        scale, temperature = model.head.log_scale.exp(), model.config.aggregation_temperature
        found, each = (logits - model.head.bias) / scale, cosines(texts, patches).to(logits)
        pooled = {
            "max": each.amax(dim=1),
            "mean": each.mean(dim=1),
            "softmax": ((scale * each / temperature).softmax(dim=1) * each).sum(dim=1),
        }
        wanted = pooled[model.config.aggregation]
        assert_close(found, wanted if whole is None else (wanted + whole) / 2, **CLOSE)


@given(draws(), seeds(), st.booleans(), st.sampled_from(["max", "mean", "softmax"]))
def test_law_6_an_untrained_model_is_zero_shot(draw: Draw, seed: int, class_specific: bool, aggregation: str) -> None:
    torch.manual_seed(seed)
    chosen = {"heads": 2, "class_specific_context": class_specific, "aggregation": aggregation}
    model = build(chosen, LabelSet(NAMES), seed=None)
    texts = model.text.encode([f"a photo of a {text}." for text in model.labels.texts])
    is_zero_shot(model, texts, patches_for(draw))
    images = draw.normal(2, 3, 12, 12)
    assert_close(model(images).logits, model.forward_features(model.image(images).patches).logits, **EXACT)


@given(draws(), seeds(), st.sampled_from(["max", "mean", "softmax"]))
def test_law_6_of_pooled_vector_and_patches_together(draw: Draw, seed: int, aggregation: str) -> None:
    torch.manual_seed(seed)
    model = build({"heads": 2, "regions": "both", "aggregation": aggregation}, LabelSet(NAMES), seed=None)
    texts = model.text.encode([f"a photo of a {text}." for text in model.labels.texts])
    images = draw.normal(2, 3, 12, 12)
    seen = model.image(images)
    is_zero_shot(model, texts, seen.patches, seen.pooled)
    joined = torch.cat([seen.pooled[:, None], seen.patches], dim=1)
    assert_close(model(images).logits, model.forward_features(joined).logits, **EXACT)
    model.config = replace(model.config, regions="pooled")
    whole = (model(images).logits - model.head.bias) / model.head.log_scale.exp()
    assert_close(whole, cosines(texts, seen.pooled[:, None])[:, 0].to(whole), **CLOSE)


@given(draws(), seeds())
def test_law_6_so_is_a_trained_one_without_interaction(draw: Draw, seed: int) -> None:
    chosen = {"heads": 2, "dma": "none", "fusion": "knowledge", "relation": "none"}
    model = build(chosen, LabelSet(NAMES), seed=seed)
    assert sorted(trained_state(model)) == ["head.bias", "head.log_scale"]
    is_zero_shot(model, model.text.encode([f"a photo of a {t}." for t in model.labels.texts]), patches_for(draw))


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip"])
def test_law_6_on_towers_of_open_clip(kind: str) -> None:
    clip, tokenizer = small_model(kind), tokenizer_for(kind)
    text, image = OpenClipTextTower(clip, tokenizer), OpenClipImageTower(clip.visual)
    model = PVLR(PVLRConfig(), LabelSet(NAMES), text, image).eval()
    sentences = [f"a photo of a {t}." for t in model.labels.texts]
    with torch.no_grad():
        texts = clip.encode_text(tokenizer(sentences, context_length=text.context_length))
        images = torch.randn(2, 3, image.image_size, image.image_size)
        is_zero_shot(model, texts, image(images).patches)
        alone, together = model(images[:1]).logits, model(images).logits
    assert_close(alone, together[:1], rtol=0, atol=1e-4)


def test_law_6_on_the_clip_that_comes_with_pvlr(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = load_towers("pvlr:scenes-clip")
    labels = LabelSet(("red_circle", "blue_square", "green_star"))
    model = PVLR(PVLRConfig(scale_from="tower"), labels, towers.text, towers.image, logit_scale=towers.logit_scale)
    model.eval()
    size = towers.image.image_size
    is_zero_shot(
        model,
        towers.text.encode([f"a photo of a {text}." for text in labels.texts]),
        towers.image(torch.rand(2, 3, size, size)).patches,
    )
    assert_close(model.head.log_scale.exp().item(), towers.logit_scale, rtol=1e-5, atol=0.0)
    calls = []
    encode = towers.text.encode_context
    monkeypatch.setattr(towers.text, "encode_context", lambda *given: calls.append(given) or encode(*given))
    model.eval()
    with torch.no_grad():
        for count in (2, 1):
            assert model(torch.rand(count, 3, size, size)).logits.shape == (count, 3)
    assert len(calls) == 1
    model.train()(torch.rand(2, 3, size, size)).logits.sum().backward()
    assert model.context.context.grad.abs().max() > 0
    assert all(p.grad is None for tower in (towers.text, towers.image) for p in tower.parameters())
    assert not towers.text.training


def gradients(model: PVLR, patches: Tensor, target: Tensor, known: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    loss = asymmetric_loss(model.train().forward_features(patches).logits, target, known)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@given(switches(), draws())
def test_law_7_masked_labels_send_no_gradient_through_the_model(file: Path, chosen: Switches, draw: Draw) -> None:
    model, patches = build(chosen, file=file), patches_for(draw)
    target, known = draw.chance(0.5, 2, 5).double(), draw.chance(0.5, 2, 5)
    flipped = torch.where(known, target, 1 - target)
    for a, b in zip(gradients(model, patches, target, known), gradients(model, patches, flipped, known), strict=True):
        assert torch.equal(a, b)
    nothing = gradients(model, patches, target, torch.zeros_like(known))
    assert not any(value.any() for value in nothing)
    # All that reaches the model goes through its logits: masked ones get nothing.
    logits = model.forward_features(patches).logits
    asked = torch.autograd.grad(asymmetric_loss(logits, target, known), logits)[0]
    assert not asked[~known].any()
    assert asked[known].all()


@given(switches(), draws())
def test_law_8_logits_are_float32_under_autocast(file: Path, chosen: Switches, draw: Draw) -> None:
    model = build(chosen, file=file).float()
    patches = patches_for(draw).float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model.forward_features(patches).logits
        # What was kept under autocast must not serve without it.
        found = model.forward_features(patches).logits
    assert coarse.dtype == found.dtype == torch.float32
    assert coarse.isfinite().all()
    assert_close(found, copy.deepcopy(model).forward_features(patches).logits.detach(), rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        model.train().forward_features(patches.bfloat16()).logits.sum().backward()
