"""From the name of a tower to its configuration and the file of its weights; every lack is named, nothing guessed."""

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

__all__ = ["TowerError", "TowerSource", "fetch", "find_source", "reason", "require_reachable", "shown", "three_lines"]

CONFIG_NAME = "open_clip_config.json"
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
HUB_WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # where open_clip looks on the Hub
BUNDLED_PREFIX = "pvlr:"
FOLDER_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
HOW_TO_GIVE = "If it is on this machine, name it: --tower.weights PATH, or --tower.name local-dir:FOLDER."
HOW_TO_GIVE_FOLDER = "If it is on this machine, name its folder: --tower.name local-dir:FOLDER."

# Entries of a configuration that name a model or tokenizer of another library.
FOREIGN_NAMES = (
    ("vision_cfg", "timm_model_name"),
    ("text_cfg", "hf_model_name"),
    ("text_cfg", "hf_tokenizer_name"),
)

_short = reprlib.Repr()
_short.maxstring = 80


class TowerError(ValueError):
    """A tower that cannot be found, fetched, read or adapted."""


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """Where a tower comes from.

    Attributes:
        name: The name asked for.
        tokenizer_name: The name under which open_clip knows the tokenizer.
        config: The model's configuration in open_clip's form.
        preprocess: Image preprocessing that goes with the weights: ``mean``, ``std``, ``interpolation``, …
        weights: File of the weights; None when it has still to be fetched (``tag``) or weights are to be random.
        tag: open_clip's record of where published weights are.
        wanted: What is fetched, in words, for messages.
    """

    name: str
    tokenizer_name: str
    config: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    tag: dict[str, Any] | None = None
    wanted: str = ""


def find_source(name: str, weights: str | os.PathLike[str] | None, cache_dir: str | None) -> TowerSource:
    """Resolve a tower's name without fetching any weights.

    Args:
        name: An open_clip model name, ``local-dir:FOLDER``, ``hf-hub:ORGANISATION/REPOSITORY`` or ``pvlr:NAME``.
        weights: For an open_clip model name: a tag of open_clip's, a local file, or None for random weights.
        cache_dir: Folder for what is downloaded; None for the usual cache.

    Raises:
        TowerError: naming what is unknown or missing, with the nearest known names.
    """
    if name.startswith((FOLDER_PREFIX, HUB_PREFIX, BUNDLED_PREFIX)) and weights is not None:
        raise TowerError(f"weights: expected none with the name '{name}', which brings its own, got '{weights}'")
    if name.startswith(BUNDLED_PREFIX):
        return _folder_source(name, _bundled_folder(name))
    if name.startswith(FOLDER_PREFIX):
        return _folder_source(name, Path(name.removeprefix(FOLDER_PREFIX)))
    if name.startswith(HUB_PREFIX):
        return _hub_source(name, cache_dir)
    return _known_source(name, weights)


def _known_source(name: str, weights: str | os.PathLike[str] | None) -> TowerSource:
    import open_clip

    name = name.replace("/", "-")  # as open_clip reads names
    config = open_clip.get_model_config(name)
    if config is None:
        raise TowerError(f"name: no tower is called '{name}'{_nearest(name, open_clip.list_models())}")
    if weights is None:
        return TowerSource(name=name, tokenizer_name=name, config=config, preprocess=_usual_preprocess(name))
    tag = open_clip.get_pretrained_cfg(name, str(weights))
    if tag:
        _refuse_other_activation(name, str(weights), config, tag, open_clip.list_models())
        wanted = f"the weights '{weights}' of '{name}'"
        return TowerSource(name=name, tokenizer_name=name, config=config, preprocess=dict(tag), tag=tag, wanted=wanted)
    if not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise TowerError(f"weights: '{weights}' is neither a file nor known for '{name}'{_nearest(str(weights), tags)}")
    return TowerSource(
        name=name, tokenizer_name=name, config=config, preprocess=_usual_preprocess(name), weights=Path(weights)
    )


