"""The part of a forward pass that no image changes: from prompts to all that is known of each label."""

import copy
import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from pvlr.core.base import are_anchors
from pvlr.core.functional import prior_bias
from pvlr.core.labels import LabelSet
from pvlr.core.model_config import PVLRConfig, read_descriptions
from pvlr.core.model_output import LabelParts, LabelRows
from pvlr.core.prompts import PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import PromptTokens, TextTower
from pvlr.core.residual import rows_of_members
from pvlr.core.sentence_encoders import SentenceEncoder, find_encoder

if TYPE_CHECKING:
    from pvlr.core.model import PVLR

__all__ = ["EncodedLabels", "LabelSide", "compute_label_side", "encode_again", "encode_labels", "fit_prior", "own_copy"]


class EncodedLabels(NamedTuple):
    """Labels as encoders that nothing trains see them.

    Attributes:
        knowledge: Of the fixed prompts, by whatever tells what labels mean, ``c k``.
        base: Of the fixed prompts, by the text tower, ``c d``.
        prompts: Tokens of the prompts with a learnable context.
    """

    knowledge: Tensor
    base: Tensor
    prompts: PromptTokens


def encode_labels(
    config: PVLRConfig,
    labels: LabelSet,
    text: TextTower,
    *,
    encoder: SentenceEncoder | None = None,
    extra_descriptions: bool,
    base_alone: bool = False,
) -> EncodedLabels:
    """Encode the fixed prompts of labels and tokenize the learnable ones.

    Args:
        config: Templates, descriptions, the source of knowledge, the context.
        labels: The labels.
        text: The text tower.
        encoder: Where the knowledge comes from a function.
        extra_descriptions: Whether the file of descriptions may tell of other labels too.
        base_alone: Leave other sources of knowledge alone, and give the base in their place.

    Raises:
        LabelError: where descriptions or label vectors do not fit the labels.
        SentenceEncoderError: where the sentence encoder cannot be loaded.
        ValueError: where the encoder is missing, or not asked for.
    """
    path = config.descriptions
    bank = PromptBank(
        labels,
        templates=config.templates,
        descriptions=None if path is None else read_descriptions(path, labels, others=extra_descriptions),
        context_words=config.context_words,
        context_tokens=config.context_tokens,
    )
    base = knowledge = encode_knowledge(bank, text.encode)
    if not base_alone:
        encode = find_encoder(config.knowledge, encoder)
        if config.knowledge != "text_tower":
            knowledge = (
                load_label_vectors(config.knowledge, labels) if encode is None else encode_knowledge(bank, encode)
            )
    prompts = text.tokenize_prompts(bank.context_sentences(), bank.context_words, config.context_tokens)
    return EncodedLabels(knowledge, base, prompts)


class LabelSide(NamedTuple):
    """What images are compared with, and what it was fused from."""

    rows: LabelRows
    parts: LabelParts


def compute_label_side(model: "PVLR") -> LabelSide:
    """Encode, relate and fuse both kinds of prompts of a model's labels."""
    name, members, count = model.base_vectors, model.members, len(model.labels)
    knowledge = knowledge_map = context = context_map = None
    if model.knowledge is not None:
        knowledge, knowledge_map = model.knowledge(model.knowledge_vectors)
    if model.context is not None:
        context, context_map = model.context.relate(model.context.encode(model.text, model.prompts))
    fused, own, bias = name, name.new_zeros(count, 0), name.new_zeros(count)
    if model.config.learn:
        fused = model.fusion(knowledge, context, knowledge_map, context_map)
    if model.residual is not None:
        fused, (own, bias) = model.residual(fused, members), model.residual.rows(members)
    positives = rows_of_members(model.known_positives, members)
    # Which anchor a label is does not matter to the scores, but whether it is one: a label that is told in other words
    # than in training has another vector, and competes with the old one.
    rows = LabelRows(fused, name, own, bias, positives, are_anchors(name, model.anchors, members).to(positives))
    return LabelSide(rows, LabelParts(knowledge, knowledge_map, context, context_map))


@torch.no_grad()
def fit_prior(model: "PVLR", regions: Tensor) -> None:
    """Set a model up on some images: spreads of the base's parts, learned scores of mean 0, the prior probability.

    The mean probability is then the configuration's ``prior``, in training. A bias that came with the tower is kept.
    """
    if model.keeps_bias:
        return
    base, answers = model.comparison.answers(regions, model.label_rows())
    mixture = copy.deepcopy(model.mixture)
    shift: Tensor | None = None
    learned: Tensor | None = None
    if answers:
        if base is not None:
            mixture.fit_spread(base)
        first, *others = answers
        shift = first.mean()
        learned = torch.stack([first - shift, *others]).mean(dim=0)
    logits = mixture.mixed(base, learned, torch.full_like(mixture.bias, math.inf))
    mixture.bias.fill_(prior_bias(logits - mixture.bias, model.config.prior))
    # Nothing is changed before everything could be fitted.
    model.mixture.load_state_dict(mixture.state_dict())
    if shift is not None:
        model.head.bias.sub_(shift)


def encode_again(model: "PVLR", _: object) -> None:
    """Encode the fixed prompts, where ``load_state_dict`` brought other weights of the text tower: no file has them."""
    if model._text_places() != model._encoded_by:
        model._set_labels(model.labels, like=model.knowledge_vectors)
        trained = encode_labels(model.config, model.trained, model.text, extra_descriptions=True, base_alone=True)
        model.anchors = trained.base.to(model.anchors)


def own_copy(values: Tensor) -> Tensor:
    """A copy of what is kept or is a buffer, which no caller may change; what has gradients is neither."""
    return values if values.requires_grad else values.clone()
