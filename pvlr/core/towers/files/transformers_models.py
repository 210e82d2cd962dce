"""Conversion of transformers' configurations and weights of CLIP and SigLIP to open_clip's form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvlr.core.towers.errors import TowerError, require_three, shown

__all__ = ["PREFIXES", "convert", "describe", "described_preprocess", "has_their_names"]

PREFIXES = ("text_model", "vision_model", "visual_projection", "text_projection", "logit_scale", "logit_bias")
"""First parts of the names of transformers' weights."""
TRUNK = "vit_base_patch16_siglip_224"  # timm's image tower of SigLIP; its sizes are given beside the name
TIMM_ACTS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, of which open_clip has these

Entries = Mapping[str, Any]


class _Kind(NamedTuple):
    """Default values of configurations of one type, since transformers saves only values that differ."""

    vision: dict[str, Any]
    text: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_SHARED = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP_SHARED = {**_SIZES, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
KINDS = {
    "clip": _Kind(
        vision={**_SIZES, **_CLIP_SHARED, "image_size": 224, "patch_size": 32, "num_channels": 3},
        text={
            **_CLIP_SHARED,
            **{"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8},
            **{"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
        },
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    "siglip": _Kind(
        vision={**_SIGLIP_SHARED, "image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True},
        text={**_SIGLIP_SHARED, "vocab_size": 32000, "max_position_embeddings": 64},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}


def describe(told: Any, path: Path) -> dict[str, Any]:
    """Return open_clip's configuration of a model of transformers'.

    It computes the same as transformers: SigLIP's blocks and pool have the approximated GELU it was trained with,
    where open_clip's own configurations of most of its sizes have the exact one.

    Args:
        told: The content of its ``config.json``.
        path: That file, for messages.

    Raises:
        TowerError: naming the entry that is not of a CLIP or SigLIP that open_clip supports.
    """
    if not isinstance(told, dict):
        raise TowerError(f"{path}: expected the configuration of a model, got {shown(told)}")
    if "auto_map" in told:
        raise TowerError(f"{path}: expected a model of transformers' own, this one brings code (auto_map)")
    kind = told.get("model_type")
    if kind == "siglip2":
        raise TowerError(
            f"{path}: expected the model_type 'clip' or 'siglip', found 'siglip2' (NaFlex), whose number of patches "
            "differs from image to image; SigLIP 2 of one size has the type 'siglip'"
        )
    if not isinstance(kind, str) or kind not in KINDS:
        raise TowerError(f"{path}: expected the model_type 'clip' or 'siglip', found {shown(kind)}")
    if "quantization_config" in told:
        raise TowerError(f"{path}: expected weights in floating point, found a quantization_config")
    return (_describe_clip if kind == "clip" else _describe_siglip)(_Entries(told, path, KINDS[kind]))


def described_preprocess(told: Any, path: Path, config: Entries) -> dict[str, Any]:
    """Return the image preprocessing in open_clip's form.

    Args:
        told: The content of ``preprocessor_config.json``; None where there is none, for the usual one of its type.
        path: That file, for messages.
        config: The result of :func:`describe`.

    Raises:
        TowerError: naming the entry that is not supported.
    """
    usual = KINDS["siglip" if "timm_model_name" in config["vision_cfg"] else "clip"]
    told = {} if told is None else told
    if not isinstance(told, dict):
        raise TowerError(f"{path}: expected the preprocessing of images, got {shown(told)}")
    factor = told.get("rescale_factor", 1 / 255)
    if told.get("do_rescale", True) is not True or type(factor) is not float or abs(factor * 255 - 1) > 1e-6:
        raise TowerError(f"{path}: expected do_rescale with the factor 1/255, got {shown(factor)}")
    size = config["vision_cfg"]["image_size"]
    cropped = told.get("do_center_crop", False) is True and told.get("crop_size") is not None
    _require_size(path, "crop_size" if cropped else "size", told.get("crop_size" if cropped else "size", size), size)
    resample = told.get("resample", 3)
    if type(resample) is not int or resample not in RESAMPLING:
        raise TowerError(f"{path}: expected resample to be 0, 2 or 3, got {shown(resample)}")
    plain = told.get("do_normalize", True) is False
    mean = [0.0] * 3 if plain else told.get("image_mean", list(usual.mean))
    std = [1.0] * 3 if plain else told.get("image_std", list(usual.std))
    require_three(path, "image_mean", mean, zero=True)
    require_three(path, "image_std", std, zero=False)
    return {"mean": mean, "std": std, "interpolation": RESAMPLING[resample]}


def _require_size(path: Path, entry: str, value: Any, size: int) -> None:
    sides = list(value.values()) if isinstance(value, dict) else [value]
    if "shortest_edge" in (value if isinstance(value, dict) else {}):
        sides = [value["shortest_edge"]]
    if any(side != size for side in sides):
        raise TowerError(f"{path}: expected the {entry} of images that the tower has, {size}, got {shown(value)}")


class _Entries:
    """A configuration with default values, each entry checked for its type."""

    def __init__(self, data: Entries, path: Path, kind: _Kind) -> None:
        self.data, self.path = data, path
        parts = {}
        for name, usual in (("vision", kind.vision), ("text", kind.text)):
            # Where both are present, transformers takes the older entry.
            entry = f"{name}_config_dict" if data.get(f"{name}_config_dict") is not None else f"{name}_config"
            given = data.get(entry) or {}
            if not isinstance(given, dict):
                raise self.refusal(entry, "an object", given)
            if "auto_map" in given:
                raise TowerError(f"{path}: expected a model of transformers' own, this one brings code (auto_map)")
            parts[name] = {**usual, **given}
        self.parts = parts

    def refusal(self, entry: str, expected: str, found: object) -> TowerError:
        return TowerError(f"{self.path}: expected {entry} to be {expected}, got {shown(found)}")

    def number(self, part: str, entry: str) -> int:
        """Return an entry that must be a positive integer."""
        value = self.parts[part][entry]
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]  # Height and width.
        if type(value) is not int or not 0 < value < 10_000_000:
            raise self.refusal(f"{part}_config.{entry}", "a positive integer", value)
        return value

    def one_of(self, part: str, entry: str, known: tuple[Any, ...]) -> Any:
        """Return an entry that must be one of ``known``."""
        value = self.parts[part][entry]
        if not any(value == other and type(value) is type(other) for other in known):
            raise self.refusal(f"{part}_config.{entry}", " or ".join(map(repr, known)), value)
        return value

    def epsilon(self, part: str) -> float:
        value = self.parts[part]["layer_norm_eps"]
        if type(value) is not float or not 0 < value < 1:
            raise self.refusal(f"{part}_config.layer_norm_eps", "a number above 0", value)
        return value

    def mlp_ratio(self, part: str) -> float:
        """Return the hidden width as a multiple of the width; towers compute it from this ratio, rounding down."""
        width, hidden = self.number(part, "hidden_size"), self.number(part, "intermediate_size")
        return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width

    def head_width(self, part: str) -> int:
        width, heads = self.number(part, "hidden_size"), self.number(part, "num_attention_heads")
        if width % heads:
            raise self.refusal(f"{part}_config.num_attention_heads", f"a divisor of the width {width}", heads)
        return width // heads

    def text(self) -> dict[str, Any]:
        """Return the entries that text towers of both types share."""
        self.head_width("text")
        return {
            "context_length": self.number("text", "max_position_embeddings"),
            "vocab_size": self.number("text", "vocab_size"),
            "width": self.number("text", "hidden_size"),
            "heads": self.number("text", "num_attention_heads"),
            "layers": self.number("text", "num_hidden_layers"),
            "mlp_ratio": self.mlp_ratio("text"),
        }


def _describe_clip(entries: _Entries) -> dict[str, Any]:
    entries.one_of("vision", "num_channels", (3,))
    act = entries.one_of("vision", "hidden_act", ("quick_gelu", *TIMM_ACTS))
    if entries.parts["text"]["hidden_act"] != act:
        raise entries.refusal(
            "text_config.hidden_act", f"{act!r} as in vision_config", entries.parts["text"]["hidden_act"]
        )
    embed_dim = entries.data.get("projection_dim", 512)
    if type(embed_dim) is not int or not 0 < embed_dim < 10_000_000:
        raise entries.refusal("projection_dim", "a positive integer", embed_dim)
    vision: dict[str, Any] = {
        "image_size": entries.number("vision", "image_size"),
        "patch_size": entries.number("vision", "patch_size"),
        "layers": entries.number("vision", "num_hidden_layers"),
        "width": entries.number("vision", "hidden_size"),
        "head_width": entries.head_width("vision"),
        "mlp_ratio": entries.mlp_ratio("vision"),
    }
    text = entries.text() | _pooling(entries, entries.number("text", "vocab_size"))
    for part, config in (("vision", vision), ("text", text)):
        if entries.epsilon(part) != 1e-5:
            config["norm_kwargs"] = {"eps": entries.epsilon(part)}
        if TIMM_ACTS.get(act) == "gelu_tanh":
            config["act_kwargs"] = {"approximate": "tanh"}
    return {"embed_dim": embed_dim, "quick_gelu": act == "quick_gelu", "vision_cfg": vision, "text_cfg": text}


def _pooling(entries: _Entries, vocabulary: int) -> dict[str, Any]:
    end = entries.parts["text"]["eos_token_id"]
    if type(end) is not int or not 0 <= end < vocabulary:
        raise entries.refusal("text_config.eos_token_id", f"a token of the vocabulary of {vocabulary:,}", end)
    # transformers preserves an old mistake in this way: 2 means the largest id of a text, as OpenAI pools.
    return {} if end == 2 else {"pool_type": "eos", "eos_id": end}


def _describe_siglip(entries: _Entries) -> dict[str, Any]:
    entries.one_of("vision", "num_channels", (3,))
    entries.one_of("vision", "vision_use_head", (True,))
    entries.one_of("vision", "layer_norm_eps", (1e-6,))
    entries.head_width("vision")
    act = TIMM_ACTS[entries.one_of("vision", "hidden_act", tuple(TIMM_ACTS))]
    embed_dim, size = entries.number("vision", "hidden_size"), entries.number("vision", "image_size")
    projected = entries.parts["text"].get("projection_size")
    projected = entries.number("text", "hidden_size") if projected is None else projected
    if projected != embed_dim:
        raise entries.refusal("text_config.projection_size", f"{embed_dim}, the width of images", projected)
    text = entries.text()
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    text |= {"norm_kwargs": {"eps": entries.epsilon("text")}}
    if TIMM_ACTS[entries.one_of("text", "hidden_act", tuple(TIMM_ACTS))] == "gelu_tanh":
        text["act_kwargs"] = {"approximate": "tanh"}
    trunk = {
        "patch_size": entries.number("vision", "patch_size"),
        "embed_dim": embed_dim,
        "depth": entries.number("vision", "num_hidden_layers"),
        "num_heads": entries.number("vision", "num_attention_heads"),
        "mlp_ratio": entries.mlp_ratio("vision"),
        "act_layer": act,
    }
    vision = {"image_size": size, "timm_model_name": TRUNK, "timm_pool": "map", "timm_proj": "none"}
    vision["timm_model_kwargs"] = trunk
    return {"embed_dim": embed_dim, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}


# --------------------------------------------------------------------------------------------------------- weights

# Prefixes of names, and inner parts of the names in a block: transformers' and open_clip's, transformers' and timm's.
_TEXT = {
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
}
_CLIP = _TEXT | {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
}
_SIGLIP = {source: f"text.{target}" for source, target in _TEXT.items()} | {
    "text_model.head.": "text.text_projection.",
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.q.": "visual.trunk.attn_pool.q.",
    "vision_model.head.attention.kv.": "visual.trunk.attn_pool.kv.",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
}
_OPEN_CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.qkv.": "attn.in_proj_",
    "self_attn.out_proj": "attn.out_proj",
}
_TIMM_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.qkv": "attn.qkv",
    "self_attn.out_proj": "attn.proj",
}


def has_their_names(state: Mapping[str, Tensor]) -> bool:
    """Return whether weights have transformers' names, and :func:`convert` applies to them."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of transformers' CLIP or SigLIP to open_clip's names; unknown names stay as they are.

    Args:
        state: Weights by transformers' names.

    Raises:
        ValueError: naming a weight that is missing where several are joined.
    """
    of_siglip = "vision_model.head.probe" in state
    converted = {}
    for name, value in _joined(state).items():
        if not name.endswith(".position_ids"):  # 0, 1, 2, … in files of older versions
            new_name = _placed(name, of_siglip)
            converted[new_name] = _turned(new_name, value)
    return converted


def _joined(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the matrices of queries, keys and values of a block, and those of keys and values of the pool."""
    joined = dict(state)
    for name in state:
        before, separator, kind = name.partition(".self_attn.q_proj.")
        if separator:
            parts = [f"{before}.self_attn.{part}_proj.{kind}" for part in "qkv"]
            for part in parts:
                if part not in joined:
                    raise ValueError(f"no weight '{part}'")
            joined[f"{before}.self_attn.qkv.{kind}"] = torch.cat([joined.pop(part) for part in parts])
        before, separator, kind = name.partition("head.attention.in_proj_")
        if separator:
            query, key, value = joined.pop(name).chunk(3)
            joined[f"{before}head.attention.q.{kind}"] = query
            joined[f"{before}head.attention.kv.{kind}"] = torch.cat([key, value])
    return joined


def _placed(name: str, of_siglip: bool) -> str:
    prefixes = _SIGLIP if of_siglip else _CLIP
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    if prefix is None:
        return name
    new_name = prefixes[prefix] + name.removeprefix(prefix)
    if ".encoder.layers." in name:
        block = _TIMM_BLOCK if new_name.startswith("visual.trunk.") else _OPEN_CLIP_BLOCK
        for part, other in block.items():
            new_name = new_name.replace(f".{part}", f".{other}")
    return new_name


def _turned(name: str, value: Tensor) -> Tensor:
    if name in ("text_projection", "visual.proj") and value.ndim == 2:
        return value.T  # transformers stores them as linear layers.
    return value[None] if name == "visual.trunk.pos_embed" else value
