"""The tokenizer of a tower: built from its configuration, and written as files."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pvlr.core.towers.errors import TowerError, reason, shown
from pvlr.core.towers.files.hf_files import (
    TOKENIZER_CONFIG_NAME,
    folder_of,
    lacking,
    no_panic,
    repository_of,
    require_package,
    require_tokenizer_files,
    say_second_repository,
)
from pvlr.core.towers.files.sources import HOW_TO_GIVE_FOLDER, TowerSource, cached, require_reachable, three_lines

__all__ = ["make_tokenizer", "tokenizer_files"]

# Options of a tokenizer that a configuration may have. The classes take more: paths, patterns, addresses to fetch from.
OPTIONS = ("clean", "strip_sep_token", "language")
CLEANING = ("whitespace", "lower", "canonicalize")
# Entries about the location of a tokenizer, which do not change it.
PLACES = ("name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file", "special_tokens_map_file")


def make_tokenizer(source: TowerSource, cache_dir: str | None) -> Any:
    """Build the tokenizer of a tower; code that comes with one is never run.

    Raises:
        TowerError: in three lines where it has to be fetched and cannot be; naming the file or entry that is not
            supported; naming the package it needs where that is not installed.
    """
    import open_clip

    text, folder = source.config["text_cfg"], folder_of(source)
    name = text.get("hf_tokenizer_name")
    wanted = f"the tokenizer of '{source.name}'"
    _require_options(source.name, text.get("tokenizer_kwargs") or {})
    try:
        if not name:
            return open_clip.get_tokenizer(source.tokenizer_name, cache_dir=cache_dir)
        require_package(wanted, "transformers")
        if folder is not None:
            require_tokenizer_files(folder, wanted)
            with no_panic(wanted):
                return _from_transformers(str(folder), text, local_files_only=True)
        repository = repository_of(source, name)
        if cached(repository, TOKENIZER_CONFIG_NAME, cache_dir) is None and not Path(repository).is_dir():
            say_second_repository(wanted, source, repository)
            require_reachable(repository, (TOKENIZER_CONFIG_NAME,), cache_dir)
        return _from_transformers(repository, text, cache_dir=cache_dir)
    except TowerError:
        raise
    except ImportError as err:
        raise lacking(wanted, err.name or str(err)) from err
    except Exception as err:
        if folder is not None:
            raise TowerError(f"{folder}: expected the files of {wanted}, got {reason(err)}") from err
        record = {"hf_hub": f"{repository_of(source, name)}/"} if name else {}
        raise TowerError(three_lines(wanted, record, HOW_TO_GIVE_FOLDER, err)) from err


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """Return the files of a tokenizer for ``local-dir:FOLDER``, found by ``text_cfg.hf_tokenizer_name``.

    Args:
        tokenizer: open_clip's own, which needs none, or a wrapper of open_clip's of one of transformers'.

    Returns:
        Contents by name, without the paths they were read from.

    Raises:
        TowerError: naming the class where it is of another kind.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer):
        return {}
    if not isinstance(tokenizer, HFTokenizer):
        raise TowerError(f"tokenizer: expected one of open_clip's to be saved, got {type(tokenizer).__name__}")
    inner = tokenizer.tokenizer
    # Padding and truncation of the last call are not part of the tokenizer; each call sets them.
    inner.backend_tokenizer.no_padding()
    inner.backend_tokenizer.no_truncation()
    with TemporaryDirectory() as folder:
        inner.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.json"))}
    settings = json.loads(files[TOKENIZER_CONFIG_NAME])
    portable = {entry: settings[entry] for entry in settings if entry not in PLACES}
    return files | {TOKENIZER_CONFIG_NAME: f"{json.dumps(portable, indent=1)}\n".encode()}


def _from_transformers(place: str, text: Mapping[str, Any], **how: Any) -> Any:
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

    options = dict(text.get("tokenizer_kwargs") or {})
    language = options.pop("language", None)
    tokenizer = HFTokenizer(
        place,
        context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        # Given explicitly, because files of a tokenizer may set the opposite.
        trust_remote_code=False,
        **options,
        **how,
    )
    inner = tokenizer.tokenizer
    if set(inner.get_vocab()) <= set(inner.all_special_tokens):
        raise ValueError("a vocabulary of special tokens alone")
    if language is not None:
        if not hasattr(inner, "src_lang") or language not in inner.get_vocab():
            raise ValueError(f"no language {language!r} in its vocabulary")
        inner.src_lang = language  # open_clip sets attributes that each call derives from this one
    tokenizer(["a photo"])  # errors of padding or truncation are raised here, and not at the first label
    return tokenizer


def _require_options(name: str, options: Mapping[str, Any]) -> None:
    start = f"name: the configuration of '{name}' has text_cfg.tokenizer_kwargs"
    for option, value in options.items():
        if option not in OPTIONS:
            raise TowerError(f"{start} with {shown(option)}, expected none but {', '.join(OPTIONS)}")
        if option == "clean" and value not in CLEANING:
            raise TowerError(f"{start} with clean {shown(value)}, expected one of {', '.join(CLEANING)}")
        if option == "strip_sep_token" and not isinstance(value, bool):
            raise TowerError(f"{start} with strip_sep_token {shown(value)}, expected true or false")
        if option == "language" and not isinstance(value, str | None):
            raise TowerError(f"{start} with language {shown(value)}, expected a text")
