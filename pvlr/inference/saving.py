"""Saving and loading of trained models as folders of safetensors and JSON, checked and without code.

``model.json`` describes the model, ``model.safetensors`` holds all weights except those of the frozen towers, which are
identified by name and hash or stored in ``towers/``. Text files that the label vectors are computed from are copied.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.models.state import PretrainedError, load_trained_state, trained_state
from pvlr.core.models.texts import SOURCES, copies, unchanged, with_copies
from pvlr.core.prompts import load_label_vectors
from pvlr.core.towers import TowerOrigin, Towers, TowerSpec, build_towers, save_towers
from pvlr.core.towers.files.sources import FOLDER_PREFIX
from pvlr.core.towers.image.tower import OpenClipImageTower
from pvlr.core.towers.saving import TEXT_FILES, TOWER_FILES, were_changed
from pvlr.core.towers.text.base import FrozenTextTower
from pvlr.core.towers.text.sentence_encoders import SentenceEncoder, SentenceEncoderError, is_encoded
from pvlr.files import write_atomically
from pvlr.inference.card import MARK, ModelCard
from pvlr.inference.decision import Decision
from pvlr.inference.hub import fetch
from pvlr.runs import state_of_run

__all__ = ["CARD_NAME", "FILES", "MODEL_NAME", "WEIGHTS_NAME", "PretrainedError", "load_pretrained", "save_pretrained"]

LOG = logging.getLogger(__name__)

# Largest distance, as a share of its length, of a label's vector from the one that was trained on: more than rounding
# on another machine or in half precision, and far less than another encoder.
TOLERANCE = 0.01
STATES = {
    "running": "the run in it has not finished",
    "stopped": "the run in it was stopped and has to be resumed first",
    "failed": "the run in it ended with an error and has to be resumed first",
    "lost": "the run in it was lost, as by a kill or a power failure, and has to be resumed first",
}
MODEL_NAME = "model.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
TOWERS = "towers"
OF_TOWERS, OF_TEXTS = (tuple(f"{TOWERS}/{name}" for name in names) for names in (TOWER_FILES, TEXT_FILES))
CHECKED = (WEIGHTS_NAME, *SOURCES.values(), *OF_TOWERS, *OF_TEXTS)
FILES = (MODEL_NAME, CARD_NAME, *CHECKED)
"""All files of a model's folder that are read or published."""
FORMAT = 5
LATER = {"patches": "joint"}
"""Fields of a baseline's configuration that earlier files of this format lack, with what they mean there."""
FIELDS = (
    "format",
    "kind",
    "config",
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


class Saved(NamedTuple):
    """Content of a model's folder.

    Attributes:
        model: The network, with the origin of its towers.
        decision: Temperature and thresholds.
        card: Data, figures and limits.
    """

    model: PVLR | BaselineModel
    decision: Decision
    card: ModelCard


def save_pretrained(
    saved: Saved, folder: str | os.PathLike[str], *, include_towers: bool = False, name: str | None = None
) -> None:
    """Write a model into a folder, each file whole or not at all, ``model.json`` last.

    It holds the sha256 of every other file except the README, and of its own other fields. A sentence encoder is not
    saved, but its label vectors are (``knowledge.npz``). An existing README of other origin is not replaced. Towers
    that came with a model are saved with it again. All possible checks precede the writing.

    Args:
        saved: A model of any kind, its decision and its card.
        folder: Target folder, created if absent.
        include_towers: Whether to write the frozen towers too.
        name: Name of the model in the README; None: the folder.

    Raises:
        PretrainedError: if the model's towers have changed since they were built, or no name identifies their weights;
            if a file that it was built from is missing or changed; if the folder cannot be created.
        TowerError: if towers cannot be included.
    """
    from safetensors.torch import save as to_bytes

    model, decision, card = saved
    origin = model.origin
    if origin is None:
        raise PretrainedError("model: expected one that was made by from_towers, of this one no towers are known")
    _require_as_built(model, origin)
    place, spec = Path(folder), origin.spec
    texts = texts_of(model) if isinstance(model, PVLR) else {}
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise PretrainedError(f"{place}: expected a folder to write the model to, but {err.strerror or err}") from None
    files = {}
    include_towers = include_towers or origin.copies is not None
    if not include_towers and not spec.names_weights:
        raise PretrainedError(
            f"model: expected towers that can be loaded again, '{spec.name}' has random weights that no name tells; "
            "save it with include_towers=True, or build it with TowerSpec(weights='random')"
        )
    fingerprint = origin.fingerprint
    text, image = cast(FrozenTextTower, model.text), cast(OpenClipImageTower, model.image)
    if not include_towers and were_changed(text, image, origin):
        raise PretrainedError(
            f"model: expected the frozen towers of '{spec.name}' as they were loaded, their weights are others now; "
            "save it with include_towers=True, or build it with a TowerSpec that says what is trained"
        )
    if include_towers:
        fingerprint, digests = save_towers(text, image, origin, place / TOWERS)
        files = {f"{TOWERS}/{name}": digest for name, digest in digests.items()}
        # The place of the copies, and not a path of this machine, which is meaningless elsewhere.
        spec = _at(spec, TOWERS) if spec.is_local else spec
    else:
        spec = spec.absolute()
    weights = {name: value.cpu().clone().contiguous() for name, value in trained_state(model).items()}
    contents = {WEIGHTS_NAME: to_bytes(weights), **texts}
    files |= {name: write_atomically(place / name, content) for name, content in contents.items()}
    description = {
        "format": FORMAT,
        "kind": _kind_of(model),
        "config": json.loads(json.dumps(asdict(_bare(model.config)))),
        "labels": model.labels.to_json(),
        "trained": model.trained.to_json(),
        "tower": spec.to_json(),
        "tower_fingerprint": fingerprint,
        "included": include_towers,
        "preprocess": dict(origin.preprocess),
        "decision": decision.to_json(),
        "card": card.to_json(),
        "files": files,
    }
    description["sha256"] = _digest_of(description)
    readme = place / CARD_NAME
    if not readme.exists() or MARK in readme.read_text(encoding="utf-8", errors="replace"):
        write_atomically(readme, card.to_markdown(name=name or str(folder), told=description).encode())
    write_atomically(place / MODEL_NAME, f"{json.dumps(description, indent=1)}\n".encode())


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    encoder: SentenceEncoder | None = None,
    tower: str | None = None,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Saved:
    """Load a model of any kind that :func:`save_pretrained` or a run wrote, strictly: all of its weights and no others.

    No code is executed: the files are JSON, safetensors and, for label vectors, arrays without objects.

    Args:
        source: A folder, or ``hf-hub:ORGANISATION/REPOSITORY``.
        encoder: The function that the model was built with, if its knowledge is ``encoder``.
        tower: Current place of its towers, if it has changed, see :meth:`~pvlr.core.towers.spec.TowerSpec.at`; others
            are refused.
        revision: Branch, tag or commit on the Hub.
        cache_dir: Folder for downloads; None: the default cache.

    Returns:
        The model, in evaluation mode and on the CPU.

    Raises:
        PretrainedError: naming the file that is missing, damaged or unknown, or the towers that differ; if the encoder
            is missing, unexpected, cannot be loaded or returns other vectors for the labels.
        TowerError: if the towers cannot be loaded.
    """
    folder = fetch(source, FILES, revision=revision, cache_dir=cache_dir)
    path = folder / MODEL_NAME
    description = _read_description(path)
    if (state := state_of_run(folder)) in STATES:
        LOG.warning("%s: %s; this model is that of its last end", folder, STATES[state])
    for name, digest in description["files"].items():
        _require_checksum(folder / name, expected=digest, found=_sha256(folder / name))
    with _parts_of(path):
        spec = TowerSpec.from_json(description["tower"], cache_dir=cache_dir)
        labels, trained = (LabelSet.from_json(description[name]) for name in ("labels", "trained"))
        config = _config(description["kind"], description["config"], folder)
        decision, card = Decision.from_json(description["decision"]), ModelCard.from_json(description["card"])
        included, listed = description["included"], description["files"]
        texts = copies(config) if isinstance(config, PVLRConfig) else ()
        needed = {WEIGHTS_NAME, *texts, *(OF_TOWERS if included else ())}
        if listed.keys() - (OF_TEXTS if included else ()) != needed:
            raise ValueError(f"files: expected {', '.join(sorted(needed))}, got {', '.join(sorted(listed))}")
    _require_encoder(folder, config, encoder)
    copied = str(folder / TOWERS) if included and tower is None else None
    spec = spec if tower is None else spec.at(tower)
    _require_place(folder, spec, copied)
    towers = build_towers(_at(spec, copied))
    if towers.fingerprint != description["tower_fingerprint"]:
        raise PretrainedError(f"{folder}: the model was trained on other weights of the tower '{spec.name}'")
    with _parts_of(path):
        if json.loads(json.dumps(towers.preprocess)) != description["preprocess"]:
            raise ValueError(f"preprocess: expected {towers.preprocess}, got {description['preprocess']}")
        model = _built(config, trained, towers, encoder)
    model.origin = towers.origin._replace(spec=spec, copies=copied)
    with _parts_of(path):
        model = model if labels == trained else model.with_labels(labels)
    if isinstance(model, PVLR):  # Before the weights, whose shapes may not fit another encoder.
        require_same_vectors(folder, model)
    with _parts_of(path):
        load_trained_state(model, _weights(folder / WEIGHTS_NAME))
    return Saved(model.eval(), decision, card)


def _kind_of(model: PVLR | BaselineModel) -> str:
    return "pvlr" if isinstance(model, PVLR) else "baseline"


def _bare(config: PVLRConfig | BaselineConfig) -> PVLRConfig | BaselineConfig:
    """Return the configuration with the names of copied files, without paths of this machine."""
    return with_copies(config, None) if isinstance(config, PVLRConfig) else config


def _built(
    config: PVLRConfig | BaselineConfig, labels: LabelSet, towers: Towers, encoder: SentenceEncoder | None
) -> PVLR | BaselineModel:
    if isinstance(config, BaselineConfig):
        return BaselineModel.from_towers(config, labels, towers)
    return PVLR.from_towers(config, labels, towers, encoder=encoder, extra_descriptions=True)


def _at(spec: TowerSpec, folder: str | None) -> TowerSpec:
    """Return the spec with the towers of a folder, other settings unchanged."""
    return spec if folder is None else replace(spec, name=f"{FOLDER_PREFIX}{folder}", weights=None)


def _require_place(folder: Path, spec: TowerSpec, copied: str | None) -> None:
    """Refuse a place of towers that no longer exists, and name the option for the current one."""
    place = spec.name.removeprefix(FOLDER_PREFIX) if spec.name.startswith(FOLDER_PREFIX) else spec.weights
    if copied is None and place is not None and os.path.isabs(place) and not os.path.exists(place):
        raise PretrainedError(
            f"{folder}: expected the model's towers at {place}, where they lay when it was saved, found nothing there; "
            "say where they lie now: --tower PLACE, in Python from_pretrained(…, tower=PLACE)"
        )


def _require_as_built(model: PVLR | BaselineModel, origin: TowerOrigin) -> None:
    """Refuse changes that the files cannot store: the image tower is rebuilt from its origin."""
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
    """Name the file in errors of its fields; damage is found before, by the digests."""
    try:
        yield
    except SentenceEncoderError as err:  # Not about a field of the file.
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


def _config(kind: object, data: Any, folder: Path) -> PVLRConfig | BaselineConfig:
    if kind not in ("pvlr", "baseline"):
        raise ValueError(f"kind: expected 'pvlr' or 'baseline', got {kind!r}")
    of: type[PVLRConfig] | type[BaselineConfig] = PVLRConfig if kind == "pvlr" else BaselineConfig
    expected = {field.name for field in fields(of)}
    if isinstance(data, dict) and of is BaselineConfig:
        data = {**LATER, **data}
    if not isinstance(data, dict) or data.keys() != expected:
        odd = ", ".join(map(repr, sorted(expected ^ data.keys()))) if isinstance(data, dict) else repr(data)
        raise ValueError(f"config: expected the fields of {of.__name__} and no others, they differ in {odd}")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    config = of(**values)
    return with_copies(config, folder) if isinstance(config, PVLRConfig) else config


def _require_encoder(folder: Path, config: PVLRConfig | BaselineConfig, encoder: SentenceEncoder | None) -> None:
    knowledge = config.knowledge if isinstance(config, PVLRConfig) else "text_tower"
    if knowledge == "encoder" and encoder is None:
        raise PretrainedError(
            f"{folder}: the model was trained with a sentence encoder of its user's, which no file keeps; give the "
            "same again, as from_pretrained(source, encoder=FUNCTION)"
        )
    if knowledge != "encoder" and encoder is not None:
        raise PretrainedError(f"{folder}: expected no encoder, the model was trained with knowledge='{knowledge}'")


def _require_checksum(path: Path, *, expected: object, found: str) -> None:
    if found != expected:
        raise PretrainedError(f"{path}: checksum mismatch: expected {str(expected)[:64]}, got {found}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise PretrainedError(f"{path}: expected a file of the trained model, found no such file") from None
    except OSError as err:
        raise PretrainedError(f"{path}: expected a file of the trained model, but {err.strerror or err}") from None


def _digest_of(description: Mapping[str, Any]) -> str:
    """The sha256 of a description without its own digest, as JSON with sorted keys."""
    rest = {name: value for name, value in description.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        state = STATES.get(state_of_run(path.parent) or "")
        reason = "" if state is None else f"; {state}"
        raise PretrainedError(f"{path}: expected a trained model in this folder, found no such file{reason}") from None
    except OSError as err:
        raise PretrainedError(f"{path}: expected the description of a model, but {err.strerror or err}") from None
    except (ValueError, RecursionError) as err:
        raise PretrainedError(f"{path}: expected the description of a model, but {err}") from None
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise PretrainedError(f"{path}: expected the description of a model, found another content")
    if description["format"] != FORMAT:
        raise PretrainedError(f"{path}: expected a model of format {FORMAT}, found format {description['format']}")
    if description.keys() != set(FIELDS):
        odd = ", ".join(map(repr, sorted(set(FIELDS) ^ description.keys())))
        raise PretrainedError(f"{path}: expected the fields of a model of format {FORMAT}, they differ in {odd}")
    _require_checksum(path, expected=description["sha256"], found=_digest_of(description))
    if not isinstance(description["files"], dict) or not description["files"].keys() <= set(CHECKED):
        # Only known names are joined to the folder, so '../' cannot leave it.
        raise PretrainedError(f"{path}: files: expected some of {', '.join(CHECKED)}, got {description['files']!r}")
    if not isinstance(description["included"], bool):
        raise PretrainedError(f"{path}: included: expected true or false, got {description['included']!r}")
    return description


def texts_of(model: PVLR) -> dict[str, bytes]:
    """Return the contents of the copied files and, for a sentence encoder, of a file of its label vectors, by name.

    Raises:
        PretrainedError: naming the file that cannot be read, or has changed since the model was built.
    """
    import numpy as np

    contents = unchanged(model.config, model.text_digests)
    if is_encoded(model.config.knowledge):
        content = io.BytesIO()
        np.savez(content, names=np.array(model.labels.names), vectors=model.knowledge_vectors.float().cpu().numpy())
        contents[SOURCES["knowledge"]] = content.getvalue()
    return contents


def require_same_vectors(folder: Path, model: PVLR) -> None:
    """Refuse a sentence encoder whose label vectors differ from those that :func:`texts_of` stored in a folder.

    Raises:
        PretrainedError: naming the choice of knowledge.
        LabelError: if the stored file is missing or damaged.
    """
    knowledge = model.config.knowledge
    if not is_encoded(knowledge):
        return
    saved, now = load_label_vectors(folder / SOURCES["knowledge"], model.labels), model.knowledge_vectors.float().cpu()
    if saved.shape != now.shape or bool(((saved - now).norm(dim=-1) > TOLERANCE * saved.norm(dim=-1)).any()):
        raise PretrainedError(
            f"{folder}: the model was trained on other label vectors than the sentence encoder '{knowledge}' makes now"
        )
