"""Files that the package transformers reads: found by a tower's configuration, and checked before they are read."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pvlr.core.towers.errors import MOST_CONFIG, TowerError, read_json, reason, require_size, shown
from pvlr.core.towers.files.sources import FOLDER_PREFIX, HUB_PREFIX, TowerSource, cached, fetch

__all__ = [
    "TOKENIZER_CONFIG_NAME",
    "TextConfig",
    "find_text_config",
    "folder_of",
    "lacking",
    "no_panic",
    "repository_of",
    "require_package",
    "require_tokenizer_files",
    "say_second_repository",
]

logger = logging.getLogger(__name__)

ENCODER_CONFIG_NAME = "config.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
MOST_TOKENIZER = 128  # MiB; that of XLM-V, with 900,000 entries the largest known to open_clip, has about 60
# One of these is required for a tokenizer; without any, transformers builds one without words.
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)
HF_PACKAGES = ("transformers", "sentencepiece")  # of the extra `hf`
SETTINGS = (TOKENIZER_CONFIG_NAME, ENCODER_CONFIG_NAME, "special_tokens_map.json", "added_tokens.json")
# Entries by which a configuration loads code, or files that were not checked.
REFUSED_ENTRIES = ("auto_map", "trust_remote_code", "custom_pipelines", "fast_tokenizer_files")
# Any other implementation of attention is code to be fetched.
ATTENTIONS = (None, "eager", "sdpa")
HOW_TO_GIVE_CONFIG = (
    "If it is on this machine, put it into the folder of --tower.name local-dir:FOLDER, and '.' into "
    "text_cfg.hf_model_name."
)


def lacking(wanted: str, package: str) -> TowerError:
    """Return the error of a package that is not installed."""
    how = "'pvlr[hf]'" if package in HF_PACKAGES else package
    return TowerError(f"{wanted} needs the package {package}, which is not installed (pip install {how})")


def require_package(wanted: str, package: str) -> None:
    """Require an installed package."""
    if find_spec(package) is None:
        raise lacking(wanted, package)


@contextmanager
def no_panic(wanted: str) -> Iterator[None]:
    """Convert a panic in Rust, which ``except Exception`` does not catch, into a one-line :class:`TowerError`."""
    try:
        yield
    except BaseException as err:
        if type(err).__name__ != "PanicException":
            raise
        raise TowerError(f"{wanted} gave up: {reason(err)}") from err


def folder_of(source: TowerSource) -> Path | None:
    """Return the folder of a tower on this machine; None for any other tower."""
    if not source.tokenizer_name.startswith(FOLDER_PREFIX):
        return None
    return Path(source.tokenizer_name.removeprefix(FOLDER_PREFIX))


class TextConfig(NamedTuple):
    """The configuration of a Hugging Face text encoder.

    Attributes:
        folder: Folder of the file, whose name is ``config.json``.
        entries: Its entries.
    """

    folder: Path
    entries: dict[str, Any]


def find_text_config(source: TowerSource, cache_dir: str | None) -> TextConfig | None:
    """Find the configuration of a tower's Hugging Face text encoder; None where it has none.

    ``text_cfg.hf_model_name`` is a folder in the tower's own (``.`` or ``text``), or else a repository of the Hub, of
    which only this file is fetched: the weights are the tower's.

    Raises:
        TowerError: in three lines where the file has to be fetched and cannot be; naming the file and the entry that
            is not supported; naming the package that is not installed.
    """
    name = source.config["text_cfg"].get("hf_model_name")
    if not name:
        return None
    wanted = f"the configuration of the text encoder of '{source.name}'"
    require_package(wanted, "transformers")
    folder = folder_of(source)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise TowerError(
            "text_cfg.hf_model_name: expected a folder in the tower's own, such as '.', or a repository of the Hub, "
            f"got {shown(name)}"
        )
    if folder is not None and (folder / name).is_dir():
        path = folder / name / ENCODER_CONFIG_NAME
    else:
        path = _fetched(repository_of(source, name), source, wanted, cache_dir)
    entries = _read_settings(path)
    _require_encoder(path, entries)
    return TextConfig(path.parent, entries)


def repository_of(source: TowerSource, name: str) -> str:
    """Return the repository of the Hub that an entry of a tower's configuration names; ``.`` is the tower's own."""
    return source.name.removeprefix(HUB_PREFIX) if name == "." and source.name.startswith(HUB_PREFIX) else name


def say_second_repository(wanted: str, source: TowerSource, repository: str) -> None:
    """Log a warning that something is fetched from another repository than the requested one."""
    if source.name != f"{HUB_PREFIX}{repository}":
        logger.warning("%s is fetched from the repository %s of the Hugging Face Hub", wanted, repository)


def _fetched(repository: str, source: TowerSource, wanted: str, cache_dir: str | None) -> Path:
    path = cached(repository, ENCODER_CONFIG_NAME, cache_dir)
    if path is not None:
        return path
    say_second_repository(wanted, source, repository)
    return fetch({"hf_hub": f"{repository}/{ENCODER_CONFIG_NAME}"}, wanted, cache_dir, how=HOW_TO_GIVE_CONFIG)


def require_tokenizer_files(folder: Path, wanted: str) -> None:
    """Require a folder with a vocabulary, and tokenizer files that are not too large and contain no code.

    Raises:
        TowerError: naming the file, or the package that reads it and is not installed.
    """
    found = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not found:
        raise TowerError(
            f"{folder}: expected the files of {wanted}, such as {VOCABULARIES[0]}, found none; the tokenizer's own "
            "save_pretrained(FOLDER) writes them"
        )
    if found[0].endswith(".model"):
        require_package(wanted, "sentencepiece")
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if path.suffix in (".json", ".txt", ".model", ".jinja") and path.is_file():
            require_size(path, MOST_CONFIG if path.name in SETTINGS else MOST_TOKENIZER)
    for name in (TOKENIZER_CONFIG_NAME, ENCODER_CONFIG_NAME):
        if (folder / name).exists():
            _read_settings(folder / name)


def _read_settings(path: Path) -> dict[str, Any]:
    """Read the entries of a configuration of transformers', and require that none contains code or an address."""
    entries = read_json(path, "a configuration of transformers'")
    if not isinstance(entries, dict):
        raise TowerError(f"{path}: expected a JSON object, got {shown(entries)}")
    for name in REFUSED_ENTRIES:
        if name in entries:
            raise TowerError(f"{path}: expected no entry '{name}': no code that comes with a tower is run")
    for name, value in entries.items():
        if isinstance(value, str) and "://" in value and name != "chat_template":
            raise TowerError(f"{path}: expected no address, since nothing is fetched from one, got {shown(value)}")
    kind = entries.get("tokenizer_class")
    if kind is not None and not (isinstance(kind, str) and kind.isidentifier()):
        raise TowerError(f"{path}: expected tokenizer_class to be the name of a class alone, got {shown(kind)}")
    return entries


def _require_encoder(path: Path, entries: Mapping[str, Any]) -> None:
    from open_clip.hf_configs import arch_dict

    kind = entries.get("model_type")
    if not isinstance(kind, str) or kind not in arch_dict:
        raise TowerError(f"{path}: expected model_type to be one of {', '.join(arch_dict)}, got {shown(kind)}")
    for name in ("attn_implementation", "_attn_implementation"):
        if entries.get(name) not in ATTENTIONS:
            raise TowerError(f"{path}: expected {name} to be 'eager' or 'sdpa', got {shown(entries[name])}")
