"""PVLR assembled: label vectors from two kinds of prompts meet the patches of an image.

The abstract of arXiv 2401.17881 fixes the parts; what it leaves open is a field of
:class:`~pvlr.core.model_config.PVLRConfig`.
"""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention
from pvlr.core.decision import Decision
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.kept import Kept
from pvlr.core.label_side import LabelSide, compute_label_side, encode_again, encode_labels, fit_prior, own_copy
from pvlr.core.labels import LabelSet
from pvlr.core.mixture import Mixture
from pvlr.core.model_card import ModelCard
from pvlr.core.model_config import PVLRConfig, read_descriptions
from pvlr.core.model_output import Comparison, LabelParts, LabelRows, Learned, PVLROutput
from pvlr.core.model_texts import digests, unchanged
from pvlr.core.pictures import read_picture
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.protocols import ImageTower, PromptTokens, Regions, TextTower, join_regions
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling
from pvlr.core.sentence_encoders import HeldEncoder, SentenceEncoder
from pvlr.core.shapes import expect
from pvlr.core.tags import Tag, tag_images
from pvlr.core.towers import TowerOrigin, Towers

__all__ = ["PVLR", "PVLRConfig", "PVLROutput", "read_descriptions"]

LEAST_WIDTH = 256  # of the attention between labels and patches
LEARNED = ("fusion", "adapter", "attention", "semantic", "head")


