"""Weights as people have them: OpenAI's archives, checkpoints of trainings, folders of transformers'."""

import argparse
import json
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pvlr.core.towers import Towers

CLIP_TEXT = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
WORDS = ("<pad>", "</s>", "<unk>", "a", "photo", "of", "dog", ".", "traffic", "light", "tv", "monitor", "seen", "from")


class _Parts(nn.Module):
    """A model's own parts and numbers, and the three numbers that OpenAI keeps with them."""

    def __init__(self, model: Any, *, of_openai: bool) -> None:
        super().__init__()
        for name, part in model.named_children():
            setattr(self, name, part)
        for name, parameter in model.named_parameters(recurse=False):
            setattr(self, name, nn.Parameter(parameter.detach().clone()))
        self.register_buffer("attn_mask", model.attn_mask)
        sizes = {"input_resolution": 32, "context_length": model.context_length, "vocab_size": 49408}
        for name, size in sizes.items() if of_openai else ():
            self.register_buffer(name, torch.tensor(size))
        self.sizes = [3, 4]

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)


def write_archive(path: Path, model: Any, *, of_openai: bool = True) -> None:
    """Write a model as a TorchScript archive in half precision, as OpenAI publishes CLIP."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = model.visual.image_size
        side = size if isinstance(size, int) else size[0]
        parts = _Parts(deepcopy(model), of_openai=of_openai).eval()
        traced = torch.jit.trace(parts, torch.zeros(1, 3, side, side), check_trace=False)
        torch.jit.save(traced.half(), str(path))


def write_epoch(path: Path, state: dict[str, Any], *, zipped: bool = True) -> None:
    """Write a checkpoint as open_clip's training does, and other numbers that trainings leave beside the weights."""
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)}}
    beside = {
        "epoch": 1,
        "name": "2026_11_26-model_ViT-B-16",
        "optimizer": {"state": moments, "param_groups": [{"lr": np.float64(1e-3), "betas": (0.9, 0.98)}]},
        "scaler": {"scale": 65536.0},
        "best": np.float32(0.5),
        "steps": np.int64(7),
        "losses": np.ones(3),
        "args": argparse.Namespace(lr=1e-3),
        "logs": Path("logs"),
    }
    torch.save({**beside, "state_dict": state}, path, _use_new_zipfile_serialization=zipped)


def hf_config(kind: str, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    """The configuration of a small model of transformers'."""
    import transformers

    vision = {**VISION, "image_size": 32, "patch_size": 8, **vision}
    if kind == "clip":
        text = {**CLIP_TEXT, "vocab_size": 49408, "max_position_embeddings": 24, **(text or {})}
        return transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    told = {**CLIP_TEXT, "vocab_size": 40, "max_position_embeddings": 16, **{"eos_token_id": 1, "bos_token_id": None}}
    told |= {"projection_size": vision["hidden_size"], **(text or {})}
    return transformers.SiglipConfig(text_config=told, vision_config=vision)


def write_transformers(folder: Path, config: Any, *, seed: int = 0, **saving: Any) -> Any:
    """Write a model of transformers', no parameter of which is zero or default; returns the model."""
    import transformers

    from helpers.tower_models import perturb

    kind = transformers.CLIPModel if config.model_type == "clip" else transformers.SiglipModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = perturb(kind(config), seed).eval()
    model.save_pretrained(folder, **saving)
    if config.model_type == "siglip":
        write_words(folder)
    return model


def write_words(folder: Path, *, vocabulary: dict[str, int] | None = None, pad: str = "<pad>") -> None:
    """Write a tokenizer of one token per word, all in lower case, with an end."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = vocabulary or {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.normalizer = normalizers.Lowercase()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    outer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=pad, eos_token="</s>", unk_token="<unk>")
    outer.save_pretrained(folder)


def change_json(path: Path, **entries: Any) -> None:
    """Overlay entries of a JSON file; those of an object that is there are overlaid one by one."""
    told = json.loads(path.read_text())
    for name, value in entries.items():
        told[name] = {**told[name], **value} if isinstance(value, dict) and name in told else value
    path.write_text(json.dumps(told))


def same_vectors(towers: Towers, model: Any, sentences: tuple[str, ...], rows: int) -> None:
    """Images and texts to the same vectors as in transformers, relative to the largest value."""
    size = towers.image.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    ids = towers.text.tokenizer(list(sentences), context_length=rows)
    with torch.no_grad():
        theirs = (model.get_image_features(pixel_values=images), model.get_text_features(input_ids=ids))
        ours = (towers.image(images).pooled, towers.text.encode(sentences))
    for own, other in zip(
        ours, (part if torch.is_tensor(part) else part.pooler_output for part in theirs), strict=True
    ):
        assert float((own - other).abs().max() / other.abs().max()) < 1e-5
    assert towers.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-5)
