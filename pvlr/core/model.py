"""PVLR assembled: label vectors from two kinds of prompts meet the patches of an image.

The abstract of arXiv 2401.17881 fixes the parts; what it leaves open is a field of :class:`PVLRConfig`.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_choice, require_int, require_number
from pvlr.core.attention import DualModalAttention, RelationMap
from pvlr.core.functional import cosine_scores, pool_regions, prior_bias
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter, PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import ImageTower, PromptTokens, TextTower
from pvlr.core.shapes import expect

__all__ = ["PVLR", "PVLRConfig", "PVLROutput", "read_descriptions"]

FROZEN = ("text.", "image.")


@dataclass(frozen=True, kw_only=True)
class PVLRConfig:
    """Every choice that PVLR's abstract leaves open.

    Args:
        heads: Heads of every attention; must divide the joint width.
        relation: Self-attention over the labels after each kind of prompt, or `none`.
        residual: `pre`: normalise before each branch, whose output starts at zero, so that an untrained PVLR is
            zero-shot CLIP; `post`: normalise after, with ordinary initialisation.
        templates: Fixed prompts (KAP), each with one `{}` for the label's name.
        descriptions: JSON file of label to list of sentences, added to the fixed prompts.
        knowledge: `text_tower`, or a `.npz` file of label vectors (arrays `names`, `vectors`), brought to the joint
            width by a learned projection.
        context_tokens: Learnable context tokens (CAP).
        context_words: Words the context starts from, as many tokens as `context_tokens`; null: N(0, 0.02).
        class_specific_context: A context for every label; the label list is then fixed.
        image_conditioned_context: Context-aware label vectors look at the patches before they are related.
        fusion: `gate`: per-channel gate and fused relation maps; `sum`; `knowledge` or `context` alone.
        dma: Dual-modal attention in `both` directions, one of them (`labels` look at patches, `patches` look at
            labels), or `none`.
        dma_layers: Layers of it.
        dma_feedforward: Hidden width of a feed-forward after each of its layers; 0: none.
        aggregation: Scores of the patches become one per label by `max`, `mean`, or `softmax`-weighted mean.
        aggregation_temperature: Temperature of that softmax, on cosines times the scale.
        scale_from: The scale of the cosine starts at `value` (the field `scale`) or at the `tower`'s own.
        scale: First scale of the cosine.
        prior: Mean probability before the first step, by choice of the bias; with `scale_from: tower` and a tower
            that has a bias of its own, the tower's is kept.
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
    fusion: Literal["gate", "sum", "knowledge", "context"] = "gate"
    dma: Literal["both", "labels", "patches", "none"] = "both"
    dma_layers: int = 1
    dma_feedforward: int = 0
    aggregation: Literal["max", "mean", "softmax"] = "max"
    aggregation_temperature: float = 1.0
    scale_from: Literal["value", "tower"] = "value"
    scale: float = 10.0
    prior: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", tuple(self.templates))
        for name in ("heads", "context_tokens", "dma_layers"):
            require_int(name, getattr(self, name), least=1)
        require_int("dma_feedforward", self.dma_feedforward, least=0)
        require_number("scale", self.scale, above=0.0)
        require_number("aggregation_temperature", self.aggregation_temperature, above=0.0)
        require_number("prior", self.prior, above=0.0, below=1.0)
        for field in fields(self):
            choices = getattr(field.type, "__args__", ())
            if choices and all(isinstance(choice, str) for choice in choices):
                require_choice(field.name, getattr(self, field.name), choices)


class PVLROutput(NamedTuple):
    """What a forward pass yields.

    Attributes:
        logits: `b c`, float32; their sigmoid are the probabilities.
        labels: context-aware label vectors, `b c d`.
        patches: semantic-related patch vectors, `b n d`.
        label_maps: per layer where the labels looked, `b h c n`; empty unless asked for.
        patch_maps: per layer where the patches looked, `b h n c`; empty unless asked for.
    """

    logits: Float[Tensor, "b c"]
    labels: Float[Tensor, "b c d"]
    patches: Float[Tensor, "b n d"]
    label_maps: tuple[Tensor, ...]
    patch_maps: tuple[Tensor, ...]


class LabelSide(NamedTuple):
    """The part of the label vectors that no image changes."""

    knowledge: Tensor | None
    knowledge_map: RelationMap | None
    soft: Tensor | None
    fused: Tensor | None


