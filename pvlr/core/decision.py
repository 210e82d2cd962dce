"""From logits to labels that are told: a temperature, and a threshold for each label."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.arguments import require_choice, require_number
from pvlr.core.labels import LabelSet

__all__ = ["Decision"]

USUAL = {"probability": 0.5, "similarity": -1.0}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How a model's logits become probabilities, and which probabilities say that a label is there.

    Args:
        temperature: What logits are divided by before the sigmoid, above 0.
        thresholds: Label to the probability from which on it is told, in [0, 1] (for similarities in [-1, 1]). A label
            that is not named has the median of these, or 0.5 where there are none (-1: every label).
        rule: How the thresholds were chosen, in words.
        fitted_on: Pictures that all this was fitted on, in words; empty where it was not fitted.
        scores: What the numbers are: ``"probability"``, or ``"similarity"`` of a model whose logits are cosines that
            nothing makes probabilities of; they rank labels, and a temperature does not act on them.

    Raises:
        ValueError: naming what is out of range.

    Example:
        >>> decision = Decision(temperature=2.0, thresholds={"cat": 0.3, "dog": 0.4})
        >>> decision.probabilities(torch.tensor([[0.0, 2.0]]))
        tensor([[0.5000, 0.7311]])
        >>> decision.threshold("dog"), round(decision.threshold("zebra"), 2), Decision().threshold("cat")
        (0.4, 0.35, 0.5)
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    rule: str = ""
    fitted_on: str = ""
    scores: Literal["probability", "similarity"] = "probability"

    def __post_init__(self) -> None:
        require_choice("scores", self.scores, tuple(USUAL))
        require_number("temperature", self.temperature, above=0.0)
        given: object = self.thresholds
        if not isinstance(given, Mapping):
            raise ValueError(f"thresholds: expected numbers by label, got {given!r}")
        for name, value in given.items():
            require_number(f"threshold of {name!r}", value, least=self.least)
            if value > 1:
                found = f"expected a {self.scores} in [{self.least:g}, 1], got {value!r}"
                raise ValueError(f"threshold of {name!r}: {found}")
        for name in ("rule", "fitted_on"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a text, got {getattr(self, name)!r}")
        object.__setattr__(self, "thresholds", MappingProxyType(dict(self.thresholds)))

    @property
    def least(self) -> float:
        """The lowest number there is, which every label reaches."""
        return 0.0 if self.scores == "probability" else -1.0

    def probabilities(self, logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """``sigmoid(logits / temperature)`` in float32, or the logits themselves where they are similarities."""
        return logits.float() if self.scores == "similarity" else torch.sigmoid(logits.float() / self.temperature)

    def threshold(self, name: str) -> float:
        """The probability from which on a label is told."""
        if name in self.thresholds:
            return self.thresholds[name]
        return median(self.thresholds.values()) if self.thresholds else USUAL[self.scores]

    def for_labels(self, labels: LabelSet) -> tuple[float, ...]:
        """Thresholds in the order of the labels."""
        return tuple(self.threshold(name) for name in labels)

    def to_json(self) -> dict[str, Any]:
        """Plain values, from which :meth:`from_json` makes an equal decision."""
        return {
            "temperature": self.temperature,
            "thresholds": dict(self.thresholds),
            "rule": self.rule,
            "fitted_on": self.fitted_on,
            "scores": self.scores,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Decision":
        """The decision that :meth:`to_json` wrote.

        Raises:
            ValueError: naming a field that is missing, unknown or out of range.

        Example:
            >>> Decision.from_json(Decision(temperature=3.0).to_json()).temperature
            3.0
        """
        expected = cls().to_json().keys()
        if not isinstance(data, Mapping) or data.keys() != expected:
            raise ValueError(f"decision: expected the fields {', '.join(expected)}, got {data!r}")
        return cls(**data)

    def __reduce__(self) -> tuple[Any, ...]:
        return Decision.from_json, (self.to_json(),)  # Read-only mappings do not pickle.
