"""The files that label vectors are computed from: copied beside a model, because they may move or change."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvlr.core.models.config import PVLRConfig
from pvlr.core.models.state import PretrainedError
from pvlr.core.towers.text.sentence_encoders import is_encoded

__all__ = [
    "SOURCES",
    "copies",
    "digests",
    "text_sources",
    "unchanged",
    "with_copies",
]

SOURCES = {"descriptions": "descriptions.json", "knowledge": "knowledge.npz"}


def text_sources(config: PVLRConfig) -> dict[str, bytes]:
    """Read the files that a configuration names, by the names of their copies.

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
    """Return the configuration with the copies in a folder (None: their bare names) in place of the files."""
    names = {field: SOURCES[field] for field in _files(config)}
    paths: dict[str, Any] = {field: name if folder is None else str(folder / name) for field, name in names.items()}
    return replace(config, **paths)


def copies(config: PVLRConfig) -> list[str]:
    """Return the names of the copies, and of the file of vectors of a sentence encoder."""
    encoded = [SOURCES["knowledge"]] if is_encoded(config.knowledge) else []
    return [SOURCES[field] for field in _files(config)] + encoded


def digests(config: PVLRConfig) -> dict[str, str]:
    """Return the sha256 of each file of :func:`text_sources`, by the same names."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in text_sources(config).items()}


def unchanged(config: PVLRConfig, known: Mapping[str, str]) -> dict[str, bytes]:
    """Read the files like :func:`text_sources`, and require the ``known`` digests.

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


def _files(config: PVLRConfig) -> dict[str, str]:
    """Return the files that the configuration names, by the field that names them."""
    found = {} if config.descriptions is None else {"descriptions": config.descriptions}
    if config.knowledge != "text_tower" and not is_encoded(config.knowledge):
        found["knowledge"] = config.knowledge
    return found
