"""Towers as files that ``local-dir:FOLDER`` reads, and the fingerprint that tells one from another."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pvlr.core.files import write_atomically
from pvlr.core.towers.sources import CONFIG_NAME, WEIGHT_NAMES, TowerError
from pvlr.core.towers.spec import TowerSpec

__all__ = ["TowerOrigin", "save_towers", "weights_fingerprint"]


class TowerOrigin(NamedTuple):
    """Where a model's towers came from, and what goes with them.

    Attributes:
        spec: What they were asked for by.
        fingerprint: Of their weights as loaded.
        preprocess: What images must go through.
        config: open_clip's description of the model they are halves of.
        rest: What that model has beside them, by name: its scale and bias.
        copies: Folder of those that came with a saved model; None: they came from where ``spec`` says.
    """

    spec: TowerSpec
    fingerprint: str
    preprocess: dict[str, Any]
    config: dict[str, Any]
    rest: dict[str, Tensor]
    copies: str | None = None


def save_towers(text: nn.Module, image: nn.Module, origin: TowerOrigin, folder: Path) -> str:
    """Write both towers as they are now, in float32, as files that ``local-dir:FOLDER`` names.

    Args:
        text: The text tower.
        image: The image tower, whatever was trained of it and whatever its image size is now.
        origin: Where they came from.
        folder: Where to; made where it is absent.

    Returns:
        The fingerprint of what was written.

    Raises:
        TowerError: where their tokenizer is not open_clip's, and so not in such files.
    """
    from safetensors.torch import save as to_bytes

    tokenizer = origin.config["text_cfg"].get("hf_tokenizer_name")
    if tokenizer:
        raise TowerError(
            f"name: the towers of '{origin.spec.name}' cannot be included, for their tokenizer is '{tokenizer}'"
        )
    size: Any = image.image_size
    config = {**origin.config, "vision_cfg": {**origin.config["vision_cfg"], "image_size": size}}
    weights = _weights_of(text, image, origin)
    preprocess = {name: origin.preprocess[name] for name in ("mean", "std", "interpolation")}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHT_NAMES[0], to_bytes(weights))
    told = {"model_cfg": config, "preprocess_cfg": preprocess}
    write_atomically(folder / CONFIG_NAME, f"{json.dumps(told, indent=1)}\n".encode())
    return weights_fingerprint(weights, architecture={"quick_gelu": False, **config})


def _weights_of(text: nn.Module, image: nn.Module, origin: TowerOrigin) -> dict[str, Tensor]:
    """All weights of the open_clip model, by its names: the halves hold its modules, but for the prefix of texts."""
    prefix = "text." if origin.config.get("custom_text", False) else ""
    named = {f"{prefix}{name}": value for name, value in text.state_dict().items()}
    return {
        name: value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for name, value in {**named, **image.state_dict(), **origin.rest}.items()
    }


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
