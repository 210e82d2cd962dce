"""The files that label vectors are made of: copied beside a model, because they may move or change."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvlr.core.files import write_atomically
from pvlr.core.hub import PretrainedError
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.prompts import load_label_vectors
from pvlr.core.sentence_encoders import is_encoded

__all__ = ["SOURCES", "copies", "require_same_vectors", "text_sources", "with_copies", "write_texts"]

SOURCES = {"descriptions": "descriptions.json", "knowledge": "knowledge.npz"}
# How far, as a share of its length, a label's vector may be from the one that was trained on: more than rounding on
# another machine or in half precision, and far less than another encoder.
TOLERANCE = 0.01


def text_sources(config: PVLRConfig) -> dict[str, bytes]:
    """The files that a configuration names, by the name of the copy that is kept of each.

    Raises:
        PretrainedError: naming the file that cannot be read.
    """
    found: dict[str, bytes] = {}
    for field, path in _files(config).items():
        try:
            found[SOURCES[field]] = Path(path).read_bytes()
        except OSError as err:
            raise PretrainedError(f"model.{field}: expected a file at {path}, but {err.strerror or err}") from None
    return found


def with_copies(config: PVLRConfig, folder: Path | None) -> PVLRConfig:
    """The configuration that names the copies in a folder (None: by their bare names) in place of the files."""
    names = {field: SOURCES[field] for field in _files(config)}
    paths: dict[str, Any] = {field: name if folder is None else str(folder / name) for field, name in names.items()}
    return replace(config, **paths)


def copies(config: PVLRConfig) -> list[str]:
    """Names of the copies, and of what a sentence encoder made."""
    made = [SOURCES["knowledge"]] if is_encoded(config.knowledge) else []
    return [SOURCES[field] for field in _files(config)] + made


def write_texts(folder: Path, model: PVLR) -> dict[str, str]:
    """Write the copies, and what a sentence encoder made of the labels, as a file of label vectors.

    Returns:
        Name to sha256.

    Raises:
        PretrainedError: naming the file that cannot be read.
    """
    import numpy as np

    contents = text_sources(model.config)
    if is_encoded(model.config.knowledge):
        content = io.BytesIO()
        np.savez(content, names=np.array(model.labels.names), vectors=model.knowledge_vectors.float().cpu().numpy())
        contents[SOURCES["knowledge"]] = content.getvalue()
    for name, data in contents.items():
        write_atomically(folder / name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def require_same_vectors(folder: Path, model: PVLR) -> None:
    """Refuse a sentence encoder that makes other vectors of the labels than :func:`write_texts` kept in a folder.

    Raises:
        PretrainedError: naming the choice of knowledge.
        LabelError: where the file that was kept is gone or damaged.
    """
    knowledge = model.config.knowledge
    if not is_encoded(knowledge):
        return
    kept, now = load_label_vectors(folder / SOURCES["knowledge"], model.labels), model.knowledge_vectors.float().cpu()
    if kept.shape != now.shape or bool(((kept - now).norm(dim=-1) > TOLERANCE * kept.norm(dim=-1)).any()):
        raise PretrainedError(
            f"{folder}: the model was trained on other label vectors than the sentence encoder '{knowledge}' makes now"
        )


def _files(config: PVLRConfig) -> dict[str, str]:
    """The files that are asked for, by the field that names them."""
    found = {} if config.descriptions is None else {"descriptions": config.descriptions}
    if config.knowledge != "text_tower" and not is_encoded(config.knowledge):
        found["knowledge"] = config.knowledge
    return found
