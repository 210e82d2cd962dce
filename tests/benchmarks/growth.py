"""Time and memory of training as labels, pictures, batches and images grow, with the exponents that fit."""

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import Measured, measure, table

STORED, PATCHES, WIDTH, SOURCE = 256, 49, 384, 1280  # Pictures that are repeated; sizes of pvlr:photos.
LABELS, BATCH = 80, 16
SIZES = {
    "labels": (80, 1_000, 10_000),
    "pictures": (5_011, 24_000, 119_000),
    "pictures of a batch": (8, 32, 128),
    "pixels of a side": (224, 320, 448),  # Multiples of the patch size, 32.
}
SMALL = {"labels": (4, 8), "pictures": (32, 64), "pictures of a batch": (4, 8), "pixels of a side": (64, 128)}
WHAT = {
    "labels": f"a step, batches of {BATCH}, from the cache",
    "pictures": "an epoch, 20 labels, fixed prompts, batches of 64, from the cache",
    "pictures of a batch": f"a step, {LABELS} labels, from the cache",
    "pixels of a side": "the tower's forward pass, batches of 4",
}


def stored_features(folder: Path, labels: Any) -> Any:
    """Write a cache of random features; labels that every batch has some of."""
    from pvlr.data.dataset import LabelledImages
    from pvlr.data.features import CachedFeatures, FeatureStore

    shape = {"rows": STORED, "patches": PATCHES, "dim": WIDTH, "source": SOURCE}
    store = FeatureStore(folder, key={}, **shape)
    store.append(torch.randn(STORED, PATCHES, WIDTH), torch.randn(STORED, WIDTH), torch.randn(STORED, SOURCE))
    store.save()
    pictures = LabelledImages(
        name="random", labels=labels, paths=[Path(f"{row}.jpg") for row in range(STORED)],
        identifiers=[str(row) for row in range(STORED)], target=(torch.rand(STORED, len(labels)) < 0.05).float(),
    )  # fmt: skip
    return CachedFeatures(pictures, store)


def training(labels: int, batch: int, pictures: int, fixed: bool, folder: str) -> Callable[[], object]:
    """Training on cached features that are repeated, one pass over so many pictures."""
    from pvlr.core import PVLR, LabelSet, PVLRConfig
    from pvlr.core.towers import load_towers
    from pvlr.data.sampling import EpochSampler
    from pvlr.train.config import OptimizerConfig
    from pvlr.train.dataloaders import load_batches
    from pvlr.train.loop import FitConfig, train_step
    from pvlr.train.optim import build_optimizer

    names, towers = LabelSet(tuple(f"thing {number}" for number in range(labels))), load_towers("pvlr:photos")
    config = PVLRConfig(fusion="knowledge") if fixed else PVLRConfig()
    model = PVLR.from_towers(config, names, towers).train()
    optimizer = build_optimizer(model, OptimizerConfig())
    data = stored_features(Path(folder, "features"), names).with_regions(model.sees)
    data = data.select([row % STORED for row in range(pictures)])

    def work() -> None:
        for found in load_batches(data, EpochSampler(len(data), batch, shuffle=True)):
            train_step(model, optimizer, [found], FitConfig(clip_norm=1.0))

    return work


def forward(size: int) -> Callable[[], object]:
    """The image tower at another size, without gradients."""
    from pvlr.core.towers import load_towers

    tower = load_towers("pvlr:photos").image
    tower.set_image_size(size)
    images = torch.randn(4, 3, size, size)

    def work() -> None:
        with torch.no_grad():
            tower(images)

    return work


def cost(axis: str, size: int, repeat: int) -> Measured:
    """Measure one size of an axis."""
    if axis == "pixels of a side":
        return measure(forward, repeat=repeat, size=size)
    given = {"labels": LABELS, "batch": BATCH, "pictures": BATCH, "fixed": False}
    if axis == "labels":
        given["labels"] = size
        repeat = 1 if size > 1_000 else repeat
    elif axis == "pictures":
        given |= {"labels": 20, "batch": 64, "pictures": size, "fixed": True}
        repeat = 0
    else:
        given |= {"batch": size, "pictures": size}
    with tempfile.TemporaryDirectory() as folder:
        return measure(training, repeat=repeat, folder=folder, **given)


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Return the exponent ``e`` of the least squares fit ``value = a · sizeᵉ``, in logarithms."""
    logs = [math.log(max(value, 1e-3)) for value in values]
    return statistics.linear_regression([math.log(size) for size in sizes], logs).slope


def report(small: bool = False) -> Iterator[str]:
    """A table for each axis, the exponents in its last row."""
    for axis, sizes in (SMALL if small else SIZES).items():
        found = [cost(axis, size, 1 if small else 3) for size in sizes]
        rows = [
            (f"{size:,}", f"{one.seconds:.3f}", f"{one.megabytes:,.0f}") for size, one in zip(sizes, found, strict=True)
        ]
        exponents = (exponent(sizes, [one[part] for one in found]) for part in (0, 1))
        rows.append(("exponent", *(f"{value:.2f}" for value in exponents)))
        yield table(f"Growth with {axis}: {WHAT[axis]}, pvlr:photos, float32", (axis, "seconds", "MiB"), rows)
