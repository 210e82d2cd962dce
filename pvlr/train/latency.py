"""How fast a model tags: one picture, many pictures, and the label side, which is computed once."""

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import torch

from pvlr.data.batch import DataError
from pvlr.train.predict import Tagger
from pvlr.train.tagging import tag_files

__all__ = ["latency_table"]

RUNS = 30
LEAST_BATCHES = 4


def latency_table(tagger: Tagger, paths: Sequence[str], *, batch_size: int = 32, workers: int = 2) -> str:
    """Measure on given pictures, from the file to the tags, and set the figures out.

    Args:
        tagger: The model.
        paths: Readable pictures, at least one; taken round and round.
        batch_size: Pictures of one forward pass.
        workers: Threads that read pictures.

    Raises:
        DataError: naming a picture that cannot be read; where there is none.
    """
    if not paths:
        raise DataError("pictures: expected at least one to measure on, found none")
    images = [tagger.prepare(path) for path in islice(cycle(paths), batch_size)]
    batch = torch.stack(images)

    def labels() -> None:
        tagger.model.eval()  # Which forgets the label side.
        with torch.no_grad():
            tagger.model.label_vectors()

    def seen(pictures: torch.Tensor) -> None:
        tagger.tag_batch(pictures, attention=False)

    of_labels = _seconds(labels, 5)
    source = cycle(paths)
    one = _seconds(lambda: seen(tagger.prepare(next(source)).unsqueeze(0)), RUNS)
    model = _seconds(lambda: seen(batch[:1]), RUNS)
    whole = _seconds(lambda: seen(batch), LEAST_BATCHES)
    many = list(islice(cycle(paths), LEAST_BATCHES * batch_size))
    start = time.perf_counter()
    for _ in tag_files(tagger, many, batch_size=batch_size, workers=workers):
        pass
    rate = len(many) / (time.perf_counter() - start)
    device, count = tagger.model.knowledge_vectors.device, len(tagger.labels)
    once = f"{1e3 * statistics.median(of_labels):.1f} ms"
    rows = [
        (f"label side, {count} labels, once", once),
        ("one picture, file to tags, median", f"{1e3 * statistics.median(one):.1f} ms"),
        ("one picture, file to tags, 95 % within", f"{1e3 * statistics.quantiles(one, n=20)[-1]:.1f} ms"),
        ("one picture, model alone, median", f"{1e3 * statistics.median(model):.1f} ms"),
        (f"batches of {batch_size}, files to tags, {workers} reading", f"{rate:.1f} pictures/s"),
        (f"batches of {batch_size}, model alone", f"{batch_size / statistics.median(whole):.1f} pictures/s"),
    ]
    width = max(len(name) for name, _ in rows)
    head = f"{device.type}, {torch.get_num_threads()} threads, {tagger.transform.side} pixels"
    return "\n".join([head, *(f"{name:<{width}}  {value:>18}" for name, value in rows)])


def _seconds(action: Callable[[], None], runs: int) -> list[float]:
    """Times of an action, without a first one; a GPU has finished before a time is taken."""
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[1:]
