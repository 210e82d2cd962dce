"""Recognition without training: what is compared, what its numbers are, and that it is a model as any other."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.strategies import Draw, draws
from helpers.tower_models import name_of, register
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pvlr.core import LabelError, LabelSet, load_towers
from pvlr.core.models.zero_shot import zero_shot_config, zero_shot_cosines
from pvlr.core.protocols import ImageFeatures, ZeroShot, join_regions, split_regions
from pvlr.core.towers import Towers
from pvlr.inference.recognizer import Recognizer

NAMES = ("red circle", "blue square", "star")


@pytest.fixture(scope="module")
def towers() -> Towers:
    return load_towers("pvlr:scenes-clip")


def pictures(towers: Towers, count: int = 3) -> Tensor:
    size = towers.image.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@given(draws(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 12), st.integers(1, 12))
def test_regions_are_joined_and_split_again(draw: Draw, b: int, n: int, d: int, k: int, w: int) -> None:
    source = draw.normal(b, k).float() if k else None
    seen = ImageFeatures(draw.normal(b, n, d).float(), draw.normal(b, d).float(), source, draw.normal(b, n, w).float())
    rows = math.ceil(k / d)
    all_own = 1 + rows + n + n * math.ceil(w / d)
    counts = {"patches": n, "pooled": 1, "both": 1 + n, "all": 1 + rows + n, "all_own": all_own}
    for regions, count in counts.items():
        joined = join_regions(seen, regions)
        assert joined.shape == (b, count, d)
        patches, pooled, wide, own = split_regions(joined, regions, source_dim=k, own_dim=w)
        assert own is None if regions != "all_own" else torch.equal(own, seen.own)
        assert torch.equal(patches, seen.pooled[:, None] if regions == "pooled" else seen.patches)
        assert (pooled is None) == (regions in ("patches", "pooled"))
        assert pooled is None or torch.equal(pooled, seen.pooled)
        assert (wide is None) == (regions not in ("all", "all_own") or k == 0)
        assert wide is None or torch.equal(wide, source)
    joined = join_regions(seen, "own")
    assert torch.equal(joined, seen.own)
    assert split_regions(joined, "own", source_dim=k, own_dim=w).own is joined
    # What fills up the last row is zero, wherever the vectors are kept.
    assert not join_regions(seen, "all")[:, 1 : 1 + rows].flatten(1)[:, k:].any()
    half = seen._replace(pooled=seen.pooled.half(), patches=seen.patches.half())
    assert join_regions(half, "all").dtype == join_regions(half, "all_own").dtype == torch.half
    for regions in ("own", "all_own"):
        with pytest.raises(ValueError, match=r"^seen: expected the patches' own features, .* found none$"):
            join_regions(seen._replace(own=None), regions)


@given(draws(), st.sampled_from(["patches", "pooled", "both"]))
def test_cosines_are_those_of_the_pooled_vector_and_the_best_patch(draw: Draw, regions: str) -> None:
    seen, text = ImageFeatures(draw.normal(2, 4, 6).float(), draw.normal(2, 6).float()), draw.normal(3, 6).float()
    found = zero_shot_cosines(seen, text, regions)
    for row in range(2):
        for label in range(3):
            best = max(F.cosine_similarity(patch, text[label], dim=0).item() for patch in seen.patches[row])
            whole = F.cosine_similarity(seen.pooled[row], text[label], dim=0).item()
            wanted = {"patches": best, "pooled": whole, "both": (best + whole) / 2}[regions]
            assert found[row, label].item() == pytest.approx(wanted, abs=1e-5)


def test_without_a_scale_and_bias_of_their_own_towers_rank_by_cosines(towers: Towers) -> None:
    recognizer = Recognizer.from_towers(towers, NAMES)
    model = recognizer.model
    assert not model.training
    assert (recognizer.decision.scores, model.config.base, model.sees) == ("similarity", ("pooled",), "pooled")
    images = pictures(towers)
    with torch.no_grad():
        text = towers.text.encode([f"a photo of a {name}." for name in NAMES])
        wanted = F.normalize(towers.image(images).pooled, dim=-1) @ F.normalize(text, dim=-1).T
        torch.testing.assert_close(model(images).logits, wanted, rtol=0, atol=1e-5)
    for found, row in zip(recognizer.tag_batch(images), wanted, strict=True):
        assert {tag.name: tag.probability for tag in found} == {
            name: pytest.approx(value, abs=1e-5) for name, value in zip(NAMES, row.tolist(), strict=True)
        }  # Every label, for no number says which are there.
        assert [tag.probability for tag in found] == sorted((tag.probability for tag in found), reverse=True)
        # Where each was found is told by patches, though the pooled vector decides.
        assert all(tag.attention.shape == (towers.image.grid, towers.image.grid) for tag in found)


@pytest.mark.parametrize("regions", ["pooled", "both"])
def test_a_scale_and_a_bias_of_their_own_make_probabilities(regions: str, tmp_path) -> None:
    register(tmp_path)
    towers = load_towers(name_of("siglip"))
    assert towers.zero_shot == ZeroShot("pooled", 0.5, "")  # As SigLIP was trained.
    told = ZeroShot(regions, 0.25, "ten pictures")
    towers = Towers(**{**vars(towers), "zero_shot": told})
    recognizer = Recognizer.from_towers(towers, ["cat", "dog"])
    images = pictures(towers)
    with torch.no_grad():
        text = towers.text.encode(["a photo of a cat.", "a photo of a dog."])
        cosines = zero_shot_cosines(towers.image(images), text, regions)
        wanted = (towers.logit_scale * cosines + towers.logit_bias).sigmoid()
        found = recognizer.decision.probabilities(recognizer.model(images).logits)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert recognizer.decision.for_labels(recognizer.labels) == (0.25, 0.25)
    assert recognizer.with_labels(["zebra"]).decision.threshold("zebra") == 0.25
    assert recognizer.decision.fitted_on == "ten pictures"


def test_it_is_saved_and_loaded_as_any_other_model(towers: Towers, tmp_path) -> None:
    recognizer = Recognizer.from_towers(towers, NAMES, templates=("a {}.", "many of {}."))
    assert recognizer.model.config == zero_shot_config(towers, templates=("a {}.", "many of {}."))
    recognizer.save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path)
    images = pictures(towers)
    with torch.no_grad():
        assert torch.equal(loaded.model(images).logits, recognizer.model(images).logits)
    assert loaded.decision == recognizer.decision
    assert "cosine similarities" in (tmp_path / "README.md").read_text()


def test_other_labels_change_no_score_of_these(towers: Towers) -> None:
    images = pictures(towers)
    with torch.no_grad():
        few, many = (Recognizer.from_towers(towers, names).model(images).logits for names in (NAMES[:1], NAMES))
    torch.testing.assert_close(few, many[:, :1], rtol=0, atol=1e-6)


def test_labels_are_checked(towers: Towers) -> None:
    with pytest.raises(LabelError, match="expected unique labels, got 'cat' more than once"):
        Recognizer.from_towers(towers, ["cat", "cat"])
    readable = LabelSet(("tv",), readable={"tv": "television"})
    assert Recognizer.from_towers(towers, readable).labels.texts == ("television",)