def _refuse_other_activation(
    name: str, weights: str, config: Mapping[str, Any], tag: Mapping[str, Any], names: Sequence[str]
) -> None:
    # open_clip only warns here, and then computes other features than the weights were trained for.
    trained, built = (("QuickGELU" if part.get("quick_gelu", False) else "GELU") for part in (tag, config))
    if trained == built:
        return
    other = f"{name}-quickgelu" if trained == "QuickGELU" else name.removesuffix("-quickgelu")
    hint = f"; ask for '{other}'" if other in names and other != name else ""
    raise TowerError(f"weights: '{weights}' was trained with {trained}, but '{name}' computes {built}{hint}")


def _usual_preprocess(name: str) -> dict[str, Any]:
    # A file says nothing about preprocessing. Where all published weights of the model agree, so will the file;
    # open_clip itself would fall back to CLIP's mean and std, which are wrong for SigLIP.
    import open_clip

    keys = ("mean", "std", "interpolation")
    records = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    usual = {tuple(record[key] for key in keys) for record in records}
    return dict(zip(keys, usual.pop(), strict=True)) if len(usual) == 1 else {}


def _bundled_folder(name: str) -> Path:
    assets = Path(str(files("pvlr"))) / "assets"
    folder = assets / name.removeprefix(BUNDLED_PREFIX)
    if not (folder / CONFIG_NAME).is_file() or folder.parent != assets:
        known = [f"{BUNDLED_PREFIX}{path.parent.name}" for path in sorted(assets.glob(f"*/{CONFIG_NAME}"))]
        raise TowerError(f"name: no tower called '{name}' comes with pvlr{_nearest(name, known)}")
    return folder


def _folder_source(name: str, folder: Path) -> TowerSource:
    if not folder.is_dir():
        raise TowerError(f"name: expected a folder after '{FOLDER_PREFIX}', found none at '{folder}'")
    config, preprocess = _read_config(folder / CONFIG_NAME)
    return TowerSource(
        name=name,
        tokenizer_name=f"{FOLDER_PREFIX}{folder}",
        config=config,
        preprocess=preprocess,
        weights=_weights_in(folder),
    )


def _weights_in(folder: Path) -> Path:
    for known in WEIGHT_NAMES:
        if (folder / known).is_file():
            return folder / known
    others = sorted(path for ending in ("safetensors", "bin", "pt", "pth") for path in folder.glob(f"*.{ending}"))
    if len(others) != 1:
        found = ", ".join(path.name for path in others) or "none"
        raise TowerError(f"{folder}: expected one file of weights, such as {WEIGHT_NAMES[0]}, found {found}")
    return others[0]


def _hub_source(name: str, cache_dir: str | None) -> TowerSource:
    repository = name.removeprefix(HUB_PREFIX)
    record = {"hf_hub": f"{repository}/"}
    wanted = f"the tower '{name}'"
    config, preprocess = _read_config(fetch({"hf_hub": f"{repository}/{CONFIG_NAME}"}, wanted, cache_dir))
    return TowerSource(
        name=name, tokenizer_name=name, config=config, preprocess=preprocess, tag=record, wanted=f"{wanted} (weights)"
    )


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TowerError(f"{path}: expected the tower's configuration, found no such file") from None
    except (OSError, ValueError, RecursionError) as err:
        raise TowerError(f"{path}: expected the tower's configuration as JSON, got {reason(err)}") from None
    config = text.get("model_cfg") if isinstance(text, dict) else None
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise TowerError(f"{path}: expected an entry 'model_cfg' with embed_dim, vision_cfg and text_cfg, found none")
    for part in ("vision_cfg", "text_cfg"):
        _require_object(path, part, config[part])
    _require_object(path, "text_cfg.tokenizer_kwargs", config["text_cfg"].get("tokenizer_kwargs", {}))
    for part, entry in FOREIGN_NAMES:
        name = config[part].get(entry)
        # With a colon it says where to fetch from, and nothing is fetched but what was asked for.
        if name is not None and (not isinstance(name, str) or ":" in name or not name.isprintable()):
            raise TowerError(f"{path}: expected {part}.{entry} to be a name without ':', got {shown(name)}")
    preprocess = text.get("preprocess_cfg")
    return config, {} if preprocess is None else _require_preprocess(path, preprocess)


