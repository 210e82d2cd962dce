"""Costs of training on a GPU, beside the image tower alone: ``python tests/benchmarks/gpu.py [--json FILE]``.

bf16 and ``torch.compile``; nothing is fetched. Steps are timed on pictures that lie on the device already: of ViT-B/16
at 448 pixels with random weights, and of the scenes' tower. No row begins that would end after the eight minutes that
all may take together; most of them is compilation. ``--quickstart`` trains on the quickstart's scenes from end to end
instead, which on an H100 took another six. ``--device cpu --small`` shows on any machine that the script works, and
measures nothing of use.
"""

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from measure import high_water, start_high_water, table

MINUTES = 8.0
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Workload(NamedTuple):
    """A tower, and what goes through it.

    Attributes:
        title: For the table.
        tower: Arguments of ``TowerSpec``.
        labels: Number of labels.
        batch: Pictures of a step.
        steps: Steps that are timed, after two that are not.
        compile: Whether it is compiled.
        rows: What is measured, of ``ROWS``; empty: all.
    """

    title: str
    tower: Mapping[str, Any]
    labels: int
    batch: int
    steps: int
    compile: bool = True
    rows: tuple[str, ...] = ()


CACHED = "PVLR, training, cached features"
VIT = {"name": "ViT-B-16-quickgelu", "weights": "random", "image_size": 448}
SCENES = {"name": "pvlr:scenes-clip"}
FULL = (
    Workload("ViT-B/16 at 448, random weights, 80 labels, batch 64", VIT, 80, 64, 20),
    Workload("the scenes' tower at 128, 20 labels, batch 256", SCENES, 20, 256, 50),
)
SMALL = (
    Workload(
        "ViT-S/32 at 64, not compiled, batch 2", {**VIT, "name": "ViT-S-32-alt", "image_size": 64}, 3, 2, 1, False
    ),
    Workload("the scenes' tower at 128, batch 4", SCENES, 20, 4, 1, rows=("bare tower, forward", CACHED)),
)

# What is done, and beside which row it is put.
ROWS = {
    "bare tower, forward": "bare tower, forward",
    "PVLR, evaluation": "bare tower, forward",
    "PVLR, training, frozen tower": "bare tower, forward",
    CACHED: "bare tower, forward",
    "bare tower, training": "bare tower, training",
    "PVLR, training, tower fine-tuned": "bare tower, training",
    "the same, gradient checkpointing": "bare tower, training",
}


class Cost(NamedTuple):
    """Cost of a row.

    Attributes:
        images: Pictures per second.
        mebibytes: Largest memory: on a GPU all that torch had taken for tensors, on a CPU what was added.
    """

    images: float
    mebibytes: float


def build(row: str, work: Workload, device: Any) -> Callable[[], object]:
    """The work of one row: a function that does a step."""
    import torch

    from pvlr.core import PVLR, LabelSet, PVLRConfig
    from pvlr.core.towers import build_towers
    from pvlr.core.towers.spec import TowerSpec
    from pvlr.data.batch import Batch
    from pvlr.train.config import LoopConfig, OptimizerConfig
    from pvlr.train.device import compile_model
    from pvlr.train.evaluation.predictions import autocast, output_of
    from pvlr.train.loop import FitConfig, train_step
    from pvlr.train.optim import build_optimizer
    from pvlr.train.state import WeightAverage

    trains_tower = row in (name for name, beside in ROWS.items() if beside == "bare tower, training")
    again = row == "the same, gradient checkpointing"
    towers = build_towers(TowerSpec(**work.tower, train="all" if trains_tower else "frozen"))
    towers.image.set_gradient_checkpointing(again)
    size = towers.image.image_size
    images = torch.randn(work.batch, 3, size, size, device=device)
    if row.startswith("bare"):
        visual = towers.image.visual.to(device).train(trains_tower)
        if work.compile:
            visual.compile()
        if not trains_tower:

            def forward() -> None:
                with torch.no_grad(), autocast(device, "bf16"):
                    visual(images)

            return forward
        optimizer = torch.optim.AdamW(visual.parameters())

        def train_tower() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast(device, "bf16"):
                pooled = visual(images)
            pooled.float().square().mean().backward()
            optimizer.step()

        return train_tower

    labels = LabelSet(tuple(f"thing {number}" for number in range(work.labels)))
    model = PVLR(PVLRConfig(), labels, towers.text, towers.image).to(device)
    cached = row == CACHED
    if work.compile:
        compile_model(model, of_features=cached)
    inputs = torch.randn(work.batch, towers.image.grid**2, towers.image.dim, device=device) if cached else images
    if row == "PVLR, evaluation":
        model.eval()

        def evaluate() -> None:
            with torch.no_grad(), autocast(device, "bf16"):
                output_of(model, inputs)

        return evaluate
    target = (torch.rand(work.batch, work.labels, device=device) < 0.05).float()
    known = torch.ones_like(target, dtype=torch.bool)
    batch = Batch(inputs, target, known, torch.arange(work.batch))
    optimizer, average = build_optimizer(model, OptimizerConfig()), WeightAverage(model, 0.9997)
    config = FitConfig(loop=LoopConfig(precision="bf16"), clip_norm=1.0, device=device)
    model.train()

    def step() -> None:
        train_step(model, optimizer, [batch], config)
        average.update()

    return step


