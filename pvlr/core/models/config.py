"""The configuration of PVLR, and the file of descriptions that it may name."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from pvlr.core.arguments import require_choice, require_choices, require_int, require_number
from pvlr.core.attention import Direction
from pvlr.core.base import BasePart
from pvlr.core.fusion import Fusion
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.prompts import PromptBank, Relation
from pvlr.core.towers.text.sentence_encoders import SENTENCE_TRANSFORMERS

__all__ = ["PVLRConfig", "read_descriptions"]


@dataclass(frozen=True, kw_only=True)
class PVLRConfig:
    """The choices that PVLR's abstract leaves open.

    Args:
        heads: Heads of every attention; must divide the joint width.
        relation: Self-attention over the labels after each kind of prompt, or `none`.
        templates: Fixed prompts (KAP), each with one `{}` for the label's name.
        descriptions: JSON file of label to list of sentences, added to the fixed prompts instead of the label set's
            own; null: those of the label set.
        knowledge: The encoder of the fixed prompts: `text_tower`, `sentence-transformers:NAME` (a model of that
            package, extra `sentence`) or `encoder` (a function given to the model, in Python alone); or a `.npz` file
            of label vectors (arrays `names`, `vectors`). All but the text tower's are projected to the joint width by
            a learned projection.
        context_tokens: Learnable context tokens (CAP).
        context_words: Words that initialise the context, as many tokens as `context_tokens`; null: N(0, 0.02).
        fusion: `gate`: per-channel gate and fused relation maps; `sum`; `knowledge` or `context` alone. The base scores
            (`base`) belong to the knowledge, the residuals that training adds to label vectors to the context; either
            is left out with its prompts.
        base: Scores by name that every prediction starts from, see :func:`~pvlr.core.base.base_scores`: `competition`,
            `focused`, `pooled`, `best`; empty: none.
        base_scale: Factor of their cosines; null: the tower's own.
        learn: Whether there is more than the base. `false` is zero-shot recognition.
        shrinkage: Number of known positives of a label with which its learned score has weight one half; see
            :class:`~pvlr.core.mixture.Mixture`.
        adapter_width: Hidden width of the adapter of patches to the labels; 0: none.
        direction: Dual-modal attention in `both` directions, one of them (`labels` attend to patches, `patches` attend
            to labels), or `none`.
        feedforward: Hidden width of the feed-forwards, of labels after the attention and of their visual vectors; 0:
            none.
        prior: Mean probability before the first step, set by the bias.

    Raises:
        ValueError: naming the field, what it may be and what was given.

    Example:
        >>> PVLRConfig(direction="labels", templates=("a {}.", "many {}.")).fusion
        'gate'
        >>> PVLRConfig(prior=1.5)
        Traceback (most recent call last):
            ...
        ValueError: prior: expected a finite number > 0 and < 1, got 1.5
    """

    heads: int = 8
    relation: Relation = "attention"
    templates: tuple[str, ...] = ("a photo of a {}.",)
    descriptions: str | None = None
    knowledge: str = "text_tower"
    context_tokens: int = 4
    context_words: str | None = "a photo of a"
    fusion: Fusion = "gate"
    base: tuple[BasePart, ...] = ("competition", "focused", "pooled")
    base_scale: float | None = None
    learn: bool = True
    shrinkage: float = 5.0
    adapter_width: int = 256
    direction: Direction = "both"
    feedforward: int = 512
    prior: float = 0.05

    def __post_init__(self) -> None:
        templates: object = self.templates  # A list from a configuration file, or a wrong type.
        if not isinstance(templates, tuple | list) or not all(isinstance(one, str) for one in templates):
            raise ValueError(f"templates: expected a sequence of sentences, got {templates!r}")
        object.__setattr__(self, "templates", tuple(templates))
        base: object = self.base
        if not isinstance(base, tuple | list) or len(set(base)) < len(base):
            raise ValueError(f"base: expected a sequence of scores, none of them twice, got {base!r}")
        for part in base:
            require_choice("base", part, get_args(BasePart))
        object.__setattr__(self, "base", tuple(base))
        require_choices(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                require_int(field.name, value, least=0 if field.name in ("feedforward", "adapter_width") else 1)
            elif field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{field.name}: expected True or False, got {value!r}")
            elif field.type is str or (field.type == str | None and value is not None):
                _require_text(field.name, value)
        if self.knowledge.strip() == SENTENCE_TRANSFORMERS:
            raise ValueError(f"knowledge: expected a model's name after '{SENTENCE_TRANSFORMERS}', got none")
        if self.base_scale is not None:
            require_number("base_scale", self.base_scale, above=0.0)
        require_number("shrinkage", self.shrinkage, above=0.0)
        if not self.learn and not self.parts:
            raise ValueError("learn: expected True where there is no base (base is empty, or fusion 'context')")
        require_number("prior", self.prior, above=0.0, below=1.0)
        # The bank's own check of templates, before there are labels.
        PromptBank(LabelSet(("label",)), templates=(*self.templates, "{}"))

    @property
    def parts(self) -> tuple[BasePart, ...]:
        """The scores of the base; none where the fixed prompts are left out, since it belongs to them."""
        return () if self.fusion == "context" else self.base


def _require_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected a text that is not empty, got {value!r}")


def read_descriptions(path: str | Path, labels: LabelSet, *, others: bool = False) -> dict[str, tuple[str, ...]]:
    """Read sentences per label from a JSON file.

    Args:
        path: The file: an object of label to list of sentences.
        labels: The labels; those not in the file have no sentences.
        others: Whether the file may name labels that are not in ``labels``; they are left out.

    Raises:
        LabelError: naming the file, if it is not such JSON, or the label in it that ``labels`` lacks.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise LabelError(f"descriptions {path}: expected a JSON file of label to sentences, {err}") from err
    if not isinstance(content, dict) or not all(isinstance(sentences, list) for sentences in content.values()):
        raise LabelError(f"descriptions {path}: expected an object of label to list of sentences")
    descriptions = {name: tuple(sentences) for name, sentences in content.items() if name in labels or not others}
    try:
        return dict(LabelSet(labels.names, descriptions=descriptions).descriptions)
    except LabelError as err:
        raise LabelError(f"descriptions {path}: {err}") from None
