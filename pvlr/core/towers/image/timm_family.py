"""timm's networks as image towers: a patch vector is the output of pooling and head for one position alone."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pvlr.core.protocols import ImageFeatures
from pvlr.core.towers.concepts import ConceptHead
from pvlr.core.towers.errors import TowerError, shown
from pvlr.core.towers.image.blocks import Block, Family, PatchFeatures, RunBlock, side, wider

__all__ = ["fit_size", "timm_family"]


class _Maps(NamedTuple):
    """Attribute names of the parts of a network that ends in a feature map, in the order they run."""

    stem: tuple[str, ...]
    stages: str
    end: tuple[str, ...]
    head: str


_MAPS = {
    "timm.models.convnext.ConvNeXt": _Maps(("stem",), "stages", ("norm_pre",), "head"),
    "timm.models.efficientnet.EfficientNet": _Maps(("conv_stem", "bn1"), "blocks", ("conv_head", "bn2"), "classifier"),
    "timm.models.fastvit.FastVit": _Maps(("stem",), "stages", ("final_conv",), "head"),
    "timm.models.swin_transformer.SwinTransformer": _Maps(("patch_embed",), "layers", ("norm",), "head"),
}
_TOKENS = ("timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva")


def timm_family(visual: Any, patch_features: PatchFeatures) -> Family:
    """Return the functions and sizes of an open_clip ``TimmModel``, and switch off its randomness in training.

    Raises:
        TowerError: naming the network, pooling or size for which patch vectors are not defined.
    """
    kind = _kind(visual.trunk)
    if kind not in (*_MAPS, *_TOKENS):
        known = ", ".join(name.rpartition(".")[2] for name in (*_MAPS, *_TOKENS))
        raise TowerError(f"image tower: expected one of timm's {known}, got timm's {type(visual.trunk).__name__}")
    if "pool" in dict(visual.head.named_children()):
        name = type(visual.head.pool).__name__
        raise TowerError(f"image tower: pooling by {name} is not supported, since its positions are of a whole map")
    family = _map_family(visual) if kind in _MAPS else _token_family(visual, patch_features)
    _switch_off_chance(visual)
    return family


def _kind(trunk: nn.Module) -> str:
    return f"{type(trunk).__module__}.{type(trunk).__qualname__}"


def _switch_off_chance(visual: Any) -> None:
    """Switch off dropout: every patch is needed in training too, and blocks run twice must return the same."""
    from timm.layers import DropBlock2d, DropPath

    for part in visual.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        elif isinstance(part, (DropPath, DropBlock2d)):
            part.drop_prob = 0.0
        elif type(part).__name__.startswith("PatchDropout"):
            part.prob = 0.0
        elif hasattr(part, "aug_active"):  # random shifts of rotary positions
            part.aug_active = False
    visual.trunk.drop_rate = 0.0  # EfficientNet's


def _nothing(visual: nn.Module, width: int) -> Float[Tensor, "1 w"]:
    return next(visual.parameters()).new_zeros(1, width)


def _width(pooled: Tensor) -> int:
    if pooled.ndim != 2:
        raise TowerError("image tower: expected a pooling over all positions, found none")
    return pooled.shape[1]


def _strict_size(visual: Any, embed: Any) -> None:
    """Require the image size that the network was built for; it takes no other until it is resized."""
    size, built = side(visual.image_size, "image"), side(embed.img_size, "image")
    if size != built:
        name = type(visual.trunk).__name__
        raise TowerError(f"image tower: timm's {name} takes images of {built} pixels, the configuration says {size}")


def fit_size(visual: Any) -> None:
    """Resize an open_clip ``TimmModel`` to the image size of its configuration: it is built for that of its name.

    Tables of positions and windows are resized; a network of convolutions has none.
    """
    trunk, size = visual.trunk, tuple(visual.image_size)
    if hasattr(trunk, "set_input_size") and tuple(trunk.patch_embed.img_size) != size:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # two warnings of torch about timm's interpolation of Swin's tables
            trunk.set_input_size(img_size=size)


def _resize(visual: Any, size: int) -> None:
    visual.image_size = (size, size)
    fit_size(visual)


# ------------------------------------------------------------------------------------------------------ feature maps


def _map_family(visual: Any) -> Family:
    trunk = visual.trunk
    size, stride = side(visual.image_size, "image"), int(trunk.feature_info[-1]["reduction"])
    if size % stride:
        name = type(trunk).__name__
        raise TowerError(
            f"image tower: timm's {name} needs an image_size that is a multiple of {stride}, the configuration says "
            f"{size}"
        )
    if hasattr(trunk, "patch_embed"):
        _strict_size(visual, trunk.patch_embed)
    with torch.no_grad():
        dim = _width(_pool_map(visual, _nothing(visual, trunk.num_features)))
    return Family(
        features=_map_features,
        resize=_resize,
        blocks=_map_blocks,
        tail=_map_tail,
        stride=stride,
        size=size,
        dim=dim,
        source_dim=_source_dim(visual),
        own_dim=wider(trunk.num_features, dim),
    )


def _named(trunk: Any, names: tuple[str, ...]) -> list[nn.Module]:
    return [getattr(trunk, name) for name in names]


def _map_blocks(visual: Any) -> list[Block]:
    stages = getattr(visual.trunk, _MAPS[_kind(visual.trunk)].stages)
    return [block for stage in stages for block in _stage_blocks(stage)]


def _stage_blocks(stage: Any) -> list[Block]:
    if isinstance(stage, nn.Sequential):  # EfficientNet's blocks reduce the map themselves
        return [(block,) for block in stage]
    before = [getattr(stage, name) for name in ("downsample", "pos_emb") if hasattr(stage, name)]
    first, *others = stage.blocks
    return [(*before, first), *((block,) for block in others)]


def _map_tail(visual: Any) -> list[nn.Module | nn.Parameter]:
    maps = _MAPS[_kind(visual.trunk)]
    return [*_named(visual.trunk, (*maps.end, maps.head)), visual.head]


def _map_features(visual: Any, images: Float[Tensor, "b 3 s s"], how: PatchFeatures, run: RunBlock) -> ImageFeatures:
    trunk, maps = visual.trunk, _MAPS[_kind(visual.trunk)]
    x = images
    for block in (_named(trunk, maps.stem), *_map_blocks(visual)):
        x = run(block, _in_turn(block), x)
    x = _in_turn(_named(trunk, maps.end))(x)
    source = trunk.forward_head(x)
    pooled = visual.head(source)
    x = rearrange(x, "b y x w -> b (y x) w" if _channels_last(trunk) else "b w y x -> b (y x) w")
    source = source if _source_dim(visual) else None
    patches = _each(partial(_pool_map, visual), x)
    own = x if wider(x.shape[-1], patches.shape[-1]) else None
    return ImageFeatures(patches=patches, pooled=pooled, source=source, own=own)


def _source_dim(visual: Any) -> int:
    """Return the width of the input of a classification head, which loses information; 0 for a projection."""
    return visual.head.width if isinstance(visual.head, ConceptHead) else 0


def _in_turn(block: Block) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        for part in block:
            x = part(x)
        return x

    return call


def _channels_last(trunk: Any) -> bool:
    return getattr(trunk, "output_fmt", "NCHW") == "NHWC"


def _each(call: Callable[[Tensor], Tensor], x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
    """Apply a head to each position, as one row each, like to whole pictures."""
    return rearrange(call(rearrange(x, "b n w -> (b n) w")), "(b n) d -> b n d", n=x.shape[1])


def _pool_map(visual: Any, x: Float[Tensor, "r w"]) -> Tensor:
    """Apply pooling and head to maps of one position."""
    shape = "r w -> r 1 1 w" if _channels_last(visual.trunk) else "r w -> r w 1 1"
    head = getattr(visual.head, "of_patches", visual.head)
    return head(visual.trunk.forward_head(rearrange(x, shape)))  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------------------- tokens


def _token_family(visual: Any, patch_features: PatchFeatures) -> Family:
    from timm.layers import AttentionPoolLatent

    trunk, embed = visual.trunk, visual.trunk.patch_embed
    if trunk.global_pool not in ("avg", "avgmax", "max", "token", "map"):
        raise TowerError(
            f"image tower: expected timm's pooling avg, avgmax, max, token or map, got {shown(trunk.global_pool)}"
        )
    pool = trunk.attn_pool
    if pool is not None and (type(pool) is not AttentionPoolLatent or pool.pool != "token"):
        raise TowerError(f"image tower: expected timm's AttentionPoolLatent of one token, got {type(pool).__name__}")
    if pool is not None and pool.pos_embed is not None:
        raise TowerError("image tower: an attention pool with positions of its own is not supported")
    if pool is not None and patch_features == "final" and len(visual.head) == 0 and isinstance(trunk.head, nn.Identity):
        raise TowerError("patch_features: 'final' needs a projection after the pooling, and this tower has none")
    if getattr(trunk, "rope_mixed", False):
        raise TowerError("image tower: rotary positions of each block's own (rope_mixed) are not supported")
    if not hasattr(embed, "backbone") or trunk.pos_embed is not None:
        _strict_size(visual, embed)
    with torch.no_grad():
        dim = _width(_token_head(visual, _nothing(visual, trunk.embed_dim)))
    return Family(
        features=_token_features,
        resize=_resize,
        blocks=_token_blocks,
        tail=_token_tail,
        stride=int(embed.feat_ratio()),
        size=side(visual.image_size, "image"),
        dim=dim,
        own_dim=wider(trunk.embed_dim, dim),
    )


def _token_blocks(visual: Any) -> list[Block]:
    return [(block,) for block in visual.trunk.blocks]


def _token_tail(visual: Any) -> list[nn.Module | nn.Parameter]:
    trunk = visual.trunk
    parts = (trunk.norm, trunk.attn_pool, trunk.fc_norm, trunk.head, visual.head)
    return [part for part in parts if part is not None]


def _token_features(visual: Any, images: Float[Tensor, "b 3 s s"], how: PatchFeatures, run: RunBlock) -> ImageFeatures:
    trunk, options = visual.trunk, {}
    x = trunk._pos_embed(run((trunk.patch_embed,), trunk.patch_embed, images))
    if isinstance(x, tuple):  # with rotary positions, an argument of every block
        x, options["rope"] = x
    x = trunk.norm_pre(x)
    *blocks, last = trunk.blocks
    for block in blocks:
        x = run((block,), partial(block, **options), x)
    final = trunk.norm(run((last,), partial(last, **options), x))
    pooled = visual.head(trunk.forward_head(final))
    if how == "value" and trunk.global_pool == "token":
        # Each token attends to itself alone, so that its attention is its own value.
        alone = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        final = trunk.norm(run((last,), partial(last, attn_mask=alone, **options), x))
    tokens = final[:, trunk.num_prefix_tokens :]
    if how == "value" and trunk.attn_pool is not None:
        tokens = _pool_token(trunk.attn_pool, tokens)
    patches = _each(partial(_token_head, visual), tokens)
    return ImageFeatures(patches=patches, pooled=pooled, own=tokens if wider(x.shape[-1], patches.shape[-1]) else None)


def _pool_token(pool: Any, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
    """Apply the attention pool to each token alone: attention to a single token is its value, for any query."""
    x = pool.proj(F.linear(x, pool.kv.weight.chunk(2)[1], None if pool.kv.bias is None else pool.kv.bias.chunk(2)[1]))
    return x if pool.mlp is None else x + pool.mlp(pool.norm(x))


def _token_head(visual: Any, x: Float[Tensor, "r w"]) -> Tensor:
    """Apply the layers after the pooling; the mean or maximum of one token is that token."""
    trunk = visual.trunk
    return visual.head(trunk.head(trunk.fc_norm(x)))  # type: ignore[no-any-return]
