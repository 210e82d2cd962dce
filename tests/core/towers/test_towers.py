"""Towers by name: what is loaded, and what tells one from another."""

import json
import logging
import re
import subprocess
import sys

import open_clip
import pytest
import torch
from helpers.tower_models import CONFIGS, SENTENCES, name_of, register, small_model, write_folder
from safetensors.torch import load_file, save_file

from pvlr.core.towers import Towers, load_towers, weights_fingerprint
from pvlr.core.towers.files import choices


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory) -> None:
    register(tmp_path_factory.mktemp("configs"))


def images_for(towers: Towers) -> torch.Tensor:
    size = towers.image.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


# --------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("kind", ["vit", "vit_avg", "resnet", "siglip_projected"])
@torch.no_grad()
def test_a_folder_is_loaded_as_open_clip_loads_it(kind, tmp_path):
    write_folder(tmp_path / "tower", kind)
    name = f"local-dir:{tmp_path / 'tower'}"
    towers = load_towers(name)
    model = open_clip.create_model(name).eval()
    images = images_for(towers)
    torch.testing.assert_close(towers.image(images).pooled, model.encode_image(images), rtol=1e-5, atol=1e-5)
    tokens = open_clip.get_tokenizer(name)(list(SENTENCES))
    torch.testing.assert_close(towers.text.encode(SENTENCES), model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert towers.preprocess == {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "size": towers.image.image_size,
        "interpolation": "bilinear",
    }
    assert towers.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)
    assert towers.logit_bias == 0.0
    assert towers.spec.name == name
    for tower in (towers.text, towers.image):
        tower.train()
        assert not any(module.training for module in tower.modules())
        assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_a_bias_and_the_kind_of_patches_are_passed_on(tmp_path):
    model = write_folder(tmp_path, "siglip")
    towers = load_towers(f"local-dir:{tmp_path}")
    assert towers.logit_bias == pytest.approx(float(model.logit_bias.detach()), rel=1e-6)
    assert towers.logit_bias < -5
    write_folder(tmp_path / "vit", "vit")
    assert load_towers(f"local-dir:{tmp_path / 'vit'}", patch_features="final").image.patch_features == "final"


@pytest.mark.parametrize(("kind", "size"), [("vit", 48), ("vit", 16), ("siglip", 96)])
@torch.no_grad()
def test_another_image_size_is_open_clips_own_resize(kind, size, tmp_path):
    write_folder(tmp_path, kind)
    weights = tmp_path / "open_clip_model.safetensors"
    towers = load_towers(name_of(kind), weights=weights, image_size=size)
    model = open_clip.create_model(name_of(kind), pretrained=str(weights), force_image_size=size).eval()
    images = images_for(towers)
    torch.testing.assert_close(towers.image(images).pooled, model.encode_image(images), rtol=1e-5, atol=1e-5)
    own, theirs = (dict(visual.named_parameters()) for visual in (towers.image.visual, model.visual))
    assert own.keys() == theirs.keys()
    for name in own:
        torch.testing.assert_close(own[name], theirs[name], rtol=0, atol=1e-6)
    assert towers.preprocess["size"] == size
    # The fingerprint is that of the weights, whatever size they are used at.
    assert towers.fingerprint == load_towers(name_of(kind), weights=weights).fingerprint


@pytest.mark.parametrize("ending", ["safetensors", "bin", "pt", "odd"])
def test_weights_from_a_file_of_any_kind(ending, tmp_path):
    model = small_model("vit")
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}}, path)
    towers = load_towers("pvlr-test-vit", weights=str(path))
    expected = weights_fingerprint(model.state_dict(), architecture=CONFIGS["vit"])
    assert towers.fingerprint == expected


def test_random_weights_are_said_to_be_random(caplog):
    with caplog.at_level(logging.WARNING, logger="pvlr.core.towers.files.checkpoints"):
        towers = load_towers("pvlr-test-vit")
    assert caplog.messages == ["tower 'pvlr-test-vit' has random weights, since none were named"]
    assert towers.preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert towers.preprocess["interpolation"] == "bicubic"


def test_published_weights_agree_on_the_preprocessing_of_a_file():
    assert choices.usual_preprocess("ViT-B-16-SigLIP", None, ())["mean"] == (0.5, 0.5, 0.5)
    assert choices.usual_preprocess("RN50-quickgelu", None, ())["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert choices.usual_preprocess("pvlr-test-vit", None, ()) == {}


def test_patch_dropout_is_left_out(tmp_path):
    write_folder(tmp_path, "vit")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["patch_dropout"] = 0.5
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    towers = load_towers(f"local-dir:{tmp_path}")
    towers.image.set_trainable("all")
    towers.image.train()
    images = images_for(towers)
    assert towers.image(images).patches.shape[1] == 16
    torch.testing.assert_close(towers.image.visual(images), towers.image(images).pooled, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_stable_and_sees_every_weight(tmp_path):
    write_folder(tmp_path, "resnet")
    name, path = f"local-dir:{tmp_path}", tmp_path / "open_clip_model.safetensors"
    first = load_towers(name).fingerprint
    assert load_towers(name, patch_features="final").fingerprint == first
    assert re.fullmatch("[0-9a-f]{64}", first)
    # Copies: some versions of safetensors map the file, which is written over below.
    weights = {key: tensor.clone() for key, tensor in load_file(path).items()}
    changed = ("visual.layer3.0.bn2.running_mean", "positional_embedding", "logit_scale")
    for key in changed:
        other = {name: tensor.clone() for name, tensor in weights.items()}
        flat = other[key].view(-1)
        flat[0] = torch.nextafter(flat[0], torch.tensor(torch.inf))
        save_file(other, path)
        assert load_towers(name).fingerprint != first
    save_file(weights, path)
    assert load_towers(name).fingerprint == first


def test_the_fingerprint_sees_names_shapes_types_and_the_architecture():
    base = {"a": torch.zeros(4), "b": torch.ones(())}
    others = [
        {"a": torch.zeros(4), "c": torch.ones(())},
        {"a": torch.zeros(2, 2), "b": torch.ones(())},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(())},
        {"a": torch.zeros(4).bfloat16(), "b": torch.ones(())},
    ]
    prints = {weights_fingerprint(weights, architecture={"heads": 2, "layers": 1}) for weights in (base, *others)}
    prints |= {weights_fingerprint(base, architecture={"heads": 4, "layers": 1}), weights_fingerprint(base)}
    assert len(prints) == 7
    reordered = {"b": torch.ones(()), "a": torch.zeros(8)[::2]}
    assert weights_fingerprint(reordered, architecture={"layers": 1, "heads": 2}) in prints


@pytest.mark.parametrize(
    ("part", "entry", "value"), [("vision_cfg", "head_width", 4), ("text_cfg", "heads", 8), (None, "quick_gelu", False)]
)
def test_the_fingerprint_sees_what_leaves_no_trace_in_the_weights(tmp_path, part, entry, value):
    write_folder(tmp_path, "vit")
    first = load_towers(f"local-dir:{tmp_path}").fingerprint
    path = tmp_path / "open_clip_config.json"
    told = json.loads(path.read_text())
    config = told["model_cfg"] if part is None else told["model_cfg"][part]
    assert config.get(entry) != value
    config[entry] = value
    path.write_text(json.dumps(told))
    assert load_towers(f"local-dir:{tmp_path}").fingerprint != first


# --------------------------------------------------------------------------------------------------------- imports


def test_importing_the_towers_loads_none_of_what_they_adapt():
    code = (
        "import sys, pvlr.core.towers; print({'open_clip', 'torchvision', 'timm', 'huggingface_hub'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
