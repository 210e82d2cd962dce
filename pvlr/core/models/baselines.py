"""Baselines: published methods on the same towers, to be trained instead of PVLR.

Zero-shot recognition is not here: it is PVLR without training (see :class:`~pvlr.core.models.network.PVLRConfig`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_bool, require_choices, require_int, require_number
from pvlr.core.base import BasePart, are_anchors, base_scores
from pvlr.core.block import Block
from pvlr.core.functional import cosine_scores, prior_bias, standardise, upcast
from pvlr.core.labels import LabelSet
from pvlr.core.mixture import Mixture
from pvlr.core.models.base import TowerModel
from pvlr.core.models.decoders import GroupDecoder, LabelDecoder
from pvlr.core.prompts import ContextPrompter, PromptBank, encode_knowledge
from pvlr.core.protocols import ImageTower, PromptTokens, Regions, Seen, TextTower, split_regions
from pvlr.core.residual import rows_of_members
from pvlr.core.shapes import ShapeError, expect
from pvlr.core.towers import Towers

__all__ = [
    "BaselineConfig",
    "BaselineModel",
    "BaselineOutput",
    "DualPrompter",
    "LinearProbe",
    "PromptedCosine",
    "paired_scores",
    "patch_dim",
]

BASE: tuple[BasePart, ...] = ("competition", "focused", "pooled")
PROMPTED = ("coop", "dualcoop")
DECODERS = ("query2label", "ml_decoder")


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """A published method, trained instead of PVLR.

    Args:
        kind: `none`: PVLR, as in the section `model`. `linear_probe`: a linear classifier on the pooled vector (or the
            features it is made of, if the tower provides them). `coop`: a learnable prompt, compared with the pooled
            vector. `dualcoop`: positive and negative prompts, compared with the patches. `query2label`: a decoder with
            a query per label. `ml_decoder`: a decoder with a query per group of labels.
        base: Whether PVLR's base is added to the logits, by the same mixture. The two prompts of `dualcoop` are then
            equal at the start, and its logits 0.
        shrinkage: Shrinkage of that mixture, see :class:`~pvlr.core.mixture.Mixture`.
        context_tokens: Learnable tokens of each prompt (`coop`, `dualcoop`).
        width: Width of the decoder.
        heads: Heads of its attentions; must divide the width.
        hidden: Width of its feed-forwards.
        encoder_layers: Layers in which patches attend to each other first (`query2label`).
        decoder_layers: Layers in which queries attend to the patches (`query2label`).
        groups: Number of queries (`ml_decoder`); one per label where there are fewer labels.
        patches: Patches that the decoders (`query2label`, `ml_decoder`) read: those of the `joint` space, or each
            patch's `own` features before the projection to it, which towers provide where these are wider.
        prior: Mean probability before the first step, by choice of the biases; `dualcoop` alone has none.

    Raises:
        ValueError: naming the field, what it may be and what was given.

    Example:
        >>> BaselineConfig(kind="query2label", width=100, heads=3)
        Traceback (most recent call last):
            ...
        ValueError: width: expected a multiple of heads=3, got 100
    """

    kind: Literal["none", "linear_probe", "coop", "dualcoop", "query2label", "ml_decoder"] = "none"
    base: bool = False
    shrinkage: float = 5.0
    context_tokens: int = 16
    width: int = 256
    heads: int = 4
    hidden: int = 1024
    encoder_layers: int = 1
    decoder_layers: int = 2
    groups: int = 100
    patches: Literal["joint", "own"] = "joint"
    prior: float = 0.05

    def __post_init__(self) -> None:
        require_choices(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                require_int(field.name, value, least=0 if field.name == "encoder_layers" else 1)
        for name, factor in (("heads", self.heads), ("4", 4)):
            if self.width % factor:
                divisor = f"{name}={factor}" if name == "heads" else name
                raise ValueError(f"width: expected a multiple of {divisor}, got {self.width}")
        require_number("prior", self.prior, above=0.0, below=1.0)
        require_number("shrinkage", self.shrinkage, above=0.0)
        require_bool("base", self.base)
        if self.patches == "own" and self.kind not in DECODERS:
            raise ValueError(f"patches: expected 'joint' for kind '{self.kind}', which is no decoder, got 'own'")

    @property
    def sees(self) -> Regions:
        """The vectors of an image that it reads."""
        if self.patches == "own":
            return "all_own" if self.base else "own"
        if self.base or self.kind == "linear_probe":
            return "all"
        return "pooled" if self.kind == "coop" else "patches"


def patch_dim(config: BaselineConfig, image: ImageTower) -> int:
    """Return the width of the patches that a baseline reads.

    Args:
        config: The method and its sizes.
        image: Image tower.

    Raises:
        ValueError: where these are the patches' own features, which the tower does not provide.

    Example:
        >>> from pvlr.core.towers import load_towers
        >>> patch_dim(BaselineConfig(kind="ml_decoder"), load_towers("pvlr:scenes-clip").image)
        128
    """
    if config.patches == "joint":
        return image.dim
    own_dim: int = getattr(image, "own_dim", 0)
    if not own_dim:
        raise ValueError(
            "patches: expected 'joint' for this image tower, whose patches have no features of their own that are "
            f"wider than the joint space of {image.dim}, got 'own'"
        )
    return own_dim


def paired_scores(
    patches: Float[Tensor, "b n d"],
    positive: Float[Tensor, "c d"],
    negative: Float[Tensor, "c d"],
    *,
    scale: float = 20.0,
    factor: float = 5.0,
) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
    """Compute scores of positive and negative prompts, both gathered from the patches most similar to the positive one.

    Sun, Hu, Saenko, "DualCoOp: Fast Adaptation to Multi-Label Recognition with Limited Annotations",
    arXiv 2206.09541: ``s± = scale · cos(patch, text±)``, ``w = softmax_n(s+)``, ``factor · Σ_n w s±``. Their
    probability is the softmax over the pair, so its logit is the difference.

    Args:
        patches: ``b n d``, at least one patch.
        positive: Text vectors of "there is one", ``c d``.
        negative: Text vectors of "there is none", ``c d``.
        scale: Factor of the cosines.
        factor: Factor of the gathered scores.

    Returns:
        The positive and the negative scores, ``b c`` each, float32.

    Raises:
        ShapeError: where the axes or dtypes do not fit, or there is no patch.

    Example:
        >>> patches, label = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[1.0, 0.0]])
        >>> positive, negative = paired_scores(patches, label, label)
        >>> round(positive.item(), 4), round(negative.item(), 4)
        (60.0, 60.0)
    """
    axes = expect("patches", patches, "b n d", dtype="float")
    if axes["n"] == 0:
        raise ShapeError(f"patches: expected at least one patch on axis n of 'b n d', got shape {tuple(patches.shape)}")
    count = expect("positive", positive, "c d", dtype="float", device=patches.device, d=axes["d"])["c"]
    expect("negative", negative, "c d", dtype="float", device=patches.device, c=count, d=axes["d"])
    for name, text in (("positive", positive), ("negative", negative)):
        if upcast(text[:0]).dtype != upcast(patches[:0]).dtype:
            raise ShapeError(f"{name}: expected a tensor of dtype {patches.dtype}, got {text.dtype}")
    like, unlike = (cosine_scores(patches, text, scale=scale) for text in (positive, negative))
    weights = like.softmax(dim=1)
    return factor * (weights * like).sum(dim=1), factor * (weights * unlike).sum(dim=1)


class LinearProbe(Block):
    """Linear classifier ``logit_c = w_c · LN(x) + b_c`` on one vector per image; the norm has no parameters.

    Args:
        classes: Number of labels ``c``; it is fixed.
        dim: Width of the vector.

    Example:
        >>> LinearProbe(classes=3, dim=8)(torch.ones(2, 8))
        tensor([[0., 0., 0.],
                [0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(self, *, classes: int, dim: int) -> None:
        super().__init__(classes=classes, dim=dim)
        require_int("classes", classes, least=1)
        require_int("dim", dim, least=1)
        self.dim = dim
        self.weight, self.bias = nn.Parameter(torch.zeros(classes, dim)), nn.Parameter(torch.zeros(classes))

    def forward(self, vectors: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Compute logits from one vector per image.

        Raises:
            ShapeError: where they are of another width.
        """
        expect("vectors", vectors, "b d", dtype="float", like=self.bias, d=self.dim)
        return F.linear(standardise(vectors), self.weight, self.bias)


class PromptedCosine(Block):
    """Classifier ``scale · cos(g, T_soft[c]) + bias`` with one learnable prompt, after CoOp (arXiv 2109.01134).

    Args:
        width: Width ``w`` of the text tower's token embeddings.
        dim: Joint width ``d``.
        context_tokens: Number of context tokens ``m``.
        scale: Factor of the cosine, at the start.

    Example:
        >>> PromptedCosine(width=6, dim=8, context_tokens=2).prompter.context.shape
        torch.Size([2, 6])
    """

    def __init__(self, *, width: int, dim: int, context_tokens: int = 16, scale: float = 10.0) -> None:
        super().__init__(width=width, dim=dim, context_tokens=context_tokens, scale=scale)
        require_number("scale", scale, above=0.0)
        self.prompter = ContextPrompter(width=width, dim=dim, context_tokens=context_tokens, heads=1, relation="none")
        self.log_scale, self.bias = nn.Parameter(torch.tensor(math.log(scale))), nn.Parameter(torch.tensor(0.0))

    def forward(self, pooled: Float[Tensor, "b d"], text: Float[Tensor, "c d"]) -> Float[Tensor, "b c"]:
        """Compute logits, float32.

        Args:
            pooled: ``b d``.
            text: Label vectors of the prompter, ``c d``.

        Raises:
            ShapeError: where the axes do not fit.
        """
        expect("pooled", pooled, "b d", dtype="float", device=self.bias.device)
        scale, bias = upcast(self.log_scale).exp(), upcast(self.bias)
        return cosine_scores(pooled.unsqueeze(1), text, scale=scale, bias=bias).squeeze(1)


class DualPrompter(Block):
    """Pair of a learnable positive and a learnable negative prompt, both shared by all labels.

    Args:
        width: Width ``w`` of the text tower's token embeddings.
        dim: Joint width ``d``.
        context_tokens: Number of context tokens ``m`` of each.

    Example:
        >>> DualPrompter(width=6, dim=8, context_tokens=2).positive.context.shape
        torch.Size([2, 6])
    """

    def __init__(self, *, width: int, dim: int, context_tokens: int = 16) -> None:
        super().__init__(width=width, dim=dim, context_tokens=context_tokens)
        self.positive, self.negative = (
            ContextPrompter(width=width, dim=dim, context_tokens=context_tokens, heads=1, relation="none")
            for _ in range(2)
        )

    def forward(self, text: TextTower, prompts: PromptTokens) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c d"]]:
        """Return positive and negative text vectors.

        Raises:
            ShapeError: as :meth:`~pvlr.core.prompts.ContextPrompter.encode`.
            ValueError: as there.
        """
        return self.positive.encode(text, prompts), self.negative.encode(text, prompts)


class BaselineOutput(NamedTuple):
    """Output of a forward pass.

    Attributes:
        logits: ``b c``; their sigmoids are the probabilities.
    """

    logits: Float[Tensor, "b c"]


class BaselineModel(TowerModel):
    """A baseline on the towers of a vision-language model, used as :class:`~pvlr.core.models.network.PVLR` is.

    Args:
        config: The method and its sizes.
        labels: Labels to recognise, or their names. All methods but `coop` and `dualcoop` are bound to their number.
        text: Text tower, which is frozen; read by those two alone, and for the base.
        image: Image tower.
        logit_scale: The tower's own scale, that of the base.

    Raises:
        ValueError: where the configuration is PVLR's, or reads patches that the tower does not provide.

    Example:
        >>> from pvlr.core.towers import load_towers
        >>> towers, labels = load_towers("pvlr:scenes-clip"), LabelSet(("red_circle", "blue_square"))
        >>> model = BaselineModel(BaselineConfig(kind="dualcoop"), labels, towers.text, towers.image)
        >>> model(torch.zeros(3, 3, 128, 128)).logits.shape
        torch.Size([3, 2])
    """

    config: BaselineConfig
    names: Tensor
    anchors: Tensor

    def __init__(
        self,
        config: BaselineConfig,
        labels: LabelSet | Sequence[str],
        text: TextTower,
        image: ImageTower,
        *,
        logit_scale: float = 10.0,
    ) -> None:
        super().__init__(labels, text, image)
        self.config, self.base_scale = config, logit_scale
        self.head: Any = _make_head(config, self.labels, text, image)
        self.mixture = Mixture(parts=len(BASE), shrinkage=config.shrinkage) if config.base else None
        self._set_labels(self.labels)
        if config.base:
            self.register_buffer("anchors", self.names, persistent=False)

    @classmethod
    def from_towers(cls, config: BaselineConfig, labels: LabelSet | Sequence[str], towers: Towers) -> "BaselineModel":
        """Return a new, untrained model that records the origin of its towers, and so can be saved.

        Args:
            config: The method and its sizes.
            labels: Labels to recognise, or their names.
            towers: Both towers of one model.
        """
        model = cls(config, labels, towers.text, towers.image, logit_scale=towers.logit_scale)
        model.origin = towers.origin
        return model

    @property
    def sees(self) -> Regions:
        """The vectors of an image that it reads."""
        return self.config.sees

    def _encode_labels(self, labels: LabelSet) -> None:
        if self.config.kind in PROMPTED:
            bank = PromptBank(labels, context_words=None, context_tokens=self.config.context_tokens)
            self._set_prompts(self.text.tokenize_prompts(bank.context_sentences(), None, self.config.context_tokens))
        if self.config.base:
            self._register_texts(names=encode_knowledge(PromptBank(labels), self.text.encode))

    def with_labels(self, labels: LabelSet | Sequence[str]) -> "BaselineModel":
        """Return the same model for other labels, which shares all modules.

        Args:
            labels: The labels, or their names.

        Raises:
            ValueError: where the method does not represent labels by texts.
            LabelError: where these are not labels.
        """
        if self.config.kind not in PROMPTED:
            raise ValueError(f"labels: cannot be exchanged in a model of kind '{self.config.kind}', which fixes them")
        return super().with_labels(labels)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> BaselineOutput:
        """Recognise labels in images of the image tower's size, normalised as it requires.

        Raises:
            ShapeError: where the images are of another size.
        """
        return self.forward_features(self.regions(images))

    def forward_features(
        self, regions: Float[Tensor, "b m d"], *, texts: Sequence[Float[Tensor, "c d"]] | None = None
    ) -> BaselineOutput:
        """Recognise labels from precomputed features of the image tower.

        Args:
            regions: ``b m d``.
            texts: Vectors of the labels, as :meth:`label_texts` returned them; None: they are computed.

        Raises:
            ShapeError: where the axes do not fit.
        """
        base, learned = self._scores(regions, texts)
        if self.mixture is None:
            return BaselineOutput(learned)
        positives = rows_of_members(self.known_positives, self.members)
        return BaselineOutput(self.mixture(base, learned, positives))

    def label_texts(self) -> tuple[Float[Tensor, "c d"], ...]:
        """Return the vectors of the labels' prompts: one for `coop`, two for `dualcoop`, none for other methods."""
        return self._texts() if self.config.kind in PROMPTED else ()

    def _scores(self, regions: Tensor, texts: Sequence[Tensor] | None = None) -> tuple[Tensor | None, Tensor]:
        """Return the base ``b c p``, where it is added, and the learned scores ``b c``."""
        seen = split_regions(regions, self.sees, self.source_dim, self.own_dim)
        pooled = regions[:, 0] if seen.pooled is None else seen.pooled
        learned = self._learned(seen, pooled, self.label_texts() if texts is None else texts)
        if self.mixture is None:
            return None, learned
        names, anchors = self.names.to(regions.dtype), self.anchors.to(regions.dtype)
        # As in PVLR: a label with another text than in training competes with its former vector.
        members = are_anchors(names, anchors, self.members).long() - 1
        base = base_scores(
            seen.patches, pooled, names, parts=BASE, scale=self.base_scale, anchors=anchors, members=members
        )
        return base, learned

    def _learned(self, seen: Seen, pooled: Tensor, texts: Sequence[Tensor]) -> Float[Tensor, "b c"]:
        if self.config.kind == "linear_probe":
            logits: Tensor = self.head(pooled if seen.source is None else seen.source)
        elif self.config.kind == "coop":
            logits = self.head(pooled, *texts)
        elif self.config.kind == "dualcoop":
            positive, negative = paired_scores(seen.patches, *texts)
            logits = positive - negative
        else:
            logits = self.head(seen.patches if self.config.patches == "joint" else seen.own)
        return logits

    def _texts(self) -> tuple[Tensor, ...]:
        if self.training:
            return self._encode_prompts()
        sources = [*self.head.parameters(), self.prompt_ids, self.prompt_ends]
        texts: tuple[Tensor, ...] = self._cache.get(sources, self._encode_prompts)
        return texts

    def _encode_prompts(self) -> tuple[Tensor, ...]:
        if self.config.kind == "coop":
            return (self.head.prompter.encode(self.text, self.prompts),)
        positive, negative = self.head(self.text, self.prompts)
        return positive, negative

    @torch.no_grad()
    def fit_prior(self, regions: Float[Tensor, "b m d"]) -> None:
        """Set the biases so that the mean probability on these images is the configuration's `prior`.

        These are those of the head, where it has some and there is no base; else that of the mixture.
        """
        base, learned = self._scores(regions)
        bias, logits = getattr(self.head, "bias", None), learned
        if self.mixture is not None and base is not None:
            self.mixture.fit_spread(base)
            bias = self.mixture.bias
            logits = self.mixture.complete(base, learned)
        if bias is not None:
            bias.fill_(prior_bias(logits - bias, self.config.prior))


def _make_head(config: BaselineConfig, labels: LabelSet, text: TextTower, image: ImageTower) -> nn.Module:
    sizes = {"dim": config.width, "heads": config.heads, "hidden": config.hidden}
    shared: Any = {"classes": len(labels), "source_dim": patch_dim(config, image), **sizes}
    match config.kind:
        case "linear_probe":
            return LinearProbe(classes=len(labels), dim=getattr(image, "source_dim", 0) or image.dim)
        case "coop":
            return PromptedCosine(width=text.width, dim=text.dim, context_tokens=config.context_tokens)
        case "dualcoop":
            pair = DualPrompter(width=text.width, dim=text.dim, context_tokens=config.context_tokens)
            if config.base:
                # Alike at the start, and so nothing is added to the base: two contexts drawn apart differ by a hundred
                # times a cosine, and drown it.
                pair.negative.load_state_dict(pair.positive.state_dict())
            return pair
        case "query2label":
            layers: Any = {"encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers}
            return LabelDecoder(grid=image.grid, **shared, **layers)
        case "ml_decoder":
            return GroupDecoder(groups=min(config.groups, len(labels)), **shared)
        case _:
            raise ValueError("kind: expected a baseline, got 'none', which is PVLR")
