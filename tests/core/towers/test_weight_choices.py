"""Facts that a file of weights does not say: activation, mean, name; who has to say them, and who is told."""

import json
import logging
import re
from pathlib import Path

import open_clip
import pytest
import torch
from helpers.tower_models import CONFIGS, register, small_model, write_folder
from helpers.weight_files import hf_config, write_archive, write_transformers
from safetensors.torch import save_file

from pvlr.core.towers import TowerError, TowerSpec, load_towers
from pvlr.core.towers.files.naming import names_of, names_of_file
from pvlr.core.towers.files.sources import find_source

PLAIN, QUICK = "pvlr-twin", "pvlr-twin-quickgelu"


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, quick_gelu in ((PLAIN, False), (QUICK, True)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIGS["vit"], "quick_gelu": quick_gelu}))
    register(folder)


# ------------------------------------------------------------------------------------- what a file does not say


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file(small_model("vit").state_dict(), path)
    return path


def test_an_activation_that_a_file_leaves_open_has_to_be_told(weights):
    asked = (
        f"activation: the file '{weights}' does not say with which it was trained, expected 'quick_gelu' with the name "
        f"'{QUICK}' (as OpenAI, MetaCLIP, DFN) or 'gelu' with '{PLAIN}' (as LAION, DataComp): --tower.activation"
    )
    for name in (PLAIN, QUICK):
        with pytest.raises(TowerError) as caught:
            load_towers(name, weights=weights)
        assert str(caught.value) == asked
    plain, quick = (
        load_towers(name, weights=weights, activation=told) for name, told in ((PLAIN, "gelu"), (QUICK, "quick_gelu"))
    )
    assert plain.fingerprint != quick.fingerprint
    assert (plain.spec.activation, quick.spec.activation) == ("gelu", "quick_gelu")
    assert load_towers("pvlr-test-vit", weights=weights).spec.activation is None  # of which there is one alone


@pytest.mark.usefixtures("unchecked")
def test_an_activation_that_is_told_is_that_of_the_name(weights, tmp_path):
    for name, told, has, other in ((PLAIN, "quick_gelu", "GELU", QUICK), (QUICK, "gelu", "QuickGELU", PLAIN)):
        with pytest.raises(TowerError) as caught:
            load_towers(name, weights=weights, activation=told)
        expected = f"activation: '{told}' is told, but '{name}' computes {has}; ask for '{other}'"
        assert str(caught.value) == expected
    write_folder(tmp_path / "tower", "vit")
    with pytest.raises(TowerError, match=r"^activation: 'gelu' is told, but 'local-dir:.*' computes QuickGELU$"):
        load_towers(f"local-dir:{tmp_path / 'tower'}", activation="gelu")
    with pytest.raises(ValueError, match="activation: expected one of 'gelu', 'quick_gelu', got 'relu'"):
        TowerSpec(activation="relu")  # type: ignore[arg-type]


def test_a_configuration_beside_a_file_is_pointed_at(weights):
    (weights.parent / "open_clip_config.json").write_text("{}")
    with pytest.raises(TowerError, match=r"--tower.activation \(or name its folder, whose open_clip_config.json says"):
        load_towers(PLAIN, weights=weights)


def test_an_archive_of_openai_s_says_its_activation(tmp_path):
    path = tmp_path / "a.pt"
    write_archive(path, small_model("vit"))
    assert load_towers(QUICK, weights=path).spec.activation is None
    with pytest.raises(TowerError) as caught:
        load_towers(PLAIN, weights=path)
    assert str(caught.value) == (
        f"weights: '{path}' is one of OpenAI's, trained with QuickGELU, but '{PLAIN}' computes GELU; ask for '{QUICK}'"
    )
    write_archive(path, small_model("vit"), of_openai=False)
    with pytest.raises(TowerError, match="does not say with which it was trained"):
        load_towers(QUICK, weights=path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TowerError, match=r"expected the weights of 'pvlr-twin', got a zip file that is cut short"):
        load_towers(PLAIN, weights=path, activation="gelu")


