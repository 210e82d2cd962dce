"""Recognition of open_clip's architectures by the shapes of the weights in a file."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from pvlr.core.towers.files.states import plain_names, read_state
from pvlr.core.towers.files.transformers_models import PREFIXES, convert, has_their_names

__all__ = ["names_of", "names_of_file"]

TOPS = ("visual", "text", "transformer", "token_embedding", "ln_final", *PREFIXES)
Signature = tuple[Any, ...]


def names_of_file(path: Path) -> list[str]:
    """Return open_clip's names of the towers whose weights a file may contain; none where it cannot be read.

    Args:
        path: The file of weights.
    """
    try:
        state = plain_names(read_state(path), TOPS)
        return names_of(convert(state) if has_their_names(state) else state)
    except Exception:  # Errors of the file are raised when it is loaded.
        return []


def names_of(state: Mapping[str, Tensor]) -> list[str]:
    """Return open_clip's names of the towers with weights of these shapes; timm's image towers are not recognised.

    Args:
        state: Weights by open_clip's names.
    """
    import open_clip

    found = _of_weights(state)
    if found is None:
        return []
    return [name for name in open_clip.list_models() if found == _of_config(open_clip.get_model_config(name))]


def _of_weights(state: Mapping[str, Tensor]) -> Signature | None:
    text = "text." if "text.positional_embedding" in state else ""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if "visual.conv1.weight" not in shapes or f"{text}positional_embedding" not in shapes:
        return None
    vision = (
        shapes.get("visual.positional_embedding", shapes.get("visual.attnpool.positional_embedding", (0,)))[0],
        shapes["visual.conv1.weight"][0] if "visual.class_embedding" in shapes else None,
        shapes["visual.conv1.weight"][-1] if "visual.class_embedding" in shapes else None,
        _blocks(shapes, "visual.transformer.resblocks."),
        tuple(_blocks(shapes, f"visual.layer{number}.") for number in (1, 2, 3, 4)),
    )
    texts = (
        shapes[f"{text}positional_embedding"],
        shapes.get(f"{text}token_embedding.weight", (0,))[0],
        _blocks(shapes, f"{text}transformer.resblocks."),
        shapes.get("visual.proj", shapes.get("visual.attnpool.c_proj.bias", (0,)))[-1],
    )
    return vision + texts


def _blocks(shapes: Mapping[str, Any], before: str) -> int:
    return len({name.removeprefix(before).split(".")[0] for name in shapes if name.startswith(before)})


def _of_config(config: Mapping[str, Any]) -> Signature | None:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    if "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]:
        return None
    vision = {**asdict(CLIPVisionCfg()), **config["vision_cfg"]}
    text = {**asdict(CLIPTextCfg()), **config["text_cfg"]}
    is_vit = isinstance(vision["layers"], int)
    side = vision["image_size"] // (vision["patch_size"] if is_vit else 32)
    return (
        side * side + 1,
        vision["width"] if is_vit else None,
        vision["patch_size"] if is_vit else None,
        vision["layers"] if is_vit else 0,
        (0, 0, 0, 0) if is_vit else tuple(vision["layers"]),
        (text["context_length"], text["width"]),
        text["vocab_size"],
        text["layers"],
        config["embed_dim"],
    )
