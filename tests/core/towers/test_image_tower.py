"""The image tower against open_clip's own outputs and slow references, one token at a time."""

import copy
import pickle
from functools import cache
from typing import Any

import open_clip
import pytest
import torch
from helpers.strategies import tensors
from helpers.tower_models import CONFIGS, fresh, small_model, some_images
from helpers.tower_references import patch_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pvlr.core.protocols import ImageTower
from pvlr.core.shapes import ShapeError
from pvlr.core.towers import TowerError
from pvlr.core.towers.image.families import resize_positions
from pvlr.core.towers.image.tower import OpenClipImageTower

CASES = [
    ("vit", "value"),
    ("vit", "final"),
    ("vit_avg", "value"),
    ("vit_avg", "final"),
    ("custom_blocks", "final"),
    ("resnet", "value"),
    ("resnet", "final"),
    ("siglip", "value"),
    ("siglip_projected", "value"),
    ("siglip_projected", "final"),
]


@cache
def small(kind: str, how: str) -> OpenClipImageTower:
    return fresh(kind, how)


@pytest.mark.parametrize(("kind", "how"), CASES)
@torch.no_grad()
def test_features_are_what_the_tower_computes(kind, how):
    tower = small(kind, how)
    images = some_images(tower)
    patches, pooled, *_ = tower(images)
    torch.testing.assert_close(pooled, tower.visual(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(patches, patch_reference(tower.visual, images, how), rtol=1e-5, atol=1e-5)
    assert patches.shape == (2, tower.grid**2, tower.dim)
    assert (patches[:, 0] - patches[:, 1]).abs().max() > 1e-3  # patches differ
    assert isinstance(tower, ImageTower)
    assert tower.dim == CONFIGS[kind]["embed_dim"]


@pytest.mark.parametrize("how", ["value", "final"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@torch.no_grad()
def test_patches_have_features_of_their_own_where_they_are_wider(kind, how):
    width = {"vit": CONFIGS["vit"]["vision_cfg"]["width"], "resnet": 32 * CONFIGS["resnet"]["vision_cfg"]["width"]}[
        kind
    ]
    for dim in (width // 2, width):
        tower = OpenClipImageTower(_with_width(kind, dim), patch_features=how)
        images = some_images(tower)
        seen, visual = tower(images), tower.visual
        assert tower.dim == dim
        assert tower.own_dim == (width if dim < width else 0)
        if dim == width:
            assert seen.own is None
            continue
        assert seen.own.shape == (2, tower.grid**2, width)
        if kind == "vit":  # What is projected, of either kind of patches.
            torch.testing.assert_close(seen.own @ visual.proj, seen.patches, rtol=1e-5, atol=1e-5)
        else:  # The map that the attention pool reads, which is the same for both.
            x = visual.stem(images)
            for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
                x = layer(x)
            torch.testing.assert_close(seen.own, x.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def _with_width(kind: str, dim: int):
    from open_clip import CLIP

    config = CONFIGS[kind] | {"embed_dim": dim}
    return CLIP(**config).eval().visual


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip_projected"])
@torch.no_grad()
def test_value_and_final_differ(kind):
    value, final = (small(kind, how)(some_images(small(kind, how))) for how in ("value", "final"))
    assert (value.patches - final.patches).abs().max() > 1e-2
    torch.testing.assert_close(value.pooled, final.pooled, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(
    case=st.sampled_from([("vit", "value"), ("resnet", "final"), ("siglip", "value")]),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
@torch.no_grad()
def test_an_image_gives_the_same_alone_as_in_a_batch(case, count, seed):
    tower = small(*case)
    images = some_images(tower, count, seed)
    whole, alone = tower(images), tower(images[-1:])
    torch.testing.assert_close(whole.patches[-1:], alone.patches, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.pooled[-1:], alone.pooled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@torch.no_grad()
def test_patches_run_row_by_row(kind):
    # What changes at the bottom left of the picture changes the first patch of the last row most.
    tower = small(kind, "value")
    images = some_images(tower, 1)
    changed = images.clone()
    side = tower.image_size // tower.grid
    changed[:, :, -side:, :side] += 3.0
    moved = (tower(changed).patches - tower(images).patches).norm(dim=-1)[0]
    assert int(moved.argmax()) == tower.grid * (tower.grid - 1)


# ------------------------------------------------------------------------------------------------ other image sizes


@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (3, 14), (4, 4)])
def test_positions_are_resized_as_open_clip_does(old, new):
    table = torch.randn(1 + old * old, 6)

    class _Visual:
        grid_size = (new, new)

    class _Model:
        visual = _Visual()

    state = {"visual.positional_embedding": table}
    open_clip.model.resize_pos_embed(state, _Model())
    torch.testing.assert_close(resize_positions(table, new), state["visual.positional_embedding"], rtol=0, atol=1e-6)


def test_positions_that_are_no_square_are_refused():
    with pytest.raises(TowerError, match="positions: expected one class token and a square grid, got 7 rows"):
        resize_positions(torch.zeros(7, 2), 3)


@pytest.mark.parametrize(("kind", "size"), [("vit", 48), ("vit_avg", 16), ("resnet", 64), ("siglip", 96)])
@torch.no_grad()
def test_another_image_size_runs_and_its_own_changes_nothing(kind, size):
    tower = fresh(kind)
    own, images = tower.image_size, some_images(tower)
    before = tower(images)
    tower.set_image_size(own)
    assert torch.equal(tower(images).patches, before.patches)
    ratio = own // tower.grid
    tower.set_image_size(size)
    assert (tower.image_size, tower.grid) == (size, size // ratio)
    patches, pooled, *_ = tower(some_images(tower))
    assert patches.shape == (2, (size // ratio) ** 2, tower.dim)
    assert torch.isfinite(patches).all()
    torch.testing.assert_close(pooled, tower.visual(some_images(tower)), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@torch.no_grad()
def test_a_resnet_at_another_size_sees_the_same_where_nothing_depends_on_the_size():
    # The value path knows no positions: a cell whose surroundings are the same has the same one.
    tower = fresh("resnet")
    # 32 pixels are one cell, and zero padding reaches less than 5 cells into the picture.
    content = torch.randn(1, 3, 416, 416)
    tower.set_image_size(352)
    corner = tower(content[..., :352, :352].contiguous()).patches.view(11, 11, -1)
    tower.set_image_size(416)
    whole = tower(content).patches.view(13, 13, -1)
    torch.testing.assert_close(whole[:6, :6], corner[:6, :6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("vit", 20, "image_size: expected a positive multiple of 8, the patch size, got 20"),
        ("vit", 0, "image_size: expected a positive multiple of 8, the patch size, got 0"),
        ("vit", -8, "image_size: expected a positive multiple of 8, the patch size, got -8"),
        ("resnet", 80, "image_size: expected a positive multiple of 32, the patch size, got 80"),
        ("siglip", 100, "image_size: expected a positive multiple of 16, the patch size, got 100"),
    ],
)
def test_refused_image_sizes(kind, size, message):
    tower = small(kind, "value")
    for method in (tower.check_image_size, tower.set_image_size):
        with pytest.raises(TowerError, match=message):
            method(size)


@pytest.mark.parametrize("kind", ["vit", "resnet", "siglip"])
@torch.no_grad()
def test_copies_and_pickles(kind):
    tower = fresh(kind)
    images = some_images(tower)
    for other in (copy.deepcopy(tower), pickle.loads(pickle.dumps(tower))):  # noqa: S301
        assert torch.equal(other(images).patches, tower(images).patches)
        other.set_trainable(1)
        assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("case", [("vit", "value"), ("resnet", "value"), ("siglip", "value")])
@torch.no_grad()
def test_bfloat16_under_autocast(case):
    tower = small(*case)
    images = some_images(tower)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tower(images)
    for got, expected in zip(tensors(cast), tensors(tower(images)), strict=True):
        assert torch.isfinite(got).all()
        error = (got.float() - expected).norm() / expected.norm()
        assert error < 0.05


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 40, 40), r"images: expected axes 'b rgb height width' with height=32, got shape \(2, 3, 40, 40\)"),
        ((2, 3, 32, 40), r"images: expected axes .* with width=32, got shape \(2, 3, 32, 40\)"),
        ((2, 1, 32, 32), r"images: expected axes .* with rgb=3, got shape \(2, 1, 32, 32\)"),
        ((3, 32, 32), r"images: expected axes 'b rgb height width', got shape \(3, 32, 32\)"),
    ],
)
def test_refused_images(shape, message):
    with pytest.raises(ShapeError, match=message):
        small("vit", "value")(torch.zeros(shape))


@pytest.mark.usefixtures("unchecked")
def test_refused_bytes():
    with pytest.raises(ShapeError, match=r"images: expected a tensor of dtype float, got torch\.uint8"):
        small("vit", "value")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def _timm(name: str, **vision: Any) -> nn.Module:
    return small_model("siglip", vision_cfg={"timm_model_name": name, **vision}).visual


def _vit(**vision: Any) -> nn.Module:
    return small_model("vit", vision_cfg=vision).visual


REFUSED = {
    "class": (
        lambda: nn.Linear(1, 1),
        "value",
        "image tower: expected open_clip's VisionTransformer, ModifiedResNet or TimmModel, got Linear",
    ),
    "features": (lambda: _vit(), "last", "patch_features: expected 'value' or 'final', got 'last'"),
    "attentional pool": (
        lambda: _vit(attentional_pool=True, attn_pooler_heads=4),
        "value",
        "image tower: pooling by AttentionalPooler is not supported",
    ),
    "no pool": (lambda: _vit(pool_type="none"), "value", "image tower: expected pooling 'tok' or 'avg', got 'none'"),
    "custom block": (
        lambda: _vit(qk_norm=True),
        "value",
        "patch_features: 'value' needs blocks of the class ResidualAttentionBlock, got CustomResidualAttentionBlock",
    ),
    "no square": (lambda: _vit(image_size=(32, 40)), "value", "image tower: expected a square image, got 32 × 40"),
    "no projection": (
        lambda: _timm("test_vit"),
        "final",
        "patch_features: 'final' needs a projection after the pooling, and this tower has none",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_refused_towers(case):
    build, how, message = REFUSED[case]
    with pytest.raises(TowerError) as caught:
        OpenClipImageTower(build(), patch_features=how)
    assert str(caught.value) == message
