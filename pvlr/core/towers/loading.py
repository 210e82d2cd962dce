"""Loading of towers by name: a text tower and an image tower of one open_clip model, with their preprocessing."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pvlr.core.protocols import ZeroShot
from pvlr.core.towers.building import as_described, build_model, build_text_tower, refuse_unsupported
from pvlr.core.towers.files.checkpoints import read_weights
from pvlr.core.towers.files.choices import Activation
from pvlr.core.towers.files.hf_files import find_text_config
from pvlr.core.towers.files.sources import TowerError, TowerSource, find_source
from pvlr.core.towers.image.blocks import PatchFeatures
from pvlr.core.towers.image.tower import OpenClipImageTower
from pvlr.core.towers.saving import TowerOrigin, fingerprint_of
from pvlr.core.towers.spec import TowerSpec
from pvlr.core.towers.text.base import FrozenTextTower
from pvlr.core.towers.text.tokenizers import make_tokenizer

__all__ = [
    "Towers",
    "build_towers",
    "load_towers",
]


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Both towers of one model.

    Attributes:
        spec: The description they were loaded by.
        text: The text tower, frozen.
        image: The image tower, frozen unless set trainable.
        preprocess: Preprocessing of images: ``mean`` and ``std`` (three floats in [0, 1] each), ``size`` (pixels) and
            ``interpolation`` (``"bicubic"``, …).
        logit_scale: Factor of cosine similarities in the model (not its logarithm).
        logit_bias: Bias added to them; 0 where it has none.
        fingerprint: sha256 over all weights as loaded (before any change of the image size) and the architecture.
        config: open_clip's configuration of the model they are halves of.
        rest: Other weights of that model, by name: its scale and bias.
        zero_shot: Settings of recognition without training; None where cosines have no probabilities.
    """

    spec: TowerSpec
    text: FrozenTextTower
    image: OpenClipImageTower
    preprocess: dict[str, Any]
    logit_scale: float
    logit_bias: float
    fingerprint: str
    config: dict[str, Any]
    rest: dict[str, Tensor]
    zero_shot: ZeroShot | None

    @property
    def origin(self) -> TowerOrigin:
        """The origin of the towers."""
        return TowerOrigin(self.spec, self.fingerprint, self.preprocess, self.config, self.rest, self.zero_shot)


def load_towers(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    patch_features: PatchFeatures = "value",
    activation: Activation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    cache_dir: str | None = None,
) -> Towers:
    """Load both towers of an open_clip model, on the CPU, in float32, frozen and in evaluation mode.

    All checks that need no weights are made before any weights are fetched.

    Args:
        name: An open_clip model name (``ViT-B-16-quickgelu``), ``local-dir:FOLDER``, ``hf-hub:ORGANISATION/REPOSITORY``
            or ``pvlr:scenes-clip``, which is part of pvlr.
        weights: For an open_clip model name: a tag (``openai``), a local file, or None for random weights, which is
            logged as a warning. The other names have their own.
        image_size: Side of the images in pixels, a multiple of the patch size (32 for ResNets); None for the tower's
            own. Position embeddings are interpolated from the tower's own size.
        patch_features: ``"value"`` or ``"final"``, see :class:`~pvlr.core.towers.image.tower.OpenClipImageTower`.
        activation: Activation the weights were trained with; None where name or file determine it. A file does not,
            where open_clip has its architecture with either: see
            :func:`~pvlr.core.towers.files.sources.find_source`.
        mean: Means of red, green and blue in the images that the weights were trained on; None for their usual ones.
        std: Standard deviations, like ``mean``.
        cache_dir: Folder for downloads; None for the usual cache.

    Raises:
        TowerError: naming the unknown name, the unsupported part or the broken file; in three lines where something
            cannot be fetched: what was wanted, where it comes from, how to name a local copy.

    Example:
        >>> load_towers("ViT-B-16", weights="openai")
        Traceback (most recent call last):
            ...
        pvlr.core.towers.errors.TowerError: weights: 'openai' was trained with QuickGELU, but 'ViT-B-16' computes GELU;
        ask for 'ViT-B-16-quickgelu'
    """
    spec = TowerSpec(
        name=name,
        weights=None if weights is None else str(weights),
        image_size=image_size,
        patch_features=patch_features,
        activation=activation,
        mean=None if mean is None else (mean[0], mean[1], mean[2]),
        std=None if std is None else (std[0], std[1], std[2]),
        cache_dir=cache_dir,
    )
    source = find_source(name, weights, cache_dir, activation=activation, mean=mean, std=std)
    refuse_unsupported(source.name, source.config)
    text_config = find_text_config(source, cache_dir)
    tokenizer = make_tokenizer(source, cache_dir)
    with as_described(source.name):
        model = build_model(source.config, text_config)
        text = build_text_tower(model, tokenizer, source.config, text_config)
        image = OpenClipImageTower(model.visual, patch_features=patch_features)
    if image_size is not None:
        image.check_image_size(image_size)
    if text.dim != image.dim:
        raise TowerError(f"name: '{name}' has text vectors of width {text.dim} and image vectors of width {image.dim}")
    read_weights(model, source, cache_dir)
    fingerprint = fingerprint_of(model.state_dict(), source.config, text)
    if image_size is not None:
        image.set_image_size(image_size)
    return Towers(
        spec=spec,
        text=text,
        image=image,
        preprocess=_preprocess(source.preprocess, image.image_size),
        logit_scale=float(model.logit_scale.detach().exp()),
        logit_bias=0.0 if model.logit_bias is None else float(model.logit_bias.detach()),
        fingerprint=fingerprint,
        config=source.config,
        rest={
            name: value.detach().clone()
            for name, value in (("logit_scale", model.logit_scale), ("logit_bias", model.logit_bias))
            if value is not None
        },
        zero_shot=_zero_shot(source, model),
    )


def build_towers(spec: TowerSpec) -> Towers:
    """Load the towers of a description, and unfreeze the parts to be trained.

    Raises:
        TowerError: where an open_clip model is named without weights: random ones must be requested; see
            :func:`load_towers` for the rest.

    Example:
        >>> build_towers(TowerSpec(name="pvlr:scenes-clip", train=1)).image.trainable
        1
    """
    spec.require_weights()
    with _drawn(spec):
        towers = load_towers(
            spec.name,
            weights=None if spec.is_random else spec.weights,
            image_size=spec.image_size,
            patch_features=spec.patch_features,
            activation=spec.activation,
            mean=spec.mean,
            std=spec.std,
            cache_dir=spec.cache_dir,
        )
    towers.image.set_trainable(spec.train)
    return replace(towers, spec=spec)


@contextmanager
def _drawn(spec: TowerSpec) -> Iterator[None]:
    """Seed random weights, which must be the same each time for runs to be resumed or loaded."""
    with torch.random.fork_rng(devices=[], enabled=spec.is_random):
        if spec.is_random:
            torch.manual_seed(0)
        yield


def _zero_shot(source: TowerSource, model: Any) -> ZeroShot | None:
    """Return the settings of the files; a sigmoid loss (SigLIP's) has trained scale and bias for the pooled vector."""
    if source.zero_shot is not None:
        return source.zero_shot
    return None if model.logit_bias is None else ZeroShot("pooled", 0.5, "")


def _preprocess(record: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg

    usual = PreprocessCfg()
    return {
        "mean": tuple(float(x) for x in record.get("mean") or usual.mean),
        "std": tuple(float(x) for x in record.get("std") or usual.std),
        "size": image_size,
        "interpolation": str(record.get("interpolation") or usual.interpolation),
    }
