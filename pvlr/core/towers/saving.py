"""Writing of towers as files that ``local-dir:FOLDER`` reads, and the fingerprint that identifies their weights."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvlr.core.protocols import ZeroShot
from pvlr.core.towers.building import has_custom_text
from pvlr.core.towers.files.sources import CONFIG_NAME, WEIGHT_NAMES
from pvlr.core.towers.image.tower import OpenClipImageTower
from pvlr.core.towers.spec import TowerSpec
from pvlr.core.towers.text.base import FrozenTextTower
from pvlr.core.towers.text.hugging_face import HFTextTower, text_config_file
from pvlr.core.towers.text.tokenizers import tokenizer_files
from pvlr.files import write_atomically

__all__ = [
    "TEXT_FILES",
    "TOWER_FILES",
    "TowerOrigin",
    "fingerprint_of",
    "save_towers",
    "weights_fingerprint",
    "were_changed",
]

TOWER_FILES = (CONFIG_NAME, WEIGHT_NAMES[0])
"""Files in every folder of saved towers."""
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""Additional files for an encoder or tokenizer of transformers."""


class TowerOrigin(NamedTuple):
    """Origin of a model's towers, with their settings.

    Attributes:
        spec: The description they were loaded by.
        fingerprint: Fingerprint of their weights as loaded.
        preprocess: Preprocessing of images.
        config: open_clip's configuration of the model they are halves of.
        rest: Other weights of that model, by name: its scale and bias.
        zero_shot: Settings of recognition without training; None where cosines have no probabilities.
        copies: Folder of the towers of a saved model; None: they were loaded from ``spec``.
    """

    spec: TowerSpec
    fingerprint: str
    preprocess: dict[str, Any]
    config: dict[str, Any]
    rest: dict[str, Tensor]
    zero_shot: ZeroShot | None = None
    copies: str | None = None


def save_towers(
    text: FrozenTextTower, image: OpenClipImageTower, origin: TowerOrigin, folder: Path
) -> tuple[str, dict[str, str]]:
    """Write both towers as they are now, in float32, as files that ``local-dir:FOLDER`` names.

    Args:
        text: The text tower.
        image: The image tower, trained or not, of any image size.
        origin: Their origin.
        folder: Folder of the files; created where it is absent.

    Returns:
        The fingerprint of the written weights, and the sha256 of each file by its name.

    Raises:
        TowerError: where their tokenizer is neither open_clip's own nor one of transformers', and cannot be written.
    """
    from safetensors.torch import save as to_bytes

    contents = tokenizer_files(text.tokenizer)
    own = {"hf_tokenizer_name": "."} if contents else {}
    if isinstance(text, HFTextTower):
        contents["config.json"] = text_config_file(text)
        own["hf_model_name"] = "."
    config = {
        **origin.config,
        "vision_cfg": {**origin.config["vision_cfg"], "image_size": image.image_size},
        "text_cfg": {**origin.config["text_cfg"], **own},
    }
    weights = _weights_of(text, image, origin)
    preprocess = {name: origin.preprocess[name] for name in ("mean", "std", "interpolation")}
    description: dict[str, Any] = {"model_cfg": config, "preprocess_cfg": preprocess}
    if origin.zero_shot is not None:
        description["zero_shot"] = origin.zero_shot._asdict()
    contents[WEIGHT_NAMES[0]] = to_bytes(weights)
    contents[CONFIG_NAME] = f"{json.dumps(description, indent=1)}\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    digests = {name: write_atomically(folder / name, content) for name, content in contents.items()}
    return fingerprint_of(weights, config, text), digests


def fingerprint_of(weights: Mapping[str, Tensor], config: Mapping[str, Any], text: FrozenTextTower) -> str:
    """Return the fingerprint of towers: of all weights, and of the architecture, which weights do not determine."""
    return weights_fingerprint(weights, architecture={"quick_gelu": False, **config, **text.architecture})


def were_changed(text: FrozenTextTower, image: OpenClipImageTower, origin: TowerOrigin) -> bool:
    """Return whether frozen towers have other weights than those that were loaded.

    Only towers in float32 and of their original size are compared: trained, resized or narrowed weights differ anyway,
    and are saved or can be computed again.
    """
    own_size = origin.config["vision_cfg"].get("image_size", image.image_size)
    weights = [value for tower in (text, image) for value in tower.state_dict().values() if value.is_floating_point()]
    wide = all(value.dtype == torch.float32 for value in weights)
    if image.trainable != "frozen" or image.image_size != own_size or not wide:
        return False
    return fingerprint_of(_weights_of(text, image, origin), origin.config, text) != origin.fingerprint


def _weights_of(text: FrozenTextTower, image: OpenClipImageTower, origin: TowerOrigin) -> dict[str, Tensor]:
    """Return all weights of the open_clip model, by its names: those of the halves, with the prefix of texts added."""
    prefix = "text." if has_custom_text(origin.config) else ""
    named = {f"{prefix}{name}": value for name, value in text.state_dict().items()}
    return {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in {**named, **image.state_dict(), **origin.rest}.items()
    }


def weights_fingerprint(weights: Mapping[str, Tensor], *, architecture: Mapping[str, Any] | None = None) -> str:
    """Compute the sha256 over names, shapes, dtypes and contents of ``weights``, in the order of their names.

    Args:
        weights: Tensors by name, as ``state_dict()`` returns them.
        architecture: open_clip's configuration of the model, in types of JSON: much of it, such as the number of heads
            or the activation function, is not determined by the weights.

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
