"""A model over its life: trained, served, changed, saved and loaded again, in the orders that people do it in."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import pinned
from torch import Tensor

from pvlr.core import PVLR, LabelError, LabelSet, PretrainedError, PVLRConfig, TowerSpec, asymmetric_loss, build_towers
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.inference.recognizer import Recognizer

NAMES = ("red circle", "blue square", "star")


def model_of(names: tuple[str, ...] = NAMES, *, tower: dict[str, Any] | None = None, **config: Any) -> PVLR:
    towers = build_towers(TowerSpec(**{"name": "pvlr:scenes-clip", **(tower or {})}))
    return PVLR.from_towers(PVLRConfig(**config), LabelSet(names), towers).eval()


@torch.no_grad()
def trained(model: PVLR) -> PVLR:
    """Everything but the towers is moved: weights that are where they start are the same without being read."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if not name.startswith(("text.", "image.")):
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
    model.set_known_positives(torch.arange(1.0, 1.0 + len(model.trained)))
    return model


def patches(images: int = 2) -> Tensor:
    return torch.randn(images, 64, 128, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: PVLR) -> Tensor:
    return model.forward_features(patches()).logits.clone()


def save(model: PVLR, folder: Path, **options: bool) -> None:
    Recognizer(model).save_pretrained(folder, **options)


def load(folder: Path) -> PVLR:
    return Recognizer.from_pretrained(folder).model


# --- what is kept for evaluation


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_steps_in_evaluation_mode_are_seen_whatever_the_optimiser_runs_on(options: dict[str, bool]) -> None:
    model = model_of()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, **options)
    before = logits(model)
    for _ in range(2):
        optimizer.zero_grad()
        asymmetric_loss(model.forward_features(patches()).logits, torch.eye(2, 3)).backward()
        optimizer.step()
    served = logits(model)
    model.eval()  # Which forgets.
    assert torch.equal(served, logits(model))
    assert not torch.equal(served, before)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"fusion": "knowledge", "relation": "none", "direction": "none"},
        {"direction": "patches", "fusion": "context"},
    ],
)
def test_what_is_given_out_may_be_changed(config: dict[str, Any]) -> None:
    model = model_of(**config)
    wanted = logits(model)
    with torch.no_grad():
        model.label_vectors().mul_(-1)
        for vectors in model.label_parts()[::2]:
            if vectors is not None:
                vectors.mul_(-1)
        model.forward_features(patches(1)).labels.mul_(-1)
    assert torch.equal(logits(model), wanted)
    assert torch.equal(logits(model.train().eval()), wanted)


def test_what_inference_mode_computed_serves_outside_of_it() -> None:
    model = model_of()
    with torch.inference_mode():
        model.forward_features(patches())
    with torch.no_grad():
        vectors = model._label_side().rows.fused
    weight = torch.ones(128, requires_grad=True)
    (vectors @ weight).sum().backward()
    assert weight.grad is not None


# Of torch's attention in the image tower.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_models_of_an_ensemble_are_computed_side_by_side_without_gradients() -> None:
    models = [model_of(), model_of()]
    with torch.no_grad():
        models[1].head.bias.add_(1)
    parameters, buffers = torch.func.stack_module_state(models)
    vectors = torch.stack([model.knowledge_vectors for model in models])

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(models[0], (parameters, buffers), (images,)).logits

    images = torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        together = torch.vmap(one)(parameters, {**buffers, "knowledge_vectors": vectors})
        apart = torch.stack([model(images).logits for model in models])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_other_weights_of_the_text_tower_encode_the_fixed_prompts_again() -> None:
    model, other = model_of(), model_of()
    with torch.no_grad():
        for parameter in other.text.parameters():
            parameter.mul_(1.3)
    truth = PVLR(other.config, other.labels, other.text, other.image, logit_scale=other.base_scale).eval()
    assert not torch.allclose(logits(model), logits(truth), atol=1e-2)
    holder = torch.nn.ModuleList([model, model.with_labels(["star"])])
    holder.load_state_dict(torch.nn.ModuleList([truth, truth.with_labels(["star"])]).state_dict())
    for found, wanted in ((model, truth), (holder[1], truth.with_labels(["star"]))):
        torch.testing.assert_close(found.knowledge_vectors, wanted.knowledge_vectors)
        torch.testing.assert_close(found.base_vectors, wanted.base_vectors)
        torch.testing.assert_close(found.anchors, wanted.anchors)
        torch.testing.assert_close(logits(found), logits(wanted))


