"""Towers small enough to read, the switches of a model drawn at random, and models built of both."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers.strategies import Draw
from helpers.toy_text import WordTower
from pvlr.core.functional import splice_context
from pvlr.core.labels import LabelSet
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.models.state import trained_state
from pvlr.core.protocols import ImageFeatures, PromptTokens, join_regions

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
    """Patches linear in the pixels, the pooled vector their mean; with ``source_dim`` it is made of features.

    With ``own_dim`` patches have features of their own too.
    """

    def __init__(self, seed: int = 0, *, source_dim: int = 0, own_dim: int = 0) -> None:
        super().__init__()
        self.own_dim = own_dim
        self.own = nn.Conv2d(3, own_dim, 4, stride=4).requires_grad_(False) if own_dim else None
        self.dim, self.image_size, self.grid, self.source_dim = DIM, 12, 3, source_dim
        self.conv = nn.Conv2d(3, DIM + source_dim, 4, stride=4).requires_grad_(False)
        draw = Draw(seed)
        self.conv.weight.copy_(draw.normal(DIM + source_dim, 3, 4, 4))
        self.conv.bias.copy_(draw.normal(DIM + source_dim))

    def forward(self, images: Tensor) -> ImageFeatures:
        cells = self.conv(images).flatten(2).transpose(1, 2)
        patches, more = cells[..., :DIM], cells[..., DIM:]
        own = None if self.own is None else self.own(images).flatten(2).transpose(1, 2)
        return ImageFeatures(patches, patches.mean(dim=1), more.square().mean(dim=1) if self.source_dim else None, own)


Switches = dict[str, Any]
BASES = (("competition", "focused", "pooled"), ("competition",), ("pooled", "best"), ("best", "focused"))


def switches(**fixed: Any) -> st.SearchStrategy[Switches]:
    """Arguments of a configuration; ``knowledge="file"`` stands for a file that :func:`build` is given.

    ``source_dim`` is the image tower's: the width of what it makes the pooled vector of.
    """
    context = st.sampled_from([("a photo of a", 4), (None, 1), (None, 3)])
    drawn = {
        "relation": st.sampled_from(["attention", "none"]),
        "knowledge": st.sampled_from(["text_tower", "file"]),
        "fusion": st.sampled_from(["gate", "gate", "sum", "knowledge", "context"]),
        "base": st.sampled_from([*BASES, ()]),
        "base_scale": st.sampled_from([None, 3.0]),
        "shrinkage": st.sampled_from([1.0, 10.0]),
        "adapter_width": st.sampled_from([0, 3]),
        "direction": st.sampled_from(["both", "labels", "patches", "none"]),
        "feedforward": st.sampled_from([0, 3]),
        "source_dim": st.sampled_from([0, 5, 11]),
    }
    rest = st.fixed_dictionaries({name: choice for name, choice in drawn.items() if name not in fixed})

    def join(words: tuple[str | None, int], chosen: Switches) -> Switches:
        return {"heads": HEADS, "context_words": words[0], "context_tokens": words[1]} | chosen | fixed

    return st.builds(join, context, rest)


BASED = {"fusion": st.sampled_from(["gate", "sum", "knowledge"]), "base": st.sampled_from(BASES)}


def based(**fixed: Any) -> st.SearchStrategy[Switches]:
    """Switches of models that have a base."""
    drawn = st.fixed_dictionaries({name: choice for name, choice in BASED.items() if name not in fixed})
    return st.builds(lambda some, more: some | more, switches(fusion="gate", base=BASES[0]), drawn).map(
        lambda chosen: chosen | fixed
    )


def write_vectors(folder: Path, names: Sequence[str] = NAMES) -> Path:
    path = folder / "vectors.npz"
    np.savez(path, names=np.array(names), vectors=Draw(3).normal(len(names), SOURCE).numpy())
    return path


def build(chosen: Switches, labels: LabelSet = LABELS, *, file: Path | None = None, seed: int | None = 0) -> PVLR:
    """A model in float64 and evaluation; with ``seed`` every parameter is away from its start."""
    chosen = dict(chosen)
    image = ToyImage(source_dim=chosen.pop("source_dim", 0))
    if chosen.get("knowledge") == "file":
        chosen["knowledge"] = str(file)
    model = PVLR(PVLRConfig(**chosen), labels, ToyText().double(), image, logit_scale=7.0, logit_bias=-1.5)
    model.double().eval()
    return model if seed is None else moved(model, seed)


@torch.no_grad()
def moved(model: PVLR, seed: int) -> PVLR:
    """Move the weights; and some positives of every label are known, so that all that was learned counts."""
    draw = Draw(seed)
    for name, value in trained_state(model).items():
        if name == "known_positives":
            value.copy_(1 + draw.levels(20, *value.shape) * 20)
        else:
            value.add_(0.3 * draw.normal(*value.shape).to(value.dtype))
    return model


def patches_for(draw: Draw, b: int = 2, n: int = 4) -> Tensor:
    """Any vectors in the place of what an image tower saw; four of them are enough for the widest source."""
    return draw.normal(b, n, DIM)


def seen_for(model: PVLR, draw: Draw, b: int = 2, n: int = 4) -> ImageFeatures:
    """Vectors that the model's image tower might see, apart."""
    width = model.source_dim
    return ImageFeatures(draw.normal(b, n, DIM), draw.normal(b, DIM), draw.normal(b, width) if width else None)


def regions_for(model: PVLR, draw: Draw, b: int = 2, n: int = 4) -> Tensor:
    """The same as one tensor, as the model reads it."""
    return join_regions(seen_for(model, draw, b, n), model.sees)
