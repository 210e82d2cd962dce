"""Latency and throughput of a model: one picture, many pictures, and the label side, which is computed once."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch

from pvlr.data.batch import DataError
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tagging import tag_files

__all__ = ["latency_table"]

RUNS = 30
LEAST_BATCHES = 4


def latency_table(recognizer: Recognizer, paths: Sequence[str], *, batch_size: int = 32, workers: int = 2) -> str:
    """Measure latency and throughput on given pictures, from the file to the tags; return them as a table.

    Args:
        recognizer: The model.
        paths: Readable pictures, at least one; repeated as needed.
        batch_size: Pictures of one forward pass.
        workers: Threads that read pictures.

    Raises:
        DataError: if a picture cannot be read, naming it, or there is none.
    """
    if not paths:
        raise DataError("pictures: expected at least one to measure on, found none")
    images = [recognizer.prepare(path) for path in islice(cycle(paths), batch_size)]
    batch = torch.stack(images)
    with torch.no_grad():
        regions = recognizer.model.regions(batch[:1].to(recognizer.model.device))

    def labels() -> None:
        recognizer.model.eval()  # Clears the cached label side.
        with torch.no_grad():
            recognizer.model.forward_features(regions)

    def tag(pictures: torch.Tensor) -> None:
        recognizer.tag_batch(pictures, attention=False)

    of_labels = _seconds(labels, 5)
    source = cycle(paths)
    one = _seconds(lambda: tag(recognizer.prepare(next(source)).unsqueeze(0)), RUNS)
    model = _seconds(lambda: tag(batch[:1]), RUNS)
    whole = _seconds(lambda: tag(batch), LEAST_BATCHES)
    many = list(islice(cycle(paths), LEAST_BATCHES * batch_size))
    start = time.perf_counter()
    for _ in tag_files(recognizer, many, batch_size=batch_size, workers=workers):
        pass
    rate = len(many) / (time.perf_counter() - start)
    device, count = recognizer.model.device, len(recognizer.labels)
    once = f"{1e3 * statistics.median(of_labels):.1f} ms"
    rows = [
        (f"one picture and {count} labels from its features, label side anew", once),
        ("one picture, file to tags, median", f"{1e3 * statistics.median(one):.1f} ms"),
        ("one picture, file to tags, 95 % within", f"{1e3 * statistics.quantiles(one, n=20)[-1]:.1f} ms"),
        ("one picture, model alone, median", f"{1e3 * statistics.median(model):.1f} ms"),
        (f"batches of {batch_size}, files to tags, {workers} reading", f"{rate:.1f} pictures/s"),
        (f"batches of {batch_size}, model alone", f"{batch_size / statistics.median(whole):.1f} pictures/s"),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"{device.type}, {torch.get_num_threads()} threads, {recognizer.transform.side} pixels"
    return "\n".join([head, *(f"{name:<{width}}  {value:>18}" for name, value in rows)])


def _seconds(action: Callable[[], None], runs: int) -> list[float]:
    """Return the times of an action after a warm-up run, with the GPU synchronised."""
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[1:]
