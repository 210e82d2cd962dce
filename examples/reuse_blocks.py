"""Single blocks of PVLR in other models: three uses to copy from, each compared with the part that it replaces.

    python examples/reuse_blocks.py

`DualModalAttention` in a classifier of patches and label words; `ContextPrompter` as CoOp, for single-label
classification with an open_clip model; `SimilarityHead` on the feature map of a torchvision model. All pictures are
generated, nothing is downloaded, and it takes under a minute on 2 CPU cores. The problems are small and chosen to need
the block: the plain classifier of the first, for example, gets close to the other with a deeper stem and more steps.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pvlr.core import (
    ContextPrompter,
    DualModalAttention,
    LabelSet,
    PromptBank,
    SimilarityHead,
    Towers,
    average_precision,
    encode_knowledge,
    load_towers,
)
from pvlr.data.scenes.rendering import COLOURS, SHAPES, TEXTURES, SceneObject, render_scene


class Measured(NamedTuple):
    """Effect of a block on pictures that were not trained on: `measure` without it and with it."""

    block: str
    measure: str
    without: float
    with_it: float


# --- DualModalAttention between your patches and your words


class WordClassifier(nn.Module):
    """Classifier of label words: the word's vector times the mean of the patch vectors."""

    def __init__(self, words: int, dim: int, attention: DualModalAttention | None = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, kernel_size=8, stride=8)
        self.words = nn.Embedding(words, dim)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.attention = attention

    def forward(self, pictures: Tensor) -> Tensor:
        """Compute logits `b c` of pictures `b 3 s s`."""
        patches, words = self.patches(pictures).flatten(2).transpose(1, 2), self.words.weight  # b n d, c d
        if self.attention is not None:
            attended = self.attention(words, patches)
            patches, words = attended.patches, attended.labels  # b n d, b c d
        logits: Tensor = (words @ patches.mean(dim=1)[:, :, None]).squeeze(2) + self.bias
        return logits


def attention_in_a_classifier(steps: int = 300) -> Measured:
    """Classify which colours have a tile with a dot; a mean of patches loses which dot was on which tile."""

    def score(attention: DualModalAttention | None) -> float:
        model, draw = WordClassifier(words=8, dim=32, attention=attention), torch.Generator().manual_seed(0)
        minimise(lambda: tile_loss(model, *tile_pictures(64, draw)), model.parameters(), steps=steps, lr=1e-2)
        return mean_ap(model, *tile_pictures(1000, draw))

    torch.manual_seed(0)
    return Measured("DualModalAttention", "mAP", score(None), score(DualModalAttention(dim=32, heads=4)))


# --- ContextPrompter as CoOp: learn the words around the class names, for any open_clip model


def context_for_classification(steps: int = 100) -> Measured:
    """Classify the colour of the thing in the picture; the towers stay frozen, 4 context vectors are learned."""
    torch.manual_seed(0)
    towers = load_towers("pvlr:scenes-clip")
    # The context is initialised from "a photo of a" in the sentences, which it replaces.
    bank = PromptBank(LabelSet(COLOURS), templates=("a photo of a {} thing.",), suffix=" thing.")
    prompts = towers.text.tokenize_prompts(bank.context_sentences(), bank.context_words, bank.context_tokens)
    prompter = ContextPrompter(
        width=towers.text.width, dim=towers.text.dim, context_tokens=prompts.length, relation="none"
    )
    prompter.start_from(towers.text.embed(prompts.ids[0, prompts.start : prompts.start + prompts.length]))

    seen, colour = close_ups(towers, 300, seed=1)
    others, wanted = close_ups(towers, 500, seed=2)

    def loss() -> Tensor:
        vectors, _ = prompter(towers.text, prompts)
        return F.cross_entropy(towers.logit_scale * seen @ vectors.T, colour)

    def accuracy(vectors: Tensor) -> float:
        return (others @ vectors.T).argmax(dim=1).eq(wanted).float().mean().item()

    zero_shot = accuracy(encode_knowledge(bank, towers.text.encode))
    minimise(loss, prompter.parameters(), steps=steps, lr=2e-2)
    with torch.no_grad():
        vectors, _ = prompter(towers.text, prompts)
    return Measured("ContextPrompter", "accuracy", zero_shot, accuracy(vectors))


# --- SimilarityHead in the place of average pooling and a linear layer


