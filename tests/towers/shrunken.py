"""Shrunken copies of open_clip's named models: narrow and of few blocks, all else as their configurations say."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
from helpers.hf_text_models import write_hf_text
from helpers.tower_models import perturb
from torch import nn

WIDTH, EMBED_DIM = 32, 24
# Whose tokenizers lay out texts as those that the names below would fetch: by the beginning of the name.
TOKENIZERS = {
    "timm/": "google/mt5-base",  # SigLIP's: words, then the end; pads behind
    "bert-": "sentence-transformers/all-MiniLM-L6-v2",
    "facebook/xlm-v-": "xlm-roberta-base",
}
_VIT = {"layers": 3, "width": WIDTH, "head_width": 16}
_RESNET = {"layers": [1, 2, 1, 1], "width": 8}
_TEXT = {"layers": 2, "width": WIDTH, "heads": 4}


def shrunken_config(name: str) -> dict[str, Any]:
    """The configuration of a small model that computes as the one of that name does, from ``local-dir:`` files."""
    config = deepcopy(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    # Without a projection of its own the image tower is as wide as the joint space.
    config["embed_dim"] = WIDTH if vision.get("timm_proj") == "none" else EMBED_DIM
    if "timm_model_name" not in vision:
        vision |= _RESNET if isinstance(vision["layers"], list) else _VIT
    if "hf_model_name" not in text:
        text |= _TEXT
    return config


def write_shrunken(folder: Path, config: dict[str, Any]) -> Any:
    """Write a model of random weights as ``local-dir:FOLDER`` reads it, with all else that its text tower needs.

    Returns:
        open_clip's own model of the same weights, whose text tower asks for nothing but files of ``folder``.
    """
    from open_clip import CLIP, CustomTextCLIP
    from safetensors.torch import save_file

    config = deepcopy(config)
    text = config["text_cfg"]
    encoder, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if tokenizer is not None:
        kind = next((own for start, own in TOKENIZERS.items() if tokenizer.startswith(start)), tokenizer)
        write_hf_text(folder, encoder or kind, width=WIDTH)
    if encoder is not None:
        text["hf_model_name"] = "."
    elif tokenizer is not None:  # as many words as the small tokenizer has
        text["vocab_size"] = json.loads((folder / "config.json").read_text())["vocab_size"]
        (folder / "config.json").unlink()
    built = {key: value for key, value in config.items() if key != "custom_text"}
    if encoder is not None:
        built["text_cfg"] = text | {"hf_model_name": str(folder), "hf_model_pretrained": False}
    kind_of: type[nn.Module] = CustomTextCLIP if config.get("custom_text") or encoder else CLIP
    model = perturb(kind_of(**built), seed=0).eval()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    weights = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return model