class PVLR(nn.Module):
    """The complete model on the towers of a vision-language model.

    Args:
        config: The choices.
        labels: What to recognise. Their number enters no parameter (class-specific context excepted), so
            :meth:`with_labels` takes any other list after training.
        text: Text tower, kept frozen.
        image: Image tower of the same joint width.
        logit_scale: The tower's own scale, that of the base.
        logit_bias: The tower's own bias, kept where the base is all there is.
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
        dim, source_dim = text.dim, getattr(image, "source_dim", 0)
        self._encoder = None if encoder is None else HeldEncoder(encoder)
        self.trained = labels
        self._set_labels(labels, extra_descriptions=extra_descriptions)
        self.text_digests = digests(config)
        self.base_scale = logit_scale if config.base_scale is None else config.base_scale
        # Of the labels it is made for: how many positives were known, and what their names say.
        self.register_buffer("known_positives", torch.zeros(len(labels)))
        self.register_buffer("anchors", self.base_vectors, persistent=False)
        # A tower's own bias belongs to its own score.
        self.keeps_bias = logit_bias != 0.0 and not config.learn
        bias = logit_bias if self.keeps_bias else math.log(config.prior / (1 - config.prior))
        self.mixture = Mixture(parts=len(config.parts), shrinkage=config.shrinkage, bias=bias)
        self.knowledge: KnowledgePrompter | None = None
        self.context: ContextPrompter | None = None
        self.residual: LabelResidual | None = None
        if config.learn:
            self._add_learned(dim, source_dim)
        self._kept: Kept[LabelSide] = Kept()
        self.decision, self.card = Decision(), ModelCard()
        self.origin: TowerOrigin | None = None
        self.register_load_state_dict_post_hook(encode_again)  # type: ignore[no-untyped-call]

    def _add_learned(self, dim: int, source_dim: int) -> None:
        """The blocks that are trained; a kind of prompts that the fusion leaves out has none."""
        config, shared = self.config, {"dim": dim, "heads": self.config.heads}
        source = self.knowledge_vectors.shape[1] if config.knowledge != "text_tower" else None
        if config.fusion != "context":
            self.knowledge = KnowledgePrompter(source_dim=source, relation=config.relation, **cast(Any, shared))
        if config.fusion != "knowledge":
            self.context = ContextPrompter(
                width=self.text.width, tokens=config.context_tokens, relation=config.relation, **cast(Any, shared)
            )
            if config.context_words is not None:
                start, length = self._prompt_start, config.context_tokens
                self.context.start_from(self.text.embed(self.prompt_ids[0, start : start + length]).float())
            self.residual = LabelResidual(labels=len(self.trained), dim=dim, source_dim=source_dim or dim)
        self.fusion = FusionBlock(mode=config.fusion, maps=config.relation == "attention", **cast(Any, shared))
        self.adapter = VisualAdapter(dim=dim, hidden=config.adapter, source_dim=source_dim)
        # Attention needs more room than a narrow joint space has (docs/results.md).
        width = -(-max(dim, LEAST_WIDTH) // config.heads) * config.heads
        self.attention = DualModalAttention(
            direction=config.dma, width=width, feedforward=config.feedforward, **cast(Any, shared)
        )
        self.semantic = SemanticPooling(dim=dim, hidden=config.feedforward)
        self.head = SimilarityHead(whole=0.3 if source_dim else None)

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
    base_vectors: Tensor
    known_positives: Tensor
    anchors: Tensor
    members: Tensor
    prompt_ids: Tensor
    prompt_ends: Tensor

    def _set_labels(self, labels: LabelSet, *, like: Tensor | None = None, extra_descriptions: bool = True) -> None:
        encoder = None if self._encoder is None else self._encoder.encode
        texts = encode_labels(self.config, labels, self.text, encoder=encoder, extra_descriptions=extra_descriptions)
        rows = {name: row for row, name in enumerate(self.trained)}
        members, prompts = torch.tensor([rows.get(name, -1) for name in labels]), texts.prompts
        self.labels = labels
        # Where the model is and as wide as it is, which by now may be elsewhere than at the start.
        like = torch.empty(0, device=self.text.embed(prompts.ids[:1, :1]).device) if like is None else like
        # Not persistent: they follow from the labels and the frozen tower, which is not in a checkpoint either.
        self.register_buffer("knowledge_vectors", texts.knowledge.to(like), persistent=False)
        self.register_buffer("base_vectors", texts.base.to(like), persistent=False)
        self.register_buffer("members", members.to(like.device), persistent=False)
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

        Labels that it was trained on keep what was learned of them; of any other its name is all there is, and it
        scores as the towers alone would have it.

        Args:
            labels: The labels, or their names.

        Raises:
            LabelError: where the file of label vectors lacks a label.
            PretrainedError: where that file, or the one of descriptions, has changed since or is gone.
            SentenceEncoderError: where the sentence encoder cannot be loaded again.
        """
        unchanged(self.config, self.text_digests)
        other = PVLR.__new__(PVLR)
        nn.Module.__init__(other)
        other.training, other.config = self.training, self.config
        other.keeps_bias, other._kept, other.trained = self.keeps_bias, Kept(), self.trained
        other.base_scale = self.base_scale
        # By name: the towers need not be modules, and the encoder is none.
        for name in ("text", "image", "mixture", "knowledge", "context", "residual", "_encoder"):
            setattr(other, name, getattr(self, name))
        for name in LEARNED if self.config.learn else ():
            setattr(other, name, getattr(self, name))
        other.register_buffer("known_positives", self.known_positives)
        other.register_buffer("anchors", self.anchors, persistent=False)
        other._set_labels(LabelSet.of(labels), like=self.knowledge_vectors)
        other.decision, other.origin, other.text_digests = self.decision, self.origin, self.text_digests
        other.card = self.card if other.labels == self.labels else self.card.for_other_labels()
        other.register_load_state_dict_post_hook(encode_again)  # type: ignore[no-untyped-call]
        return other

    def forward(self, images: Float[Tensor, "b 3 s s"], maps: bool = False) -> PVLROutput:
        """Recognise labels in images.

        Args:
            images: ``b 3 s s``, of the image tower's size and normalised as it asks for.
            maps: Whether to return the attention maps too.

        Raises:
            ShapeError: where the images are of another size.
        """
        return self.forward_features(self.regions(images), maps=maps)

    @property
    def sees(self) -> Regions:
        """Which vectors of an image it reads."""
        if self.config.learn:
            return "all"
        return "pooled" if set(self.config.parts) == {"pooled"} else "both"

    def regions(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m d"]:
        """The vectors of images that :meth:`forward_features` takes.

        Raises:
            ShapeError: where the images are of another size.
        """
        size = self.image.image_size
        expect("images", images, "b rgb height width", dtype="float", rgb=3, height=size, width=size)
        return join_regions(self.image(images), self.sees)

    def forward_features(
        self, regions: Float[Tensor, "b m d"], maps: bool = False, labels: Tensor | None = None
    ) -> PVLROutput:
        """Recognise labels from vectors of the image tower, computed before.

        Args:
            regions: ``b m d`` from :meth:`regions` or the cache.
            maps: Whether to return the attention maps too.
            labels: What :meth:`label_rows` gave, joined, ``c r``; None to compute it.

        Raises:
            ShapeError: where the axes do not fit.
        """
        expect("regions", regions, "b m d", dtype="float", d=self.text.dim)
        if labels is not None:
            own = 0 if self.residual is None else self.residual.source_dim
            expect("labels", labels, "c r", dtype="float", r=2 * self.text.dim + own + 3)
        rows = self.label_rows() if labels is None else LabelRows.split(labels, self.text.dim)
        return self.comparison(regions, rows, maps)

    @property
    def comparison(self) -> Comparison:
        """What compares images and labels, as a function of both."""
        learned = None
        if self.config.learn:
            learned = Learned(self.adapter, self.attention, self.semantic, self.head)
        return Comparison(
            mixture=self.mixture,
            parts=self.config.parts,
            scale=self.base_scale,
            anchors=self.anchors,
            sees=self.sees,
            source_dim=getattr(self.image, "source_dim", 0),
            learned=learned,
        )

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
        return tag_images(self, images.to(self.knowledge_vectors), threshold=threshold, attention=attention)

    def label_vectors(self) -> Float[Tensor, "c d"]:
        """The fused label vectors `T`.

        They are the caller's own: what he changes in them changes nothing here.
        """
        return own_copy(self._label_side().rows.fused)

    def label_rows(self) -> LabelRows:
        """All that images are compared with, one row a label."""
        return LabelRows(*map(own_copy, self._label_side().rows))

    def label_parts(self) -> LabelParts:
        """Label vectors and relations of both kinds of prompts, before they are fused."""
        found = self._label_side().parts
        own = [None if x is None else own_copy(x) for x in (found.knowledge, found.context)]
        return LabelParts(own[0], found.knowledge_map, own[1], found.context_map)

    def _label_side(self) -> LabelSide:
        if self.training:
            return compute_label_side(self)
        # The text tower is frozen, and yet another one's weights may be loaded into it.
        blocks = (self.knowledge, self.context, self.residual, self.fusion if self.config.learn else None, self.text)
        parameters = [value for block in blocks if isinstance(block, nn.Module) for value in block.parameters()]
        sources = [*parameters, self.base_vectors, self.known_positives, self.knowledge_vectors, self.prompt_ids]
        return self._kept.get([*sources, self.prompt_ends], partial(compute_label_side, self))

    @property
    def prompts(self) -> PromptTokens:
        """The labels' prompts with the places of the learnable context."""
        start, length = self._prompt_start, self.config.context_tokens
        return PromptTokens(self.prompt_ids, start, length, self.prompt_ends, self._prompt_used)

    def train(self, mode: bool = True) -> "PVLR":
        """Switch the mode, but not the text tower's, and forget the label vectors kept for evaluation."""
        self._kept.forget()
        super().train(mode)
        if isinstance(self.text, nn.Module):
            self.text.eval()
        return self

    def fit_prior(self, regions: Float[Tensor, "b m d"]) -> None:
        """Set spread and biases on some images, see :func:`~pvlr.core.label_side.fit_prior`."""
        fit_prior(self, regions)

    @torch.no_grad()
    def tell_positives(self, counts: Float[Tensor, " c"]) -> None:
        """Say how many positives of each of its labels training knows: so far what is learned of them counts.

        Args:
            counts: At least 0, one for each of the labels the model was made for.

        Raises:
            ShapeError: where there is not one for each label.
        """
        expect("counts", counts, "c", c=len(self.trained))
        self.known_positives.copy_(counts)
