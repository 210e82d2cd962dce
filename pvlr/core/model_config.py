"""What can be chosen about PVLR, and the texts that a choice may name a file for."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args, get_origin

from pvlr.core.arguments import require_choice, require_int, require_number
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.prompts import PromptBank
from pvlr.core.protocols import Regions
from pvlr.core.sentence_encoders import SENTENCE_TRANSFORMERS

__all__ = ["PVLRConfig", "read_descriptions"]


@dataclass(frozen=True, kw_only=True)
class PVLRConfig:
    """Every choice that PVLR's abstract leaves open.

    Args:
        heads: Heads of every attention; must divide the joint width.
        relation: Self-attention over the labels after each kind of prompt, or `none`.
        residual: `pre`: normalise before each branch, whose output starts at zero, so that an untrained PVLR is
            zero-shot CLIP; `post`: normalise after, with ordinary initialisation.
        templates: Fixed prompts (KAP), each with one `{}` for the label's name.
        descriptions: JSON file of label to list of sentences, added to the fixed prompts in the place of the label
            set's own; null: those of the label set.
        knowledge: What encodes the fixed prompts: `text_tower`, `sentence-transformers:NAME` (a model of that
            package, extra `sentence`) or `encoder` (a function given to the model, in Python alone); or a `.npz` file
            of label vectors (arrays `names`, `vectors`). All but the text tower's are brought to the joint width by a
            learned projection.
        context_tokens: Learnable context tokens (CAP).
        context_words: Words the context starts from, as many tokens as `context_tokens`; null: N(0, 0.02).
        class_specific_context: A context for every label; the label list is then fixed.
        image_conditioned_context: Context-aware label vectors look at the patches before they are related.
        regions: What of an image labels are compared with: its `patches`, its `pooled` vector alone, as if that were
            the only patch, or `both`, of whose two scores the logit is the mean. With `relation` and `dma` none,
            `fusion: knowledge` is zero-shot recognition (`pooled`: CLIP's own) and `fusion: context` is CoOp.
        fusion: `gate`: per-channel gate and fused relation maps; `sum`; `knowledge` or `context` alone.
        dma: Dual-modal attention in `both` directions, one of them (`labels` look at patches, `patches` look at
            labels), or `none`.
        dma_layers: Layers of it.
        dma_feedforward: Hidden width of the feed-forward of labels that have looked, in each of its layers; 0: none.
        aggregation: Scores of the patches become one per label by `max`, `mean`, or `softmax`-weighted mean.
        aggregation_temperature: Temperature of that softmax, on cosines times the scale.
        scale_from: The scale of the cosine starts at `value` (the field `scale`) or at the `tower`'s own.
        scale: First scale of the cosine.
        prior: Mean probability before the first step, by choice of the bias; with `scale_from: tower` and a tower
            that has a bias of its own, the tower's is kept.

    Raises:
        ValueError: naming the field, what it may be and what was given.

    Example:
        >>> PVLRConfig(dma="labels", templates=("a {}.", "many {}.")).fusion
        'gate'
        >>> PVLRConfig(prior=1.5)
        Traceback (most recent call last):
            ...
        ValueError: prior: expected a finite number > 0 and < 1, got 1.5
    """

    heads: int = 8
    relation: Literal["attention", "none"] = "attention"
    residual: Literal["pre", "post"] = "pre"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    descriptions: str | None = None
    knowledge: str = "text_tower"
    context_tokens: int = 4
    context_words: str | None = "a photo of a"
    class_specific_context: bool = False
    image_conditioned_context: bool = False
    regions: Regions = "patches"
    fusion: Literal["gate", "sum", "knowledge", "context"] = "gate"
    dma: Literal["both", "labels", "patches", "none"] = "both"
    dma_layers: int = 1
    dma_feedforward: int = 512
    aggregation: Literal["max", "mean", "softmax"] = "max"
    aggregation_temperature: float = 1.0
    scale_from: Literal["value", "tower"] = "value"
    scale: float = 10.0
    prior: float = 0.05

    def __post_init__(self) -> None:
        templates: object = self.templates  # A configuration file has a list, or a mistake.
        if not isinstance(templates, tuple | list) or not all(isinstance(one, str) for one in templates):
            raise ValueError(f"templates: expected a sequence of sentences, got {templates!r}")
        object.__setattr__(self, "templates", tuple(templates))
        for field in fields(self):
            value = getattr(self, field.name)
            if get_origin(field.type) is Literal:
                require_choice(field.name, value, get_args(field.type))
            elif field.type is int:
                require_int(field.name, value, least=0 if field.name == "dma_feedforward" else 1)
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name}: expected True or False, got {value!r}")
            elif field.type is str or (field.type == str | None and value is not None):
                _require_text(field.name, value)
        if self.knowledge.strip() == SENTENCE_TRANSFORMERS:
            raise ValueError(f"knowledge: expected a model's name after '{SENTENCE_TRANSFORMERS}', got none")
        require_number("scale", self.scale, above=0.0)
        require_number("aggregation_temperature", self.aggregation_temperature, above=0.0)
        require_number("prior", self.prior, above=0.0, below=1.0)
        # The bank's own check of templates, before there are labels.
        PromptBank(LabelSet(("label",)), templates=(*self.templates, "{}"))


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected a text that is not empty, got {value!r}")


def read_descriptions(path: str | Path, labels: LabelSet, *, others: bool = False) -> dict[str, tuple[str, ...]]:
    """Read sentences per label from a JSON file.

    Args:
        path: The file: an object of label to list of sentences.
        labels: The labels; those that the file does not name have no sentences.
        others: Whether the file may name labels that are not in ``labels``; they are left out.

    Raises:
        LabelError: naming the file, if it is no such JSON, or the label in it that ``labels`` lacks.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise LabelError(f"descriptions {path}: expected a JSON file of label to sentences, {err}") from err
    if not isinstance(content, dict) or not all(isinstance(sentences, list) for sentences in content.values()):
        raise LabelError(f"descriptions {path}: expected an object of label to list of sentences")
    told = {name: tuple(sentences) for name, sentences in content.items() if name in labels or not others}
    try:
        return dict(LabelSet(labels.names, descriptions=told).descriptions)
    except LabelError as err:
        raise LabelError(f"descriptions {path}: {err}") from None
