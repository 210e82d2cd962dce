"""Small open_clip models of every supported kind, no parameter of which is zero or default."""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from helpers.small_trunks import register_small
from pvlr.core.towers.image.tower import OpenClipImageTower

VOCABULARY = 49408
SENTENCES = ("a photo of a dog.", "a photo of a traffic light.", "a photo of a tv monitor seen from afar.")

_TEXT = {"context_length": 24, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": 3}
_VIT = {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 16}
_SIGLIP_TEXT = _TEXT | {
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}

# One entry per way of computing that open_clip's published models have.
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": _VIT, "text_cfg": _TEXT},
    "vit_avg": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": _VIT
        | {"pool_type": "avg", "final_ln_after_pool": True, "ls_init_value": 0.5, "no_ln_pre": True}
        | {"pos_embed_type": "sin_cos_2d"},
        "text_cfg": _TEXT | {"pool_type": "eos", "eos_id": VOCABULARY - 1, "ls_init_value": 0.5, "proj_bias": True},
    },
    "custom_blocks": {
        "embed_dim": 24,
        "vision_cfg": _VIT | {"qk_norm": True},
        "text_cfg": _TEXT | {"qk_norm": True, "scale_fc": True},
    },
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 96, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None, "head_width": 64},
        "text_cfg": _TEXT,
    },
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": _SIGLIP_TEXT,
    },
    "siglip_projected": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": ""},
        "text_cfg": _SIGLIP_TEXT | {"pool_type": "argmax"},
    },
}

# One entry per way of pooling and kind of network among timm's; the text tower is as above.
TIMM: dict[str, dict[str, Any]] = {
    kind: {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": size, "timm_model_name": name, "timm_pool": pool, "timm_proj": projection},
        "text_cfg": _TEXT,
    }
    for kind, name, size, pool, projection in (
        ("convnext", register_small("convnext_base"), 96, "", "linear"),
        ("convnext_mlp", register_small("convnext_large"), 96, "", "mlp"),
        ("efficientnet", "test_efficientnet", 96, "avg", "linear"),
        ("fastvit", register_small("fastvit_mci0"), 96, "avg", None),
        ("fastvit_wide", register_small("fastvit_mci3"), 128, "avg", None),
        ("swin", register_small("swin_base_patch4_window7_224", img_size=128), 128, "", "linear"),
        ("vitamin", register_small("vitamin_small_224", img_size=64), 64, "", "linear"),
        ("gap", register_small("vit_medium_patch16_gap_256", img_size=64), 64, "", "linear"),
        ("mobileclip", register_small("vit_base_mci_224", img_size=64), 64, "token", None),
        ("token", register_small("vit_large_patch14_clip_224", img_size=56), 56, "token", None),
        ("eva", register_small("eva_giant_patch14_224", img_size=56), 56, "token", None),
        ("eva_rotary", register_small("eva02_base_patch16_clip_224", img_size=64), 64, "token", None),
        ("eva_post_norm", register_small("eva02_enormous_patch14_clip_224", img_size=56), 56, "token", None),
        ("pe_core", register_small("vit_pe_core_tiny_patch16_384", img_size=64), 64, "map", None),
    )
}


def small_model(kind: str, seed: int = 0, **changes: dict[str, Any]) -> Any:
    """A perturbed model; ``changes`` overlay ``text_cfg`` and ``vision_cfg``."""
    from open_clip import CLIP, CustomTextCLIP

    config = deepcopy((CONFIGS | TIMM)[kind])
    for part, overlay in changes.items():
        config[part] |= overlay
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (CustomTextCLIP if config.pop("custom_text", False) else CLIP)(**config)
    return perturb(model, seed).eval()


@torch.no_grad()
def perturb(model: nn.Module, seed: int) -> nn.Module:
    """Move every parameter and every running statistic away from where it started."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    for parameter in model.parameters():
        parameter.add_(noise(parameter), alpha=0.05 if parameter.ndim > 1 else 0.2)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(noise(buffer), alpha=0.2)
        elif name.endswith("running_var"):
            buffer.mul_(torch.exp(0.3 * noise(buffer)))
    return model


def write_folder(folder: Path, kind: str, seed: int = 0) -> Any:
    """Write a model the way open_clip's ``local-dir:`` reads it; returns the model."""
    from safetensors.torch import save_file

    model = small_model(kind, seed)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    config = {"model_cfg": (CONFIGS | TIMM)[kind], "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


class WordTokenizer:
    """One token per word, padded and cut as other tokenizers are; stands in for those that need a download."""

    def __init__(self, begin: Sequence[int], end: Sequence[int], pad: int, last: int | None = None) -> None:
        self.begin, self.end, self.pad, self.last = list(begin), list(end), pad, last

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        room = context_length - (self.last is not None)
        rows = []
        for text in texts:
            words = [5 + sum(word.encode()) * 31 % 20_000 for word in text.lower().replace(".", " .").split()]
            words = words[: room - len(self.begin) - len(self.end)]
            row = [*self.begin, *words, *self.end]
            rows.append(row + [self.pad] * (room - len(row)) + ([] if self.last is None else [self.last]))
        return torch.tensor(rows)


def tokenizer_for(kind: str, context_length: int = 24) -> Callable[..., Tensor]:
    """CLIP's own tokenizer, or for SigLIP one that pads, ends and begins as SigLIP's does."""
    from open_clip import SimpleTokenizer

    if kind == "siglip":
        return WordTokenizer(begin=(), end=(1,), pad=1)
    return SimpleTokenizer(context_length=context_length)


def name_of(kind: str) -> str:
    """The name in open_clip's registry of a small model, once :func:`register` has run."""
    return f"pvlr-test-{kind}".replace("siglip", "sigmoid")  # from that word in a name open_clip infers a tokenizer


def register(folder: Path) -> None:
    """Put small models under names of open_clip's own registry: ``pvlr-test-vit`` and so on."""
    for kind, config in CONFIGS.items():
        (folder / f"{name_of(kind)}.json").write_text(json.dumps(config))
    hub_tokenizer = json.loads(json.dumps(CONFIGS["siglip"]))
    hub_tokenizer["text_cfg"]["hf_tokenizer_name"] = "some-organisation/some-tokenizer"
    (folder / "pvlr-test-hub-tokenizer.json").write_text(json.dumps(hub_tokenizer))
    bad = json.loads(json.dumps(CONFIGS["vit"]))
    bad["text_cfg"]["colour"] = "red"
    (folder / "pvlr-test-bad.json").write_text(json.dumps(bad))
    uneven = json.loads(json.dumps(CONFIGS["vit"]))
    uneven["text_cfg"]["proj_type"] = "none"
    (folder / "pvlr-test-uneven.json").write_text(json.dumps(uneven))
    open_clip.add_model_config(folder)


def fresh(kind: str, how: str = "value") -> OpenClipImageTower:
    return OpenClipImageTower(small_model(kind).visual, patch_features=how)


def some_images(tower: OpenClipImageTower, count: int = 2, seed: int = 0) -> Tensor:
    shape = (count, 3, tower.image_size, tower.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
