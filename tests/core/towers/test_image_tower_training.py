"""Trained parameters of an image tower: which they are, at what cost, and how deep each lies."""

import pytest
import torch
from helpers.tower_models import fresh, small_model, some_images
from torch import nn

from pvlr.core.towers import TowerError
from pvlr.core.towers.image.tower import OpenClipImageTower


@pytest.mark.parametrize("mode", ["frozen", 1, "all"])
def test_frozen_batch_norms_do_not_move(mode):
    tower = fresh("resnet")
    tower.set_trainable(mode)
    nn.Sequential(tower).train()
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    tower(some_images(tower))
    moved = {name for name, buffer in tower.named_buffers() if not torch.equal(buffer, before[name])}
    expected = {"frozen": set(), "all": set(before), 1: {name for name in before if "layer4" in name}}[mode]
    assert moved == expected
    tower.eval()
    assert not any(module.training for module in tower.modules())


_TOKENS = ["trunk.norm", "trunk.attn_pool", "trunk.fc_norm", "trunk.head", "head"]
TAILS = {
    "vit": ["ln_post", "proj"],
    "vit_avg": ["ln_post", "proj"],
    "resnet": ["attnpool"],
    "siglip": _TOKENS,
    "convnext": ["trunk.norm_pre", "trunk.head", "head"],
    "efficientnet": ["trunk.conv_head", "trunk.bn2", "trunk.classifier", "head"],
    "fastvit": ["trunk.final_conv", "trunk.head", "head"],
    "swin": ["trunk.norm", "trunk.head", "head"],
    "vitamin": _TOKENS,
    "mobileclip": _TOKENS,
    "eva_rotary": _TOKENS,
    "eva_post_norm": _TOKENS,
    "pe_core": _TOKENS,
}
# The last block, and the one before it: with the reduction of the map at the beginning of its stage.
LAST = {
    "vit": [["transformer.resblocks.2"], ["transformer.resblocks.1"]],
    "vit_avg": [["transformer.resblocks.2"], ["transformer.resblocks.1"]],
    "resnet": [["layer4.0"], ["layer3.0"]],
    "siglip": [["trunk.blocks.5"], ["trunk.blocks.4"]],
    "convnext": [["trunk.stages.3.blocks.1"], ["trunk.stages.3.downsample", "trunk.stages.3.blocks.0"]],
    "efficientnet": [["trunk.blocks.4"], ["trunk.blocks.3"]],
    "fastvit": [
        ["trunk.stages.3.blocks.1"],
        ["trunk.stages.3.downsample", "trunk.stages.3.pos_emb", "trunk.stages.3.blocks.0"],
    ],
    "swin": [["trunk.layers.3.blocks.1"], ["trunk.layers.3.downsample", "trunk.layers.3.blocks.0"]],
}
BLOCKS = {"vit": 3, "vit_avg": 3, "resnet": 5, "siglip": 6, "convnext": 6, "efficientnet": 5, "fastvit": 6, "swin": 6}


def parts(names):
    return tuple(f"visual.{name}." for name in names)


def last(kind):
    return LAST.get(kind, [["trunk.blocks.2"], ["trunk.blocks.1"]])


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", TAILS)
def test_the_last_blocks_are_trained_and_nothing_else(kind, blocks):
    tower = fresh(kind)
    tower.set_trainable(blocks)
    tower.train()
    chosen = parts(sum(last(kind)[:blocks], TAILS[kind]))
    trained = {name for name, _ in tower.named_parameters() if f"{name}.".startswith(chosen)}
    assert trained
    assert {name for name, parameter in tower.named_parameters() if parameter.requires_grad} == trained
    patches, pooled, *_ = tower(some_images(tower))
    (patches.square().sum() + pooled.square().sum()).backward()
    assert {name for name, parameter in tower.named_parameters() if parameter.grad is not None} == trained
    # What is saved: those parameters, and the statistics that move with them.
    saved = set(tower.trained_state_dict())
    assert saved - trained == {name for name in set(tower.state_dict()) - trained if name.startswith(chosen)}
    tower.set_trainable("frozen")
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower.modules())
    assert tower.trained_state_dict() == {}


