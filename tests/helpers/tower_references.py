"""Patch vectors of open_clip's image towers by their own modules: slow, and one position at a time."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


def patch_reference(visual: Any, images: Tensor, how: str) -> Tensor:
    """Vectors that a tower should return for each position, from the class of the tower alone."""
    if hasattr(visual, "transformer"):
        return _vit(visual, images, how)
    if hasattr(visual, "attnpool"):
        return _resnet(visual, images, how)
    if hasattr(visual.trunk, "num_prefix_tokens"):
        return _timm_tokens(visual, images, how)
    return _timm_map(visual, images)


def last_input(block: nn.Module, run: nn.Module, images: Tensor) -> Tensor:
    """Input that reaches ``block`` when ``run`` sees the images."""
    seen: list[Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run(images)
    hook.remove()
    return seen[0]


def _vit(visual: Any, images: Tensor, how: str) -> Tensor:
    last = visual.transformer.resblocks[-1]
    x = last_input(last, visual, images)
    # A token alone attends to itself alone: its attention is its own value.
    x = torch.cat([last(x[:, i : i + 1]) for i in range(1, x.shape[1])], dim=1) if how == "value" else last(x)[:, 1:]
    x = visual.ln_post(x)
    return x if visual.proj is None else x @ visual.proj


def _resnet(visual: Any, images: Tensor, how: str) -> Tensor:
    cells = visual.forward_intermediates(images, indices=[4])["image_intermediates"][0]
    side, pool = cells.shape[-1], visual.attnpool
    if how == "value":
        # open_clip's own pool over a picture of one cell: mean and cell are the same token.
        alone = copy.deepcopy(pool)
        alone.positional_embedding = nn.Parameter(torch.zeros(2, cells.shape[1]))
        rows = [alone(cells[:, :, y : y + 1, x : x + 1]) for y in range(side) for x in range(side)]
        return torch.stack(rows, dim=1)
    x = cells.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + pool.positional_embedding
    query, key, value = pool.q_proj(x), pool.k_proj(x), pool.v_proj(x)
    width = x.shape[-1] // pool.num_heads
    out = torch.zeros_like(x)
    for image in range(len(x)):
        for head in range(pool.num_heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(x.shape[1]):
                scores = key[image, :, part] @ query[image, i, part] / width**0.5
                out[image, i, part] = scores.softmax(0) @ value[image, :, part]
    return pool.c_proj(out)[:, 1:]


def _timm_map(visual: Any, images: Tensor) -> Tensor:
    trunk = visual.trunk
    x = trunk.forward_features(images)
    last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    side = x.shape[2]
    places = [(slice(i, i + 1), slice(j, j + 1)) for i in range(side) for j in range(side)]
    cells = [x[:, i, j] if last else x[:, :, i, j] for i, j in places]
    return torch.stack([visual.head(trunk.forward_head(cell)) for cell in cells], dim=1)


def _timm_tokens(visual: Any, images: Tensor, how: str) -> Tensor:
    trunk, features = visual.trunk, visual.trunk.forward_features(images)
    prefix, count = trunk.num_prefix_tokens, features.shape[1]
    if trunk.global_pool == "token":
        alone = [features[:, i : i + 1] for i in range(prefix, count)]
        if how == "value":
            x = last_input(trunk.blocks[-1], visual, images)
            alone = [trunk.norm(trunk.blocks[-1](x[:, i : i + 1])) for i in range(prefix, count)]
        return torch.stack([visual.head(trunk.forward_head(one)) for one in alone], dim=1)
    if trunk.attn_pool is not None and how == "final":
        tokens = [features[:, i] for i in range(prefix, count)]
        return torch.stack([visual.head(trunk.head(trunk.fc_norm(token))) for token in tokens], dim=1)
    # What the pooling leaves out must be there; Perception Encoder's attention leaves out nothing.
    left_out = 0 if type(trunk).__name__ == "Eva" else prefix
    before = torch.full_like(features[:, :left_out], 7.0)
    alone = [torch.cat([before, features[:, i : i + 1]], dim=1) for i in range(prefix, count)]
    return torch.stack([visual.head(trunk.forward_head(one)) for one in alone], dim=1)
