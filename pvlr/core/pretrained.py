"""A trained model as a folder, and back: safetensors and JSON, checked, and never code.

``model.json`` says what the model is, ``model.safetensors`` holds all weights but those of the frozen towers, which are
known by name and hash or lie in ``towers/``. Files of texts that the labels' vectors are made of are copied beside.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pvlr.core.decision import Decision
from pvlr.core.files import write_atomically
from pvlr.core.hub import PretrainedError, fetch
from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.model_card import MARK, ModelCard
from pvlr.core.model_texts import SOURCES, copies, require_same_vectors, texts_of, with_copies
from pvlr.core.sentence_encoders import SentenceEncoder, SentenceEncoderError
from pvlr.core.towers import TowerOrigin, TowerSpec, build_towers, save_towers
from pvlr.core.towers.frozen_text import FrozenTextTower
from pvlr.core.towers.image import OpenClipImageTower
from pvlr.core.towers.saving import TEXT_FILES, TOWER_FILES, were_changed
from pvlr.core.towers.sources import FOLDER_PREFIX
from pvlr.core.weights import load_trained_state, trained_state

__all__ = ["CARD_NAME", "FILES", "MODEL_NAME", "WEIGHTS_NAME", "PretrainedError", "load_pretrained", "save_pretrained"]

MODEL_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
TOWERS = "towers"
OF_TOWERS, OF_TEXTS = (tuple(f"{TOWERS}/{name}" for name in names) for names in (TOWER_FILES, TEXT_FILES))
CHECKED = (WEIGHTS_NAME, *SOURCES.values(), *OF_TOWERS, *OF_TEXTS)
FILES = (MODEL_NAME, CARD_NAME, *CHECKED)
"""All that a model's folder may hold that is read or published."""
FORMAT = 4
FIELDS = (
    "format",
    "model",
    "labels",
    "trained",
    "tower",
    "tower_fingerprint",
    "included",
    "preprocess",
    "decision",
    "card",
    "files",
    "sha256",
)


