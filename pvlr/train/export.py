"""A trained model as two files, and back: weights without the frozen towers, and what they are weights of."""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.prompts import load_label_vectors
from pvlr.core.sentence_encoders import SentenceEncoder, SentenceEncoderError, is_encoded
from pvlr.core.tower_files import BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX, find_source
from pvlr.core.towers import TowerError, Towers, load_towers
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
    "encoded_vectors",
    "load",
    "require_same_vectors",
    "require_weights",
    "save",
    "text_sources",
]

MODEL_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = 1
FIELDS = ("model", "labels", "tower", "tower_fingerprint", "preprocess", "texts_sha256", "weights_sha256", "sha256")
RANDOM = "random"
OWN_WEIGHTS = (BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX)
SOURCES = {"descriptions": "descriptions.json", "knowledge": "knowledge.npz"}
# How far, as a share of its length, a label's vector may be from the one that was trained on: more than rounding on
# another machine or in half precision, and far less than another encoder.
TOLERANCE = 0.01


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


def require_weights(config: TowerConfig) -> None:
    """Refuse an open_clip model's name without weights: random towers are asked for, not left over.

    Raises:
        TowerError: naming what can be given; or the name, where it is unknown.
    """
    if config.weights is None and not config.name.startswith(OWN_WEIGHTS):
        find_source(config.name, None, config.cache_dir)
        raise TowerError(
            f"tower.weights: expected a tag such as 'openai', a local file or '{RANDOM}' with the name "
            f"'{config.name}', got none"
        )


def build_towers(config: TowerConfig) -> Towers:
    """Load the towers and thaw what is to be trained.

    Raises:
        TowerError: see :func:`require_weights` and :func:`~pvlr.core.towers.load_towers`.
    """
    require_weights(config)
    random = config.weights == RANDOM and not config.name.startswith(OWN_WEIGHTS)
    with torch.random.fork_rng(devices=[], enabled=random):
        if random:  # The same weights each time, or no such run could go on or be loaded.
            torch.manual_seed(0)
        towers = load_towers(
            config.name,
            weights=None if random else config.weights,
            image_size=config.image_size,
            patch_features=config.patch_features,
            cache_dir=config.cache_dir,
        )
    towers.image.set_trainable(config.train)
    return towers


def build_model(
    config: PVLRConfig, labels: LabelSet, towers: Towers, *, encoder: SentenceEncoder | None = None
) -> PVLR:
    """Put a model together, untrained; ``encoder`` is for ``knowledge="encoder"``."""
    scale, bias = towers.logit_scale, towers.logit_bias
    return PVLR(config, labels, towers.text, towers.image, logit_scale=scale, logit_bias=bias, encoder=encoder)


def text_sources(config: PVLRConfig) -> dict[str, bytes]:
    """The files that a model's label vectors are made of, by the name of the copy that a run keeps.

    Raises:
        ExportError: naming the file that cannot be read.
    """
    found: dict[str, bytes] = {}
    for field, path in _files(config).items():
        try:
            found[SOURCES[field]] = Path(path).read_bytes()
        except OSError as err:
            raise ExportError(f"model.{field}: expected a file at {path}, but {err.strerror or err}") from None
    return found


def encoded_vectors(model: PVLR) -> dict[str, bytes]:
    """What a sentence encoder made of the labels, as a file of label vectors, by the name that a run keeps it by.

    Empty where the vectors come from the text tower or a file.
    """
    import numpy as np

    if not is_encoded(model.config.knowledge):
        return {}
    content = io.BytesIO()
    np.savez(content, names=np.array(model.labels.names), vectors=model.knowledge_vectors.float().cpu().numpy())
    return {SOURCES["knowledge"]: content.getvalue()}


def require_same_vectors(folder: Path, model: PVLR) -> None:
    """Refuse a sentence encoder that makes other vectors of the labels than :func:`encoded_vectors` kept in a folder.

    Raises:
        ExportError: naming the choice of knowledge.
        LabelError: where the file that was kept is gone or damaged.
    """
    knowledge = model.config.knowledge
    if not is_encoded(knowledge):
        return
    kept, now = load_label_vectors(folder / SOURCES["knowledge"], model.labels), model.knowledge_vectors.float().cpu()
    if kept.shape != now.shape or bool(((kept - now).norm(dim=-1) > TOLERANCE * kept.norm(dim=-1)).any()):
        raise ExportError(
            f"{folder}: the model was trained on other label vectors than the sentence encoder '{knowledge}' makes now"
        )


