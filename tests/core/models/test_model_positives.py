"""Laws 9 and 10: labels that were trained on, those that were not, and what is known of either."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.model_toys import (
    BASES,
    HEADS,
    LABELS,
    NAMES,
    Switches,
    based,
    build,
    moved,
    regions_for,
    switches,
    write_vectors,
)
from helpers.strategies import Draw, draws, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core import PVLR, LabelSet, PVLRConfig, functional, load_towers
from pvlr.core.models.state import load_trained_state, trained_state
from pvlr.inference.recognizer import Recognizer

EXACT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vectors(tmp_path_factory.mktemp("vectors"), (*NAMES, "zebra", "garden_hose"))


APART = {"relation": "none", "heads": HEADS}


def apart(**fixed: Any) -> st.SearchStrategy[Switches]:
    """Switches of models in which no block mixes labels."""
    return based(**APART, **fixed).flatmap(
        lambda chosen: st.sampled_from(["labels", "none"]).map(lambda direction: chosen | {"direction": direction})
    )


def scores_of(model: PVLR, patches: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return model.comparison.scores(patches, model.label_rows())


@given(apart(), draws(), st.integers(1, 4), st.data())
def test_law_9_adding_a_name_changes_no_score_of_another(
    file: Path, chosen: Switches, draw: Draw, count: int, data: st.DataObject
) -> None:
    labels = LABELS.select(NAMES[:count])
    model = build(chosen, labels, file=file)
    patches = regions_for(model, draw)
    names = data.draw(st.permutations([*labels.names, "zebra", "garden_hose"]))
    more = model.with_labels(LabelSet(tuple(names), descriptions=labels.descriptions))
    places = [names.index(name) for name in labels]
    for found, wanted in zip(scores_of(more, patches), scores_of(model, patches), strict=True):
        assert found.shape[1] == count + 2
        assert_close(found[:, places], wanted, **EXACT)
    wanted = model.forward_features(patches).logits
    assert_close(more.forward_features(patches).logits[:, places], wanted, **EXACT)
    # Nor does it matter which others are asked for besides.
    alone = model.with_labels(LabelSet(("zebra",)))
    place = names.index("zebra")
    assert_close(alone.forward_features(patches).logits[:, 0], more.forward_features(patches).logits[:, place], **EXACT)


@given(based(), draws(), st.data())
def test_law_9_the_base_of_a_name_never_depends_on_what_else_is_asked_for(
    file: Path, chosen: Switches, draw: Draw, data: st.DataObject
) -> None:
    model = build(chosen, LABELS.select(NAMES[:3]), file=file)
    patches = regions_for(model, draw)
    names = data.draw(st.permutations([*NAMES[:2], "zebra", "garden_hose"]))
    whole = scores_of(model.with_labels(names), patches)[0]
    for place, name in enumerate(names):
        assert_close(scores_of(model.with_labels([name]), patches)[0][:, 0], whole[:, place], **EXACT)


@given(based(), draws(), st.sampled_from(NAMES))
def test_law_10_a_label_without_a_known_positive_scores_as_an_unseen_name(
    file: Path, chosen: Switches, draw: Draw, name: str
) -> None:
    labels, row = LabelSet(NAMES), NAMES.index(name)
    model = build(chosen, labels, file=file)
    patches = regions_for(model, draw)
    counts = torch.tensor([3.0, 20.0, 1.0, 7.0, 5.0])
    counts[row] = 0.0
    model.set_known_positives(counts)
    wanted = model.forward_features(patches).logits[:, row]
    # One that never heard of the label, and has all else of this one.
    others = labels.select([other for other in NAMES if other != name])
    never, keep = build(chosen, others, file=file, seed=None), [i for i in range(5) if i != row]
    state = {
        key: value[keep] if key == "known_positives" or key.startswith("residual.") else value
        for key, value in trained_state(model).items()
    }
    load_trained_state(never, state)
    asked = never.with_labels([name, *others.names[::-1]])
    assert_close(asked.forward_features(patches).logits[:, 0], wanted, **EXACT)
    if model.residual is not None:
        with torch.no_grad():
            for value in model.residual.parameters():
                value[row].add_(1.0)
        assert_close(model.forward_features(patches).logits[:, row], wanted, **EXACT)
    counts[row] = 4.0
    model.set_known_positives(counts)
    assert not torch.allclose(model.forward_features(patches).logits[:, row], wanted, atol=1e-4)


@given(apart(), draws(), st.data())
def test_law_10_labels_keep_what_was_learned_of_them(
    file: Path, chosen: Switches, draw: Draw, data: st.DataObject
) -> None:
    model = build(chosen, LabelSet(NAMES), file=file)
    patches = regions_for(model, draw)
    wanted, unseen = model.forward_features(patches).logits, model.with_labels(["zebra"]).forward_features(patches)
    names = data.draw(st.permutations([*NAMES[1:4], "zebra"]))
    other = model.with_labels(["garden_hose"]).with_labels(names)
    found = other.forward_features(patches).logits
    for place, name in enumerate(names):
        alone = unseen.logits[:, 0] if name == "zebra" else wanted[:, NAMES.index(name)]
        assert_close(found[:, place], alone, **EXACT)
    assert_close(other.with_labels(NAMES).forward_features(patches).logits, wanted, **EXACT)


@torch.no_grad()
def test_law_10_through_files_after_other_labels(tmp_path: Path) -> None:
    towers = load_towers("pvlr:scenes-clip")
    model = moved(PVLR.from_towers(PVLRConfig(relation="none", direction="labels"), LabelSet(NAMES), towers), 0).eval()
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    wanted = model(images).logits
    other = model.with_labels(["bus", "zebra", "cat"])
    Recognizer(other).save_pretrained(tmp_path / "other")
    loaded = Recognizer.from_pretrained(tmp_path / "other").model
    assert (loaded.labels, loaded.trained) == (other.labels, model.labels)
    assert torch.equal(loaded(images).logits, other(images).logits)
    assert_close(loaded(images).logits[:, [2, 0]], wanted[:, [0, 3]], rtol=0, atol=1e-4)
    again = loaded.with_labels(NAMES)
    assert torch.equal(again(images).logits, wanted)
    Recognizer(again).save_pretrained(tmp_path / "again")
    assert torch.equal(Recognizer.from_pretrained(tmp_path / "again").model(images).logits, wanted)
    assert json.loads((tmp_path / "other" / "model.json").read_text())["trained"]["names"] == list(NAMES)


@given(switches(), draws(), st.integers(1, 4))
def test_many_labels_are_gone_through_in_parts(file: Path, chosen: Switches, draw: Draw, rows: int) -> None:
    names = [*NAMES, "zebra", "garden_hose"]
    model = build(chosen, file=file).with_labels(names)
    patches = regions_for(model, draw)
    with torch.no_grad():
        whole, scores = model.forward_features(patches).logits, scores_of(model, patches)
        with mock.patch.object(functional, "ROWS_AT_ONCE", rows):
            assert_close(model.forward_features(patches).logits, whole, **EXACT)
            for found, wanted in zip(scores_of(model, patches), scores, strict=True):
                assert (found is None) == (wanted is None)
                assert found is None or torch.allclose(found, wanted, **EXACT)


@given(based(base=BASES[0], direction="none"), draws(), seeds())
def test_the_base_is_left_out_for_some_pictures_in_training_alone(
    file: Path, chosen: Switches, draw: Draw, seed: int
) -> None:
    model = build(chosen, file=file)
    patches = regions_for(model, draw, 40)
    base, learned = scores_of(model, patches)
    bias, both = model.mixture.bias, base @ (model.mixture.weights / model.mixture.spread)
    share = model.known_positives / (model.known_positives + model.mixture.shrinkage)
    assert_close(model.forward_features(patches).logits, both + share * learned + bias, **EXACT)
    torch.manual_seed(seed)
    _, answers = model.comparison.answers(patches, model.label_rows())
    learned = torch.stack(answers).mean(dim=0)  # In training, where every answer counts alike.
    found = model.train().forward_features(patches).logits - learned - bias
    # A picture has all of it or nothing, whatever the label.
    kept = found.abs().amax(dim=1) > 1e-6
    assert_close(found, both * kept.unsqueeze(-1), rtol=0, atol=1e-9)
    assert 5 < kept.sum() < 35
    model.mixture.drop = 0.0
    assert_close(model.forward_features(patches).logits, both + learned + bias, **EXACT)
