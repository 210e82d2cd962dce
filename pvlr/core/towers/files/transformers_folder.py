"""Reader of the configuration files of a folder or repository of transformers'."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pvlr.core.towers.errors import read_json
from pvlr.core.towers.files.transformers_models import describe, described_preprocess

__all__ = ["THEIR_CONFIG_NAME", "THEIR_WEIGHT_NAMES", "read_model"]

logger = logging.getLogger(__name__)

THEIR_CONFIG_NAME = "config.json"
THEIR_WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MOST_VOCABULARY = 128  # MiB
CLIP_TOKENS = 49_408


def read_model(
    path: Path, find: Callable[[str], Path | None], told: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the configuration and the preprocessing of a model of transformers', in open_clip's form.

    Args:
        path: Its ``config.json``.
        find: Function that returns the file of a name beside it, fetched where needed; None where there is none.
        told: Those of ``mean`` and ``std`` that the user gives; the others are assumed to be the usual ones of such a
            model where no file has them, and that is logged as a warning.

    Raises:
        TowerError: naming the file and the entry that is not supported.
    """
    config = describe(read_json(path, "the tower's configuration"), path)
    text, own = config["text_cfg"], {"hf_tokenizer_name": "."}
    if "timm_model_name" in config["vision_cfg"]:
        # All of SigLIP's weights were trained on texts in lower case; other cleaning is part of the tokenizer.
        text |= {**own, "tokenizer_kwargs": {"clean": "lower"}}
    elif not _has_clips_vocabulary(find, text["vocab_size"]):
        text |= own
    preprocess = _read_preprocess(find, config)
    if preprocess is None:
        preprocess = described_preprocess(None, path, config)
        assumed = " and ".join(f"{entry} {preprocess[entry]}" for entry in ("mean", "std") if entry not in told)
        if assumed:
            logger.warning("%s: no preprocessor_config.json beside it, so that images have the usual %s", path, assumed)
    return config, preprocess


def _read_preprocess(find: Callable[[str], Path | None], config: dict[str, Any]) -> dict[str, Any] | None:
    path = find("preprocessor_config.json")
    if path is not None:
        return described_preprocess(read_json(path, "the preprocessing of images"), path, config)
    path = find("processor_config.json")  # where newer versions store it together with the tokenizer's options
    data = None if path is None else read_json(path, "the preprocessing of images")
    data = data.get("image_processor") if isinstance(data, dict) else None
    return None if path is None or data is None else described_preprocess(data, path, config)


def _has_clips_vocabulary(find: Callable[[str], Path | None], tokens: int) -> bool:
    """Return whether the vocabulary is that of CLIP's tokenizer, which open_clip contains."""
    for name, entries in (("tokenizer.json", ("model", "vocab")), ("vocab.json", ())):
        path = find(name)
        if path is not None:
            data = read_json(path, "a tokenizer", MOST_VOCABULARY)
            for entry in entries:
                data = data.get(entry) if isinstance(data, dict) else None
            return isinstance(data, dict) and _is_clips(data)
    return tokens == CLIP_TOKENS


def _is_clips(vocabulary: dict[str, Any]) -> bool:
    from open_clip import SimpleTokenizer

    # The last two, begin and end of a text, have other names.
    own = {piece: number for piece, number in SimpleTokenizer().encoder.items() if number < CLIP_TOKENS - 2}
    return len(vocabulary) <= CLIP_TOKENS and all(vocabulary.get(piece) == own[piece] for piece in own)
