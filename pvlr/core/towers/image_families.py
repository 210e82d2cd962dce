"""The kinds of image towers that open_clip has, and what each does in its own way: features, sizes, blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pvlr.core.functional import attend, merge_heads, split_heads
from pvlr.core.protocols import ImageFeatures
from pvlr.core.towers.sources import TowerError, shown

__all__ = ["Family", "PatchFeatures", "RunBlock", "family_of", "resize_positions", "run_block", "run_block_twice"]

PatchFeatures = Literal["value", "final"]
# How a block is run: the block, what to call (the block itself, or a function that uses its parameters), its input.
RunBlock = Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor], Tensor]


class Family(NamedTuple):
    """What one kind of image tower does in its own way.

    Attributes:
        features: From the tower, images ``b 3 s s``, the kind of patches and how to run a block to their vectors.
        resize: Set the tower to another image size, in place.
        blocks: The tower's blocks, first to last.
        tail: What comes after the blocks: norm, pool, projection.
        stride: Pixels along one side of a patch.
        size: Side of the images it takes, in pixels.
        dim: Width of the joint space (``d``).
    """

    features: Callable[[Any, Tensor, PatchFeatures, RunBlock], ImageFeatures]
    resize: Callable[[Any, int], None]
    blocks: Callable[[Any], list[nn.Module]]
    tail: Callable[[Any], list[nn.Module | nn.Parameter]]
    stride: int
    size: int
    dim: int


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


def run_block(block: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a block as it is."""
    return call(x)


