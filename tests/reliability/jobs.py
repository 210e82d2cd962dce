"""Small runs in processes of their own, which can be stopped, killed and compared."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.processes import CONTEXT, free_port
from helpers.tower_models import write_folder
from helpers.training_toys import tiny_options, write_voc
from safetensors.torch import load_file
from torch import Tensor


def write_inputs(folder: Path) -> None:
    """Write a tower, another one with batch norm, and 24 + 9 pictures."""
    write_folder(folder / "tower", "vit")
    write_folder(folder / "resnet", "resnet")
    write_voc(folder / "voc", train=24, test=9)


def options_of(inputs: Path, run: Path, **more: object) -> list[str]:
    """Return the options of a run of epochs of 24 pictures; `more` has `__` for the dots."""
    few = {"loop__epochs": 4, "loop__ema": 0.9, "loop__eval_batch_size": 2, "loop__evaluate_every": 2}
    return tiny_options(inputs / "voc", inputs / "tower", run, **{**few, **more})


def _run(options: Sequence[str], environment: dict[str, str], log: Path) -> None:
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    # As in a process that nobody started by a server: workers are its own children.
    multiprocessing.set_start_method("fork", force=True)
    from pvlr.cli.command import command
    from pvlr.train import train
    from pvlr.train.data_config import VOCData

    sys.exit(command(train, list(options), data=VOCData))


class Job:
    """One or several processes that run a training; their output goes to ``<run folder>.log``."""

    def __init__(self, options: Sequence[str], run: Path, *, processes: int = 1) -> None:
        self.run, self.log = run, run.with_name(f"{run.name}.log")
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.processes = []
        for rank in range(processes):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            self.processes.append(CONTEXT.Process(target=_run, args=(list(options), environment, self.log)))
            self.processes[-1].start()

    def wait(self, timeout: float = 300) -> list[int | None]:
        """Wait for the end; return the exit codes, by rank."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.1, end - time.monotonic()))
        hang = [process for process in self.processes if process.is_alive()]
        for process in hang:
            process.kill()
        if hang:
            raise TimeoutError(f"{len(hang)} processes hang; {self.log.read_text()[-2000:]}")
        return [process.exitcode for process in self.processes]

    def wait_for_steps(self, steps: int, timeout: float = 300) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.alive():
            metrics = self.run / "metrics.jsonl"
            if metrics.is_file() and metrics.read_text().count('"train"') >= steps:
                return
            time.sleep(0.005)

    def ended(self, timeout: float) -> bool:
        """Return whether all end by themselves within so many seconds."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        return not self.alive()

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def signal(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid, number)


def finished(options: Sequence[str], run: Path, *, processes: int = 1) -> None:
    """Run to the end.

    Raises:
        RuntimeError: with what it said, where it ends otherwise.
    """
    job = Job(options, run, processes=processes)
    codes = job.wait()
    if set(codes) != {0}:
        raise RuntimeError(f"exit codes {codes}: {job.log.read_text()[-2000:]}")


def stopped(options: Sequence[str], run: Path, *, steps: int, processes: int = 1) -> int:
    """Stop a run by SIGTERM once it has done so many steps; returns the step it stopped at."""
    job = Job(options, run, processes=processes)
    job.wait_for_steps(steps)
    job.signal(signal.SIGTERM)
    codes = job.wait()
    if set(codes) != {143}:
        raise RuntimeError(f"exit codes {codes}: {job.log.read_text()[-2000:]}")
    return max(row["step"] for row in rows_of(run))


def rows_of(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of each step and evaluation, without the speed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def state_of(run: Path) -> dict[str, Tensor]:
    """Return all tensors and numbers of the last checkpoint and the exported model, without the time."""
    last = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    saved = torch.load(last, weights_only=True)
    found = {f"exported {name}": value for name, value in load_file(run / "model.safetensors").items()}
    for section in ("model", "average", "optimizer"):
        found |= {f"{section} {name}": value for name, value in _tensors(saved[section])}
    return {**found, "step": torch.tensor(saved["step"])}


def _tensors(tree: Any, name: str = "") -> list[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        return [(name, tree)]
    if isinstance(tree, bool | int | float):
        return [(name, torch.tensor(float(tree), dtype=torch.float64))]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [found for key, value in items for found in _tensors(value, f"{name}.{key}")]


def same(run: Path, other: Path) -> bool:
    """Return whether two runs ended the same to the last bit: weights, optimiser, schedule, average, metrics."""
    one, two = state_of(run), state_of(other)
    equal = one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    return equal and rows_of(run) == rows_of(other)


def difference(run: Path, other: Path) -> float:
    """Return the largest difference between the exported weights of two runs."""
    one, two = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    return max(float((value - two[name]).abs().max()) for name, value in one.items())


def files_of(run: Path) -> list[str]:
    """Return the names of all files of a run."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
