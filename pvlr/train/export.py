"""A trained model as two files, and back: weights without the frozen towers, and what they are weights of."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.towers import Towers, load_towers
from pvlr.train.checkpoint import write_atomically
from pvlr.train.config import TowerConfig, config_from_json, config_to_json
from pvlr.train.state import load_trained_state, trained_state

__all__ = [
    "MODEL_NAME",
    "WEIGHTS_NAME",
    "ExportError",
    "ExportedModel",
    "build_model",
    "build_towers",
    "load",
    "save",
    "text_sources",
]

MODEL_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = 1
SOURCES = {"descriptions": "descriptions.json", "knowledge": "knowledge.npz"}


class ExportError(ValueError):
    """Files of a trained model that are missing, damaged or made for other towers."""


class ExportedModel(NamedTuple):
    """A model read from a run's folder.

    Attributes:
        model: In evaluation mode, on the CPU.
        labels: Its labels.
        preprocess: What images must go through: ``mean``, ``std``, ``size``, ``interpolation``.
    """

    model: PVLR
    labels: LabelSet
    preprocess: dict[str, Any]


def build_towers(config: TowerConfig) -> Towers:
    """Load the towers and thaw what is to be trained.

    Raises:
        TowerError: see :func:`~pvlr.core.towers.load_towers`.
    """
    towers = load_towers(
        config.name,
        weights=config.weights,
        image_size=config.image_size,
        patch_features=config.patch_features,
        cache_dir=config.cache_dir,
    )
    towers.image.set_trainable(config.train)
    return towers


def build_model(config: PVLRConfig, labels: LabelSet, towers: Towers) -> PVLR:
    """Put a model together, untrained."""
    return PVLR(config, labels, towers.text, towers.image, logit_scale=towers.logit_scale, logit_bias=towers.logit_bias)


def text_sources(config: PVLRConfig) -> dict[str, bytes]:
    """The files that a model's label vectors are made of, by the name of the copy that a run keeps.

    Raises:
        ExportError: naming the file that cannot be read.
    """
    found: dict[str, bytes] = {}
    for field, name in SOURCES.items():
        path = getattr(config, field)
        if path in (None, "text_tower"):
            continue
        try:
            found[name] = Path(path).read_bytes()
        except OSError as err:
            raise ExportError(f"model.{field}: expected a file at {path}, but {err.strerror or err}") from None
    return found


def save(folder: Path, model: PVLR, *, tower: TowerConfig, fingerprint: str, preprocess: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json`` into a folder, each whole or not at all.

    Args:
        folder: Where to; it exists.
        model: The model, with the weights to keep.
        tower: What its towers were loaded from.
        fingerprint: Of the towers' weights as they were loaded.
        preprocess: What images must go through.
    """
    from safetensors.torch import save as to_bytes

    weights = {name: value.cpu().clone().contiguous() for name, value in trained_state(model).items()}
    digest = write_atomically(folder / WEIGHTS_NAME, to_bytes(weights))
    told = {
        "format": FORMAT,
        "model": config_to_json(model.config),
        "labels": model.labels.to_json(),
        "tower": config_to_json(tower),
        "tower_fingerprint": fingerprint,
        "preprocess": dict(preprocess),
        "weights_sha256": digest,
    }
    write_atomically(folder / MODEL_NAME, f"{json.dumps(told, indent=1)}\n".encode())


def load(folder: Path) -> ExportedModel:
    """Read a model that :func:`save` wrote.

    Raises:
        ExportError: naming the file that is missing or damaged, or the towers that are others.
        TowerError: where the towers cannot be loaded.
    """
    from safetensors.torch import load as from_bytes

    told = _read_description(folder / MODEL_NAME)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise ExportError(f"{path}: expected the weights of a trained model, found no such file")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != told["weights_sha256"]:
        raise ExportError(f"{path}: expected the weights that {MODEL_NAME} was written for, its sha256 is another")
    tower = config_from_json(TowerConfig, told["tower"])
    towers = build_towers(tower)
    if towers.fingerprint != told["tower_fingerprint"]:
        raise ExportError(f"{folder}: the model was trained on other weights of the tower '{tower.name}'")
    labels = LabelSet.from_json(told["labels"])
    config = config_from_json(PVLRConfig, told["model"])
    # The run's own copies: the files themselves may have moved or changed since.
    copies = {field: str(folder / name) for field, name in SOURCES.items() if (folder / name).is_file()}
    model = build_model(replace(config, **copies), labels, towers)  # type: ignore[arg-type]
    weights: dict[str, Tensor] = from_bytes(content)
    load_trained_state(model, weights)
    return ExportedModel(model.eval(), labels, told["preprocess"])


def _read_description(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path}: expected a finished run in this folder, found no such file") from None
    except (OSError, ValueError) as err:
        raise ExportError(f"{path}: expected the description of a model, but {err}") from None
    fields = ("model", "labels", "tower", "tower_fingerprint", "preprocess", "weights_sha256")
    if not isinstance(told, dict) or told.get("format") != FORMAT or any(field not in told for field in fields):
        raise ExportError(f"{path}: expected a model of format {FORMAT}, found another content")
    return told
