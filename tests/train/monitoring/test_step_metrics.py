"""Numbers off a model after a step: the gradient as it was, and the parameters that mean something."""

import pytest
import torch
from helpers.model_toys import HEADS, build
from torch import nn

from pvlr.train.monitoring.step_metrics import gradient_norms, step_metrics


@pytest.mark.parametrize("longest", [1e-3, 1e9])
def test_blocks_gradients_are_those_before_clipping(longest: float) -> None:
    model = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(2, 1), "frozen": nn.Linear(1, 1)})
    model["second"](model["first"](torch.randn(4, 3))).sum().backward()
    wanted = {
        name: torch.cat([parameter.grad.flatten() for parameter in model[name].parameters()]).norm().item()
        for name in ("first", "second")
    }
    total = nn.utils.clip_grad_norm_(model.parameters(), longest).item()
    assert gradient_norms(model, total) == pytest.approx(wanted, rel=1e-5)


def test_no_gradient_is_no_number() -> None:
    assert gradient_norms(nn.Linear(1, 1), 0.0) == {}
    layer = nn.Sequential(nn.Linear(1, 1))
    layer(torch.zeros(1, 1)).mul(0).sum().backward()
    assert gradient_norms(layer, 0.0) == {"0": 0.0}


def test_a_model_tells_scale_bias_weights_of_the_base_and_each_heads_mix() -> None:
    model = build({"heads": HEADS, "base": ("focused", "pooled")})
    told = step_metrics(model, 1.0)
    assert told["model/scale"] == pytest.approx(model.head.log_scale.exp().item(), rel=1e-6)
    assert told["model/bias"] == pytest.approx(model.mixture.bias.item(), rel=1e-6)
    weights = model.mixture.weights.tolist()
    assert (told["base/focused"], told["base/pooled"]) == pytest.approx(weights, rel=1e-6)
    assert weights[0] != weights[1]
    mix = [told[f"fusion/mix_head_{number}"] for number in range(HEADS)]
    assert mix == pytest.approx(model.fusion.mix.tolist(), rel=1e-6)
    assert told["memory/process_MiB"] > 10
    assert "fusion/mix_head_0" not in step_metrics(build({"heads": HEADS, "fusion": "sum"}), 1.0)


def test_a_model_of_which_a_part_is_not_there_tells_of_the_rest() -> None:
    parts = {"base/competition", "base/focused", "base/pooled"}
    bare = step_metrics(build({"heads": HEADS, "fusion": "context"}), 1.0)
    assert not parts & bare.keys()
    assert {"model/scale", "model/bias"} <= bare.keys()
    alone = step_metrics(build({"heads": HEADS, "learn": False}), 1.0)
    assert parts | {"model/bias"} <= alone.keys()
    assert "model/scale" not in alone
