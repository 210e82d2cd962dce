"""From a configuration to an open_clip model of random weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from pvlr.core.towers.sources import TowerError, reason

__all__ = ["as_described", "build_model", "refuse_unsupported"]


def refuse_unsupported(name: str, config: Mapping[str, Any]) -> None:
    """Refuse what is known not to work, before anything is built or fetched."""
    if "multimodal_cfg" in config:
        raise TowerError(f"name: '{name}' is a CoCa model, which is not supported")
    if "hf_model_name" in config["text_cfg"]:
        raise TowerError(f"name: '{name}' has a text tower of the class HFTextEncoder, which is not supported")


@contextmanager
def as_described(name: str) -> Iterator[None]:
    """Make one sentence of whatever a wrong entry in a configuration leads to."""
    try:
        yield
    except TowerError:
        raise
    except Exception as err:
        raise TowerError(f"name: the configuration of '{name}' does not describe a model: {reason(err)}") from err


def build_model(config: Mapping[str, Any]) -> Any:
    """An open_clip model of random weights."""
    from open_clip import CLIP, CustomTextCLIP

    rest = {key: value for key, value in config.items() if key != "custom_text"}
    # Every patch is needed, in training too; and no file but the one asked for is fetched.
    rest["vision_cfg"] = {**config["vision_cfg"], "patch_dropout": 0.0}
    if "timm_model_name" in config["vision_cfg"]:
        rest["vision_cfg"]["timm_model_pretrained"] = False
    kind: type[nn.Module] = CustomTextCLIP if config.get("custom_text", False) else CLIP
    model: Any = kind(**rest)
    if "timm_model_name" in config["vision_cfg"]:
        _fit_size(model.visual)
    return model


def _fit_size(visual: Any) -> None:
    """Bring a timm network to the image size of the configuration: it is built for that of its name alone."""
    trunk, size = visual.trunk, tuple(visual.image_size)
    built = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if built is not None and tuple(built) != size and getattr(trunk, "pos_embed", None) is not None:
        trunk.set_input_size(img_size=size)