def test_a_prior_that_cannot_be_fitted_changes_nothing() -> None:
    model = model_of()
    before = model.head.bias.item(), model.mixture.bias.item()
    with pytest.raises(ValueError, match="finite"):
        model.fit_prior(torch.full((1, 4, 128), torch.nan))
    assert (model.head.bias.item(), model.mixture.bias.item()) == before
    model.fit_prior(patches())
    assert model.head.bias.item() != before[0]
    model.train().mixture.drop = 0.0
    assert logits(model).sigmoid().mean().item() == pytest.approx(model.config.prior, abs=1e-3)


# --- saved and loaded


@pytest.mark.parametrize("train", ["all", 1])
def test_a_trained_tower_is_saved_whatever_its_parameters_require_now(tmp_path: Path, train: Any) -> None:
    model = model_of(tower={"train": train})
    with torch.no_grad():
        for parameter in model.image.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01)
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(images).logits
    for required in (False, True):
        save(model.requires_grad_(required), tmp_path / "model")
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "model")(images).logits, wanted)


def test_a_tower_changed_since_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model = model_of(tower={"train": "all"})
    model.image.set_trainable("frozen")
    message = "model.image: expected the trained parts 'all' that its towers were built with, found 'frozen'; "
    with pytest.raises(PretrainedError, match=f"^{pinned(message)}"):
        save(model, tmp_path / "model")
    model = model_of()
    model.image.set_image_size(64)
    assert Recognizer(model).tag(torch.zeros(3, 40, 30), threshold=0.0)[0].attention.shape == (4, 4)
    with pytest.raises(PretrainedError, match=r"^model\.image: expected the image size 128 .*, found 64; "):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_of_vectors_that_changed_since_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, names=np.array(NAMES), vectors=np.eye(3, 5, dtype=np.float32))
    model = trained(model_of(knowledge=str(path)))
    save(model, tmp_path / "model")
    np.savez(path, names=np.array(NAMES), vectors=-np.ones((3, 5), dtype=np.float32))
    message = f"model.knowledge: expected {path} as it was when the model was built, its content is another"
    for refused in (lambda: save(model, tmp_path / "model"), lambda: model.with_labels(["star"])):
        with pytest.raises(PretrainedError, match=f"^{pinned(message)}$"):
            refused()
    assert torch.equal(logits(load(tmp_path / "model")), logits(model))


def test_a_refused_save_leaves_the_model_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps({name: [f"a {name}"] for name in NAMES}))
    model = model_of(descriptions=str(path))
    save(model, tmp_path / "model")
    wanted = logits(model)
    path.unlink()
    with torch.no_grad():
        model.head.bias.add_(1)
    with pytest.raises(PretrainedError, match=r"told\.json"):
        save(model, tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model")), wanted)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(PretrainedError, match=r"model: expected a folder to write the model to, but "):
        save(model_of(), tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.usefixtures("unchecked")
def test_a_model_is_made_for_labels_or_for_their_names() -> None:
    towers, names = build_towers(TowerSpec(name="pvlr:scenes-clip")), ["red_circle", "blue_square"]
    for made in (
        lambda labels: PVLR.from_towers(PVLRConfig(), labels, towers),
        lambda labels: BaselineModel.from_towers(BaselineConfig(kind="linear_probe"), labels, towers),
    ):
        model = made(names)
        assert model.labels == model.trained == LabelSet(tuple(names))
        assert model.eval()(torch.zeros(1, 3, 128, 128)).logits.shape == (1, 2)
        with pytest.raises(LabelError, match="names"):
            made("red_circle")


def test_other_labels_than_those_described_are_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    path.write_text(json.dumps({name: [f"a {name} of some size"] for name in NAMES}))
    model = trained(model_of(descriptions=str(path)))
    other = model.with_labels(["red circle", "zebra"])
    save(other, tmp_path / "other")
    loaded = load(tmp_path / "other")
    assert torch.equal(logits(loaded), logits(other))
    assert torch.equal(logits(loaded.with_labels(NAMES)), logits(model))
    save(loaded, tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), logits(other))


def test_towers_that_came_with_a_model_go_with_it_again(tmp_path: Path) -> None:
    model = trained(model_of())
    save(model, tmp_path / "first", include_towers=True)
    loaded = load(tmp_path / "first")
    assert loaded.origin.spec.name == "pvlr:scenes-clip"
    save(loaded, tmp_path / "second")
    local = model_of(tower={"name": f"local-dir:{tmp_path / 'first' / 'towers'}"})
    local.load_state_dict(model.state_dict())
    save(local, tmp_path / "third", include_towers=True)
    shutil.rmtree(tmp_path / "first")
    for name in ("second", "third"):
        assert str(tmp_path) not in (tmp_path / name / "model.json").read_text()
        assert torch.equal(logits(load(tmp_path / name)), logits(model))
    os.rename(tmp_path / "third", tmp_path / "moved")
    save(load(tmp_path / "moved"), tmp_path / "fourth")
    assert torch.equal(logits(load(tmp_path / "fourth")), logits(model))
