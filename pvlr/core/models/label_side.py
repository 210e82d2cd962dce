"""The part of a forward pass that does not depend on images: from prompts to the vectors of each label."""

from typing import NamedTuple

from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.models.config import PVLRConfig, read_descriptions
from pvlr.core.models.output import LabelParts, LabelRows
from pvlr.core.prompts import PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import PromptTokens, TextTower
from pvlr.core.towers.text.sentence_encoders import SentenceEncoder, find_encoder

__all__ = ["EncodedLabels", "LabelSide", "encode_labels"]


class EncodedLabels(NamedTuple):
    """Labels encoded by frozen encoders.

    Attributes:
        knowledge: Vectors of the fixed prompts by the configured source of knowledge, ``c k``.
        base: Vectors of the fixed prompts by the text tower, ``c d``.
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
        encoder: Function that encodes the knowledge, where the configuration requires one.
        extra_descriptions: Whether the file of descriptions may contain other labels too.
        base_alone: Whether to return the base as knowledge too, without reading other sources.

    Raises:
        LabelError: where descriptions or label vectors do not fit the labels.
        SentenceEncoderError: where the sentence encoder cannot be loaded.
        ValueError: where the encoder is missing, or not used.
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
    """Label vectors that images are compared with, and the parts they were fused from."""

    rows: LabelRows
    parts: LabelParts