def save_pretrained(
    model: PVLR, folder: str | os.PathLike[str], *, include_towers: bool = False, name: str | None = None
) -> None:
    """Write a model into a folder, each file whole or not at all, ``model.json`` last.

    It holds the sha256 of every other file but the README, and of its own other fields. A sentence encoder is not
    kept, but what it made of the labels is (``knowledge.npz``). A README that is there and is not of this kind stays.

    Args:
        model: From :meth:`~pvlr.core.model.PVLR.from_towers`, or read by :func:`load_pretrained`.
        folder: Where to; made where it is absent.
        include_towers: Whether to write the frozen towers too.
        name: What the README calls the model; None: the folder.

    Towers that came with a model go with it again. What can be refused is, before anything is written.

    Raises:
        PretrainedError: where the model does not know its towers, or they are not as they were built, or nothing tells
            their weights; where a file that it is made of is gone or another; where the folder cannot be made.
        TowerError: where towers cannot be included.
    """
    from safetensors.torch import save as to_bytes

    if model.origin is None:
        raise PretrainedError("model: expected one that was made by PVLR.from_towers, of this one no towers are known")
    _require_as_built(model, model.origin)
    place, spec, texts = Path(folder), model.origin.spec, texts_of(model)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise PretrainedError(f"{place}: expected a folder to write the model to, but {err.strerror or err}") from None
    files = {}
    include_towers = include_towers or model.origin.copies is not None
    if not include_towers and not spec.names_weights:
        raise PretrainedError(
            f"model: expected towers that can be loaded again, '{spec.name}' has random weights that no name tells; "
            "save it with include_towers=True, or build it with TowerSpec(weights='random')"
        )
    fingerprint = model.origin.fingerprint
    text, image = cast(FrozenTextTower, model.text), cast(OpenClipImageTower, model.image)
    if not include_towers and were_changed(text, image, model.origin):
        raise PretrainedError(
            f"model: expected the frozen towers of '{spec.name}' as they were loaded, their weights are others now; "
            "save it with include_towers=True, or build it with a TowerSpec that says what is trained"
        )
    if include_towers:
        fingerprint, digests = save_towers(text, image, model.origin, place / TOWERS)
        files = {f"{TOWERS}/{name}": digest for name, digest in digests.items()}
        # The place of the copies, and not a path of this machine, which tells others nothing.
        spec = _at(spec, TOWERS) if spec.is_local else spec
    else:
        spec = spec.absolute()
    weights = {name: value.cpu().clone().contiguous() for name, value in trained_state(model).items()}
    contents = {WEIGHTS_NAME: to_bytes(weights), **texts}
    files |= {name: write_atomically(place / name, content) for name, content in contents.items()}
    told = {
        "format": FORMAT,
        "model": json.loads(json.dumps(asdict(with_copies(model.config, None)))),
        "labels": model.labels.to_json(),
        "trained": model.trained.to_json(),
        "tower": spec.to_json(),
        "tower_fingerprint": fingerprint,
        "included": include_towers,
        "preprocess": dict(model.origin.preprocess),
        "decision": model.decision.to_json(),
        "card": model.card.to_json(),
        "files": files,
    }
    told["sha256"] = _digest_of(told)
    card = place / CARD_NAME
    if not card.exists() or MARK in card.read_text(encoding="utf-8", errors="replace"):
        write_atomically(card, model.card.to_markdown(name=name or str(folder), told=told).encode())
    write_atomically(place / MODEL_NAME, f"{json.dumps(told, indent=1)}\n".encode())


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    encoder: SentenceEncoder | None = None,
    tower: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> PVLR:
    """Read a model that :func:`save_pretrained` or a run wrote, strictly: every weight must be there, and no other.

    Nothing of it is executed: it is JSON, safetensors and, where there are label vectors, arrays without objects.

    Args:
        source: A folder, or ``hf-hub:ORGANISATION/REPOSITORY``.
        encoder: The function that the model was built with, where its knowledge came from one.
        tower: Where its towers lie now, if not where they were, see :meth:`~pvlr.core.towers.spec.TowerSpec.at`;
            others are refused.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Folder for what is downloaded; None for the usual cache.

    Returns:
        The model, in evaluation mode and on the CPU.

    Raises:
        PretrainedError: naming the file that is missing, damaged or foreign, or the towers that are others; where the
            encoder is missing, not asked for, cannot be loaded or makes other vectors of the labels.
        TowerError: where the towers cannot be loaded.
    """
    folder = fetch(source, FILES, revision=revision, cache_dir=cache_dir)
    path = folder / MODEL_NAME
    told = _read_description(path)
    for name, digest in told["files"].items():
        if _sha256(folder / name) != digest:
            raise PretrainedError(
                f"{folder / name}: expected the content that {MODEL_NAME} was written for, its sha256 is another"
            )
    with _parts_of(path):
        spec = TowerSpec.from_json(told["tower"], cache_dir=cache_dir)
        labels, trained = (LabelSet.from_json(told[name]) for name in ("labels", "trained"))
        config = with_copies(_config(told["model"]), folder)
        decision, card = Decision.from_json(told["decision"]), ModelCard.from_json(told["card"])
        needed = {WEIGHTS_NAME, *copies(config), *(OF_TOWERS if told["included"] else ())}
        if told["files"].keys() - (OF_TEXTS if told["included"] else ()) != needed:
            raise ValueError(f"files: expected {', '.join(sorted(needed))}, got {', '.join(sorted(told['files']))}")
    _require_encoder(folder, config, encoder)
    copied = str(folder / TOWERS) if told["included"] and tower is None else None
    spec = spec if tower is None else spec.at(tower)
    _require_place(folder, spec, copied)
    towers = build_towers(_at(spec, copied))
    if towers.fingerprint != told["tower_fingerprint"]:
        raise PretrainedError(f"{folder}: the model was trained on other weights of the tower '{spec.name}'")
    with _parts_of(path):
        if json.loads(json.dumps(towers.preprocess)) != told["preprocess"]:
            raise ValueError(f"preprocess: expected {towers.preprocess}, got {told['preprocess']}")
        model = PVLR.from_towers(config, trained, towers, encoder=encoder, extra_descriptions=True)
    model.origin = towers.origin._replace(spec=spec, copies=copied)
    with _parts_of(path):
        model = model if labels == trained else model.with_labels(labels)
    # Before the weights, which another encoder's may not fit.
    require_same_vectors(folder, model)
    with _parts_of(path):
        load_trained_state(model, _weights(folder / WEIGHTS_NAME))
    model.decision, model.card = decision, card
    return model.eval()


def _at(spec: TowerSpec, folder: str | None) -> TowerSpec:
    """The towers of a folder, asked for in the same way."""
    return spec if folder is None else replace(spec, name=f"{FOLDER_PREFIX}{folder}", weights=None)