def run_block_twice(block: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Keep a block's input alone for the backward pass, which runs the block again (arXiv 1604.06174).

    The blocks draw nothing at random, so no generator's state is kept.
    """
    if not _batch_norms(block):
        return checkpoint(call, x, use_reentrant=False, preserve_rng_state=False)
    if torch.compiler.is_compiling():  # What surrounds the second run fits into no graph.
        return torch.compiler.disable(_run_holding_statistics)(block, call, x)  # type: ignore[no-untyped-call,no-any-return]
    return _run_holding_statistics(block, call, x)


def _run_holding_statistics(block: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _statistics_held(block)

    return checkpoint(call, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _batch_norms(block: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in block.modules() if isinstance(part, nn.BatchNorm2d) and part.training]


@contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """A batch that is seen a second time does not count a second time in the running statistics."""
    held = [(norm, dict(norm.named_buffers(recurse=False))) for norm in _batch_norms(block)]
    for norm, buffers in held:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in held:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


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
        return _timm_family(visual, patch_features)
    raise TowerError(
        f"image tower: expected open_clip's VisionTransformer, ModifiedResNet or TimmModel, got {type(visual).__name__}"
    )


def _side(size: Any, what: str) -> int:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise TowerError(f"image tower: expected a square {what}, got {height} × {width}")
    return int(height)


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
        stride=_side(visual.patch_size, "patch"),
        size=_side(visual.image_size, "image"),
        dim=int(visual.ln_post.normalized_shape[0] if visual.proj is None else visual.proj.shape[1]),
    )


def _vit_blocks(visual: Any) -> list[nn.Module]:
    return list(visual.transformer.resblocks)


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
        x = run(block, block, x)
    final = run(last, last, x)
    tokens = run(last, lambda x: _vit_value(last, x), x[:, 1:]) if how == "value" else final[:, 1:]

    def pool(x: Tensor) -> Tensor:
        return x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)

    pooled = visual.ln_post(pool(final)) if visual.final_ln_after_pool else pool(visual.ln_post(final))
    patches = visual.ln_post(tokens)
    if visual.proj is None:
        return ImageFeatures(patches=patches, pooled=pooled)
    return ImageFeatures(patches=patches @ visual.proj, pooled=pooled @ visual.proj)


def _vit_value(block: Any, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n w"]:
    """A pre-norm block in which every token attends to itself alone."""
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
        size=_side(visual.image_size, "image"),
        dim=int(visual.attnpool.c_proj.out_features),
    )


def _resnet_blocks(visual: Any) -> list[nn.Module]:
    return [block for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4) for block in layer]


def _resnet_tail(visual: Any) -> list[nn.Module | nn.Parameter]:
    return [visual.attnpool]


def _resnet_resize(visual: Any, size: int) -> None:
    table = visual.attnpool.positional_embedding
    resized = resize_positions(table.detach(), size // 32)
    visual.attnpool.positional_embedding = nn.Parameter(resized, table.requires_grad)
    visual.image_size = size


def _resnet_features(visual: Any, images: Float[Tensor, "b 3 s s"], how: PatchFeatures, run: RunBlock) -> ImageFeatures:
    x = visual.stem(images)
    for block in _resnet_blocks(visual):
        x = run(block, block, x)
    x = rearrange(x, "b w y x -> b (y x) w")
    pool = visual.attnpool
    tokens = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + pool.positional_embedding.to(x.dtype)
    asking = tokens[:, :1] if how == "value" else tokens  # the mean token alone makes the pooled vector
    query, key, value = (
        split_heads(project(part), pool.num_heads)
        for project, part in ((pool.q_proj, asking), (pool.k_proj, tokens), (pool.v_proj, tokens))
    )
    attended = pool.c_proj(merge_heads(attend(query, key, value)))
    patches = pool.c_proj(pool.v_proj(x)) if how == "value" else attended[:, 1:]
    return ImageFeatures(patches=patches, pooled=attended[:, 0])


def _timm_family(visual: Any, patch_features: PatchFeatures) -> Family:
    from timm.layers import AttentionPoolLatent
    from timm.models.vision_transformer import VisionTransformer

    trunk = visual.trunk
    if type(trunk) is not VisionTransformer:
        raise TowerError(f"image tower: expected timm's VisionTransformer, got timm's {type(trunk).__name__}")
    pool = trunk.attn_pool
    if type(pool) is not AttentionPoolLatent or pool.pool != "token" or pool.pos_embed is not None:
        found = shown(trunk.global_pool) if pool is None else type(pool).__name__
        raise TowerError(f"image tower: expected timm's AttentionPoolLatent without positions, got pooling {found}")
    if patch_features == "final" and len(visual.head) == 0 and isinstance(trunk.head, nn.Identity):
        raise TowerError("patch_features: 'final' needs a projection after the pooling, and this tower has none")

    with torch.no_grad():
        dim = _timm_value(visual, torch.zeros(1, 1, trunk.embed_dim)).shape[-1]
    return Family(
        features=_timm_features,
        resize=_timm_resize,
        blocks=_timm_blocks,
        tail=_timm_tail,
        stride=_side(trunk.patch_embed.patch_size, "patch"),
        size=_side(visual.image_size, "image"),
        dim=dim,
    )


def _timm_blocks(visual: Any) -> list[nn.Module]:
    return list(visual.trunk.blocks)


def _timm_tail(visual: Any) -> list[nn.Module | nn.Parameter]:
    trunk = visual.trunk
    return [trunk.norm, trunk.attn_pool, trunk.fc_norm, trunk.head, visual.head]


def _timm_resize(visual: Any, size: int) -> None:
    visual.trunk.set_input_size(img_size=(size, size))
    visual.image_size = (size, size)


def _timm_features(visual: Any, images: Float[Tensor, "b 3 s s"], how: PatchFeatures, run: RunBlock) -> ImageFeatures:
    trunk = visual.trunk  # Runs its blocks itself, in the way it was set to.
    tokens = trunk.forward_features(images)
    pooled = visual.head(trunk.forward_head(tokens))
    tokens = tokens[:, trunk.num_prefix_tokens :]
    patches = _timm_value(visual, tokens) if how == "value" else _timm_head(visual, tokens)
    return ImageFeatures(patches=patches, pooled=pooled)


def _timm_value(visual: Any, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
    """What the attention pool would make of one token that it attends to alone."""
    pool = visual.trunk.attn_pool
    x = pool.proj(F.linear(x, pool.kv.weight.chunk(2)[1], None if pool.kv.bias is None else pool.kv.bias.chunk(2)[1]))
    if pool.mlp is not None:
        x = x + pool.mlp(pool.norm(x))
    return _timm_head(visual, x)


def _timm_head(visual: Any, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b n d"]:
    trunk = visual.trunk
    return visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(x))))  # type: ignore[no-any-return]
