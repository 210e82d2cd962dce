"""Fields of a model's card, and values that it refuses."""

import json
import math

import pytest
from helpers.messages import pinned
from huggingface_hub import ModelCard as HubCard

from pvlr.inference.card import MARK, ModelCard


def test_a_card_goes_through_json_of_the_standard_and_comes_back() -> None:
    card = ModelCard(data=("train: 9",), metrics={"mAP": 0.5, "count": 3}, command="x", versions={"a": "1"})
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json(), allow_nan=False))) == card


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metrics": {"CF1": 0.1, "mAP": math.nan}}, "card.metrics['mAP']: expected a finite number, got nan"),
        ({"metrics": {"mAP": math.inf}}, "card.metrics['mAP']: expected a finite number, got inf"),
        ({"metrics": {"mAP": -math.inf}}, "card.metrics['mAP']: expected a finite number, got -inf"),
        ({"metrics": {"mAP": "0.5"}}, "card.metrics: expected values by name"),
        ({"metrics": {"mAP": True}}, "card.metrics: expected values by name"),
        ({"versions": {"a": 1}}, "card.versions: expected values by name"),
        ({"command": None}, "card.command: expected a text"),
        ({"notes": ["x"]}, "card.notes: expected texts"),
    ],
)
def test_wrong_fields_are_refused_by_name(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        ModelCard(**given)


TOLD = {
    "labels": {"names": ["cat"]},
    "tower": {"name": "pvlr:scenes-clip", "weights": None},
    "tower_fingerprint": "0" * 64,
    "included": False,
    "preprocess": {"size": 128},
    "decision": {"temperature": 1.0, "rule": "", "fitted_on": ""},
}


@pytest.mark.parametrize(
    ("tower", "base"), [("pvlr:scenes-clip", None), ("hf-hub:me/a tower: 'x'", "me/a tower: 'x'"), ("ViT-B-32", None)]
)
def test_the_head_is_read_by_the_hub_and_names_the_model_that_it_is_based_on(tower: str, base: str | None) -> None:
    told = {**TOLD, "tower": {"name": tower, "weights": None}}
    text = ModelCard().to_markdown(name="mine", told=told)
    data = HubCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("pvlr", "image-classification", ["multi-label"])
    assert data.base_model == base
    assert MARK in text
    assert text.split("---\n", 2)[2].startswith("\n# mine\n")
