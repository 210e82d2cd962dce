"""A trained baseline as two files in a run's folder, and back; PVLR has :mod:`pvlr.core.pretrained`."""

import hashlib
import json
import os
from pathlib import Path

from pvlr.core.baselines import BaselineConfig, BaselineModel
from pvlr.core.files import write_atomically
from pvlr.core.hub import PretrainedError
from pvlr.core.labels import LabelSet
from pvlr.core.towers import build_towers
from pvlr.core.weights import load_trained_state, trained_state
from pvlr.train.config import TowerConfig, config_from_json, config_to_json

__all__ = ["BASELINE_NAME", "load_baseline", "save_baseline"]

BASELINE_NAME = "baseline.json"
WEIGHTS_NAME = "baseline.safetensors"


def save_baseline(folder: Path, model: BaselineModel, *, tower: TowerConfig, fingerprint: str) -> None:
    """Write ``baseline.safetensors`` and ``baseline.json``, each whole or not at all.

    Args:
        folder: Where to; it exists.
        model: The model, with the weights to keep.
        tower: What its towers were loaded from.
        fingerprint: Of their weights.
    """
    from safetensors.torch import save as to_bytes

    weights = {name: value.cpu().clone().contiguous() for name, value in trained_state(model).items()}
    told = {
        "baseline": config_to_json(model.config),
        "labels": model.labels.to_json(),
        "tower": config_to_json(tower),
        "tower_fingerprint": fingerprint,
        "weights_sha256": write_atomically(folder / WEIGHTS_NAME, to_bytes(weights)),
    }
    write_atomically(folder / BASELINE_NAME, f"{json.dumps(told, indent=1)}\n".encode())


def load_baseline(source: str | os.PathLike[str]) -> BaselineModel:
    """Read a baseline that a run wrote: every weight must be there, and no other.

    Args:
        source: The run's folder.

    Returns:
        The model, in evaluation mode and on the CPU.

    Raises:
        PretrainedError: naming the file that is missing, damaged or foreign, or the towers that are others.
        TowerError: where the towers cannot be loaded.
    """
    from safetensors.torch import load as from_bytes

    folder = Path(source)
    path = folder / BASELINE_NAME
    try:
        told, content = json.loads(path.read_text(encoding="utf-8")), (folder / WEIGHTS_NAME).read_bytes()
        config = config_from_json(BaselineConfig, told["baseline"])
        labels, tower = LabelSet.from_json(told["labels"]), config_from_json(TowerConfig, told["tower"])
        fingerprint, digest = told["tower_fingerprint"], told["weights_sha256"]
    except OSError as err:
        raise PretrainedError(f"{folder}: expected a trained baseline, but {err.strerror or err}") from None
    except (KeyError, TypeError, ValueError) as err:
        raise PretrainedError(f"{path}: expected the description of a baseline, but {err}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise PretrainedError(f"{folder / WEIGHTS_NAME}: expected the weights that {BASELINE_NAME} was written for")
    towers = build_towers(tower)
    if towers.fingerprint != fingerprint:
        raise PretrainedError(f"{folder}: the baseline was trained on other weights of the tower '{tower.name}'")
    model = BaselineModel(config, labels, towers.text, towers.image, logit_scale=towers.logit_scale)
    load_trained_state(model, from_bytes(content))
    return model.eval()