@pytest.mark.parametrize("kind", TAILS)
def test_all_is_all_but_what_is_fixed(kind):
    tower = fresh(kind)
    tower.set_trainable("all")
    tower.set_image_size(tower.image_size * 2)  # and stays so
    frozen = {name for name, parameter in tower.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"visual.positional_embedding"} if kind == "vit_avg" else set())  # sine and cosine
    tower.train()
    assert all(module.training for module in tower.modules())
    assert "trainable='all'" in repr(tower)
    everything = set(tower.state_dict()) - frozen
    assert set(tower.trained_state_dict()) == everything


@pytest.mark.parametrize("mode", ["all", 2])
@pytest.mark.parametrize(
    ("kind", "how"), [(kind, "final" if kind == "vit_avg" else "value") for kind in (*TAILS, "fastvit_wide")]
)
def test_checkpointed_gradients_are_the_same_from_less_memory(kind, how, mode):
    found = []
    for enabled in (False, True):
        tower, kept = fresh(kind, how), []
        tower.set_trainable(mode)
        tower.set_gradient_checkpointing(enabled)
        tower.train()

        def keep(tensor, kept=kept):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            patches, pooled, *_ = tower(some_images(tower))
        # What is kept anyway, such as weights, is counted once.
        places = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        (patches.square().sum() + pooled.square().sum()).backward()
        found.append((tower, sum(places.values())))
    (plain, much), (again, little) = found
    assert little < (0.8 if mode == "all" else 1) * much
    gradients = {name: parameter.grad for name, parameter in again.named_parameters()}
    for name, parameter in plain.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name]), name
    # A batch that is seen twice counts once.
    statistics = dict(again.named_buffers())
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in plain.named_buffers())


# Where a graph ends (at what surrounds the second run, or what jaxtyping wraps), torch looks at every tensor's grad.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["vit", "resnet", "fastvit", "eva_rotary"])
def test_checkpointed_towers_compile(kind):
    gradients = []
    for compiled in (False, True):
        tower = fresh(kind)
        tower.set_trainable("all")
        tower.set_gradient_checkpointing(True)
        tower.train()
        if compiled:
            tower.compile(backend="eager")
        tower(some_images(tower)).patches.square().sum().backward()
        gradients.append({name: p.grad for name, p in tower.named_parameters()} | dict(tower.named_buffers()))
    for name, value in gradients[0].items():
        assert (value is None) == (gradients[1][name] is None), name
        if value is not None:
            torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", TAILS)
def test_depths_follow_the_way_through_the_tower(kind):
    tower, blocks = fresh(kind), BLOCKS.get(kind, 3)
    depths = tower.parameter_depths()
    assert depths.keys() == dict(tower.named_parameters()).keys()
    assert set(depths.values()) == set(range(blocks + 2))
    assert {name for name, depth in depths.items() if depth == blocks + 1} == {
        name for name in depths if f"{name}.".startswith(parts(TAILS[kind]))
    }
    for back, names in enumerate(last(kind)):
        assert {depth for name, depth in depths.items() if name.startswith(parts(names))} == {blocks - back}
    assert depths[next(iter(depths))] == 0  # what comes first


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mode", ["some", 0, -1, 4, True, 1.0, None])
def test_refused_training_modes(mode):
    with pytest.raises(TowerError, match=f"trainable: expected 'frozen', 'all' or 1 to 3 blocks, got {mode!r}"):
        fresh("vit").set_trainable(mode)


def test_what_was_frozen_before_cannot_be_trained():
    tower = OpenClipImageTower(small_model("vit").visual.requires_grad_(False))
    with pytest.raises(TowerError, match="trainable: every parameter of the image tower was frozen when it was taken"):
        tower.set_trainable(1)
    assert tower.trainable == "frozen"


@pytest.mark.parametrize(("asked", "runs"), [(False, 1), (True, 2)])
def test_frozen_blocks_run_twice_where_images_ask_for_a_gradient(asked, runs):
    tower = fresh("vit")
    tower.set_gradient_checkpointing(True)
    calls = []
    tower.visual.transformer.resblocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    images = some_images(tower).requires_grad_(asked)
    pooled = tower(images).pooled
    if asked:
        pooled.sum().backward()
    assert len(calls) == runs
