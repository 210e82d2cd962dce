"""Resolution of a tower's name to its configuration and file of weights; missing parts are errors, never guessed."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from pvlr.core.protocols import Regions, ZeroShot
from pvlr.core.towers.errors import MOST_CONFIG, TowerError, read_json, reason, require_size, require_three, shown
from pvlr.core.towers.files.choices import (
    WORDS,
    Activation,
    activation_of,
    require_activation,
    require_same_activation,
    usual_preprocess,
)
from pvlr.core.towers.files.naming import names_of_file
from pvlr.core.towers.files.transformers_folder import THEIR_CONFIG_NAME, THEIR_WEIGHT_NAMES, read_model
from pvlr.core.towers.photos import PHOTOS, photos_folder

__all__ = [
    "MOST_CONFIG",
    "Activation",
    "TowerError",
    "TowerSource",
    "cached",
    "fetch",
    "find_source",
    "reason",
    "require_reachable",
    "require_size",
    "shown",
    "three_lines",
]

CONFIG_NAME = "open_clip_config.json"
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    *THEIR_WEIGHT_NAMES,
)
HUB_WEIGHT_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # where open_clip looks on the Hub
BUNDLED_PREFIX = "pvlr:"
FOLDER_PREFIX = "local-dir:"
HUB_PREFIX = "hf-hub:"
CLIP_TOKENIZER = "ViT-B-32"  # one of the names for which open_clip takes CLIP's
HOW_TO_GIVE = "If it is on this machine, name it: --tower.weights PATH, or --tower.name local-dir:FOLDER."
HOW_TO_GIVE_FOLDER = "If it is on this machine, name its folder: --tower.name local-dir:FOLDER."

# Entries of a configuration that name a model or tokenizer of another library.
FOREIGN_NAMES = (
    ("vision_cfg", "timm_model_name"),
    ("text_cfg", "hf_model_name"),
    ("text_cfg", "hf_tokenizer_name"),
)
# Options that a configuration may pass to timm beside the name of an image tower; some of timm's own fetch or load.
TRUNK_NUMBERS = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
TRUNK_ACTS = ("gelu", "gelu_tanh")


@dataclass(frozen=True, kw_only=True)
class TowerSource:
    """Source of a tower: its configuration and its weights.

    Attributes:
        name: The requested name.
        tokenizer_name: open_clip's name of the tokenizer.
        config: The model's configuration in open_clip's form.
        preprocess: Image preprocessing that goes with the weights: ``mean``, ``std``, ``interpolation``, …
        weights: File of the weights; None when it has still to be fetched (``tag``) or weights are to be random.
        tag: open_clip's record of the location of published weights.
        wanted: Description of what is fetched, for messages.
        zero_shot: Settings of recognition without training, where the towers' files have them.
        holder: Object that must stay referenced as long as files of it are read.
    """

    name: str
    tokenizer_name: str
    config: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    tag: dict[str, Any] | None = None
    wanted: str = ""
    zero_shot: ZeroShot | None = None
    holder: object = None


def find_source(
    name: str,
    weights: str | os.PathLike[str] | None,
    cache_dir: str | None,
    *,
    activation: Activation | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> TowerSource:
    """Resolve a tower's name without fetching any weights.

    A file does not state the activation its weights were trained with, and weights of either fit. Where open_clip has
    the architecture with both, ``ViT-B-16`` and ``ViT-B-16-quickgelu``, the name alone is not reliable (one of them is
    the usual name, given by default), so that ``activation`` is required with a file, and must be that of the name.
    OpenAI's archives need none: all of them have QuickGELU. In the same way ``mean`` and ``std`` are required with a
    file where the published weights of its architecture have different ones.

    Args:
        name: An open_clip model name, ``local-dir:FOLDER``, ``hf-hub:ORGANISATION/REPOSITORY`` or ``pvlr:NAME``.
        weights: For an open_clip model name: a tag of open_clip's, a local file, or None for random weights.
        cache_dir: Folder for downloads; None for the usual cache.
        activation: Activation the weights were trained with; None where name or file determine it.
        mean: Means of red, green and blue in the images they were trained on; None for those of the weights.
        std: Their standard deviations.

    Raises:
        TowerError: naming what is unknown or missing, with the nearest known names.
    """
    if name.startswith((FOLDER_PREFIX, HUB_PREFIX, BUNDLED_PREFIX)) and weights is not None:
        raise TowerError(f"weights: expected none with the name '{name}', which brings its own, got '{weights}'")
    given = {entry: list(values) for entry, values in (("mean", mean), ("std", std)) if values is not None}
    if name == PHOTOS:
        # Its weights are assembled from installed packages, one of which contains the files of its text tower.
        holder = photos_folder()
        source = _folder_source(name, _bundled_folder(name))
        source = replace(source, tokenizer_name=f"{FOLDER_PREFIX}{holder.path}", holder=holder)
    elif name.startswith(BUNDLED_PREFIX):
        source = _folder_source(name, _bundled_folder(name))
    elif name.startswith(FOLDER_PREFIX):
        source = _folder_source(name, Path(name.removeprefix(FOLDER_PREFIX)), tuple(given))
    elif name.startswith(HUB_PREFIX):
        source = _hub_source(name, cache_dir, tuple(given))
    else:
        source = _known_source(name, weights, activation, tuple(given))
    require_same_activation(
        source.name, activation_of(source.config), activation, f"activation: '{activation}' is told"
    )
    return replace(source, preprocess=source.preprocess | given)


def _known_source(
    name: str, weights: str | os.PathLike[str] | None, activation: Activation | None, given: Sequence[str]
) -> TowerSource:
    import open_clip

    name = name.replace("/", "-")  # as open_clip reads names
    config = open_clip.get_model_config(name)
    if config is None:
        raise TowerError(f"name: no tower is called '{name}'{_nearest(name, open_clip.list_models())}")
    built = activation_of(config)
    if weights is None:
        preprocess = usual_preprocess(name, None, given)
        return TowerSource(name=name, tokenizer_name=name, config=config, preprocess=preprocess)
    tag = open_clip.get_pretrained_cfg(name, str(weights))
    if tag:
        trained = activation_of(tag)
        require_same_activation(name, built, trained, f"weights: '{weights}' was trained with {WORDS[trained]}")
        wanted = f"the weights '{weights}' of '{name}'"
        return TowerSource(name=name, tokenizer_name=name, config=config, preprocess=dict(tag), tag=tag, wanted=wanted)
    path = Path(weights)
    if path.is_dir():
        raise TowerError(f"weights: expected a file, '{path}' is a folder: --tower.name {FOLDER_PREFIX}{path}")
    if not path.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise TowerError(f"weights: '{weights}' is neither a file nor known for '{name}'{_nearest(str(weights), tags)}")
    require_activation(name, built, path, activation)
    preprocess = usual_preprocess(name, path, given)
    return TowerSource(name=name, tokenizer_name=name, config=config, preprocess=preprocess, weights=path)


def _bundled_folder(name: str) -> Path:
    assets = Path(str(files("pvlr"))) / "assets"
    folder = assets / name.removeprefix(BUNDLED_PREFIX)
    if not (folder / CONFIG_NAME).is_file() or folder.parent != assets:
        known = [f"{BUNDLED_PREFIX}{path.parent.name}" for path in sorted(assets.glob(f"*/{CONFIG_NAME}"))]
        raise TowerError(f"name: no tower called '{name}' comes with pvlr{_nearest(name, known)}")
    return folder


def _folder_source(name: str, folder: Path, given: Sequence[str] = ()) -> TowerSource:
    if not folder.is_dir():
        raise TowerError(f"name: expected a folder after '{FOLDER_PREFIX}', found none at '{folder}'")
    if (folder / CONFIG_NAME).exists() or not (folder / THEIR_CONFIG_NAME).exists():
        if not (folder / CONFIG_NAME).exists():
            raise _without_configuration(folder)
        config, preprocess = _read_config(folder / CONFIG_NAME)
    else:
        config, preprocess = read_model(folder / THEIR_CONFIG_NAME, _beside(folder), given)
    return TowerSource(
        name=name,
        tokenizer_name=_tokenizer_name(f"{FOLDER_PREFIX}{folder}", config, own=(folder / CONFIG_NAME).exists()),
        config=config,
        preprocess=preprocess,
        weights=_weights_in(folder),
        zero_shot=_read_zero_shot(folder / CONFIG_NAME),
    )


def _tokenizer_name(name: str, config: Mapping[str, Any], *, own: bool) -> str:
    # open_clip finds a folder's tokenizer by its own configuration; for transformers' the default is CLIP's.
    return name if own or config["text_cfg"].get("hf_tokenizer_name") else CLIP_TOKENIZER


def _beside(folder: Path) -> Callable[[str], Path | None]:
    return lambda name: folder / name if (folder / name).is_file() else None


def _without_configuration(folder: Path) -> TowerError:
    message = f"{folder}: expected the tower's configuration, {CONFIG_NAME} or {THEIR_CONFIG_NAME}, found neither"
    try:
        weights = _weights_in(folder)
    except TowerError:
        return TowerError(message)
    names = names_of_file(weights)
    called = " or ".join(names) if names else "NAME, such as ViT-B-16,"
    return TowerError(
        f"{message}; weights alone are named with their architecture: --tower.name {called} --tower.weights {weights}"
    )


def _weights_in(folder: Path) -> Path:
    for known in WEIGHT_NAMES:
        if (folder / known).is_file():
            return folder / known
    endings = ("safetensors", "bin", "pt", "pth")
    others = sorted(path for ending in endings for path in folder.glob(f"*.{ending}") if path.is_file())
    if len(others) != 1:
        found = ", ".join(path.name for path in others) or "none"
        raise TowerError(f"{folder}: expected one file of weights, such as {WEIGHT_NAMES[0]}, found {found}")
    return others[0]


def _hub_source(name: str, cache_dir: str | None, given: Sequence[str]) -> TowerSource:
    repository = _Repository(name, cache_dir)
    path = repository.find(CONFIG_NAME)
    if path is not None:
        (config, preprocess), weights = _read_config(path), ""
    else:
        path = repository.find(THEIR_CONFIG_NAME)
        if path is None:
            raise TowerError(
                f"name: expected '{repository.name}' on the Hugging Face Hub to have the tower's configuration, "
                f"{CONFIG_NAME} or {THEIR_CONFIG_NAME}, found neither"
            )
        config, preprocess = read_model(path, repository.find, given)
        weights = next(filter(repository.has, THEIR_WEIGHT_NAMES), THEIR_WEIGHT_NAMES[0])
    return TowerSource(
        name=name,
        tokenizer_name=_tokenizer_name(name, config, own=weights == ""),
        config=config,
        preprocess=preprocess,
        zero_shot=_read_zero_shot(path),
        tag={"hf_hub": f"{repository.name}/{weights}"},
        wanted=f"{repository.wanted} (weights)",
    )


class _Repository:
    """A repository of the Hub, whose files are looked up one by one.

    Where the Hub cannot be reached, only files in the cache are found, for models of transformers'.
    """

    def __init__(self, tower: str, cache_dir: str | None) -> None:
        self.name, self.wanted, self.cache_dir = tower.removeprefix(HUB_PREFIX), f"the tower '{tower}'", cache_dir
        self.reachable = True

    def has(self, file: str) -> bool:
        """Return whether the repository has a file."""
        if not self.reachable:
            return cached(self.name, file, self.cache_dir) is not None
        try:
            return require_reachable(self.name, (file,), self.cache_dir)
        except Exception as err:
            if cached(self.name, THEIR_CONFIG_NAME, self.cache_dir) is None:
                record = {"hf_hub": f"{self.name}/"}
                raise TowerError(three_lines(self.wanted, record, HOW_TO_GIVE_FOLDER, err)) from err
            self.reachable = False
            return self.has(file)

    def find(self, file: str) -> Path | None:
        """Return the path of a file, downloaded where it is not cached; None where the repository has none."""
        if not self.has(file):
            return None
        if not self.reachable:
            return cached(self.name, file, self.cache_dir)
        return fetch({"hf_hub": f"{self.name}/{file}"}, self.wanted, self.cache_dir)


def cached(repository: str, file: str, cache_dir: str | None) -> Path | None:
    """Return the path of a file of a repository of the Hub in the cache; None where it is not cached."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repository, file, cache_dir=cache_dir)
    except HFValidationError:  # which the download raises again
        return None
    return Path(path) if isinstance(path, str) else None


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    text = read_json(path, "the tower's configuration")
    config = text.get("model_cfg") if isinstance(text, dict) else None
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise TowerError(f"{path}: expected an entry 'model_cfg' with embed_dim, vision_cfg and text_cfg, found none")
    for part in ("vision_cfg", "text_cfg"):
        _require_object(path, part, config[part])
    _require_object(path, "text_cfg.tokenizer_kwargs", config["text_cfg"].get("tokenizer_kwargs", {}))
    for part, entry in FOREIGN_NAMES:
        name = config[part].get(entry)
        # A colon marks an address to fetch from, and nothing is fetched but what was requested.
        if name is not None and (not isinstance(name, str) or ":" in name or not name.isprintable()):
            raise TowerError(f"{path}: expected {part}.{entry} to be a name without ':', got {shown(name)}")
    if "timm_model_kwargs" in config["vision_cfg"]:
        _require_trunk(
            path, _require_object(path, "vision_cfg.timm_model_kwargs", config["vision_cfg"]["timm_model_kwargs"])
        )
    preprocess = text.get("preprocess_cfg")
    return config, {} if preprocess is None else _require_preprocess(path, preprocess)


