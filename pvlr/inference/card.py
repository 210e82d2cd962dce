"""Model cards: data, figures, command and limits; as JSON, and as the README of a model's folder."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pvlr.core.towers.files.sources import HUB_PREFIX

__all__ = ["ModelCard"]

LIBRARY = "pvlr"
MARK = f"library_name: {LIBRARY}"
LIMITS = (
    "Scores of labels that were not trained on come from their names alone, and were not measured.",
    "What the training pictures show too seldom, or never, is not recognised reliably.",
)

UNFITTED = {
    "probability": "Probabilities are not calibrated; a label is told from probability 0.5 on.",
    "similarity": "None: its numbers are cosine similarities, which rank the labels of a picture and are no "
    "probabilities.",
}


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Origin and figures of a trained model; empty for one that was built by hand.

    Args:
        data: One line per split.
        metrics: Value by name, a finite number, on the test split.
        command: The command that trained it.
        versions: Version by package.
        notes: Changes since the training.

    Raises:
        ValueError: naming the field that is of another type, or the metric that is not finite.
    """

    data: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("data", "notes"):
            _require(name, "texts", isinstance(getattr(self, name), tuple) and _all(getattr(self, name), str))
        _require("command", "a text", isinstance(self.command, str))
        for name, kind in (("metrics", (int, float)), ("versions", str)):
            value: object = getattr(self, name)
            _require(name, "values by name", isinstance(value, Mapping) and _all(value.values(), kind))
        for name, value in self.metrics.items():
            # JSON has no NaN and no infinity.
            _require(f"metrics[{name!r}]", f"a finite number, got {value!r}", -math.inf < value < math.inf)

    def for_other_labels(self) -> "ModelCard":
        """Return the card of the same model with other labels, for which nothing was measured."""
        return replace(self, metrics={}, notes=(*self.notes, "The labels were exchanged after training."))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which :meth:`from_json` builds an equal card."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelCard":
        """Build a card from the values of :meth:`to_json`.

        Raises:
            ValueError: naming a field that is missing, unknown or of another type.

        Example:
            >>> ModelCard.from_json(ModelCard(command="train").to_json()).command
            'train'
        """
        expected = [entry.name for entry in fields(cls)]
        if not isinstance(data, Mapping) or data.keys() != set(expected):
            raise ValueError(f"card: expected the fields {', '.join(expected)}, got {data!r}")
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in data.items()}
        return cls(**values)

    def to_markdown(self, *, name: str, told: Mapping[str, Any]) -> str:
        """Return the README of the model's folder.

        Args:
            name: Name of the model in the example.
            told: The description of the model, as in ``model.json``.

        Example:
            >>> told = {"labels": {"names": ["cat"]}, "tower": {"name": "pvlr:scenes-clip", "weights": None},
            ...         "tower_fingerprint": "0" * 64, "included": False, "preprocess": {"size": 128},
            ...         "decision": {"temperature": 1.0, "rule": "", "fitted_on": ""}}
            >>> ModelCard(metrics={"mAP": 0.5}).to_markdown(name="mine", told=told).splitlines()[7:9]
            ['# mine', '']
        """
        labels, tower, decision = told["labels"]["names"], told["tower"], told["decision"]
        weights = "" if tower["weights"] is None else f", weights `{tower['weights']}`"
        held = "included" if told["included"] else "not included, loaded by that name"
        fitted = (
            f"Thresholds: {decision['rule']}; temperature {decision['temperature']:.3f}; "
            f"fitted on {decision['fitted_on']}."
            if decision["fitted_on"]
            else UNFITTED[decision.get("scores", "probability")]
        )
        shown = ", ".join(labels[:50]) + (f" and {len(labels) - 50} more" if len(labels) > 50 else "")
        parts = {
            "Labels": f"{len(labels)}: {shown}.\n\nOther names can be asked for: `recognizer.with_labels([...])`.",
            "Use": f'```python\nfrom pvlr import Recognizer\n\nrecognizer = Recognizer.from_pretrained("{name}")\n'
            'for tag in recognizer.tag("picture.jpg"):\n    print(tag.name, tag.probability)\n```',
            "Towers": f"`{tower['name']}`{weights} ({held}); images of {told['preprocess']['size']} pixels; "
            f"sha256 of the weights `{told['tower_fingerprint']}`.",
            "Data": "\n".join(f"- {line}" for line in self.data) or "Not told.",
            "Figures": "\n".join(
                ["On the test split, final epoch, averaged weights:", "", "| | |", "|---|---|"]
                + [f"| {metric} | {value:.4f} |" for metric, value in self.metrics.items()]
            )
            if self.metrics
            else "None were measured with these labels.",
            "Calibration": fitted,
            "Training": f"```console\n{self.command}\n```" if self.command else "Not told.",
            "Limits": "\n".join(f"- {line}" for line in (*LIMITS, *self.notes)),
        }
        head = [_head(tower["name"]), "", f"# {name}", ""]
        head += [
            "A model of the package pvlr, after PVLR (arXiv 2401.17881); no figure of the paper is claimed for it.",
            "",
        ]
        if self.versions:
            parts["Versions"] = ", ".join(f"{package} {found}" for package, found in self.versions.items())
        return "\n".join([*head, *(f"## {title}\n\n{text}\n" for title, text in parts.items())])


def _head(tower: str) -> str:
    """Return the metadata that the Hugging Face Hub reads, as a block of YAML."""
    from huggingface_hub import ModelCardData

    repository = tower.removeprefix(HUB_PREFIX) if tower.startswith(HUB_PREFIX) else None
    data = ModelCardData(
        base_model=repository, library_name=LIBRARY, pipeline_tag="image-classification", tags=["multi-label"]
    )
    return f"---\n{data.to_yaml()}\n---"


def _all(values: Any, kind: Any) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _require(name: str, what: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"card.{name}: expected {what}")
