"""PVLR assembled: label vectors from two kinds of prompts meet the patches of an image.

The abstract of arXiv 2401.17881 fixes the parts; what it leaves open is a field of
:class:`~pvlr.core.model_config.PVLRConfig`.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.attention import DualModalAttention
from pvlr.core.decision import Decision
from pvlr.core.functional import prior_bias
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.kept import Kept
from pvlr.core.labels import LabelSet
from pvlr.core.model_card import ModelCard
from pvlr.core.model_config import PVLRConfig, read_descriptions
from pvlr.core.model_output import LabelParts, LabelSide, PVLROutput, compare
from pvlr.core.model_texts import digests, unchanged
from pvlr.core.pictures import read_picture
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter, PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import ImageTower, PromptTokens, Regions, TextTower, join_regions, split_regions
from pvlr.core.sentence_encoders import HeldEncoder, SentenceEncoder, find_encoder
from pvlr.core.shapes import expect
from pvlr.core.tags import Tag, choose_tags, evidence
from pvlr.core.towers import TowerOrigin, Towers

__all__ = ["PVLR", "PVLRConfig", "PVLROutput", "read_descriptions"]


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
        encoder: From a list of ``s`` sentences to vectors ``s k``; asked for by ``knowledge="encoder"``, and only by
            it. It is no part of the model: not trained, not saved, not moved; copies share it.
        extra_descriptions: Whether the file of descriptions may tell of labels that are not asked for, which otherwise
            are taken for mistakes.

    Raises:
        ValueError: where the towers do not share a width, or it is not a multiple of the heads; where the encoder is
            missing, not asked for, or cannot be loaded.
        LabelError: where descriptions or label vectors do not fit the labels.

    In evaluation without gradients the label side is computed once, and again when a parameter it is made of was
    replaced or changed in place (changes through ``.data`` leave no trace; :meth:`train`, and whatever is computed with
    gradients, makes it forget). ``load_state_dict`` encodes the fixed prompts again.

    Example:
        >>> from pvlr.core.towers import load_towers
        >>> towers = load_towers("pvlr:scenes-clip")
        >>> model = PVLR(PVLRConfig(), LabelSet(("red_circle", "blue_square")), towers.text, towers.image).eval()
        >>> with torch.no_grad():
        ...     out = model(torch.zeros(3, 3, 128, 128), maps=True)
        >>> out.logits.shape, out.patches.shape, out.label_maps[0].shape
        (torch.Size([3, 2]), torch.Size([3, 64, 128]), torch.Size([3, 8, 2, 64]))
        >>> model.with_labels(LabelSet(("star",)))(torch.zeros(3, 3, 128, 128)).logits.shape
        torch.Size([3, 1])
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
        encoder: SentenceEncoder | None = None,
        extra_descriptions: bool = False,
    ) -> None:
        super().__init__()
        if text.dim != image.dim:
            raise ValueError(f"image: expected the text tower's joint width {text.dim}, got {image.dim}")
        self.config = config
        self.text, self.image = text, image
        if isinstance(text, nn.Module):
            text.requires_grad_(False).eval()
        dim, shared = text.dim, {"heads": config.heads, "norm": config.residual}
        self._encoder = None if encoder is None else HeldEncoder(encoder)
        self._set_labels(labels, extra_descriptions=extra_descriptions)
        self.text_digests = digests(config)
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
        self._kept: Kept[LabelSide] = Kept()
        self.decision, self.card = Decision(), ModelCard()
        self.origin: TowerOrigin | None = None
        self.register_load_state_dict_post_hook(_encode_again)  # type: ignore[no-untyped-call]

    @classmethod
    def from_towers(
        cls,
        config: PVLRConfig,
        labels: LabelSet,
        towers: Towers,
        *,
        encoder: SentenceEncoder | None = None,
        extra_descriptions: bool = False,
    ) -> "PVLR":
        """A new model, untrained, that knows where its towers came from, and so can be saved.

        Args:
            config: The choices.
            labels: What to recognise.
            towers: Both towers of one model.
            encoder: As for the constructor.
            extra_descriptions: As for the constructor.
        """
        model = cls(
            config,
            labels,
            towers.text,
            towers.image,
            logit_scale=towers.logit_scale,
            logit_bias=towers.logit_bias,
            encoder=encoder,
            extra_descriptions=extra_descriptions,
        )
        model.origin = towers.origin
        return model

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        encoder: SentenceEncoder | None = None,
        tower: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> "PVLR":
        """A trained model, in evaluation mode and on the CPU; see :func:`~pvlr.core.pretrained.load_pretrained`.

        Args:
            source: A folder (of a finished run, or written by :meth:`save_pretrained`), or a model of the Hugging
                Face Hub as ``hf-hub:ORGANISATION/REPOSITORY``.
            encoder: The function from sentences to vectors that it was trained with, if it was with one.
            tower: Folder, file or name of its towers, where they lie elsewhere now; others are refused.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Folder for what is downloaded; None for the usual cache.

        Raises:
            PretrainedError: naming the file that is missing, damaged or foreign, or why nothing could be fetched.
            TowerError: where the towers cannot be loaded.
        """
        from pvlr.core.pretrained import load_pretrained

        return load_pretrained(source, encoder=encoder, tower=tower, revision=revision, cache_dir=cache_dir)

    def save_pretrained(self, folder: str | os.PathLike[str], *, include_towers: bool = False) -> None:
        """Write all that :meth:`from_pretrained` needs; see :func:`~pvlr.core.pretrained.save_pretrained`.

        Args:
            folder: Where to; made where it is absent.
            include_towers: Whether to write the frozen towers too, instead of their name and the hash of their weights.

        Raises:
            PretrainedError: where the model was not made :meth:`from_towers`, or a file it is made of is gone.
            TowerError: where towers cannot be included.
        """
        from pvlr.core.pretrained import save_pretrained

        save_pretrained(self, folder, include_towers=include_towers)

    def push_to_hub(self, repository: str, *, private: bool = False, include_towers: bool = False) -> str:
        """Publish on the Hugging Face Hub; see :func:`~pvlr.core.hub.push_to_hub`.

        Args:
            repository: ``ORGANISATION/REPOSITORY``; made where it is absent.
            private: Whether a new one is private.
            include_towers: As for :meth:`save_pretrained`.

        Returns:
            The address of what was published.

        Raises:
            PretrainedError: where it cannot be published, or nobody else could load its towers.
        """
        from pvlr.core.hub import push_to_hub

        return push_to_hub(self, repository, private=private, include_towers=include_towers)

    knowledge_vectors: Tensor
    prompt_ids: Tensor
    prompt_ends: Tensor

    def _set_labels(self, labels: LabelSet, *, like: Tensor | None = None, extra_descriptions: bool = True) -> None:
        config, path = self.config, self.config.descriptions
        descriptions = None if path is None else read_descriptions(path, labels, others=extra_descriptions)
        bank = PromptBank(
            labels,
            templates=config.templates,
            descriptions=descriptions,
            context_words=config.context_words,
            context_tokens=config.context_tokens,
        )
        encode = find_encoder(config.knowledge, None if self._encoder is None else self._encoder.encode)
        if config.knowledge == "text_tower":
            encode = self.text.encode
        vectors = load_label_vectors(config.knowledge, labels) if encode is None else encode_knowledge(bank, encode)
        prompts = self.text.tokenize_prompts(bank.context_sentences(), bank.context_words, config.context_tokens)
        self.labels = labels
        # Where the model is and as wide as it is, which by now may be elsewhere than at the start.
        like = torch.empty(0, device=self.text.embed(prompts.ids[:1, :1]).device) if like is None else like
        # Not persistent: they follow from the labels and the frozen tower, which is not in a checkpoint either.
        self.register_buffer("knowledge_vectors", vectors.to(like), persistent=False)
        self.register_buffer("prompt_ids", prompts.ids.to(like.device), persistent=False)
        self.register_buffer("prompt_ends", prompts.end.to(like.device), persistent=False)
        self._prompt_start, self._prompt_used = prompts.start, prompts.used
        self._encoded_by = self._text_places()

    def _text_places(self) -> list[tuple[int, int]]:
        """Where the text tower's weights are and how often they were changed."""
        parameters = self.text.parameters() if isinstance(self.text, nn.Module) else ()
        return [(value.data_ptr(), -1 if value.is_inference() else value._version) for value in parameters]

    def with_labels(self, labels: LabelSet | Sequence[str]) -> "PVLR":
        """The same model for other labels: all modules are shared, only the texts are new.

        What is done to one of the two is done to both, except that moving one to another device or dtype leaves the
        texts of the other behind: move first. Labels that had a threshold keep it, new ones take the median.

        Args:
            labels: The labels, or their names.

        Raises:
            ValueError: if every label has a context of its own.
            LabelError: where the file of label vectors lacks a label.
            PretrainedError: where that file, or the one of descriptions, has changed since or is gone.
            SentenceEncoderError: where the sentence encoder cannot be loaded again.
        """
        if self.context is not None and self.context.classes is not None:
            raise ValueError("labels: cannot be exchanged in a model with class_specific_context, which fixes them")
        unchanged(self.config, self.text_digests)
        other = PVLR.__new__(PVLR)
        nn.Module.__init__(other)
        other.training, other.config = self.training, self.config
        other.keeps_bias, other._kept = self.keeps_bias, Kept()
        # By name: the towers need not be modules, and the encoder is none.
        for name in ("text", "image", "knowledge", "context", "fusion", "attention", "head", "_encoder"):
            setattr(other, name, getattr(self, name))
        other._set_labels(LabelSet.of(labels), like=self.knowledge_vectors)
        other.decision, other.origin, other.text_digests = self.decision, self.origin, self.text_digests
        other.card = self.card if other.labels == self.labels else self.card.for_other_labels()
        other.register_load_state_dict_post_hook(_encode_again)  # type: ignore[no-untyped-call]
        return other

    def forward(self, images: Float[Tensor, "b 3 s s"], maps: bool = False) -> PVLROutput:
        """Recognise labels in images.

        Args:
            images: ``b 3 s s``, of the image tower's size and normalised as it asks for.
            maps: Whether to return the attention maps too.

        Raises:
            ShapeError: where the images are of another size.
        """
        size = self.image.image_size
        expect("images", images, "b rgb height width", dtype="float", rgb=3, height=size, width=size)
        return self.forward_features(self.regions(images), maps=maps)

    @property
    def sees(self) -> Regions:
        """Which vectors of an image it reads."""
        return self.config.regions

    def regions(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m d"]:
        """The vectors of images that :meth:`forward_features` takes."""
        return join_regions(self.image(images), self.sees)

    def forward_features(
        self, regions: Float[Tensor, "b m d"], maps: bool = False, labels: Tensor | None = None
    ) -> PVLROutput:
        """Recognise labels from vectors of the image tower, computed before.

        Args:
            regions: ``b m d`` from :meth:`regions` or the cache: patches, the pooled vector as ``b 1 d``, or the pooled
                vector and the patches, as the configuration's ``regions`` says.
            maps: Whether to return the attention maps too.
            labels: Label vectors that :meth:`label_vectors` gave, ``c d`` or ``b c d``; None to compute them.

        Raises:
            ShapeError: where the axes do not fit.
        """
        expect("regions", regions, "b m d", dtype="float", d=self.text.dim)
        if labels is None:
            labels = self.label_vectors(split_regions(regions, self.sees)[0])
        return compare(self.attention, self.head, labels, regions, sees=self.sees, maps=maps)

    def tag(self, picture: Any, *, threshold: float | None = None) -> list[Tag]:
        """Say what is in a picture.

        Args:
            picture: A file's path, its bytes, an image of Pillow, an array ``h w 3`` or a tensor ``3 h w`` of 8-bit
                levels or of floats from 0 to 1; it need not have the tower's size, nor be normalised.
            threshold: Least probability of any label; None: each label's own.

        Returns:
            The labels it has, most probable first, with where each looked.

        Raises:
            ValueError: where it is no such picture, or the model was not made :meth:`from_towers`, and so does not
                know what they ask of one.

        Example:
            >>> from pvlr.core.towers import load_towers
            >>> labels, towers = LabelSet(("star", "red circle")), load_towers("pvlr:scenes-clip")
            >>> model = PVLR.from_towers(PVLRConfig(), labels, towers).eval()
            >>> [(tag.name, tag.attention.shape) for tag in model.tag(torch.zeros(3, 40, 30), threshold=0.0)]
            [('red circle', torch.Size([8, 8])), ('star', torch.Size([8, 8]))]
        """
        if self.origin is None:
            raise ValueError("model: expected one that was made by PVLR.from_towers, this one knows no transform")
        images = read_picture(picture, {**self.origin.preprocess, "size": self.image.image_size}).unsqueeze(0)
        return self.tag_batch(images, threshold=threshold)[0]

    @torch.no_grad()
    def tag_batch(
        self, images: Float[Tensor, "b 3 s s"], *, threshold: float | None = None, attention: bool = True
    ) -> list[list[Tag]]:
        """Say what is in each of some images ``b 3 s s``, as :meth:`forward` takes them.

        Args:
            images: Of the image tower's size, normalised as it asks for.
            threshold: As for :meth:`tag`.
            attention: Whether to tell where each label looked.

        Raises:
            ShapeError: where they are no such images.
        """
        images = images.to(self.knowledge_vectors)
        size = self.image.image_size
        expect("images", images, "b rgb height width", dtype="float", rgb=3, height=size, width=size)
        seen = self.image(images)
        output = self.forward_features(join_regions(seen, self.sees), maps=attention and self.sees != "pooled")
        # The pooled vector says what is there and not where: its labels are looked for among the patches all the same.
        patches = seen.patches if self.sees == "pooled" else output.patches
        where = evidence(output.label_maps, output.labels, patches).cpu() if attention else None
        least = self.decision.for_labels(self.labels) if threshold is None else (threshold,) * len(self.labels)
        rows = self.decision.probabilities(output.logits).cpu()
        return [
            choose_tags(self.labels, row, least, None if where is None else where[index])
            for index, row in enumerate(rows)
        ]

    def label_vectors(self, patches: Tensor | None = None) -> Tensor:
        """The fused label vectors `T`: `c d`, or `b c d` where the context is conditioned on `patches`.

        They are the caller's own: what he changes in them changes nothing here.

        Raises:
            ValueError: where it is conditioned and there are no patches.
        """
        side = self._label_side()
        if self.context is None or side.soft is None or side.fused is not None:
            return cast(Tensor, _own(side.fused))
        context, context_map = self.context.relate(side.soft, patches)
        return cast(Tensor, self.fusion(side.knowledge, context, side.knowledge_map, context_map))

    def label_parts(self, patches: Tensor | None = None) -> LabelParts:
        """Label vectors and relations of both kinds of prompts, before they are fused.

        Raises:
            ValueError: where the context is conditioned on `patches` and there are none.
        """
        side = self._label_side()
        if self.context is None or side.soft is None:
            return LabelParts(_own(side.knowledge), side.knowledge_map, None, None)
        conditioned = self.config.image_conditioned_context
        context, context_map = self.context.relate(side.soft, patches if conditioned else None)
        return LabelParts(_own(side.knowledge), side.knowledge_map, _own(context), context_map)

    def _label_side(self) -> LabelSide:
        if self.training:
            return self._compute_label_side()
        # The text tower is frozen, and yet another one's weights may be loaded into it.
        blocks = (self.knowledge, self.context, self.fusion, self.text)
        parameters = [value for block in blocks if isinstance(block, nn.Module) for value in block.parameters()]
        sources = [*parameters, self.knowledge_vectors, self.prompt_ids, self.prompt_ends]
        return self._kept.get(sources, self._compute_label_side)

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
        start, length = self._prompt_start, self.config.context_tokens
        return PromptTokens(self.prompt_ids, start, length, self.prompt_ends, self._prompt_used)

    def train(self, mode: bool = True) -> "PVLR":
        """Switch the mode, but not the text tower's, and forget the label vectors kept for evaluation."""
        self._kept.forget()
        super().train(mode)
        if isinstance(self.text, nn.Module):
            self.text.eval()
        return self

    @torch.no_grad()
    def fit_prior(self, regions: Float[Tensor, "b m d"]) -> None:
        """Set the head's bias so that the mean probability on these images is the configuration's `prior`.

        A bias that came with the tower is kept.
        """
        if self.keeps_bias:
            return
        logits = self.forward_features(regions).logits
        self.head.bias.fill_(prior_bias(logits - self.head.bias, self.config.prior))


def _own(vectors: Tensor | None) -> Tensor | None:
    """A copy of what is kept or is a buffer, which no caller may change; what has gradients is neither."""
    return vectors if vectors is None or vectors.requires_grad else vectors.clone()


def _encode_again(model: PVLR, _: object) -> None:
    """The fixed prompts, where ``load_state_dict`` brought other weights of the text tower: no file holds them."""
    if model._text_places() != model._encoded_by:
        model._set_labels(model.labels, like=model.knowledge_vectors)
