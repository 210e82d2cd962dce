"""What of a model's weights is its own: all but those of its frozen towers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["StateError", "load_trained_state", "trained_state"]

TOWERS = ("text.", "image.")


class StateError(ValueError):
    """Saved weights that do not fit the model."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights of a model but those of its frozen towers, by name, detached.

    Frozen towers (``text.`` and whatever of ``image.`` is not trained) are known by name and fingerprint instead. The
    running statistics of trained parts of the image tower are in. What the tower says of itself counts, whatever its
    parameters require now: a model whose gradients were switched off to serve it was trained all the same.
    """
    image: Any = getattr(model, "image", None)
    trained = image.trained_state_dict() if hasattr(image, "trained_state_dict") else ()
    kept = {f"image.{name}" for name in trained}
    state = model.state_dict()
    return {name: value.detach() for name, value in state.items() if name in kept or not name.startswith(TOWERS)}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy what :func:`trained_state` returned into a model of the same configuration: all of it, and nothing else.

    Raises:
        StateError: naming a tensor that is missing, unknown or of another shape.
    """
    own = trained_state(model)
    for name in own:
        if name not in state:
            raise StateError(f"weights: expected '{name}', which is missing")
    for name, value in state.items():
        if name not in own:
            raise StateError(f"weights: '{name}' belongs to no part of this model")
        if own[name].shape != value.shape:
            raise StateError(f"weights: expected '{name}' of shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
    for name, value in state.items():
        own[name].copy_(value)
