"""Trained weights, their average, and the state of a run."""

import pytest
import torch
from helpers.training_toys import ToyModel
from torch import nn

from pvlr.core.models.state import StateError, load_trained_state, trained_state
from pvlr.train.config import OptimizerConfig
from pvlr.train.optim import build_optimizer
from pvlr.train.state import TrainingState, WeightAverage, running_statistics


def perturb(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            buffer.add_(1)


def test_frozen_towers_are_left_out_and_statistics_of_trained_ones_are_in() -> None:
    names = set(trained_state(ToyModel()))
    assert {"image.last.weight", "image.norm.running_mean", "layer.weight", "scale", "context.context"} <= names
    assert not any(name.startswith(("text.", "image.first")) for name in names)


def test_running_statistics_are_those_of_trained_parts_and_the_very_ones() -> None:
    model = ToyModel()
    found = running_statistics(model)
    assert [tuple(value.shape) for value in found] == [(8,), (8,), ()]
    found[0].fill_(3.0)
    assert torch.equal(model.image.norm.running_mean, torch.full((8,), 3.0))


def test_state_goes_through_a_model_and_back_after_every_value_has_moved() -> None:
    one, other = ToyModel(0), ToyModel(0)
    perturb(one)
    load_trained_state(other, trained_state(one))
    images = torch.randn(4, 3, 2, 2)
    assert torch.equal(one.eval()(images).logits, other.eval()(images).logits)
    assert all(torch.equal(value, trained_state(other)[name]) for name, value in trained_state(one).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("scale"), "weights: expected 'scale', which is missing"),
        (lambda state: state.update(more=torch.ones(1)), "weights: 'more' belongs to no part of this model"),
        (
            lambda state: state.update(scale=torch.ones(2)),
            r"weights: expected 'scale' of shape \(\), got \(2,\)",
        ),
    ],
)
def test_other_weights_are_refused_and_change_nothing(change, message) -> None:  # type: ignore[no-untyped-def]
    model = ToyModel()
    state = {name: value + 1 for name, value in trained_state(model).items()}
    change(state)
    before = {name: value.clone() for name, value in trained_state(model).items()}
    with pytest.raises(StateError, match=message):
        load_trained_state(model, state)
    assert all(torch.equal(value, before[name]) for name, value in trained_state(model).items())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_average_is_its_definition(decay: float) -> None:
    layer = nn.Linear(2, 1, bias=False)
    average = WeightAverage(layer, decay)
    expected = layer.weight.detach().double().clone()
    for t in range(30):
        with torch.no_grad():
            layer.weight.add_(torch.randn(1, 2))
        average.update()
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * layer.weight.detach().double()
    torch.testing.assert_close(average.weights["weight"].double(), expected, atol=1e-6, rtol=1e-6)
    if decay == 0:
        assert torch.equal(average.weights["weight"], layer.weight.detach())


def test_average_stays_float32_under_a_bf16_model() -> None:
    layer = nn.Linear(1, 1, bias=False).bfloat16()
    average = WeightAverage(layer, 0.999)
    nn.init.ones_(layer.weight)
    for _ in range(4000):
        average.update()
    assert average.weights["weight"].dtype == torch.float32
    assert average.weights["weight"].item() > 0.95


def test_applied_average_is_taken_back_bit_for_bit_even_after_an_error() -> None:
    model = ToyModel()
    average = WeightAverage(model, 0.9)
    perturb(model)
    own = {name: value.clone() for name, value in trained_state(model).items()}

    def fail_inside() -> None:
        with average.applied():
            assert torch.equal(model.scale, average.weights["scale"])
            assert not torch.equal(model.scale, own["scale"])
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(torch.equal(value, own[name]) for name, value in trained_state(model).items())


def test_average_of_another_model_is_refused() -> None:
    with pytest.raises(StateError, match="average: expected the weights of this model's trained parameters, got"):
        WeightAverage(ToyModel(), 0.9).load_state_dict(WeightAverage(nn.Linear(1, 1), 0.9).state_dict())


def test_training_state_round_trip() -> None:
    def fresh(seed: int) -> TrainingState:
        model = ToyModel(seed)
        return TrainingState(model, build_optimizer(model, OptimizerConfig()), WeightAverage(model, 0.9))

    one, other = fresh(0), fresh(0)
    one.model(torch.randn(4, 3, 2, 2)).logits.sum().backward()
    one.optimizer.step()
    one.average.update()
    one.step, one.seconds = 3, 1.5
    other.load(one.to_dict())
    assert (other.step, other.seconds, other.average.updates) == (3, 1.5, 1)
    mine, theirs = one.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"]
    assert mine.keys() == theirs.keys() != set()
    assert all(torch.equal(mine[key]["exp_avg"], theirs[key]["exp_avg"]) for key in mine)


def test_groups_of_another_version_are_refused_in_a_sentence_and_change_nothing() -> None:
    model = ToyModel()
    state = TrainingState(model, build_optimizer(model, OptimizerConfig()), WeightAverage(model, 0.9))
    saved = state.to_dict()
    state.load(saved)
    groups = saved["optimizer"]["param_groups"]
    groups[0] = {**groups[0], "name": "others"}
    message = "^optimizer: expected a state with the parameter groups of this model .*, found others .*others of "
    with pytest.raises(StateError, match=message):
        state.load(saved)
    groups[0] = {**groups[0], "name": state.optimizer.param_groups[0]["name"], "params": [0] * 99}
    with pytest.raises(StateError, match=r"^optimizer: .* of 99"):
        state.load(saved)
    saved["optimizer"]["param_groups"] = groups[1:]
    with pytest.raises(StateError, match=r"^optimizer: "):
        state.load(saved)