def save(folder: Path, model: PVLR, *, tower: TowerConfig, fingerprint: str, preprocess: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``model.json`` into a folder, each whole or not at all.

    A sentence encoder is not kept, but what it made of the labels is (``knowledge.npz``).

    ``model.json`` holds the sha256 of the weights, of the copies of the files of texts, and of its own other fields.

    Args:
        folder: Where to; it exists, and holds the copies of :func:`text_sources`.
        model: The model, with the weights to keep.
        tower: What its towers were loaded from.
        fingerprint: Of the towers' weights as they were loaded.
        preprocess: What images must go through.
    """
    from safetensors.torch import save as to_bytes

    weights = {name: value.cpu().clone().contiguous() for name, value in trained_state(model).items()}
    digest = write_atomically(folder / WEIGHTS_NAME, to_bytes(weights))
    for name, content in encoded_vectors(model).items():
        write_atomically(folder / name, content)
    told = {
        "format": FORMAT,
        "model": config_to_json(model.config),
        "labels": model.labels.to_json(),
        "tower": config_to_json(tower),
        "tower_fingerprint": fingerprint,
        "preprocess": dict(preprocess),
        "texts_sha256": {name: hashlib.sha256(_read(folder / name)).hexdigest() for name in _copies(model.config)},
        "weights_sha256": digest,
    }
    told["sha256"] = _digest_of(told)
    write_atomically(folder / MODEL_NAME, f"{json.dumps(told, indent=1)}\n".encode())


def load(folder: Path, *, encoder: SentenceEncoder | None = None) -> ExportedModel:
    """Read a model that :func:`save` wrote.

    Args:
        folder: Where it is.
        encoder: The function that the model was built with, where its knowledge came from one.

    Raises:
        ExportError: naming the file that is missing or damaged, or the towers that are others; where the encoder is
            missing, not asked for, cannot be loaded or makes other vectors of the labels.
        TowerError: where the towers cannot be loaded.
    """
    from safetensors.torch import load as from_bytes

    told = _read_description(folder / MODEL_NAME)
    content = _read(folder / WEIGHTS_NAME, "the weights of a trained model")
    for path, found, digest in (
        (folder / WEIGHTS_NAME, content, told["weights_sha256"]),
        *((folder / name, _read(folder / name), digest) for name, digest in told["texts_sha256"].items()),
    ):
        if hashlib.sha256(found).hexdigest() != digest:
            raise ExportError(f"{path}: expected the content that {MODEL_NAME} was written for, its sha256 is another")
    with _parts_of(folder / MODEL_NAME):
        tower = config_from_json(TowerConfig, told["tower"])
        labels = LabelSet.from_json(told["labels"])
        config = config_from_json(PVLRConfig, told["model"])
        # The run's own copies: the files themselves may have moved or changed since.
        copies: dict[str, Any] = {field: str(folder / SOURCES[field]) for field in _files(config)}
        config = replace(config, **copies)
    _require_encoder(folder, config, encoder)
    towers = build_towers(tower)
    if towers.fingerprint != told["tower_fingerprint"]:
        raise ExportError(f"{folder}: the model was trained on other weights of the tower '{tower.name}'")
    with _parts_of(folder / MODEL_NAME):
        model = build_model(config, labels, towers, encoder=encoder)
    require_same_vectors(folder, model)
    with _parts_of(folder / MODEL_NAME):
        weights: dict[str, Tensor] = from_bytes(content)
        load_trained_state(model, weights)
    return ExportedModel(model.eval(), labels, told["preprocess"])


@contextmanager
def _parts_of(path: Path) -> Iterator[None]:
    """Say of which file the parts are that this version refuses; damage is found before, by the digests."""
    try:
        yield
    except SentenceEncoderError as err:  # Which is not a part of the file.
        raise ExportError(f"{path}: {err}") from err
    except (KeyError, TypeError, ValueError) as err:
        raise ExportError(f"{path}: expected a model that this version of pvlr can read, but {err}") from err


def _require_encoder(folder: Path, config: PVLRConfig, encoder: SentenceEncoder | None) -> None:
    if config.knowledge == "encoder" and encoder is None:
        raise ExportError(
            f"{folder}: the model was trained with a sentence encoder of its user's, which no file keeps; give the "
            "same again, as load_run(folder, encoder=FUNCTION)"
        )
    if config.knowledge != "encoder" and encoder is not None:
        raise ExportError(f"{folder}: expected no encoder, the model was trained with knowledge='{config.knowledge}'")


def _files(config: PVLRConfig) -> dict[str, str]:
    """The files that are asked for, by the field that names them."""
    found = {} if config.descriptions is None else {"descriptions": config.descriptions}
    if config.knowledge != "text_tower" and not is_encoded(config.knowledge):
        found["knowledge"] = config.knowledge
    return found


def _copies(config: PVLRConfig) -> list[str]:
    """Names of the files that a run's folder keeps of them, and of what a sentence encoder made."""
    made = [SOURCES["knowledge"]] if is_encoded(config.knowledge) else []
    return [SOURCES[field] for field in _files(config)] + made


def _read(path: Path, what: str = "a file of the trained model") -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ExportError(f"{path}: expected {what}, found no such file") from None
    except OSError as err:
        raise ExportError(f"{path}: expected {what}, but {err.strerror or err}") from None


def _digest_of(told: Mapping[str, Any]) -> str:
    """sha256 of a description but for its own digest, in one order and spelling of JSON."""
    rest = {name: value for name, value in told.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_description(path: Path) -> dict[str, Any]:
    content = _read(path, "a finished run in this folder")
    try:
        told = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise ExportError(f"{path}: expected the description of a model, but {err}") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT or any(field not in told for field in FIELDS):
        raise ExportError(f"{path}: expected a model of format {FORMAT}, found another content")
    if _digest_of(told) != told["sha256"]:
        raise ExportError(f"{path}: expected the description as it was written, its sha256 is another")
    return told