def _read_zero_shot(path: Path) -> ZeroShot | None:
    """Read the settings of recognition without training, an entry of pvlr's in a tower's configuration."""
    if path.name != CONFIG_NAME or not path.exists():
        return None
    entry = read_json(path, "the tower's configuration").get("zero_shot")
    if entry is None:
        return None
    found = _require_object(path, "zero_shot", entry)
    regions, threshold = found.get("regions"), found.get("threshold")
    fits = regions in get_args(Regions) and isinstance(threshold, int | float) and 0 <= threshold <= 1
    if found.keys() != set(ZeroShot._fields) or not fits or not isinstance(found["fitted_on"], str):
        raise TowerError(
            f"{path}: expected zero_shot to hold regions ({', '.join(get_args(Regions))}), threshold (a number in "
            f"[0, 1]) and fitted_on (a text), got {shown(found)}"
        )
    return ZeroShot(**found)


def _require_trunk(path: Path, options: Mapping[str, Any]) -> None:
    for entry, value in options.items():
        fits = value in TRUNK_ACTS if entry == "act_layer" else type(value) in (int, float) and 0 < value < 1_000_000
        if entry not in (*TRUNK_NUMBERS, "act_layer") or not fits:
            raise TowerError(
                f"{path}: expected vision_cfg.timm_model_kwargs to hold the numbers {', '.join(TRUNK_NUMBERS)} and an "
                f"act_layer of {' or '.join(TRUNK_ACTS)}, got {shown(entry)}: {shown(value)}"
            )


