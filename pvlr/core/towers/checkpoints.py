"""Weights of towers: read from files as people have them, with care, and all of them."""

import logging
from pathlib import Path

import torch
from torch import nn

from pvlr.core.towers.sources import TowerError, TowerSource, fetch, reason

__all__ = ["read_weights"]

logger = logging.getLogger(__name__)


def read_weights(model: nn.Module, source: TowerSource, cache_dir: str | None) -> None:
    """Load the weights of ``source`` into ``model``, fetching them first where they are not on this machine.

    Pickled files are read with ``weights_only``; every weight must be there and fit, tables of positions too, which
    open_clip alone would interpolate without a word.

    Raises:
        TowerError: in three lines where the weights cannot be fetched; naming the file where it cannot be read or
            belongs to another model.
    """
    import open_clip

    path = source.weights
    if source.tag is not None:
        path = fetch(source.tag, source.wanted, cache_dir)
    if path is None:
        logger.warning("tower '%s' has random weights, since none were named", source.name)
        return
    try:
        shapes = _shapes_in(path)
        for name, value in model.state_dict().items():
            # Files older than CustomTextCLIP have the text tower's weights at the top.
            shape = shapes.get(name, shapes.get(name.removeprefix("text.")))
            # open_clip makes numbers of tables of one number, and the other way round.
            if shape is not None and shape != value.shape and not value.numel() == shape.numel() == 1:
                raise TowerError(f"'{name}' of shape {tuple(shape)} where the model has {tuple(value.shape)}")
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except Exception as err:  # safetensors, pickle, zip and key errors share no base class
        raise TowerError(f"{path}: expected the weights of '{source.name}', got {reason(err)}") from err


def _shapes_in(path: Path) -> dict[str, torch.Size]:
    """The shapes of a file's tensors, by name as open_clip reads names; nothing stays in memory."""
    from open_clip.factory import load_state_dict
    from safetensors import safe_open

    if path.suffix in (".npz", ".npy"):  # Big Vision's, under other names and copied entry by entry
        return {}
    if str(path).endswith(".safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    else:
        state = load_state_dict(str(path), device="meta", weights_only=True)
        shapes = {name: value.shape for name, value in state.items() if isinstance(value, torch.Tensor)}
    return {name.removeprefix("module."): shape for name, shape in shapes.items()}
