"""Towers small enough to read, the switches of a model drawn at random, and models built of both."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from strategies import Draw
from torch import Tensor, nn
from toy_text import WordTower

from pvlr.core.functional import splice_context
from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.protocols import ImageFeatures, PromptTokens
from pvlr.core.weights import trained_state

DIM, WIDTH, HEADS, SOURCE = 8, 6, 2, 5
NAMES = ("cat", "traffic_light", "cow", "bus", "tv_monitor")
LABELS = LabelSet(NAMES, descriptions={"cow": ("It moos.", "It eats grass.")})


class BareText(WordTower):
    """A tower that is no module: the protocol asks for none."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        draw = Draw(seed)
        self.dim, self.width, self.context_length = DIM, WIDTH, 16
        self.hold("table", draw.normal(997, WIDTH))
        self.hold("places", draw.normal(self.context_length, WIDTH))
        self.hold("out", draw.normal(WIDTH, DIM))
        self.encoded, self.contexts = 0, 0

    def hold(self, name: str, value: Tensor) -> None:
        setattr(self, name, value)

    def token(self, word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % 996

    def encode(self, sentences: Sequence[str]) -> Tensor:
        self.encoded += 1
        prompts = self.tokenize_prompts(sentences, None, 0)
        with torch.no_grad():
            return self.run(self.embed(prompts.ids), prompts.end)

    def encode_context(self, context: Tensor, prompts: PromptTokens) -> Tensor:
        self.contexts += 1
        return self.run(splice_context(self.embed(prompts.ids), context, prompts.start), prompts.end)


class ToyText(BareText, nn.Module):
    """The same as a module, with parameters that a model has to freeze and a mode it has to keep."""

    def hold(self, name: str, value: Tensor) -> None:
        self.register_parameter(name, nn.Parameter(value))

    def run(self, embeddings: Tensor, end: Tensor) -> Tensor:
        return super().run(nn.functional.dropout(embeddings, 0.5, self.training), end)


class ToyImage(nn.Module):
    """Patches are linear in the pixels; the pooled vector is their mean."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.dim, self.image_size, self.grid = DIM, 12, 3
        self.conv = nn.Conv2d(3, DIM, 4, stride=4).requires_grad_(False)
        draw = Draw(seed)
        self.conv.weight.copy_(draw.normal(DIM, 3, 4, 4))
        self.conv.bias.copy_(draw.normal(DIM))

    def forward(self, images: Tensor) -> ImageFeatures:
        patches = self.conv(images).flatten(2).transpose(1, 2)
        return ImageFeatures(patches, patches.mean(dim=1))


Switches = dict[str, Any]


def switches(**fixed: Any) -> st.SearchStrategy[Switches]:
    """Arguments of a configuration; ``knowledge="file"`` stands for a file that :func:`build` is given."""
    context = st.sampled_from([("a photo of a", 4), (None, 1), (None, 3)])
    drawn = {
        "relation": st.sampled_from(["attention", "none"]),
        "residual": st.sampled_from(["pre", "post"]),
        "knowledge": st.sampled_from(["text_tower", "file"]),
        "class_specific_context": st.booleans(),
        "image_conditioned_context": st.booleans(),
        "fusion": st.sampled_from(["gate", "gate", "sum", "knowledge", "context"]),
        "dma": st.sampled_from(["both", "labels", "patches", "none"]),
        "dma_layers": st.integers(1, 2),
        "dma_feedforward": st.sampled_from([0, 3]),
        "aggregation": st.sampled_from(["max", "mean", "softmax"]),
        "scale_from": st.sampled_from(["value", "tower"]),
    }
    rest = st.fixed_dictionaries({name: choice for name, choice in drawn.items() if name not in fixed})

    def join(words: tuple[str | None, int], chosen: Switches) -> Switches:
        return {"heads": HEADS, "context_words": words[0], "context_tokens": words[1]} | chosen | fixed

    return st.builds(join, context, rest)


def write_vectors(folder: Path, names: Sequence[str] = NAMES) -> Path:
    path = folder / "vectors.npz"
    np.savez(path, names=np.array(names), vectors=Draw(3).normal(len(names), SOURCE).numpy())
    return path


def build(chosen: Switches, labels: LabelSet = LABELS, *, file: Path | None = None, seed: int | None = 0) -> PVLR:
    """A model in float64 and evaluation; with ``seed`` every parameter is away from its start."""
    if chosen.get("knowledge") == "file":
        chosen = chosen | {"knowledge": str(file)}
    model = PVLR(PVLRConfig(**chosen), labels, ToyText().double(), ToyImage(), logit_scale=7.0, logit_bias=-1.5)
    model.double().eval()
    return model if seed is None else moved(model, seed)


@torch.no_grad()
def moved(model: PVLR, seed: int) -> PVLR:
    draw = Draw(seed)
    for value in trained_state(model).values():
        value.add_(0.3 * draw.normal(*value.shape).to(value.dtype))
    return model


def patches_for(draw: Draw, b: int = 2, n: int = 4) -> Tensor:
    return draw.normal(b, n, DIM)