def _require_object(path: Path, entry: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TowerError(f"{path}: expected {entry} to be an object, got {shown(value)}")
    return value


def _require_preprocess(path: Path, given: object) -> dict[str, Any]:
    record = _require_object(path, "preprocess_cfg", given)
    for entry in ("mean", "std"):
        if record.get(entry) is not None:
            require_three(path, f"preprocess_cfg.{entry}", record[entry], zero=entry == "mean")
    interpolation = record.get("interpolation")
    if not isinstance(interpolation, str | None):
        raise TowerError(f"{path}: expected preprocess_cfg.interpolation to be a text, got {shown(interpolation)}")
    return record


def fetch(record: Mapping[str, Any], wanted: str, cache_dir: str | None, *, how: str | None = None) -> Path:
    """Return the path of the file of a published record, downloaded where it is not cached."""
    from open_clip.pretrained import download_pretrained

    how = how or (HOW_TO_GIVE_FOLDER if HUB_PREFIX in wanted else HOW_TO_GIVE)
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


def require_reachable(repository: str, filenames: Sequence[str], cache_dir: str | None) -> bool:
    """Raise an error at once where files are not cached and the Hub cannot be reached.

    Args:
        repository: Name of the repository.
        filenames: Files of which one in the cache is enough; the first is requested from the Hub.
        cache_dir: Folder for downloads; None for the usual cache.

    Returns:
        Whether one is in the cache, or the first on the Hub.
    """
    # With no network, a download from the Hub retries for 46 s before it fails. One request without retries, and only
    # for files that are not cached, fails at once. Files of other names are left to the download.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if any(cached(repository, name, cache_dir) is not None for name in filenames):
        return True
    try:
        get_hf_file_metadata(hf_hub_url(repository, filenames[0]), timeout=10)
    except EntryNotFoundError:
        return False
    return True


def three_lines(wanted: str, record: Mapping[str, Any], how: str, err: Exception) -> str:
    """Return a message of three lines: what was not fetched, where it comes from and how to name a local copy."""
    if record.get("hf_hub"):
        place = f"the repository {os.path.split(record['hf_hub'])[0]} of the Hugging Face Hub"
    else:
        place = urlsplit(record.get("url", "")).netloc or "open_clip"
    return f"Could not fetch {wanted}: {reason(err)}\nIt comes from {place}.\n{how}"


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return f"; the nearest are {', '.join(near)}" if len(near) > 1 else f"; the nearest is {near[0]}"
    return "; none is known" if not known else f"; known are {', '.join(known[:8])}{', …' if len(known) > 8 else ''}"
