"""Parameter groups and the learning rate's way."""

from typing import Any

import pytest
import torch
from helpers.tower_models import small_model
from helpers.training_toys import ToyModel
from torch import nn

from pvlr.core.residual import LabelResidual
from pvlr.core.towers.image.tower import OpenClipImageTower
from pvlr.train.config import OptimizerConfig, ScheduleConfig
from pvlr.train.optim import (
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
    set_learning_rates,
    trained_parameters,
)


def test_every_trained_parameter_is_in_exactly_one_group_and_no_frozen_one() -> None:
    model = ToyModel()
    groups = parameter_groups(model, OptimizerConfig(), tower_lr_factor=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert id(model.image.first.weight) not in grouped


def test_groups_have_their_rates_and_decays() -> None:
    model = ToyModel()
    config = OptimizerConfig(lr=0.1, weight_decay=0.5, prompt_lr_factor=3.0)
    groups = {group["name"]: group for group in parameter_groups(model, config, tower_lr_factor=0.2)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {key: {names[id(p)] for p in group["params"]} for key, group in groups.items()}
    assert found == {
        "layers": {"layer.weight"},
        "layers_undecayed": {"layer.bias", "norm.weight", "norm.bias", "scale"},
        "prompts": {"context.context"},
        "tower": {"image.last.weight"},
        "tower_undecayed": {"image.last.bias", "image.norm.weight", "image.norm.bias"},
    }
    rates = {key: (group["base_lr"], group["weight_decay"]) for key, group in groups.items()}
    assert rates == {
        "layers": (0.1, 0.5),
        "layers_undecayed": (0.1, 0.0),
        "prompts": (pytest.approx(0.3), 0.0),
        "tower": (pytest.approx(0.02), 0.5),
        "tower_undecayed": (pytest.approx(0.02), 0.0),
    }


@pytest.mark.parametrize(
    ("kind", "embeddings"),
    [
        ("vit", {"positional_embedding"}),
        ("resnet", {"attnpool.positional_embedding"}),
        ("siglip", {"trunk.pos_embed", "trunk.cls_token"}),
    ],
)
def test_a_towers_embeddings_of_position_and_class_are_not_decayed(kind: str, embeddings: set[str]) -> None:
    model = nn.Module()
    model.image = OpenClipImageTower(small_model(kind).visual)
    model.image.set_trainable("all")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in parameter_groups(model, OptimizerConfig(weight_decay=0.5))}
    free = {names[id(parameter)] for parameter in groups["tower_undecayed"]["params"] if parameter.ndim > 1}
    assert free == {f"image.visual.{name}" for name in embeddings}
    assert "image.visual.class_embedding" not in {names[id(parameter)] for parameter in groups["tower"]["params"]}
    assert all(parameter.ndim > 1 for parameter in groups["tower"]["params"])
    assert (groups["tower"]["weight_decay"], groups["tower_undecayed"]["weight_decay"]) == (0.5, 0.0)


def test_a_layers_rate_is_a_share_of_the_next_ones() -> None:
    model = nn.Module()
    model.image, model.head = OpenClipImageTower(small_model("vit").visual), nn.Linear(2, 1)
    model.image.set_trainable("all")
    config = OptimizerConfig(lr=0.1, weight_decay=0.5)
    groups = parameter_groups(model, config, tower_lr_factor=0.5, tower_layer_decay=0.8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["base_lr"] for group in groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    visual, block = "image.visual.", "image.visual.transformer.resblocks."
    assert rates["head.weight"] == rates["head.bias"] == 0.1
    assert rates[f"{visual}proj"] == rates[f"{visual}ln_post.bias"] == pytest.approx(0.05)
    for number in range(3):
        own = {rate for name, rate in rates.items() if name.startswith(f"{block}{number}.")}
        assert min(own) == max(own) == pytest.approx(0.05 * 0.8 ** (3 - number))
    for name in ("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight"):
        assert rates[f"{visual}{name}"] == pytest.approx(0.05 * 0.8**4)
    decays = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    plain = parameter_groups(model, config)
    assert decays == {names[id(p)]: group["weight_decay"] for group in plain for p in group["params"]}
    # And the layers that stay frozen have none.
    model.image.set_trainable(1)
    last = parameter_groups(model, config, tower_lr_factor=0.5, tower_layer_decay=0.8)
    assert {group["name"].removesuffix("_undecayed") for group in last} == {"layers", "tower_03", "tower_04"}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_optimizers_take_the_groups(kind: str) -> None:
    optimizer = build_optimizer(ToyModel(), OptimizerConfig(kind=kind, lr=0.1))  # type: ignore[arg-type]
    assert type(optimizer).__name__.lower() == kind
    assert set_learning_rates(optimizer, 0.5)["layers"] == 0.05
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained_parameters(ToyModel()))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="model: expected at least one parameter that requires a gradient, got none"):
        build_optimizer(nn.Linear(1, 1).requires_grad_(False), OptimizerConfig())


@pytest.mark.parametrize(("total", "warmup"), [(50, 0.2), (7, 0.3), (100, 0.5)])
def test_one_cycle_is_that_of_torch(total: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total, pct_start=warmup)
    config = ScheduleConfig(warmup=warmup)
    for step in range(total):
        assert learning_rate_factor(step, total, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step + 1 < total:
            reference.step()


@pytest.mark.parametrize(("total", "rise"), [(50, 10), (7, 1), (100, 50)])
def test_cosine_is_a_line_up_and_torchs_half_cosine_down(total: int, rise: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - rise)
    config = ScheduleConfig(kind="cosine", warmup=rise / total)
    for step in range(rise):
        assert learning_rate_factor(step, total, config) == pytest.approx((step + 1) / rise)
    for step in range(rise, total):
        assert learning_rate_factor(step, total, config) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("kind", ["one_cycle", "cosine"])
@pytest.mark.parametrize("total", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.9])
def test_rates_rise_then_fall_and_stay_in_range(kind: str, total: int, warmup: float) -> None:
    config = ScheduleConfig(kind=kind, warmup=warmup)  # type: ignore[arg-type]
    factors = [learning_rate_factor(step, total, config) for step in range(total)]
    top = factors.index(max(factors))
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert total < 10 or max(factors) > 0.9


def test_steps_outside_of_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match=r"step: expected a number in \[0, 5\), got 5"):
        learning_rate_factor(5, 5, ScheduleConfig())


@pytest.mark.parametrize(("kind", "factor"), [("adamw", 1280 / 5), ("sgd", 1.0)])
def test_vectors_among_the_whole_images_features_have_a_rate_for_their_width(kind: Any, factor: float) -> None:
    model = nn.Module()
    model.residual = LabelResidual(labels=3, dim=4, source_dim=5)
    groups = {
        group["name"]: group for group in parameter_groups(model, OptimizerConfig(kind=kind, lr=0.1, weight_decay=0.5))
    }
    assert {name: group["base_lr"] for name, group in groups.items()} == {
        "features": pytest.approx(0.1 * factor),
        "layers": 0.1,
        "layers_undecayed": 0.1,
    }
    assert [value.shape for value in groups["features"]["params"]] == [(3, 5)]
    assert groups["features"]["weight_decay"] == 0.5