def read_descriptions(path: str | Path, labels: LabelSet) -> dict[str, tuple[str, ...]]:
    """Read sentences per label from a JSON file; labels it does not name have none.

    Raises:
        LabelError: if the file is no such JSON, or names a label that `labels` lacks.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise LabelError(f"descriptions {path}: expected a JSON file of label to sentences, {err}") from err
    if not isinstance(content, dict) or not all(
        isinstance(s, list) and all(isinstance(x, str) and x.strip() for x in s) for s in content.values()
    ):
        raise LabelError(f"descriptions {path}: expected an object of label to list of sentences")
    for name in content:
        labels.index(name)
    return {name: tuple(sentences) for name, sentences in content.items()}


class PVLR(nn.Module):
    """The complete model on the towers of a vision-language model.

    Args:
        config: The choices.
        labels: What to recognise. Their number enters no parameter (class-specific context excepted), so
            :meth:`with_labels` takes any other list after training.
        text: Text tower, kept frozen.
        image: Image tower of the same joint width.
        logit_scale: The tower's own scale, used with ``scale_from="tower"``.
        logit_bias: The tower's own bias, used with it where it is not zero.

    Raises:
        ValueError: where the towers do not share a width, or it is not a multiple of the heads.
        LabelError: where descriptions or label vectors do not fit the labels.

    Shapes: ``forward`` takes images ``b 3 s s`` and returns :class:`PVLROutput`.

    In evaluation without gradients the label side is computed once and kept until a parameter changes.
    """

    def __init__(
        self,
        config: PVLRConfig,
        labels: LabelSet,
        text: TextTower,
        image: ImageTower,
        *,
        logit_scale: float = 10.0,
        logit_bias: float = 0.0,
    ) -> None:
        super().__init__()
        if text.dim != image.dim:
            raise ValueError(f"image: expected the text tower's joint width {text.dim}, got {image.dim}")
        self.config, self.labels = config, labels
        self.text, self.image = text, image
        dim, shared = text.dim, {"heads": config.heads, "norm": config.residual}
        self._set_labels(labels)
        source = self.knowledge_vectors.shape[1] if config.knowledge != "text_tower" else None
        uses = {"knowledge": config.fusion != "context", "context": config.fusion != "knowledge"}
        # A prompt that the fusion leaves out has no parameters either: nothing is trained that nothing reads.
        self.knowledge = (
            KnowledgePrompter(dim=dim, source_dim=source, relation=config.relation, **cast(Any, shared))
            if uses["knowledge"]
            else None
        )
        self.context = (
            ContextPrompter(
                width=text.width,
                dim=dim,
                tokens=config.context_tokens,
                classes=len(labels) if config.class_specific_context else None,
                condition="image" if config.image_conditioned_context else "none",
                relation=config.relation,
                **cast(Any, shared),
            )
            if uses["context"]
            else None
        )
        if self.context is not None and config.context_words is not None:
            start, length = self._prompt_start, config.context_tokens
            self.context.start_from(text.embed(self.prompt_ids[0, start : start + length]).float())
        self.fusion = FusionBlock(dim=dim, mode=config.fusion, maps=config.relation == "attention", **cast(Any, shared))
        self.attention = DualModalAttention(
            dim=dim,
            direction=config.dma,
            layers=config.dma_layers,
            feedforward=config.dma_feedforward,
            **cast(Any, shared),
        )
        from_tower = config.scale_from == "tower"
        self.keeps_bias = from_tower and logit_bias != 0.0
        self.head = SimilarityHead(
            scale=logit_scale if from_tower else config.scale,
            bias=logit_bias if self.keeps_bias else math.log(config.prior / (1 - config.prior)),
            aggregation=config.aggregation,
            temperature=config.aggregation_temperature,
        )
        self._cached: tuple[Any, LabelSide] | None = None
        if isinstance(text, nn.Module):
            text.requires_grad_(False)

    knowledge_vectors: Tensor
    prompt_ids: Tensor
    prompt_ends: Tensor

    def _set_labels(self, labels: LabelSet) -> None:
        config = self.config
        descriptions = None if config.descriptions is None else read_descriptions(config.descriptions, labels)
        bank = PromptBank(
            labels,
            templates=config.templates,
            descriptions=descriptions,
            context_words=config.context_words,
            context_tokens=config.context_tokens,
        )
        if config.knowledge == "text_tower":
            vectors = encode_knowledge(bank, self.text.encode)
        else:
            vectors = load_label_vectors(config.knowledge, labels)
        prompts = self.text.tokenize_prompts(bank.context_sentences(), bank.context_words, config.context_tokens)
        self.labels = labels
        # Not persistent: they follow from the labels and the frozen tower, which is not in a checkpoint either.
        device = self.text.embed(prompts.ids[:1, :1]).device
        self.register_buffer("knowledge_vectors", vectors.float().to(device), persistent=False)
        self.register_buffer("prompt_ids", prompts.ids.to(device), persistent=False)
        self.register_buffer("prompt_ends", prompts.end.to(device), persistent=False)
        self._prompt_start = prompts.start

    def with_labels(self, labels: LabelSet) -> "PVLR":
        """The same model for other labels: all parameters are shared, only the texts are new.

        Raises:
            ValueError: if every label has a context of its own.
        """
        if self.config.class_specific_context:
            raise ValueError("labels: cannot be exchanged in a model with class_specific_context, which fixes them")
        other = PVLR.__new__(PVLR)
        nn.Module.__init__(other)
        other.config, other.keeps_bias, other._cached = self.config, self.keeps_bias, None
        for name, module in self.named_children():
            other.add_module(name, module)
        other.knowledge = self.knowledge
        other.context = self.context
        other._set_labels(labels)
        return other.train(self.training)

    def forward(self, images: Float[Tensor, "b 3 s s"], maps: bool = False) -> PVLROutput:
        """Recognise labels in normalised images; with `maps`, return the attention maps too."""
        expect("images", images, "b ch s t", dtype="float", ch=3, s=self.image.image_size, t=self.image.image_size)
        return self.forward_features(self.image(images).patches, maps=maps)

    def forward_features(self, patches: Float[Tensor, "b n d"], maps: bool = False) -> PVLROutput:
        """Recognise labels from patch vectors of the image tower, computed before."""
        expect("patches", patches, "b n d", dtype="float", d=self.text.dim)
        attended = self.attention(self.label_vectors(patches), patches, maps=maps)
        logits = self.head(attended.patches, attended.labels)
        return PVLROutput(logits, *attended)

    def label_vectors(self, patches: Tensor | None = None) -> Tensor:
        """The fused label vectors `T`: `c d`, or `b c d` where the context is conditioned on `patches`."""
        side = self._label_side()
        if side.fused is not None:
            return side.fused
        if self.context is None or side.soft is None:
            raise RuntimeError("label_vectors: only a conditioned context depends on the patches")
        context, context_map = self.context.relate(side.soft, patches)
        return cast(Tensor, self.fusion(side.knowledge, context, side.knowledge_map, context_map))

    def _label_side(self) -> LabelSide:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._compute_label_side()
        # In-place updates raise a tensor's version, moves change its address: either makes the old vectors stale.
        blocks = [m for m in (self.knowledge, self.context, self.fusion) if m is not None]
        key = [(p.data_ptr(), 0 if p.is_inference() else p._version) for m in blocks for p in m.parameters()]
        key.append((self.knowledge_vectors.data_ptr(), self.knowledge_vectors.device.index or 0))
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._compute_label_side())
        return self._cached[1]

    def _compute_label_side(self) -> LabelSide:
        knowledge, knowledge_map, soft = None, None, None
        if self.knowledge is not None:
            knowledge, knowledge_map = self.knowledge(self.knowledge_vectors)
        if self.context is None:
            return LabelSide(knowledge, knowledge_map, None, self.fusion(knowledge, None, knowledge_map, None))
        soft = self.context.encode(self.text, self._prompts())
        if self.config.image_conditioned_context:
            return LabelSide(knowledge, knowledge_map, soft, None)
        context, context_map = self.context.relate(soft)
        return LabelSide(knowledge, knowledge_map, soft, self.fusion(knowledge, context, knowledge_map, context_map))

    def _prompts(self) -> PromptTokens:
        return PromptTokens(self.prompt_ids, self._prompt_start, self.config.context_tokens, self.prompt_ends)

    def train(self, mode: bool = True) -> "PVLR":
        """Switch the mode and forget the label vectors kept for evaluation."""
        self._cached = None
        return super().train(mode)

    @torch.no_grad()
    def fit_prior(self, patches: Float[Tensor, "b n d"]) -> None:
        """Set the head's bias so that the mean probability on these images is the configuration's `prior`."""
        if self.keeps_bias:
            return
        attended = self.attention(self.label_vectors(patches), patches)
        scores = cosine_scores(attended.patches, attended.labels, scale=self.head.log_scale.exp(), bias=0.0)
        pooled = pool_regions(scores, self.config.aggregation, self.config.aggregation_temperature)
        self.head.bias.fill_(prior_bias(pooled, self.config.prior))

    def head_state_dict(self) -> dict[str, Tensor]:
        """All parameters but those of the towers, by name."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(FROZEN)}

    def load_head_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`head_state_dict` gave; every name must be there, and no other.

        Raises:
            ValueError: naming the first missing, unknown or misshapen parameter.
        """
        own = self.head_state_dict()
        for name in sorted(own.keys() ^ state.keys()):
            raise ValueError(f"state: parameter {name!r} is {'missing' if name in own else 'not one of this model'}")
        for name, value in state.items():
            if value.shape != own[name].shape:
                raise ValueError(
                    f"state: parameter {name!r} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}"
                )
        self.load_state_dict(dict(state), strict=False)