def test_a_mean_that_published_weights_do_not_agree_on_has_to_be_told(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(TowerError) as caught:
        find_source("ViT-L-14", path, None, activation="gelu", mean=(0.5, 0.5, 0.5))
    assert str(caught.value) == (
        f"mean, std: the file '{path}' does not say how images are normalised, and the published weights of 'ViT-L-14' "
        "differ, expected [0.48145466, 0.4578275, 0.40821073] and [0.26862954, 0.26130258, 0.27577711] (as "
        "'laion400m_e31') or [0.5, 0.5, 0.5] and [0.5, 0.5, 0.5] (as 'laion2b_s32b_b82k'): --tower.mean and --tower.std"
    )
    half = (0.5, 0.5, 0.5)
    source = find_source("ViT-L-14", path, None, activation="gelu", mean=half, std=half)
    assert source.preprocess == {"mean": [0.5] * 3, "std": [0.5] * 3}
    # With QuickGELU all of them are as OpenAI's.
    source = find_source("ViT-L-14-quickgelu", path, None, activation="quick_gelu")
    assert source.preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert find_source("ViT-L-14", None, None).preprocess == {}


@pytest.mark.usefixtures("unchecked")
def test_a_mean_that_is_told_takes_the_place_of_any_other(weights, tmp_path):
    write_folder(tmp_path / "tower", "vit")
    towers = load_towers(f"local-dir:{tmp_path / 'tower'}", mean=(0.0, 0.25, 1.0))
    assert towers.preprocess["mean"] == (0.0, 0.25, 1.0)
    assert towers.preprocess["std"] == (0.4, 0.5, 0.6)
    towers = load_towers("pvlr-test-vit", weights=weights, std=[0.1, 0.2, 0.3])
    assert towers.preprocess["std"] == (0.1, 0.2, 0.3)
    assert towers.spec.std == (0.1, 0.2, 0.3)
    for field, value in (
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, 2)),
        ("std", (0.0, 0.5, 0.5)),
        ("std", (1, 1, True)),
    ):
        with pytest.raises(ValueError, match=f"{field}: expected three numbers from .* to 1, got"):
            TowerSpec(**{field: value})


def test_what_is_told_goes_with_the_spec(weights):
    spec = TowerSpec(name=PLAIN, weights=str(weights), activation="gelu", mean=(0.1, 0.2, 0.3))
    assert TowerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.is_local
    # Of an earlier version, which asked nobody and took the name's word.
    older = {key: value for key, value in spec.to_json().items() if key not in ("activation", "mean", "std")}
    assert TowerSpec.from_json(older).activation == "gelu"
    assert TowerSpec.from_json({**older, "name": QUICK}).activation == "quick_gelu"
    assert TowerSpec.from_json({**older, "name": "local-dir:x", "weights": None}).activation is None
    assert TowerSpec.from_json({**older, "name": "gone"}).activation is None


# ---------------------------------------------------------------------------------------------------------- naming


def test_weights_without_a_configuration_are_told_their_name(tmp_path):
    write_archive(tmp_path / "ViT-B-16.pt", small_model("vit"))
    with pytest.raises(TowerError) as caught:
        load_towers(f"local-dir:{tmp_path}")
    found = re.fullmatch(
        f"{tmp_path}: expected the tower's configuration, open_clip_config.json or config.json, found neither; weights "
        f"alone are named with their architecture: --tower.name (.*) --tower.weights {tmp_path}/ViT-B-16.pt",
        str(caught.value),
    )
    assert found is not None, str(caught.value)
    assert {PLAIN, QUICK, "pvlr-test-vit"} <= set(found[1].split(" or "))
    (tmp_path / "ViT-B-16.pt").write_text("no weights")
    with pytest.raises(TowerError, match=r"--tower.name NAME, such as ViT-B-16, --tower.weights"):
        load_towers(f"local-dir:{tmp_path}")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(
        TowerError, match=f"weights: expected a file, '{tmp_path}' is a folder: --tower.name local-dir:"
    ):
        load_towers("pvlr-test-vit", weights=tmp_path)


NAMED = ("ViT-B-32", "RN50", "ViT-B-32-256", "ViT-S-16-alt")


@pytest.mark.parametrize("name", NAMED)
def test_published_architectures_are_told_by_their_shapes(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    found = names_of(model.state_dict())
    assert name in found
    assert all(open_clip.get_model_config(other)["vision_cfg"] == config["vision_cfg"] for other in found)


def test_files_that_are_of_no_architecture(tmp_path):
    assert names_of({"a": torch.ones(1)}) == []
    assert names_of(small_model("siglip").state_dict()) == []
    assert names_of_file(tmp_path / "nowhere") == []
    write_transformers(tmp_path, hf_config("clip", {"max_position_embeddings": 21}))
    assert names_of_file(tmp_path / "model.safetensors") == []


def test_random_weights_need_nothing_told(caplog):
    with caplog.at_level(logging.WARNING, logger="pvlr.core.towers.files.checkpoints"):
        load_towers(PLAIN)
    assert caplog.messages == [f"tower '{PLAIN}' has random weights, since none were named"]
