"""timm's networks as image towers, against timm's own outputs and slow references, one position at a time."""

import copy
import pickle
from functools import cache
from typing import Any

import pytest
import torch
from helpers.small_trunks import register_small, small_trunks
from helpers.strategies import tensors
from helpers.tower_models import TIMM, fresh, small_model, some_images
from helpers.tower_references import patch_reference
from torch import nn

from pvlr.core.protocols import ImageTower
from pvlr.core.towers import TowerError
from pvlr.core.towers.building import build_model
from pvlr.core.towers.concepts import ConceptHead
from pvlr.core.towers.image.tower import OpenClipImageTower

MAPS = ("convnext", "convnext_mlp", "efficientnet", "fastvit", "fastvit_wide", "swin")
MEANS = ("vitamin", "gap")
CASES = [(kind, how) for kind in TIMM for how in ("value", "final")]


@cache
def small(kind: str, how: str = "value") -> OpenClipImageTower:
    return fresh(kind, how)


@pytest.mark.parametrize(("kind", "how"), CASES)
@torch.no_grad()
def test_features_are_what_the_tower_makes_of_each_position(kind, how):
    tower = small(kind, how)
    images = some_images(tower)
    patches, pooled, *_ = tower(images)
    torch.testing.assert_close(pooled, tower.visual(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(patches, patch_reference(tower.visual, images, how), rtol=1e-5, atol=1e-5)
    assert patches.shape == (2, tower.grid**2, tower.dim)
    assert tower.dim == TIMM[kind]["embed_dim"]
    assert (patches[:, 0] - patches[:, 1]).abs().max() > 1e-3
    assert isinstance(tower, ImageTower)


@pytest.mark.parametrize("kind", TIMM)
@torch.no_grad()
def test_value_and_final_are_the_same_where_one_position_is_pooled_to_itself(kind):
    value, final = (small(kind, how)(some_images(small(kind))) for how in ("value", "final"))
    assert torch.equal(value.pooled, final.pooled)
    assert torch.equal(value.patches, final.patches) == (kind in MAPS + MEANS)


@pytest.mark.parametrize("kind", ["convnext", "swin", "eva_rotary", "vitamin"])
@torch.no_grad()
def test_patches_run_row_by_row(kind):
    tower = small(kind)
    images = some_images(tower, 1)
    changed = images.clone()
    side = tower.image_size // tower.grid
    changed[:, :, -side:, :side] += 3.0
    moved = (tower(changed).patches - tower(images).patches).norm(dim=-1)[0]
    assert int(moved.argmax()) == tower.grid * (tower.grid - 1)


@pytest.mark.parametrize("kind", TIMM)
@torch.no_grad()
def test_copies_pickles_and_half_precision(kind):
    tower = fresh(kind)
    images = some_images(tower)
    expected = tower(images)
    for other in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):  # noqa: S301
        assert torch.equal(other(images).patches, expected.patches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tower(images)
    half = tower.bfloat16()(images.bfloat16())
    for got, other, exact in zip(*map(tensors, (cast, half, expected)), strict=True):
        assert (got.float() - exact).norm() < 0.05 * exact.norm()
        assert (other.float() - exact).norm() < 0.05 * exact.norm()


# --------------------------------------------------------------------------------------------- a head of one's own


def with_a_head_of_classes(kind: str) -> tuple[Any, nn.Sequential]:
    """A network whose head gives probabilities of classes, and the mean of the classes' vectors."""
    visual = small_model(kind).visual
    visual.head.append(nn.Softmax(dim=-1)).append(nn.Linear(24, 40, bias=False))
    return visual, visual.head


@pytest.mark.parametrize("kind", ["efficientnet", "gap"])
@torch.no_grad()
def test_a_head_may_be_any_module(kind):
    visual, head = with_a_head_of_classes(kind)
    tower = OpenClipImageTower(visual)
    images = some_images(tower)
    patches, pooled, *_ = tower(images)
    assert tower.dim == 40
    torch.testing.assert_close(pooled, visual(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(patches, patch_reference(visual, images, "value"), rtol=1e-5, atol=1e-5)
    assert (patches.mean(dim=1) - pooled).abs().max() > 1e-4  # not affine: the mean of the patches is another vector
    assert tower.source_dim == 0  # nothing tells how wide what enters it is
    tower.set_trainable(1)
    assert "visual.head.3.weight" in tower.trained_state_dict()
    assert tower.parameter_depths()["visual.head.3.weight"] == tower.blocks + 1
    assert len(head) == 4


@pytest.mark.parametrize("kind", ["efficientnet", "convnext"])
@torch.no_grad()
def test_what_enters_a_head_of_concepts_is_told_too(kind):
    visual = small_model(kind).visual
    assert OpenClipImageTower(visual).source_dim == 0
    images = some_images(OpenClipImageTower(visual))
    features = visual.trunk(images)
    visual.head = ConceptHead(width=features.shape[1], classes=7, dim=24, patch_temperature=2.0)
    tower = OpenClipImageTower(visual)
    seen = tower(images)
    assert tower.source_dim == features.shape[1]
    torch.testing.assert_close(seen.source, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.pooled, visual.head(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "how"), CASES)
@torch.no_grad()
def test_patches_are_what_the_head_makes_of_their_own_features(kind, how):
    tower = small(kind, how)
    seen = tower(some_images(tower))
    width = tower.visual.trunk.num_features
    assert tower.own_dim == (width if width > tower.dim else 0)
    assert (seen.own is None) == (tower.own_dim == 0)
    if seen.own is None:
        return
    assert seen.own.shape == (2, tower.grid**2, tower.own_dim)
    assert (seen.own[:, 0] - seen.own[:, 1]).abs().max() > 1e-3
    trunk, head = tower.visual.trunk, tower.visual.head
    for row, position in ((0, 0), (1, tower.grid**2 - 1)):
        alone = seen.own[row : row + 1, position]
        if kind in MAPS:
            channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
            alone = trunk.forward_head(alone[:, None, None] if channels_last else alone[..., None, None])
        else:
            alone = trunk.head(trunk.fc_norm(alone))
        torch.testing.assert_close(head(alone)[0], seen.patches[row, position], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_head_with_statistics_sees_no_batch_before_it_is_trained():
    visual = small_model("efficientnet").visual
    visual.head.append(nn.BatchNorm1d(24))
    visual.train()
    tower = OpenClipImageTower(visual)
    assert int(visual.head[-1].num_batches_tracked) == 0
    tower(some_images(tower))
    assert int(visual.head[-1].num_batches_tracked) == 0


# ------------------------------------------------------------------------------------------------ other image sizes


@pytest.mark.parametrize("kind", TIMM)
@torch.no_grad()
def test_another_image_size_is_timms_own_and_back_again_changes_no_weight_of_a_map(kind):
    tower = fresh(kind)
    own, stride = tower.image_size, tower.image_size // tower.grid
    before = tower(some_images(tower))
    for size in (5 * stride, stride, own):
        tower.set_image_size(size)
        images = some_images(tower)
        patches, pooled, *_ = tower(images)
        assert (tower.image_size, patches.shape) == (size, (2, (size // stride) ** 2, tower.dim))
        torch.testing.assert_close(pooled, tower.visual(images), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(patches, patch_reference(tower.visual, images, "value"), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    if kind in MAPS and kind != "swin":
        assert torch.equal(tower(some_images(tower)).patches, before.patches)
    with pytest.raises(TowerError, match=f"expected a positive multiple of {stride}, the patch size, got {stride + 1}"):
        tower.set_image_size(stride + 1)


@pytest.mark.parametrize("kind", ["gap", "token", "eva", "vitamin"])
@torch.no_grad()
def test_positions_are_interpolated_but_for_the_class_tokens(kind):
    tower = fresh(kind)
    trunk: Any = tower.visual.trunk
    old, grid = tower.grid, 2 * tower.grid
    before = trunk.pos_embed[0].clone()
    tower.set_image_size(2 * tower.image_size)
    prefix = len(before) - old**2
    cells = before[prefix:].view(1, old, old, -1).permute(0, 3, 1, 2)
    cells = nn.functional.interpolate(cells, size=(grid, grid), mode="bicubic", antialias=True)
    expected = torch.cat([before[:prefix], cells[0].flatten(1).T])
    torch.testing.assert_close(trunk.pos_embed[0], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_windows_and_their_tables_grow_with_the_picture():
    tower = fresh("swin")
    blocks: Any = [block for stage in tower.visual.trunk.layers for block in stage.blocks]
    windows = [block.window_size[0] for block in blocks]
    tables = [block.attn.relative_position_bias_table for block in blocks]
    for table in tables:
        table.fill_(2.5)  # whatever the weights of an interpolation, they add up to one
    tower.set_image_size(2 * tower.image_size)
    assert [block.window_size[0] for block in blocks] == [2 * window for window in windows]
    for block, window in zip(blocks, windows, strict=True):
        table = block.attn.relative_position_bias_table
        assert table.shape[0] == (4 * window - 1) ** 2
        torch.testing.assert_close(table, torch.full_like(table, 2.5))


@torch.no_grad()
def test_a_table_of_relative_positions_keeps_what_lies_on_which_side():
    tower = fresh("swin")
    block: Any = tower.visual.trunk.layers[0].blocks[0]
    side = 2 * block.window_size[0] - 1
    rows = torch.arange(side) - side // 2
    block.attn.relative_position_bias_table.copy_(rows.sign().repeat_interleave(side)[:, None])
    tower.set_image_size(2 * tower.image_size)
    table = block.attn.relative_position_bias_table[:, 0].view(2 * block.window_size[0] - 1, -1)
    rows = torch.arange(len(table)) - len(table) // 2
    assert torch.equal(table.sign(), rows.sign()[:, None].expand_as(table).float())
    assert (table.diff(dim=0) > -1e-5).all()


@pytest.mark.parametrize("kind", ["swin", "vitamin", "gap", "eva_rotary"])
@torch.no_grad()
def test_a_network_is_built_for_the_image_size_of_its_configuration(kind):
    tower = fresh(kind)
    tower.set_image_size(2 * tower.image_size)
    config = copy.deepcopy(TIMM[kind])
    config["vision_cfg"]["image_size"] = tower.image_size
    built = build_model(config).visual
    built.load_state_dict(tower.visual.state_dict())
    again, images = OpenClipImageTower(built), some_images(tower)
    assert again.image_size == tower.image_size
    torch.testing.assert_close(again(images), tower(images), rtol=1e-5, atol=1e-5)


SIZES = {
    "ViTamin-XL-384": (256, 16),  # what its configuration says, though timm's network is made for 384
    "MobileCLIP2-S3": (256, 64),
    "MobileCLIP2-S4": (256, 64),
    "MobileCLIP2-B": (224, 16),
    "MobileCLIP-S2": (256, 32),
    "ViT-SO400M-14-SigLIP-384": (384, 14),  # six pixels at the end are in no patch
    "PE-Core-bigG-14-448": (448, 14),
    "swin_base_patch4_window7_224": (224, 32),
}


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_grids_of_published_towers(name):
    import open_clip

    config = open_clip.get_model_config(name)
    config["text_cfg"] = TIMM["convnext"]["text_cfg"]
    config["embed_dim"] = 32
    with small_trunks():
        tower = OpenClipImageTower(build_model(config).visual)
    size, stride = SIZES[name]
    assert (tower.image_size, tower.grid) == (size, size // stride)
    assert tower(some_images(tower, 1)).patches.shape[1] == tower.grid**2


@torch.no_grad()
def test_a_network_without_positions_runs_at_a_size_that_it_was_not_built_for():
    with small_trunks():
        visual = small_model("vitamin", vision_cfg={"timm_model_name": "vitamin_xlarge_384", "image_size": 256}).visual
    assert visual.trunk.patch_embed.img_size == (384, 384)
    tower = OpenClipImageTower(visual)
    patches, pooled, *_ = tower(some_images(tower))
    assert patches.shape[1] == tower.grid**2 == 16**2
    torch.testing.assert_close(pooled, visual(some_images(tower)), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- training, graphs


RATES = {"timm_drop": 0.5, "timm_drop_path": 0.5, "patch_dropout": 0.5}


@pytest.mark.parametrize("kind", ["convnext_mlp", "efficientnet", "fastvit", "swin", "vitamin", "eva_rotary", "siglip"])
def test_nothing_is_dropped_at_random_however_it_was_built(kind):
    rates = RATES if kind in ("vitamin", "eva_rotary", "siglip") else RATES | {"patch_dropout": 0.0}
    visual = small_model(kind, vision_cfg=rates).visual
    if kind == "efficientnet":
        visual.trunk.drop_rate = 0.5
    tower = OpenClipImageTower(visual)
    tower.set_trainable("all")
    state = torch.get_rng_state()
    first, second = (tower.train()(some_images(tower)) for _ in range(2))
    assert torch.equal(first.patches, second.patches)
    assert torch.equal(first.pooled, second.pooled)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.patches.shape[1] == tower.grid**2


def test_swin_drops_no_blocks_by_default():
    # timm builds it with a rate of 0.1 where none is given.
    visual = small_model("swin").visual
    assert any(getattr(part, "drop_prob", 0) > 0 for part in visual.modules())
    OpenClipImageTower(visual)
    assert not any(getattr(part, "drop_prob", 0) > 0 for part in visual.modules())


def test_rotary_positions_are_not_moved_at_random():
    visual = small_model("eva_rotary").visual
    visual.trunk.rope.aug_active, visual.trunk.rope.jitter_coords = True, 2.0
    tower = OpenClipImageTower(visual)
    tower.set_trainable("all")
    first, second = (tower.train()(some_images(tower)) for _ in range(2))
    assert torch.equal(first.patches, second.patches)


@pytest.mark.parametrize("mode", ["frozen", 1, "all"])
@pytest.mark.parametrize("kind", ["efficientnet", "fastvit", "mobileclip"])
def test_statistics_move_where_they_are_trained(kind, mode):
    tower = fresh(kind)
    tower.set_trainable(mode)
    tower.train()
    before = {name: buffer.clone() for name, buffer in tower.named_buffers() if "running" in name}
    tower(some_images(tower))
    moved = {name for name, value in before.items() if not torch.equal(dict(tower.named_buffers())[name], value)}
    trained = {name for name in tower.trained_state_dict() if "running" in name}
    assert moved == trained
    assert bool(moved) == (mode == "all" or (mode == 1 and kind != "mobileclip"))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["convnext", "fastvit", "swin", "vitamin", "eva_rotary", "pe_core"])
def test_exports_with_any_number_of_images(kind):
    tower = fresh(kind)
    images = some_images(tower, 3)
    program = torch.export.export(tower, (images,), dynamic_shapes=({0: torch.export.Dim("b")},))
    images = some_images(tower, 5, seed=1)
    with torch.no_grad():
        for got, expected in zip(*map(tensors, (program.module()(images), tower(images))), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- refusals


def _visual(kind: str, name: str | None = None, **vision: Any) -> nn.Module:
    return small_model(kind, vision_cfg=vision if name is None else {"timm_model_name": name, **vision}).visual


def _with_pool_positions() -> nn.Module:
    visual: Any = _visual("siglip")
    visual.trunk.attn_pool.pos_embed = nn.Parameter(torch.zeros(100, 64))
    return visual


def _with_mean_pool() -> nn.Module:
    visual: Any = _visual("siglip")
    visual.trunk.attn_pool.pool = "avg"
    return visual


def _mixed() -> nn.Module:
    visual: Any = _visual("eva_rotary")
    visual.trunk.rope_mixed = True
    return visual


REFUSED = {
    "class": (
        lambda: _visual("efficientnet", "test_resnet"),
        "image tower: expected one of timm's ConvNeXt, EfficientNet, FastVit, SwinTransformer, VisionTransformer, Eva, "
        "got timm's ResNet",
    ),
    "relative positions": (
        lambda: _visual("gap", register_small("vit_relpos_medium_patch16_cls_224")),
        "image tower: expected one of timm's ConvNeXt, EfficientNet, FastVit, SwinTransformer, VisionTransformer, Eva, "
        "got timm's VisionTransformerRelPos",
    ),
    "attention over a map": (
        lambda: _visual("efficientnet", timm_pool="rot_attn", timm_proj=""),
        "image tower: pooling by RotAttentionPool2d is not supported, since its positions are of a whole map",
    ),
    "no pooling of a map": (
        lambda: _visual("convnext", timm_pool="", timm_proj="none"),
        "image tower: expected a pooling over all positions, found none",
    ),
    "no pooling of tokens": (
        lambda: _visual("gap", timm_pool="", timm_proj="none"),
        "image tower: expected timm's pooling avg, avgmax, max, token or map, got ''",
    ),
    "pooling by refinement": (
        lambda: _visual("gap", timm_pool="prr", timm_proj="none"),
        "image tower: expected timm's pooling avg, avgmax, max, token or map, got 'prr'",
    ),
    "pool positions": (
        _with_pool_positions,
        "image tower: an attention pool with positions of its own is not supported",
    ),
    "pool of several": (
        _with_mean_pool,
        "image tower: expected timm's AttentionPoolLatent of one token, got AttentionPoolLatent",
    ),
    "rotary positions": (
        _mixed,
        "image tower: rotary positions of each block's own (rope_mixed) are not supported",
    ),
    "image size of tokens": (
        lambda: _visual("gap", image_size=96),
        "image tower: timm's VisionTransformer takes images of 64 pixels, the configuration says 96",
    ),
    "image size of a stem of convolutions": (
        lambda: _visual("vitamin", image_size=96),
        "image tower: timm's VisionTransformer takes images of 64 pixels, the configuration says 96",
    ),
    "image size of windows": (
        lambda: _visual("swin", image_size=96),
        "image tower: timm's SwinTransformer takes images of 128 pixels, the configuration says 96",
    ),
    "image size of a map": (
        lambda: _visual("convnext", image_size=100),
        "image tower: timm's ConvNeXt needs an image_size that is a multiple of 32, the configuration says 100",
    ),
    "no square": (
        lambda: _visual("convnext", image_size=[96, 64]),
        "image tower: expected a square image, got 96 × 64",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_networks(case):
    build, message = REFUSED[case]
    with pytest.raises(TowerError) as caught:
        OpenClipImageTower(build())
    assert str(caught.value) == message