def cost(row: str, work: Workload, name: str) -> Cost:
    """Build, warm up, time."""
    import torch

    device = torch.device(name)
    on_gpu = device.type == "cuda"
    torch.manual_seed(0)
    gc.collect()  # Of the row before, in the same process: imports alone can take half a minute on a fresh machine.
    torch.compiler.reset()
    if on_gpu:
        torch.cuda.empty_cache()
    held = start_high_water()
    step = build(row, work, device)
    for _ in range(2):
        step()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(work.steps):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / work.steps
    return Cost(work.batch / seconds, torch.cuda.max_memory_allocated() / 2**20 if on_gpu else high_water() - held)


def scenes_run(name: str, small: bool) -> dict[str, Any]:
    """Train by the quickstart's configuration, in bf16 and compiled; what it reached and how fast it went."""
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, object] = {
            "config": "quickstart",
            "data.root": f"{folder}/scenes",
            "run.folder": f"{folder}/run",
            "run.baselines": "false",
            "run.tensorboard": "false",
            "loop.device": name,
            "loop.precision": "bf16",
            "loop.compile": "true",
        }
        if small:
            # Without the learnable context there is no text tower to compile, which takes a CPU a minute.
            settings |= {"loop.epochs": 1, "model.fusion": "knowledge"}
            settings |= {"data.scenes.train": 64, "data.scenes.val": 8, "data.scenes.test": 8}
        options = [f"--{key}={value}" for key, value in settings.items()]
        start = time.perf_counter()
        subprocess.run([sys.executable, str(EXAMPLES / "train_voc.py"), *options], check=True)
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
        speeds = [row["images_per_second"] for row in rows if row["kind"] == "train"]
        record = json.loads(Path(folder, "run", "run.json").read_text())
    return {
        "seconds in all": round(seconds, 1),
        "images per second, median step, reading included": round(statistics.median(speeds), 1),
        "mAP": record["results"]["PVLR"]["mAP"],
    }


class Child:
    """A process that calls functions one after another; after its death there is another one."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; what went wrong there is returned as a text."""
        self.pool = self.pool or ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return self.pool.submit(function, *arguments).result()
        except Exception as err:
            if isinstance(err, BrokenProcessPool):
                self.pool = None
            return f"{type(err).__name__}: {(str(err).splitlines() or [''])[0]}"


def show(work: Workload, found: Mapping[str, Any]) -> str:
    """The table of one workload, ratio first."""
    rows = []
    for row in work.rows or ROWS:
        beside = ROWS[row]
        mine, base = found.get(row, "not measured: no time left"), found.get(beside)
        if not isinstance(mine, Cost):
            rows.append((row, "–", "–", mine, "–"))
            continue
        known = isinstance(base, Cost)
        ratios = (
            (f"{mine.images / base.images:.2f}×", f"{mine.mebibytes / base.mebibytes:.2f}×") if known else ("–",) * 2
        )
        rows.append((row, *ratios, f"{mine.images:,.1f}", f"{mine.mebibytes:,.0f}"))
    return table(work.title, ("what", "speed", "memory", "images/s", "peak MiB"), rows)


def main() -> int:
    """Measure all that fits into the time, and print it."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="few, small pictures")
    parser.add_argument("--quickstart", action="store_true", help="train on the quickstart's scenes instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: expected a GPU, found none (--device cpu --small shows that this script works)", file=sys.stderr)
        return 2
    start = time.monotonic()
    machine = torch.cuda.get_device_name() if given.device == "cuda" else f"{platform.machine()} CPU"
    told: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "small": given.small, "rows": []}
    print(f"{machine}, torch {torch.__version__}, bf16, compiled\n", flush=True)
    if given.quickstart:
        told["quickstart"] = scenes_run(given.device, given.small)
        print(f"\nthe quickstart's training, end to end: {told['quickstart']}", flush=True)
    longest, child = 0.0, Child()
    for work in () if given.quickstart else SMALL if given.small else FULL:
        found: dict[str, Any] = {}
        for row in work.rows or ROWS:
            begun = time.monotonic()
            if begun - start + longest > 60 * MINUTES:
                continue
            found[row] = child.call(cost, row, work, given.device)
            longest = max(longest, time.monotonic() - begun)
            figures = found[row]._asdict() if isinstance(found[row], Cost) else {"failed": found[row]}
            told["rows"].append({"workload": work.title, "row": row, **figures})
        print(show(work, found), flush=True)
    told["minutes"] = round((time.monotonic() - start) / 60, 2)
    print(f"{told['minutes']} minutes in all")
    if given.json is not None:
        given.json.write_text(f"{json.dumps(told, indent=1)}\n")
    failed = [row for row in told["rows"] if "failed" in row]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
