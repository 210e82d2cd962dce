"""State of a run at a step: trained weights, their moving average, the optimiser and the number of steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pvlr.core.models.state import StateError, load_trained_state, trained_state
from pvlr.train.optim import trained_parameters

__all__ = ["TrainingState", "WeightAverage", "running_statistics"]


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Return the running statistics (BatchNorm) of the trained parts of the image tower."""
    trained = trained_state(model)
    return [value for name, value in model.named_buffers() if name.startswith("image.") and name in trained]


class WeightAverage:
    """Exponential moving average of the trained parameters, in float32.

    Update ``t`` (from 0) with the weights ``w`` is ``a ← d a + (1 − d) w``, ``d = min(decay, (1 + t)/(10 + t))``: the
    weights of the first steps soon have little influence. Running statistics are not averaged: the model's own are
    used.

    Args:
        model: The model whose trained parameters are averaged; the average starts as a copy of them.
        decay: Decay, in [0, 1); 0: the average equals the weights.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(1.0)
        >>> average = WeightAverage(layer, 0.9)
        >>> _ = layer.weight.data.fill_(2.0)
        >>> average.update()
        >>> round(average.weights["weight"].item(), 4)
        1.9
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._parameters = trained_parameters(model)
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().float().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self._parameters.items():
            self.weights[name].lerp_(parameter.float(), 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set the model to the averaged weights during a ``with`` block, then restore its own, bit for bit."""
        own = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._write(self.weights)
        try:
            yield
        finally:
            self._write(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights and the number of updates."""
        return {"updates": self.updates, "weights": dict(self.weights)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            StateError: if the names differ.
        """
        if state["weights"].keys() != self.weights.keys():
            raise StateError("average: expected the weights of this model's trained parameters, got others")
        for name, value in state["weights"].items():
            self.weights[name].copy_(value)
        self.updates = state["updates"]

    @torch.no_grad()
    def _write(self, weights: Mapping[str, Tensor]) -> None:
        # In place: this changes the parameters' version, by which a cache is invalidated.
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])


class TrainingState:
    """State that a training step changes.

    Attributes:
        model: The model.
        optimizer: Its optimiser.
        average: The moving average of its weights.
        step: Number of steps done.
        seconds: Time spent training, summed over all resumptions of the run.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage) -> None:
        self.model, self.optimizer, self.average = model, optimizer, average
        self.step = 0
        self.seconds = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values, for :meth:`load`."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Load a saved state.

        Raises:
            StateError: if the weights, or the optimiser's parameter groups, are those of another model.
        """
        load_trained_state(self.model, state["model"])
        self.average.load_state_dict(state["average"])
        _require_groups(self.optimizer, state["optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def _require_groups(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    now = [_about(group) for group in optimizer.param_groups]
    was = [_about(group) for group in saved["param_groups"]]
    if now != was:
        shown = ["; ".join(f"{name or 'group'} of {count}" for name, count in groups) for groups in (now, was)]
        raise StateError(
            f"optimizer: expected a state with the parameter groups of this model ({shown[0]}), found others "
            f"({shown[1]}), as of another version of pvlr; go on with that version, or train into another run.folder"
        )


def _about(group: Mapping[str, Any]) -> tuple[str, int]:
    return str(group.get("name", "")), len(group["params"])
