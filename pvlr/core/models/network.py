"""PVLR: label vectors from two kinds of prompts, compared with the patches of an image.

The abstract of arXiv 2401.17881 fixes the parts; every choice that it leaves open is a field of
:class:`~pvlr.core.models.config.PVLRConfig`.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention
from pvlr.core.base import are_anchors
from pvlr.core.functional import prior_bias
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.labels import LabelSet
from pvlr.core.mixture import Mixture
from pvlr.core.models.base import TowerModel
from pvlr.core.models.config import PVLRConfig, read_descriptions
from pvlr.core.models.label_side import LabelSide, encode_labels
from pvlr.core.models.output import Comparison, LabelParts, LabelRows, Learned, PVLROutput
from pvlr.core.models.texts import digests, unchanged
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.protocols import ImageTower, Regions, TextTower
from pvlr.core.residual import LabelResidual, rows_of_members
from pvlr.core.semantic import SemanticPooling
from pvlr.core.shapes import expect
from pvlr.core.towers import Towers
from pvlr.core.towers.text.sentence_encoders import HeldEncoder, SentenceEncoder

__all__ = ["PVLR", "PVLRConfig", "PVLROutput", "read_descriptions"]

LEAST_WIDTH = 256  # of the attention between labels and patches
LEARNED = ("fusion", "adapter", "attention", "semantic", "head")


class PVLR(TowerModel):
    """The complete model on the towers of a vision-language model.

    Args:
        config: The configuration.
        labels: Labels to recognise, or their names. Their number enters the shape of no parameter but the labels'
            residuals, so :meth:`with_labels` takes any other list after training.
        text: Text tower, which is frozen.
        image: Image tower of the same joint width.
        logit_scale: The tower's own scale, that of the base.
        logit_bias: The tower's own bias, used where there is only the base.
        encoder: Function from ``s`` sentences to vectors ``s k``; required by ``knowledge="encoder"``, and an error
            otherwise. It is not part of the model: not trained, not saved, not moved; copies share it.
        extra_descriptions: Whether the file of descriptions may contain labels that are not in ``labels``, which
            otherwise is an error.

    Raises:
        ValueError: where the towers do not share a width, or it is not a multiple of the heads; where the encoder is
            missing, not used, or cannot be loaded.
        LabelError: where descriptions or label vectors do not fit the labels.

    In evaluation without gradients the label side is computed once, and again when a parameter it depends on was
    replaced or changed in place (changes through ``.data`` are not detected; ``train()``, and any computation with
    gradients, clears the cache). ``load_state_dict`` encodes the fixed prompts again.

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
        labels: LabelSet | Sequence[str],
        text: TextTower,
        image: ImageTower,
        *,
        logit_scale: float = 10.0,
        logit_bias: float = 0.0,
        encoder: SentenceEncoder | None = None,
        extra_descriptions: bool = False,
    ) -> None:
        if text.dim != image.dim:
            raise ValueError(f"image: expected the text tower's joint width {text.dim}, got {image.dim}")
        super().__init__(labels, text, image)
        self.config = config
        self._encoder = None if encoder is None else HeldEncoder(encoder)
        self._extra_descriptions = extra_descriptions
        self._set_labels(self.labels)
        self._extra_descriptions = True  # From here on the file may contain more labels than the given ones.
        self.text_digests = digests(config)
        self.base_scale = logit_scale if config.base_scale is None else config.base_scale
        # Name vectors of the labels that the model is trained on.
        self.register_buffer("anchors", self.base_vectors, persistent=False)
        # A tower's own bias is valid for its own score alone.
        self.keeps_bias = logit_bias != 0.0 and not config.learn
        bias = logit_bias if self.keeps_bias else math.log(config.prior / (1 - config.prior))
        self.mixture = Mixture(parts=len(config.parts), shrinkage=config.shrinkage, bias=bias)
        self.knowledge: KnowledgePrompter | None = None
        self.context: ContextPrompter | None = None
        self.residual: LabelResidual | None = None
        if config.learn:
            self._add_learned(text.dim, self.source_dim)
        self.register_load_state_dict_post_hook(_encode_again)  # type: ignore[no-untyped-call]

    def _add_learned(self, dim: int, source_dim: int) -> None:
        """Add the blocks that are trained; none for a kind of prompts that the fusion leaves out."""
        config, shared = self.config, {"dim": dim, "heads": self.config.heads}
        source = self.knowledge_vectors.shape[1] if config.knowledge != "text_tower" else None
        if config.fusion != "context":
            self.knowledge = KnowledgePrompter(source_dim=source, relation=config.relation, **cast(Any, shared))
        if config.fusion != "knowledge":
            self.context = ContextPrompter(
                width=self.text.width,
                context_tokens=config.context_tokens,
                relation=config.relation,
                **cast(Any, shared),
            )
            if config.context_words is not None:
                start, length = self._prompt_start, config.context_tokens
                self.context.start_from(self.text.embed(self.prompt_ids[0, start : start + length]).float())
            self.residual = LabelResidual(labels=len(self.trained), dim=dim, source_dim=source_dim or dim)
        self.fusion = FusionBlock(fusion=config.fusion, maps=config.relation == "attention", **cast(Any, shared))
        self.adapter = VisualAdapter(dim=dim, adapter_width=config.adapter_width, source_dim=source_dim)
        # Attention needs more width than a narrow joint space has (docs/results.md).
        width = -(-max(dim, LEAST_WIDTH) // config.heads) * config.heads
        self.attention = DualModalAttention(
            direction=config.direction, width=width, feedforward=config.feedforward, **cast(Any, shared)
        )
        self.semantic = SemanticPooling(dim=dim, feedforward=config.feedforward)
        self.head = SimilarityHead(whole=0.3 if source_dim else None)

    @classmethod
    def from_towers(
        cls,
        config: PVLRConfig,
        labels: LabelSet | Sequence[str],
        towers: Towers,
        *,
        encoder: SentenceEncoder | None = None,
        extra_descriptions: bool = False,
    ) -> "PVLR":
        """Return a new, untrained model that records the origin of its towers, and so can be saved.

        Args:
            config: The configuration.
            labels: Labels to recognise, or their names.
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

    config: PVLRConfig
    knowledge_vectors: Tensor
    base_vectors: Tensor
    anchors: Tensor

    def _encode_labels(self, labels: LabelSet) -> None:
        encoder = None if self._encoder is None else self._encoder.encode
        texts = encode_labels(
            self.config, labels, self.text, encoder=encoder, extra_descriptions=self._extra_descriptions
        )
        # In the dtype of the model, which at the start is that of its towers.
        like = getattr(self, "base_vectors", texts.base)
        self._register_texts(knowledge_vectors=texts.knowledge.to(like.dtype), base_vectors=texts.base.to(like.dtype))
        self._set_prompts(texts.prompts)
        self._encoded_by = self._text_places()

    def _text_places(self) -> list[tuple[int, int]]:
        """Return the addresses of the text tower's weights and how often they were changed."""
        parameters = self.text.parameters() if isinstance(self.text, nn.Module) else ()
        return [(value.data_ptr(), -1 if value.is_inference() else value._version) for value in parameters]

    def with_labels(self, labels: LabelSet | Sequence[str]) -> "PVLR":
        """Return the same model for other labels: all modules are shared, only the texts are new.

        Changes to one of the two change both, except that moving one to another device or dtype does not move the
        texts of the other: move first. Labels that it was trained on keep their learned vectors; any other label has
        only its name, and gets the score of the towers alone.

        Args:
            labels: The labels, or their names.

        Raises:
            LabelError: where the file of label vectors lacks a label.
            PretrainedError: where that file, or the one of descriptions, has changed since or is missing.
            SentenceEncoderError: where the sentence encoder cannot be loaded again.
        """
        unchanged(self.config, self.text_digests)
        return super().with_labels(labels)

    def forward(self, images: Float[Tensor, "b 3 s s"], maps: bool = False) -> PVLROutput:
        """Recognise labels in images.

        Args:
            images: ``b 3 s s``, of the image tower's size and normalised as it requires.
            maps: Whether to return the attention maps too.

        Raises:
            ShapeError: where the images are of another size.
        """
        return self.forward_features(self.regions(images), maps=maps)

    @property
    def sees(self) -> Regions:
        """The vectors of an image that it reads."""
        if self.config.learn:
            return "all"
        return "pooled" if set(self.config.parts) == {"pooled"} else "both"

    def forward_features(
        self, regions: Float[Tensor, "b m d"], maps: bool = False, labels: Tensor | None = None
    ) -> PVLROutput:
        """Recognise labels from precomputed vectors of the image tower.

        Args:
            regions: ``b m d`` from :meth:`~pvlr.core.models.base.TowerModel.regions` or the cache.
            maps: Whether to return the attention maps too.
            labels: The rows of :meth:`label_rows`, joined, ``c r``; None to compute them.

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
        """The comparison of images and labels, as a function of both."""
        learned = None
        if self.config.learn:
            learned = Learned(self.adapter, self.attention, self.semantic, self.head)
        return Comparison(
            mixture=self.mixture,
            parts=self.config.parts,
            scale=self.base_scale,
            anchors=self.anchors,
            sees=self.sees,
            source_dim=self.source_dim,
            learned=learned,
        )

    def label_vectors(self) -> Float[Tensor, "c d"]:
        """Return a copy of the fused label vectors `T`."""
        return own_copy(self._label_side().rows.fused)

    def label_rows(self) -> LabelRows:
        """Return the label vectors and values that images are compared with, one row per label."""
        return LabelRows(*map(own_copy, self._label_side().rows))

    def label_parts(self) -> LabelParts:
        """Return label vectors and relations of both kinds of prompts, before they are fused."""
        found = self._label_side().parts
        own = [None if x is None else own_copy(x) for x in (found.knowledge, found.context)]
        return LabelParts(own[0], found.knowledge_map, own[1], found.context_map)

    def _label_side(self) -> LabelSide:
        if self.training:
            return self._compute_label_side()
        # The text tower is frozen, but other weights may be loaded into it.
        blocks = (self.knowledge, self.context, self.residual, self.fusion if self.config.learn else None, self.text)
        parameters = [value for block in blocks if isinstance(block, nn.Module) for value in block.parameters()]
        sources = [*parameters, self.base_vectors, self.known_positives, self.knowledge_vectors, self.prompt_ids]
        return cast(LabelSide, self._cache.get([*sources, self.prompt_ends], self._compute_label_side))

    def _compute_label_side(self) -> LabelSide:
        """Encode, relate and fuse both kinds of prompts."""
        name, members = self.base_vectors, self.members
        knowledge = knowledge_map = context = context_map = None
        if self.knowledge is not None:
            knowledge, knowledge_map = self.knowledge(self.knowledge_vectors)
        if self.context is not None:
            context, context_map = self.context.relate(self.context.encode(self.text, self.prompts))
        fused, own, bias = name, name.new_zeros(len(name), 0), name.new_zeros(len(name))
        if self.config.learn:
            fused = self.fusion(knowledge, context, knowledge_map, context_map)
        if self.residual is not None:
            fused, (own, bias) = self.residual(fused, members), self.residual.rows(members)
        positives = rows_of_members(self.known_positives, members)
        # For the scores only whether a label is an anchor matters, not its index: a label with another text than in
        # training has another vector, and competes with the old one.
        rows = LabelRows(fused, name, own, bias, positives, are_anchors(name, self.anchors, members).to(positives))
        return LabelSide(rows, LabelParts(knowledge, knowledge_map, context, context_map))

    @torch.no_grad()
    def fit_prior(self, regions: Float[Tensor, "b m d"]) -> None:
        """Set spreads and biases on some images, so that learned scores have mean 0 and probabilities ``prior``.

        The mean probability is then the configuration's ``prior``, in training. A bias of the tower stays unchanged.

        Args:
            regions: ``b m d`` from :meth:`~pvlr.core.models.base.TowerModel.regions` or the cache.
        """
        if self.keeps_bias:
            return
        base, answers = self.comparison.answers(regions, self.label_rows())
        mixture = copy.deepcopy(self.mixture)
        shift, learned = None, None
        if answers:
            if base is not None:
                mixture.fit_spread(base)
            first, *others = answers
            shift = first.mean()
            learned = torch.stack([first - shift, *others]).mean(dim=0)
        logits = mixture.complete(base, learned)
        mixture.bias.fill_(prior_bias(logits - mixture.bias, self.config.prior))
        # Nothing is changed before all fits have succeeded.
        self.mixture.load_state_dict(mixture.state_dict())
        if shift is not None:
            self.head.bias.sub_(shift)


def _encode_again(model: PVLR, _: object) -> None:
    """Encode the fixed prompts again, where ``load_state_dict`` has changed the text tower; they are not saved."""
    if model._text_places() != model._encoded_by:
        model._set_labels(model.labels)
        trained = encode_labels(model.config, model.trained, model.text, extra_descriptions=True, base_alone=True)
        model.anchors = trained.base.to(model.anchors)


def own_copy(values: Tensor) -> Tensor:
    """Return a copy of a cached tensor or buffer, which callers must not change; one with gradients is neither."""
    return values if values.requires_grad else values.clone()