def _require_place(folder: Path, spec: TowerSpec, copied: str | None) -> None:
    """Say how to tell where towers of one machine lie now, where they are not where they were."""
    lay = spec.name.removeprefix(FOLDER_PREFIX) if spec.name.startswith(FOLDER_PREFIX) else spec.weights
    if copied is None and lay is not None and os.path.isabs(lay) and not os.path.exists(lay):
        raise PretrainedError(
            f"{folder}: expected the model's towers at {lay}, where they lay when it was saved, found nothing there; "
            "say where they lie now: --tower PLACE, in Python from_pretrained(…, tower=PLACE)"
        )


def _require_as_built(model: PVLR, origin: TowerOrigin) -> None:
    """Refuse what the files could not tell of: the image tower is built again as its origin says."""
    for what, built, now in (
        ("trained parts", origin.spec.train, getattr(model.image, "trainable", origin.spec.train)),
        ("image size", origin.preprocess["size"], model.image.image_size),
    ):
        if built != now:
            raise PretrainedError(
                f"model.image: expected the {what} {built!r} that its towers were built with, found {now!r}; build the "
                "model with a TowerSpec that says so"
            )


@contextmanager
def _parts_of(path: Path) -> Iterator[None]:
    """Say of which file the parts are that this version refuses; damage is found before, by the digests."""
    try:
        yield
    except SentenceEncoderError as err:  # Which is not a part of the file.
        raise PretrainedError(f"{path}: {err}") from err
    except (KeyError, TypeError, ValueError) as err:
        raise PretrainedError(f"{path}: expected a model that this version of pvlr can read, but {err}") from err


def _weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    try:
        weights: dict[str, Tensor] = from_bytes(path.read_bytes())
    except SafetensorError as err:
        raise ValueError(f"{path.name} holds no safetensors: {err}") from None
    return weights


def _config(data: Any) -> PVLRConfig:
    expected = asdict(PVLRConfig()).keys()
    if not isinstance(data, dict) or data.keys() != expected:
        odd = ", ".join(map(repr, sorted(expected ^ data.keys()))) if isinstance(data, dict) else repr(data)
        raise ValueError(f"model: expected the fields of PVLRConfig and no others, they differ in {odd}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    return PVLRConfig(**values)


def _require_encoder(folder: Path, config: PVLRConfig, encoder: SentenceEncoder | None) -> None:
    if config.knowledge == "encoder" and encoder is None:
        raise PretrainedError(
            f"{folder}: the model was trained with a sentence encoder of its user's, which no file keeps; give the "
            "same again, as from_pretrained(source, encoder=FUNCTION)"
        )
    if config.knowledge != "encoder" and encoder is not None:
        raise PretrainedError(
            f"{folder}: expected no encoder, the model was trained with knowledge='{config.knowledge}'"
        )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise PretrainedError(f"{path}: expected a file of the trained model, found no such file") from None
    except OSError as err:
        raise PretrainedError(f"{path}: expected a file of the trained model, but {err.strerror or err}") from None


def _digest_of(told: Mapping[str, Any]) -> str:
    """sha256 of a description but for its own digest, in one order and spelling of JSON."""
    rest = {name: value for name, value in told.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{path}: expected a trained model in this folder, found no such file") from None
    except OSError as err:
        raise PretrainedError(f"{path}: expected the description of a model, but {err.strerror or err}") from None
    except (ValueError, RecursionError) as err:
        raise PretrainedError(f"{path}: expected the description of a model, but {err}") from None
    if not isinstance(told, dict) or not isinstance(told.get("format"), int):
        raise PretrainedError(f"{path}: expected the description of a model, found another content")
    if told["format"] != FORMAT:
        raise PretrainedError(f"{path}: expected a model of format {FORMAT}, found format {told['format']}")
    if told.keys() != set(FIELDS):
        odd = ", ".join(map(repr, sorted(set(FIELDS) ^ told.keys())))
        raise PretrainedError(f"{path}: expected the fields of a model of format {FORMAT}, they differ in {odd}")
    if _digest_of(told) != told["sha256"]:
        raise PretrainedError(f"{path}: expected the description as it was written, its sha256 is another")
    if not isinstance(told["files"], dict) or not told["files"].keys() <= set(CHECKED):
        # Names are never joined to the folder unless they are known: '../' leads nowhere.
        raise PretrainedError(f"{path}: files: expected some of {', '.join(CHECKED)}, got {told['files']!r}")
    if not isinstance(told["included"], bool):
        raise PretrainedError(f"{path}: included: expected true or false, got {told['included']!r}")
    return told
