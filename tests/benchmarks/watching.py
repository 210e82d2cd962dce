"""Costs of TensorBoard beside the steps it is told of, and of an evaluation's figures, in seconds of one processor."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import table
from PIL import Image
from torch import Tensor

EVERY, IMAGES = 10, 1000

# Name, tower, its weights, labels, pictures a step, whether steps read cached features, and steps measured.
CASES = (
    ("scenes, cached features", "pvlr:scenes-clip", None, 20, 32, True, 100),
    ("scenes, pictures", "pvlr:scenes-clip", None, 20, 32, False, 60),
    ("ViT-B/16 at 224, cached features", "ViT-B-16-quickgelu", "random", 80, 16, True, 20),
    ("ViT-B/16 at 224, pictures", "ViT-B-16-quickgelu", "random", 80, 8, False, 20),
)


def grey() -> Image.Image:
    """A picture."""
    return Image.new("RGB", (500, 375), (90, 120, 110))


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of the processor that a piece of work takes, its other threads (such as the writer's) included."""
    start = time.process_time()
    work()
    return time.process_time() - start


def row(
    name: str, tower: str, weights: str | None, labels: int, batch: int, cached: bool, steps: int
) -> tuple[str, ...]:
    """A row of the table: whole steps, and of each the part that serves the watching alone."""
    from pvlr.core import PVLR, LabelSet, PVLRConfig
    from pvlr.core.towers import TowerSpec, build_towers
    from pvlr.data.batch import Batch
    from pvlr.data.dataset import LabelledImages
    from pvlr.train import loop
    from pvlr.train.config import OptimizerConfig
    from pvlr.train.dataloaders import transform_config
    from pvlr.train.evaluation.predictions import Predictions
    from pvlr.train.monitoring.monitor import Monitor
    from pvlr.train.monitoring.views import Views
    from pvlr.train.optim import build_optimizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    towers, names = (
        build_towers(TowerSpec(name=tower, weights=weights)),
        LabelSet(tuple(f"label {number}" for number in range(labels))),
    )
    model = PVLR(PVLRConfig(), names, towers.text, towers.image)
    optimizer, size = build_optimizer(model, OptimizerConfig()), towers.image.image_size
    inputs = torch.randn(batch, 3, size, size)
    with torch.no_grad():
        inputs = towers.image(inputs).patches if cached else inputs
    target = torch.randint(2, (batch, labels)).float()
    data = Batch(inputs, target, torch.ones_like(target, dtype=torch.bool), torch.arange(batch))
    # Of a step: all of it without the watching, and the watching, by whether TensorBoard is told of the step.
    bare: list[float] = []
    watching: dict[bool, list[float]] = {True: [], False: []}
    apart, summed = 0.0, loop._summed

    def taken_apart(*given: Any) -> Tensor:
        nonlocal apart
        if torch.is_grad_enabled():
            return summed(*given)
        # The part of the loss that is due to present labels, which nothing but the watching reads.
        start = time.process_time()
        found = summed(*given)
        apart = time.process_time() - start
        return found

    loop._summed = taken_apart
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor(Path(folder), tensorboard=True, log_every=EVERY, quiet=True)
        for number in range(1, steps + 1):
            start = time.process_time()
            result = loop.train_step(model, optimizer, [data], loop.FitConfig())
            taken = time.process_time() - start
            monitor.step(number, result, {"layers": 0.1}, seconds=1.0, waiting=0.0, model=model)
            watched = time.process_time() - start - taken
            if number > 1:  # The first is for warming up.
                bare.append(taken - apart)
                watching[number % EVERY == 0].append(watched + apart)
        pictures = LabelledImages(
            name="grey", labels=names, paths=[grey] * IMAGES, identifiers=[str(number) for number in range(IMAGES)],
            target=torch.randint(2, (IMAGES, labels)).float(),
        )  # fmt: skip
        views = Views(
            monitor.trackers, model, pictures, transform_config(towers.preprocess), device=torch.device("cpu"),
            precision="float32",
        )  # fmt: skip
        found = Predictions(torch.randn(IMAGES, labels), pictures.target, pictures.known, torch.arange(IMAGES))
        evaluations = [seconds_of(lambda step=step: views.evaluation(step, found)) for step in range(3)]
        monitor.close()
    step_seconds = statistics.median(bare)
    told, untold = (statistics.median(watching[kind]) for kind in (True, False))
    more = (told + (EVERY - 1) * untold) / EVERY
    return (
        name, f"{1 + more / step_seconds:.4f}×", f"{1 + told / step_seconds:.4f}×", f"{1000 * step_seconds:.1f} ms",
        f"{evaluations[0]:.2f} s, then {min(evaluations):.2f} s",
    )  # fmt: skip


def report() -> Iterator[str]:
    """The table."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = [pool.apply(row, given) for given in CASES]

    yield table(
        "Steps with their watching, as a multiple of the steps alone; medians",
        ("case", f"1 of {EVERY} told", "each told", "a step alone", "what an evaluation shows"),
        rows,
    )