def _require_object(path: Path, entry: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TowerError(f"{path}: expected {entry} to be an object, got {shown(value)}")
    return value


def _require_preprocess(path: Path, given: object) -> dict[str, Any]:
    record = _require_object(path, "preprocess_cfg", given)
    for entry, kind in (("mean", "in [0, 1]"), ("std", "above 0, at most 1")):
        values = record.get(entry)
        if values is None:
            continue
        numbers = values if isinstance(values, list) else []
        fit = [type(x) in (int, float) and 0 <= x <= 1 and (entry == "mean" or x > 0) for x in numbers]
        if len(fit) != 3 or not all(fit):
            raise TowerError(f"{path}: expected preprocess_cfg.{entry} to be three numbers {kind}, got {shown(values)}")
    interpolation = record.get("interpolation")
    if not isinstance(interpolation, str | None):
        raise TowerError(f"{path}: expected preprocess_cfg.interpolation to be a text, got {shown(interpolation)}")
    return record


def fetch(record: Mapping[str, Any], wanted: str, cache_dir: str | None) -> Path:
    """The file on this machine of a published record, downloaded where it is not there yet."""
    from open_clip.pretrained import download_pretrained

    how = HOW_TO_GIVE_FOLDER if HUB_PREFIX in wanted else HOW_TO_GIVE
    try:
        if record.get("hf_hub"):
            repository, filename = os.path.split(record["hf_hub"])
            safe = f"{os.path.splitext(filename)[0]}.safetensors"  # which open_clip prefers
            require_reachable(repository, (filename, safe) if filename else HUB_WEIGHT_NAMES, cache_dir)
        path = Path(download_pretrained(record, cache_dir=cache_dir))
    except Exception as err:
        raise TowerError(three_lines(wanted, record, how, err)) from err
    if not path.is_file():
        raise TowerError(three_lines(wanted, record, how, FileNotFoundError("nothing was downloaded")))
    return path


def require_reachable(repository: str, filenames: Sequence[str], cache_dir: str | None) -> None:
    """Refuse at once what could only be downloaded, where the Hub cannot be reached."""
    # With no network, a download from the Hub retries for 46 s before it fails. One request without retries, and only
    # for what is not in the cache yet, knows it at once. A file of another name is the download's own business.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if any(isinstance(try_to_load_from_cache(repository, name, cache_dir=cache_dir), str) for name in filenames):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, filenames[0]), timeout=10)
    except EntryNotFoundError:
        return


def three_lines(wanted: str, record: Mapping[str, Any], how: str, err: Exception) -> str:
    """Say what was wanted, where it comes from and how to name a local copy."""
    if record.get("hf_hub"):
        place = f"the repository {os.path.split(record['hf_hub'])[0]} of the Hugging Face Hub"
    else:
        place = urlsplit(record.get("url", "")).netloc or "open_clip"
    return f"Could not fetch {wanted}: {reason(err)}\nIt comes from {place}.\n{how}"


def shown(value: object) -> str:
    """A value of a foreign file for a message: cut to about 80 characters, none of which acts on the terminal.

    Example:
        >>> shown("a\\nb"), len(shown("x" * 999))
        ("'a\\\\nb'", 80)
    """
    return _short.repr(value)


def reason(err: BaseException) -> str:
    """What an error says, in one line of at most 240 characters, none of which acts on the terminal.

    Example:
        >>> reason(ValueError("no such\\n  colour"))
        'no such colour'
    """
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(err).__name__
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= 240 else f"{text[:239]}…"


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return f"; the nearest are {', '.join(near)}" if len(near) > 1 else f"; the nearest is {near[0]}"
    return "; none is known" if not known else f"; known are {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"
