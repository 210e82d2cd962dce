"""The weights of a model without those of its frozen towers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PretrainedError", "StateError", "load_trained_state", "trained_state"]

TOWERS = ("text.", "image.")


class PretrainedError(ValueError):
    """Error for a saved model that is missing, damaged, foreign or made for other towers, or cannot be shared."""


class StateError(ValueError):
    """Error for saved weights that do not fit the model."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Return all weights of a model but those of its frozen towers, by name, detached.

    Frozen towers (``text.`` and the untrained part of ``image.``) are identified by name and fingerprint instead. The
    running statistics of trained parts of the image tower are included. The tower's ``trainable`` decides, not
    ``requires_grad``: a model whose gradients were switched off for inference was trained all the same.
    """
    image: Any = getattr(model, "image", None)
    trained = image.trained_state_dict() if hasattr(image, "trained_state_dict") else ()
    included = {f"image.{name}" for name in trained}
    state = model.state_dict()
    return {name: value.detach() for name, value in state.items() if name in included or not name.startswith(TOWERS)}


@torch.no_grad()
def load_trained_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy the result of :func:`trained_state` into a model of the same configuration: all of it, and nothing else.

    Raises:
        StateError: naming a tensor that is missing, unknown or of another shape.
    """
    own = trained_state(model)
    for name in own:
        if name not in state:
            raise StateError(f"weights: expected '{name}', which is missing")
    for name, value in sorted(state.items()):  # A file has its tensors in any order; the message is the same each time.
        if name not in own:
            raise StateError(f"weights: '{name}' belongs to no part of this model")
        if own[name].shape != value.shape:
            raise StateError(f"weights: expected '{name}' of shape {tuple(own[name].shape)}, got {tuple(value.shape)}")
    for name, value in state.items():
        own[name].copy_(value)