class LabelVectorHead(nn.Module):
    """Head that scores label vectors against every patch and takes the best: the labels are the classifier."""

    def __init__(self, width: int, labels: int, dim: int = 64) -> None:
        super().__init__()
        self.projection = nn.Linear(width, dim)
        self.labels = nn.Parameter(torch.randn(labels, dim))  # Learned; a text encoder's vectors serve as well.
        self.head = SimilarityHead(scale=30.0, bias=-5.0)

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits `b c` of features `b n k`."""
        logits: Tensor = self.head(self.projection(features), self.labels)
        return logits


def head_on_foreign_features(steps: int = 300) -> Measured:
    """Train heads on the frozen first stage of a ResNet-18 with random weights."""
    torch.manual_seed(0)
    encoder = nn.Sequential(*list(torchvision.models.resnet18(weights=None).children())[:5]).eval()
    pictures, target = tile_pictures(2500, torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = torch.cat([encoder(part) for part in torch.split(pictures, 100)]).flatten(2).transpose(1, 2)  # b n k
    features = (features - features[:2000].mean(dim=(0, 1))) / features[:2000].std(dim=(0, 1))

    def score(model: nn.Module, features: Tensor) -> float:
        def loss() -> Tensor:
            rows = torch.randint(2000, (64,))
            return tile_loss(model, features[rows], target[rows])

        minimise(loss, model.parameters(), steps=steps, lr=3e-2)
        return mean_ap(model, features[2000:], target[2000:])

    plain = score(nn.Linear(64, 8), features.mean(dim=1))
    return Measured("SimilarityHead", "mAP", plain, score(LabelVectorHead(64, 8), features))


# --- shared by the three uses: pictures, steps, scores


def tile_pictures(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw pictures `b 3 32 32` of 4 × 4 tiles in 8 colours, a tenth with a white dot, and which have a dot, `b 8`."""
    palette = 0.2 + 0.6 * torch.cartesian_prod(*[torch.arange(2.0)] * 3)  # 8 colours
    colour = torch.randint(8, (count, 4, 4), generator=draw)
    dotted = torch.rand(count, 4, 4, generator=draw) < 0.1
    dot = torch.zeros(8, 8)
    dot[2:6, 2:6] = 1.0
    alpha = torch.kron(dotted.float(), dot)[:, None]
    tiles = palette[colour].permute(0, 3, 1, 2).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    noise = 0.1 * torch.randn(count, 3, 32, 32, generator=draw)
    target = (F.one_hot(colour, 8) * dotted[..., None]).flatten(1, 2).amax(dim=1).float()
    return tiles + alpha * (1.0 - tiles) + noise, target


@torch.no_grad()
def close_ups(towers: Towers, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw pictures of one large thing each: image vectors `b d`, of length 1, and the index of its colour, `b`."""
    rng, size = np.random.default_rng(seed), towers.image.image_size
    pictures, colours = [], rng.integers(len(COLOURS), size=count)
    for colour in colours:
        look = {"colour": COLOURS[colour], "texture": str(rng.choice(TEXTURES)), "shape": str(rng.choice(SHAPES))}
        radius = size * rng.uniform(0.2, 0.4)
        x, y = rng.uniform(radius, size - radius, size=2)
        thing = SceneObject(**look, x=x, y=y, radius=radius, angle=rng.uniform(0, 6.28), seed=int(rng.integers(2**31)))
        pictures.append(render_scene(size, size, [thing], seed=int(rng.integers(2**31)))[0])
    mean, std = (torch.tensor(towers.preprocess[name])[:, None, None] for name in ("mean", "std"))
    images = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 - mean) / std
    vectors = torch.cat([towers.image(part).pooled for part in torch.split(images, 50)])
    return F.normalize(vectors, dim=1), torch.from_numpy(colours)


def minimise(loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], *, steps: int, lr: float) -> None:
    """Minimise a loss by AdamW with one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def tile_loss(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """The binary cross-entropy over all labels."""
    return F.binary_cross_entropy_with_logits(model(inputs), target)


@torch.no_grad()
def mean_ap(model: nn.Module, inputs: Tensor, target: Tensor) -> float:
    """The mean average precision over the labels."""
    return average_precision(model(inputs), target).mean().item()


USES = (attention_in_a_classifier, context_for_classification, head_on_foreign_features)


def main(steps: Sequence[int] = (300, 100, 300)) -> list[Measured]:
    """Measure and print the three uses, with the given number of training steps each."""
    found = []
    for use, length in zip(USES, steps, strict=True):
        found.append(use(length))
        block, measure, without, with_it = found[-1]
        print(f"{block:<20} {measure + ':':<10} {without:.3f} without, {with_it:.3f} with it", flush=True)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # Several threads only slow down models of this size.
    main()
