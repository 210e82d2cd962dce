"""Seconds and peak memory of one piece of work, each measured in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

THREADS = 2


class Measured(NamedTuple):
    """Cost of one piece of work.

    Attributes:
        seconds: The fastest repetition: what else a machine does only ever adds to it.
        megabytes: Largest memory beyond what the process held before the first repetition, in MiB.
    """

    seconds: float
    megabytes: float


def measure(build: Callable[..., Callable[[], object]], *, repeat: int = 5, **options: Any) -> Measured:
    """Build the work in a fresh process, warm it up once, then time it.

    Args:
        build: A function of a module (it is looked up by name there) that returns the work.
        repeat: Number of timed repetitions, after one that is not timed; 0: that one is timed after all.
        **options: Arguments of ``build``.
    """
    # A process of its own: memory that an earlier piece of work gave back would hide what this one takes.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (build, repeat, options))


def _measured(build: Callable[..., Callable[[], object]], repeat: int, options: dict[str, Any]) -> Measured:
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    work = build(**options)
    before = start_high_water()
    start = time.perf_counter()
    work()
    times = [time.perf_counter() - start] if repeat == 0 else []
    megabytes = high_water() - before
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return Measured(min(times), megabytes)


def start_high_water() -> float:
    """Begin to watch this process's memory anew; what it holds now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def high_water() -> float:
    """The most memory that this process held since it is watched, in MiB."""
    return _memory("VmHWM")


def _memory(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table under a title."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in (header, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([title, "", *lines, ""])
