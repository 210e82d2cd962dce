"""Loading of weights into towers: all of them and no others, under the names of any common library."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pvlr.core.towers.errors import TowerError, reason
from pvlr.core.towers.files.naming import names_of
from pvlr.core.towers.files.sources import TowerSource, fetch
from pvlr.core.towers.files.states import FLOATS, INDEX_ENDING, plain_names, read_state, shard_names
from pvlr.core.towers.files.transformers_models import PREFIXES, convert, has_their_names
from pvlr.core.towers.photos import PHOTOS, photos_weights

__all__ = ["read_weights"]

logger = logging.getLogger(__name__)

MOBILE_CLIP = ("image_encoder", "text_encoder")  # first parts of the names of Apple's files


def read_weights(model: nn.Module, source: TowerSource, cache_dir: str | None) -> None:
    """Load the weights of ``source`` into ``model``, fetching them first where they are not on this machine.

    No code that comes with a file is run, see :func:`~pvlr.core.towers.files.states.read_state`. Names are open_clip's,
    transformers' or MobileCLIP's, with or without prefixes of wrappers. Every weight must be present and fit, tables
    of positions too, which open_clip alone would interpolate silently; none may be left over.

    Raises:
        TowerError: in three lines where the weights cannot be fetched; naming the file where it cannot be read or
            belongs to another model.
    """
    path = source.weights
    if source.tag is not None:
        path = fetch(source.tag, source.wanted, cache_dir)
    if path is None:
        logger.warning("tower '%s' has random weights, since none were named", source.name)
        return
    try:
        if source.tag is not None and path.name.endswith(INDEX_ENDING):
            for part in shard_names(path):
                fetch({"hf_hub": f"{Path(source.tag['hf_hub']).parent}/{part}"}, source.wanted, cache_dir)
        if source.name == PHOTOS:
            _load(model, photos_weights(model, path.parent), hints=False)
        elif path.suffix in (".npz", ".npy"):
            _load_big_vision(model, path)
        else:
            _load(model, read_state(path), hints=":" not in source.name)
    except TowerError:
        raise
    except Exception as err:  # safetensors, pickle, zip and key errors share no base class
        raise TowerError(f"{path}: expected the weights of '{source.name}', got {reason(err)}") from err


def _load(model: nn.Module, given: Mapping[str, Tensor], *, hints: bool) -> None:
    own = model.state_dict()
    state = plain_names(given, {name.split(".")[0] for name in own} | {*PREFIXES, *MOBILE_CLIP})
    state = _in_open_clips_form(model, state, own)
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            fits = names_of(state) if hints else []
            hint = f"; its shapes are those of {' or '.join(fits)}" if fits else ""
            found, has = tuple(state[name].shape), tuple(value.shape)
            raise ValueError(f"'{name}' of shape {found} where the model has {has}{hint}")
    for what, names in (("no weight", own.keys() - state.keys()), ("a weight too many:", state.keys() - own.keys())):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{what} '{min(names)}'{more}")
    for name, value in own.items():
        if value.is_floating_point() and state[name].dtype not in FLOATS:
            raise ValueError(f"'{name}' of the type {state[name].dtype}, where a floating point number is meant")
    model.load_state_dict(state, strict=True)


def _in_open_clips_form(model: nn.Module, state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    if has_their_names(state):
        state = convert(state)
    state = dict(convert_state_dict(model, state))
    if "positional_embedding" in state and "positional_embedding" not in own:
        state = convert_to_custom_text_state_dict(state)  # files older than CustomTextCLIP
    for name, value in own.items():
        # Scalars and tensors of one number are interchangeable here.
        if name in state and value.numel() == state[name].numel() == 1:
            state[name] = state[name].reshape(value.shape)
    positions = [name for name in state if name.endswith(".position_ids") and name not in own]
    return {name: value for name, value in state.items() if name not in positions}


def _load_big_vision(model: nn.Module, path: Path) -> None:
    from open_clip.convert import load_big_vision_weights

    # Its arrays may be compressed, and are read one by one into weights of their shape.
    most = 4 * sum(value.numel() * value.element_size() for value in model.state_dict().values())
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > most:
        raise ValueError(f"arrays of {size:,} bytes, more than four times those of the model")
    model_: Any = model
    load_big_vision_weights(model_, str(path))
