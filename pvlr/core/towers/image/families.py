"""The kinds of image towers that open_clip has: features, sizes and blocks of each."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pvlr.core.functional import attend, merge_heads, split_heads
from pvlr.core.protocols import ImageFeatures
from pvlr.core.towers.errors import TowerError, shown
from pvlr.core.towers.image.blocks import Block, Family, PatchFeatures, RunBlock, side, wider
from pvlr.core.towers.image.timm_family import timm_family

__all__ = ["family_of", "resize_positions"]


def resize_positions(table: Float[Tensor, "t w"], grid: int) -> Float[Tensor, "u w"]:
    """Interpolate position embeddings of one class token and a square grid to another grid, as open_clip does.

    Args:
        table: ``1 + g²`` rows of width ``w``: the class token, then the grid row by row.
        grid: Side of the new grid.

    Returns:
        ``1 + grid²`` rows; the class token's row keeps its value.

    Example:
        >>> resize_positions(torch.ones(1 + 7 * 7, 4), grid=14).shape
        torch.Size([197, 4])
    """
    old = round((len(table) - 1) ** 0.5)
    if old * old != len(table) - 1:
        raise TowerError(f"positions: expected one class token and a square grid, got {len(table)} rows")
    cells = rearrange(table[1:], "(y x) w -> 1 w y x", y=old)
    cells = F.interpolate(cells, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], rearrange(cells, "1 w y x -> (y x) w")])


def family_of(visual: nn.Module, patch_features: PatchFeatures) -> Family:
    """Recognise an open_clip image tower by its class.

    Raises:
        TowerError: naming the class or setting that is not supported.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if type(visual) is VisionTransformer:
        return _vit_family(visual, patch_features)
    if type(visual) is ModifiedResNet:
        return _resnet_family(visual)
    if type(visual) is TimmModel:
        return timm_family(visual, patch_features)
    raise TowerError(
        f"image tower: expected open_clip's VisionTransformer, ModifiedResNet or TimmModel, got {type(visual).__name__}"
    )


def _vit_family(visual: Any, patch_features: PatchFeatures) -> Family:
    from open_clip.transformer import ResidualAttentionBlock

    if visual.attn_pool is not None:
        raise TowerError(f"image tower: pooling by {type(visual.attn_pool).__name__} is not supported")
    if visual.pool_type not in ("tok", "avg"):
        raise TowerError(f"image tower: expected pooling 'tok' or 'avg', got {shown(visual.pool_type)}")
    last = visual.transformer.resblocks[-1]
    if patch_features == "value" and type(last) is not ResidualAttentionBlock:
        name = type(last).__name__
        raise TowerError(f"patch_features: 'value' needs blocks of the class ResidualAttentionBlock, got {name}")

    return Family(
        features=_vit_features,
        resize=_vit_resize,
        blocks=_vit_blocks,
        tail=_vit_tail,
        stride=side(visual.patch_size, "patch"),
        size=side(visual.image_size, "image"),
        dim=int(visual.ln_post.normalized_shape[0] if visual.proj is None else visual.proj.shape[1]),
        own_dim=0 if visual.proj is None else wider(*visual.proj.shape),
    )


def _vit_blocks(visual: Any) -> list[Block]:
    return [(block,) for block in visual.transformer.resblocks]


def _vit_tail(visual: Any) -> list[nn.Module | nn.Parameter]:
    return [visual.ln_post] if visual.proj is None else [visual.ln_post, visual.proj]


def _vit_resize(visual: Any, size: int) -> None:
    grid = size // visual.patch_size[0]
    table = visual.positional_embedding
    visual.positional_embedding = nn.Parameter(resize_positions(table.detach(), grid), table.requires_grad)
    visual.grid_size, visual.image_size = (grid, grid), (size, size)


def _vit_features(visual: Any, images: Float[Tensor, "b 3 s s"], how: PatchFeatures, run: RunBlock) -> ImageFeatures:
    x = rearrange(visual.conv1(images), "b w y x -> b (y x) w")
    first = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    x = visual.ln_pre(torch.cat([first, x], dim=1) + visual.positional_embedding.to(x.dtype))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = run((block,), block, x)
    final = run((last,), last, x)
    tokens = run((last,), lambda x: _vit_value(last, x), x[:, 1:]) if how == "value" else final[:, 1:]

    def pool(x: Tensor) -> Tensor:
        return x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)

    pooled = visual.ln_post(pool(final)) if visual.final_ln_after_pool else pool(visual.ln_post(final))
    patches = visual.ln_post(tokens)
    if visual.proj is None:
        return ImageFeatures(patches=patches, pooled=pooled)
    own = patches if wider(*visual.proj.shape) else None
    return ImageFeatures(patches=patches @ visual.proj, pooled=pooled @ visual.proj, own=own)


def _vit_value(block: Any, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
    """Run a pre-norm block in which every token attends to itself alone."""
    attention = block.attn
    bias = None if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)[2]
    value = F.linear(block.ln_1(x), attention.in_proj_weight.chunk(3)[2], bias)
    x = x + block.ls_1(attention.out_proj(value))
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def _resnet_family(visual: Any) -> Family:
    return Family(
        features=_resnet_features,
        resize=_resnet_resize,
        blocks=_resnet_blocks,
        tail=_resnet_tail,
        stride=32,
        size=side(visual.image_size, "image"),
        dim=int(visual.attnpool.c_proj.out_features),
        own_dim=wider(visual.attnpool.v_proj.in_features, visual.attnpool.c_proj.out_features),
    )


def _resnet_blocks(visual: Any) -> list[Block]:
    return [(block,) for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4) for block in layer]


def _resnet_tail(visual: Any) -> list[nn.Module | nn.Parameter]:
    return [visual.attnpool]


def _resnet_resize(visual: Any, size: int) -> None:
    table = visual.attnpool.positional_embedding
    resized = resize_positions(table.detach(), size // 32)
    visual.attnpool.positional_embedding = nn.Parameter(resized, table.requires_grad)
    visual.image_size = size


def _resnet_features(visual: Any, images: Float[Tensor, "b 3 s s"], how: PatchFeatures, run: RunBlock) -> ImageFeatures:
    x = visual.stem(images)
    for (block,) in _resnet_blocks(visual):
        x = run((block,), block, x)
    x = rearrange(x, "b w y x -> b (y x) w")
    pool = visual.attnpool
    tokens = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding.to(x.dtype)
    queries = tokens[:, :1] if how == "value" else tokens  # the pooled vector needs the mean token alone
    query, key, value = (
        split_heads(project(part), pool.num_heads)
        for project, part in ((pool.q_proj, queries), (pool.k_proj, tokens), (pool.v_proj, tokens))
    )
    attended = pool.c_proj(merge_heads(attend(query, key, value)))
    patches = pool.c_proj(pool.v_proj(x)) if how == "value" else attended[:, 1:]
    own = x if wider(x.shape[-1], patches.shape[-1]) else None
    return ImageFeatures(patches=patches, pooled=attended[:, 0], own=own)
