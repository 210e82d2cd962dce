"""timm's networks by their own names, but narrow and of few blocks: the same classes, poolings, patches and sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import timm
from timm.models import register_model, vision_transformer_hybrid
from timm.models.vitamin import VitCfg
from torch import nn

_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 4}
_STAGES = {"layers": (1, 1, 2, 2), "embed_dims": (8, 16, 32, 64)}
_STAGES_5 = {"layers": (1, 1, 2, 1, 2), "embed_dims": (4, 8, 16, 32, 64)}

# What makes a network small, by the beginning of its name; the longest beginning counts.
_SMALL: dict[str, dict[str, Any]] = {
    "convnext": {"depths": (1, 1, 2, 2), "dims": (8, 16, 24, 32)},
    "eva": _VIT,
    "fastvit": _STAGES,
    "fastvit_mci3": _STAGES_5,
    "fastvit_mci4": _STAGES_5,
    "swin": {"embed_dim": 16, "depths": (1, 1, 2, 2), "num_heads": (1, 2, 4, 8)},
    "vit_": _VIT,
    "vitamin": _VIT | {"embed_cfg": VitCfg(embed_dim=(8, 16, 32), depths=(1, 2, 1), stem_width=8, head_type="1d")},
}
_create_model, _ConvStem = timm.create_model, vision_transformer_hybrid.ConvStem


def small_trunk(name: str, **settings: Any) -> nn.Module:
    """timm's network of that name, made small; a network of another family as it is."""
    kind = max((start for start in _SMALL if name.startswith(start)), key=len, default=None)

    def narrow(channels: tuple[int, ...], **others: Any) -> nn.Module:
        return _ConvStem(channels=(8, 8, 32), **others)

    with mock.patch.object(vision_transformer_hybrid, "ConvStem", narrow):  # MobileCLIP-B's, of a fixed width
        return _create_model(name, **(_SMALL.get(kind, {}) | settings))


@contextmanager
def small_trunks() -> Iterator[None]:
    """Give a small network to whoever asks timm for one."""
    with mock.patch.object(timm, "create_model", small_trunk):
        yield


def register_small(name: str, **settings: Any) -> str:
    """Put a small network under a name of its own into timm's registry; returns that name."""

    def entry(pretrained: bool = False, **others: Any) -> nn.Module:
        return small_trunk(name, **(settings | others))

    entry.__name__ = f"pvlr_test_{name}"
    return register_model(entry).__name__
