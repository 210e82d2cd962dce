"""The tokenizer that goes with a tower."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pvlr.core.towers.sources import (
    FOLDER_PREFIX,
    HOW_TO_GIVE_FOLDER,
    TowerError,
    TowerSource,
    require_reachable,
    three_lines,
)

__all__ = ["make_tokenizer"]


def make_tokenizer(source: TowerSource, cache_dir: str | None) -> Any:
    """Build the tokenizer that goes with a tower; code that comes with one is never run.

    Raises:
        TowerError: in three lines where it has to be fetched and cannot be; naming the package it needs where that is
            not installed.
    """
    import open_clip

    hub = source.config["text_cfg"].get("hf_tokenizer_name")
    wanted = f"the tokenizer of '{source.name}'"
    if hub and find_spec("transformers") is None:
        raise TowerError(_lacking(wanted, "transformers"))
    try:
        if hub and not source.tokenizer_name.startswith(FOLDER_PREFIX) and not Path(hub).is_dir():
            require_reachable(hub, ("tokenizer_config.json",), cache_dir)
        # Said in so many words, because a tower's own configuration may ask for the opposite.
        rest = {"trust_remote_code": False} if hub else {}
        return open_clip.get_tokenizer(source.tokenizer_name, cache_dir=cache_dir, **rest)
    except ImportError as err:
        raise TowerError(_lacking(wanted, err.name or str(err))) from err
    except Exception as err:
        record = {"hf_hub": f"{hub}/"} if hub else {}
        raise TowerError(three_lines(wanted, record, HOW_TO_GIVE_FOLDER, err)) from err


def _lacking(wanted: str, package: str) -> str:
    return f"{wanted} needs the package {package}, which is not installed (pip install {package})"
