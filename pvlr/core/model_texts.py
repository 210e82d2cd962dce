"""The files that label vectors are made of: copied beside a model, because they may move or change."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvlr.core.hub import PretrainedError
from pvlr.core.model_config import PVLRConfig
from pvlr.core.prompts import load_label_vectors
from pvlr.core.sentence_encoders import is_encoded

if TYPE_CHECKING:
    from pvlr.core.model import PVLR

__all__ = [
    "SOURCES",
    "copies",
    "digests",
    "require_same_vectors",
    "text_sources",
    "texts_of",
    "unchanged",
    "with_copies",
]

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


def digests(config: PVLRConfig) -> dict[str, str]:
    """sha256 of each file of :func:`text_sources`, by the same names."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in text_sources(config).items()}


def unchanged(config: PVLRConfig, known: Mapping[str, str]) -> dict[str, bytes]:
    """The files as :func:`text_sources` reads them, which must be those of ``known`` digests.

    Raises:
        PretrainedError: naming the file that cannot be read, or has changed.
    """
    contents = text_sources(config)
    for field, path in _files(config).items():
        if hashlib.sha256(contents[SOURCES[field]]).hexdigest() != known[SOURCES[field]]:
            raise PretrainedError(
                f"model.{field}: expected {path} as it was when the model was built, its content is another"
            )
    return contents


def texts_of(model: "PVLR") -> dict[str, bytes]:
    """What the copies hold, and what a sentence encoder made of the labels, as a file of label vectors; by name.

    Raises:
        PretrainedError: naming the file that cannot be read, or is another than the model was built with.
    """
    import numpy as np

    contents = unchanged(model.config, model.text_digests)
    if is_encoded(model.config.knowledge):
        content = io.BytesIO()
        np.savez(content, names=np.array(model.labels.names), vectors=model.knowledge_vectors.float().cpu().numpy())
        contents[SOURCES["knowledge"]] = content.getvalue()
    return contents


def require_same_vectors(folder: Path, model: "PVLR") -> None:
    """Refuse a sentence encoder that makes other vectors of the labels than :func:`texts_of` kept in a folder.

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
