"""Fields of a model's card, and values that it refuses."""

import json
import math

import pytest
from helpers.messages import pinned

from pvlr.inference.card import ModelCard


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
