"""Towers by name: a text tower and an image tower of one open_clip model, and what has to go with them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pvlr.core.files import write_atomically
from pvlr.core.towers.building import as_described, build_model, refuse_unsupported
from pvlr.core.towers.checkpoints import read_weights
from pvlr.core.towers.image import OpenClipImageTower
from pvlr.core.towers.sources import CONFIG_NAME, WEIGHT_NAMES, TowerError, find_source
from pvlr.core.towers.spec import TowerSpec
from pvlr.core.towers.text import OpenClipTextTower
from pvlr.core.towers.tokenizers import make_tokenizer

__all__ = [
    "TowerError",
    "TowerOrigin",
    "TowerSpec",
    "Towers",
    "build_towers",
    "load_towers",
    "save_towers",
    "weights_fingerprint",
]


class TowerOrigin(NamedTuple):
    """Where a model's towers came from, and what goes with them.

    Attributes:
        spec: What they were asked for by.
        fingerprint: Of their weights as loaded.
        preprocess: What images must go through.
        copies: Folder of those that came with a saved model; None: they came from where ``spec`` says.
    """

    spec: TowerSpec
    fingerprint: str
    preprocess: dict[str, Any]
    copies: str | None = None


@dataclass(frozen=True, kw_only=True)
class Towers:
    """Both towers of one model.

    Attributes:
        spec: What they were asked for by.
        text: The text tower, frozen.
        image: The image tower, frozen until told otherwise.
        preprocess: What images must go through: ``mean`` and ``std`` (three floats in [0, 1] each), ``size`` (pixels)
            and ``interpolation`` (``"bicubic"``, …).
        logit_scale: What the model multiplies cosine similarities by (already out of its logarithm).
        logit_bias: What it adds to them; 0 where it has none.
        fingerprint: sha256 over all weights as loaded (before any change of the image size) and the activation.
    """

    spec: TowerSpec
    text: OpenClipTextTower
    image: OpenClipImageTower
    preprocess: dict[str, Any]
    logit_scale: float
    logit_bias: float
    fingerprint: str

    @property
    def origin(self) -> TowerOrigin:
        """Where they came from."""
        return TowerOrigin(self.spec, self.fingerprint, self.preprocess)


def load_towers(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    patch_features: Literal["value", "final"] = "value",
    cache_dir: str | None = None,
) -> Towers:
    """Load both towers of an open_clip model, on the CPU, in float32, frozen and in evaluation mode.

    Everything that can be refused is refused before any weights are fetched.

    Args:
        name: An open_clip model name (``ViT-B-16-quickgelu``), ``local-dir:FOLDER``, ``hf-hub:ORGANISATION/REPOSITORY``
            or ``pvlr:scenes-clip``, which comes with pvlr.
        weights: For an open_clip model name: a tag (``openai``), a local file, or None for random weights, which is
            logged as a warning. The other names bring their own.
        image_size: Side of the images in pixels, a multiple of the patch size (32 for ResNets); None for the tower's
            own. Position embeddings are interpolated from the tower's own size.
        patch_features: ``"value"`` or ``"final"``, see :class:`~pvlr.core.towers.image.OpenClipImageTower`.
        cache_dir: Folder for what is downloaded; None for the usual cache.

    Raises:
        TowerError: naming the unknown name, the unsupported part or the broken file; in three lines where something
            cannot be fetched: what was wanted, where it comes from, how to name a local copy.

    Example:
        >>> load_towers("ViT-B-16", weights="openai")
        Traceback (most recent call last):
            ...
        pvlr.core.towers.sources.TowerError: weights: 'openai' was trained with QuickGELU, but 'ViT-B-16' computes GELU;
        ask for 'ViT-B-16-quickgelu'
    """
    source = find_source(name, weights, cache_dir)
    refuse_unsupported(source.name, source.config)
    tokenizer = make_tokenizer(source, cache_dir)
    spec = TowerSpec(
        name=name,
        weights=None if weights is None else str(weights),
        image_size=image_size,
        patch_features=patch_features,
        cache_dir=cache_dir,
    )
    with as_described(source.name):
        model = build_model(source.config)
        text = OpenClipTextTower(model, tokenizer)
        image = OpenClipImageTower(model.visual, patch_features=patch_features)
    if image_size is not None:
        image.check_image_size(image_size)
    if text.dim != image.dim:
        raise TowerError(f"name: '{name}' has text vectors of width {text.dim} and image vectors of width {image.dim}")
    read_weights(model, source, cache_dir)
    fingerprint = weights_fingerprint(model.state_dict(), architecture={"quick_gelu": False, **source.config})
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
    )


def build_towers(spec: TowerSpec) -> Towers:
    """Load the towers of a description, and thaw what is to be trained.

    Raises:
        TowerError: where an open_clip model is named without weights: random ones are asked for, not left over; see
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
            cache_dir=spec.cache_dir,
        )
    towers.image.set_trainable(spec.train)
    return replace(towers, spec=spec)


def save_towers(spec: TowerSpec, folder: Path) -> None:
    """Write both towers as they come, before any training, as files that ``local-dir:FOLDER`` names.

    Args:
        spec: What they are loaded from.
        folder: Where to; made where it is absent.

    Raises:
        TowerError: where they cannot be loaded; where their tokenizer is not open_clip's, and so not in such files.
    """
    from safetensors.torch import save as to_bytes

    source = find_source(spec.name, None if spec.is_random else spec.weights, spec.cache_dir)
    tokenizer = source.config["text_cfg"].get("hf_tokenizer_name")
    if tokenizer:
        raise TowerError(f"name: the towers of '{spec.name}' cannot be included, for their tokenizer is '{tokenizer}'")
    with _drawn(spec):
        with as_described(source.name):
            model = build_model(source.config)
        read_weights(model, source, spec.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        name: source.preprocess[name] for name in ("mean", "std", "interpolation") if name in source.preprocess
    }
    told = {"model_cfg": source.config, "preprocess_cfg": preprocess}
    weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    write_atomically(folder / WEIGHT_NAMES[0], to_bytes(weights))
    write_atomically(folder / CONFIG_NAME, f"{json.dumps(told, indent=1)}\n".encode())


@contextmanager
def _drawn(spec: TowerSpec) -> Iterator[None]:
    """Random weights are the same each time, or no such run could go on or be loaded."""
    with torch.random.fork_rng(devices=[], enabled=spec.is_random):
        if spec.is_random:
            torch.manual_seed(0)
        yield


def weights_fingerprint(weights: Mapping[str, Tensor], *, architecture: Mapping[str, Any] | None = None) -> str:
    """sha256 over names, shapes, dtypes and contents of ``weights``, in the order of their names.

    Args:
        weights: Tensors by name, as ``state_dict()`` returns them.
        architecture: open_clip's description of the model, as JSON holds it: much of it, such as the number of heads
            or the activation function, leaves no trace in the weights.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> weights_fingerprint({"w": torch.zeros(2)}) == weights_fingerprint({"w": torch.zeros(2)})
        True
        >>> weights_fingerprint({"w": torch.zeros(2)}) == weights_fingerprint({"w": torch.tensor([0.0, 1e-30])})
        False
    """
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _preprocess(record: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg

    usual = PreprocessCfg()
    return {
        "mean": tuple(float(x) for x in record.get("mean") or usual.mean),
        "std": tuple(float(x) for x in record.get("std") or usual.std),
        "size": image_size,
        "interpolation": str(record.get("interpolation") or usual.interpolation),
    }
