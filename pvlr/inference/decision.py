"""Decision from logits to labels: a temperature, and a threshold for each label."""

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
    """Conversion of a model's logits to probabilities, and the thresholds at which labels are present.

    Args:
        temperature: Divisor of the logits before the sigmoid, above 0.
        thresholds: Least probability by label, in [0, 1] (for similarities in [-1, 1]). A label that is not named has
            the median of these, or 0.5 if there are none (for similarities -1: every label).
        rule: Description of how the thresholds were chosen.
        fitted_on: Pictures that all fields were fitted on, in words; empty if they were not fitted.
        scores: Kind of the numbers: ``"probability"``, or ``"similarity"`` for a model whose logits are cosines that
            are not converted to probabilities; they rank labels, and the temperature is not applied.

    Raises:
        ValueError: naming the field that is out of range.

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
        """The lowest possible number, which every label reaches."""
        return 0.0 if self.scores == "probability" else -1.0

    def probabilities(self, logits: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        """Compute ``sigmoid(logits / temperature)`` in float32; similarities are returned unchanged."""
        return logits.float() if self.scores == "similarity" else torch.sigmoid(logits.float() / self.temperature)

    def threshold(self, name: str) -> float:
        """Return the least probability at which a label is present."""
        if name in self.thresholds:
            return self.thresholds[name]
        return median(self.thresholds.values()) if self.thresholds else USUAL[self.scores]

    def for_labels(self, labels: LabelSet) -> tuple[float, ...]:
        """Return the thresholds in the order of the labels."""
        return tuple(self.threshold(name) for name in labels)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which :meth:`from_json` builds an equal decision."""
        return {
            "temperature": self.temperature,
            "thresholds": dict(self.thresholds),
            "rule": self.rule,
            "fitted_on": self.fitted_on,
            "scores": self.scores,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Decision":
        """Build a decision from the values of :meth:`to_json`.

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
        return Decision.from_json, (self.to_json(),)  # Read-only mappings are not picklable.
