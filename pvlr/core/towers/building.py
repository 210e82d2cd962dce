"""Construction of open_clip models with random weights from configurations."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pvlr.core.towers.concepts import ConceptHead
from pvlr.core.towers.errors import TowerError, reason, shown
from pvlr.core.towers.files.hf_files import TextConfig
from pvlr.core.towers.image.timm_family import fit_size
from pvlr.core.towers.text.base import FrozenTextTower
from pvlr.core.towers.text.hugging_face import HFTextTower
from pvlr.core.towers.text.open_clip import OpenClipTextTower

__all__ = ["as_described", "build_model", "build_text_tower", "has_custom_text", "refuse_unsupported"]

SMALL_TRUNK = "test_vit"  # timm's smallest, a placeholder that is replaced afterwards
CONTEXT_LENGTH = 77  # open_clip's, where a configuration has none
PROJECTIONS = (None, "", "none", "linear", "mlp")
# Not open_clip's max_pooler, which fails on the integer masks that it is given.
POOLERS = (None, "mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler")


def refuse_unsupported(name: str, config: Mapping[str, Any]) -> None:
    """Raise an error for configurations known not to work, before anything is built or fetched."""
    if "multimodal_cfg" in config:
        raise TowerError(
            f"name: '{name}' is a CoCa model, which is not supported: both of its halves are pooled by tokens of their "
            "own"
        )
    text = config["text_cfg"]
    length = text.get("context_length", CONTEXT_LENGTH)
    if type(length) is not int or length < 1:
        raise TowerError(
            f"name: the configuration of '{name}' has text_cfg.context_length {shown(length)}, expected a whole number "
            "of at least 1"
        )
    for entry, known in (("hf_proj_type", PROJECTIONS), ("hf_pooler_type", POOLERS)):
        if entry in text and text[entry] not in known:
            raise TowerError(
                f"name: the configuration of '{name}' has text_cfg.{entry} {shown(text[entry])}, expected one of "
                f"{', '.join(filter(None, known))}"
            )


@contextmanager
def as_described(name: str) -> Iterator[None]:
    """Convert any error that a wrong entry of a configuration causes into a one-line :class:`TowerError`."""
    try:
        yield
    except TowerError:
        raise
    except Exception as err:
        raise TowerError(f"name: the configuration of '{name}' does not describe a model: {reason(err)}") from err


def has_custom_text(config: Mapping[str, Any]) -> bool:
    """Return whether open_clip's model has the text tower as a separate module, with weights under ``text.``."""
    return bool(config.get("custom_text", False)) or "hf_model_name" in config["text_cfg"]


def build_model(config: Mapping[str, Any], text_config: TextConfig | None = None) -> Any:
    """Build an open_clip model with random weights.

    Args:
        config: open_clip's configuration of it.
        text_config: The configuration of its Hugging Face text encoder, where it has one.

    Raises:
        TowerError: where it has such an encoder, and its configuration is not given: open_clip would fetch it.
    """
    from open_clip import CLIP, CustomTextCLIP

    rest = {key: value for key, value in config.items() if key != "custom_text"}
    # Every patch is needed, in training too; and no file but the requested one is fetched.
    rest["vision_cfg"] = {**config["vision_cfg"], "patch_dropout": 0.0}
    concepts = rest["vision_cfg"].pop("concepts", None)
    sizes = rest["vision_cfg"].pop("timm_model_kwargs", None)
    if sizes is not None:
        rest["vision_cfg"]["timm_model_name"] = SMALL_TRUNK
    if "timm_model_name" in config["vision_cfg"]:
        rest["vision_cfg"]["timm_model_pretrained"] = False
    if text_config is None and config["text_cfg"].get("hf_model_name"):
        raise TowerError(
            f"text_cfg.hf_model_name: expected the configuration of {shown(config['text_cfg']['hf_model_name'])}"
        )
    if text_config is not None:
        projection = config["text_cfg"].get("hf_proj_type", "mlp") or None
        rest["text_cfg"] = {
            **config["text_cfg"],
            "hf_model_name": str(text_config.folder),
            "hf_model_pretrained": False,
            "hf_proj_type": None if projection == "none" else projection,
        }
    kind: type[nn.Module] = CustomTextCLIP if has_custom_text(config) else CLIP
    model: Any = kind(**rest)
    if sizes is not None:
        _set_trunk(model.visual, config["vision_cfg"], sizes)
    if text_config is not None:
        model.text.float()  # its configuration may specify half precision
    if "timm_model_name" in config["vision_cfg"]:
        fit_size(model.visual)
    if concepts is not None:
        _add_concepts(model.visual, concepts, config["embed_dim"])
    return model


def build_text_tower(
    model: nn.Module,
    tokenizer: Callable[..., Tensor],
    config: Mapping[str, Any],
    text_config: TextConfig | None = None,
) -> FrozenTextTower:
    """Build the text tower of a model that :func:`build_model` made from the same configurations."""
    if text_config is None:
        return OpenClipTextTower(model, tokenizer)
    length = config["text_cfg"].get("context_length", CONTEXT_LENGTH)
    return HFTextTower(model, tokenizer, config=text_config.entries, context_length=length)


def _set_trunk(visual: Any, vision: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Replace the trunk by a timm image tower of the given sizes.

    This entry is pvlr's: open_clip takes timm's towers by name alone, and none has these sizes, or not with SigLIP's
    approximated GELU.
    """
    import timm

    if vision.get("timm_pool") != "map" or vision.get("timm_proj") != "none":
        raise TowerError("vision_cfg.timm_model_kwargs: expected timm_pool 'map' and timm_proj 'none' with it")
    name, size = vision["timm_model_name"], vision["image_size"]
    visual.trunk = timm.create_model(name, pretrained=False, num_classes=0, global_pool="map", img_size=size, **sizes)


def _add_concepts(visual: Any, options: Any, dim: int) -> None:
    """Replace a timm network's projection by a :class:`ConceptHead`; the entry is pvlr's, not open_clip's."""
    projection = getattr(getattr(visual, "head", None), "proj", None)
    if not isinstance(projection, nn.Linear) or not isinstance(options, dict):
        raise TowerError(
            "vision_cfg.concepts: expected an object, and a timm network with timm_proj 'linear', got another"
        )
    visual.head = ConceptHead(width=projection.in_features, dim=dim, **options)
