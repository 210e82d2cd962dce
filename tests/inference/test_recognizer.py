"""A recognizer: pictures in its tower's form, tags of one and of several, and the ways to make one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tagging_toys import NAMES, make_recognizer
from PIL import Image

from pvlr import Recognizer
from pvlr.core import LabelSet, PretrainedError, load_towers
from pvlr.core.arguments import ConfigError
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.core.towers import TowerSpec, build_towers
from pvlr.data.batch import DataError
from pvlr.data.images import decode_rgb
from pvlr.inference.card import ModelCard
from pvlr.inference.decision import Decision


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tower")


@pytest.fixture(scope="module")
def recognizer(folder: Path) -> Recognizer:
    return make_recognizer(folder)


def test_a_picture_is_resized_and_normalised_as_the_tower_asks(recognizer: Recognizer) -> None:
    levels = torch.tensor([51, 102, 204], dtype=torch.uint8)
    prepared = recognizer.prepare(levels[:, None, None].expand(3, 50, 70))
    assert prepared.shape == (3, 32, 32)
    for channel, level, mean, std in zip(prepared, (0.2, 0.4, 0.8), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), strict=True):
        torch.testing.assert_close(channel, torch.full((32, 32), (level - mean) / std))


def test_a_picture_has_the_size_that_the_model_s_tower_was_built_with(recognizer: Recognizer, folder: Path) -> None:
    towers = build_towers(TowerSpec(name=f"local-dir:{folder}", image_size=48))
    larger = Recognizer.from_towers(towers, NAMES)
    assert larger.prepare(torch.ones(3, 9, 7)).shape == (3, 48, 48)
    assert recognizer.prepare(torch.ones(3, 9, 7)).shape == (3, 32, 32)


def test_one_picture_and_a_batch_have_the_same_tags(recognizer: Recognizer, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), np.uint8)
    for number, levels in enumerate(noise):
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    batch = torch.stack([recognizer.prepare(path) for path in paths])
    for path, tags in zip(paths, recognizer.tag_batch(batch, threshold=0.0), strict=True):
        alone = recognizer.tag(path, threshold=0.0)
        assert [tag.name for tag in alone] == [tag.name for tag in tags]
        assert [tag.probability for tag in alone] == pytest.approx([tag.probability for tag in tags], abs=1e-5)
        assert recognizer.tag(decode_rgb(path), threshold=0.0)[0].name == alone[0].name
    assert all(tag.attention is None for tags in recognizer.tag_batch(batch, attention=False) for tag in tags)


def test_a_picture_that_cannot_be_read_is_refused_as_a_value_error_too(recognizer: Recognizer) -> None:
    for act in (recognizer.prepare, recognizer.tag):
        with pytest.raises(DataError, match=r"^nowhere\.png: expected a picture, found no such file$"):
            act("nowhere.png")
    assert issubclass(DataError, ValueError)


def test_the_decision_and_the_card_are_its_own(recognizer: Recognizer) -> None:
    bare = Recognizer(recognizer.model)
    assert (bare.decision, bare.card) == (Decision(), ModelCard())
    picture = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    strict = Recognizer(recognizer.model, decision=Decision(thresholds=dict.fromkeys(NAMES, 1.0)))
    assert strict.tag(picture) == []
    assert {tag.name for tag in strict.tag(picture, threshold=0.0)} == set(NAMES)
    assert bare.labels is recognizer.model.labels


def test_other_labels_share_the_model_and_leave_it_as_it_was(recognizer: Recognizer) -> None:
    other = recognizer.with_labels(["zebra", "red"])
    assert other.labels == LabelSet(("zebra", "red"))
    assert recognizer.labels == LabelSet(NAMES)
    assert other.model.image is recognizer.model.image
    assert other.decision == recognizer.decision
    assert {tag.name for tag in other.tag(torch.zeros(3, 9, 9), threshold=0.0)} == {"zebra", "red"}


def test_a_baseline_tags_as_any_model(recognizer: Recognizer, folder: Path) -> None:
    towers = build_towers(TowerSpec(name=f"local-dir:{folder}"))
    model = BaselineModel.from_towers(BaselineConfig(kind="linear_probe"), LabelSet(NAMES), towers).eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    tags = Recognizer(model).tag(torch.zeros(3, 9, 9))
    assert [tag.name for tag in tags] == ["red", "blue"]
    assert [tag.attention for tag in tags] == [None, None]
    text, image = recognizer.model.text, recognizer.model.image
    bare = BaselineModel(BaselineConfig(kind="linear_probe"), LabelSet(NAMES), text, image)
    with pytest.raises(PretrainedError, match=r"^model: expected one that was made by from_towers"):
        Recognizer(bare)


def test_towers_alone_rank_the_names() -> None:
    found = Recognizer.from_towers(load_towers("pvlr:scenes-clip"), ["red circle", "star"])
    assert (found.decision.scores, found.card.data) == (
        "similarity",
        ("nothing: what the towers know of the labels' names",),
    )
    assert found.model.training is False
    opened = Recognizer.open(tower="pvlr:scenes-clip", labels="red circle, star")
    picture = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0))
    assert [tag[:2] for tag in opened.tag(picture)] == [tag[:2] for tag in found.tag(picture)]
    with pytest.raises(ConfigError, match=r"^run: expected a trained model, or tower for one that tags without"):
        Recognizer.open()
