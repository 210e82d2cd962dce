"""Train the same thing in many ways, and see that it is the same.

    python tests/reliability/equality.py             # about 5 minutes

Every row is one way to take the same steps of 16 images: processes, images a batch, batches a step. It is compared with
one process and whole batches (largest difference of a weight), and with itself: stopped by SIGTERM in the middle, gone
on with another number of workers that read pictures (equal to the last bit: weights, optimiser, schedule, averages,
metrics, steps told), and gone on with another number of processes (largest difference).
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jobs import difference, finished, options_of, same, stopped, write_inputs

WAYS = ((1, 16, 1), (1, 4, 4), (2, 16, 1), (2, 4, 4), (3, 16, 1))
WORKERS = ((0, 0), (0, 4), (1, 0), (4, 1))
# At a larger rate rounding grows from step to step, by the derivatives of ReLU.
WITH_BATCH_NORM = {"tower__name": "resnet", "tower__train": "all", "optimizer__lr": 0.0002}
LIMIT, LIMIT_WITH_BATCH_NORM = 1e-6, 2e-5  # Of running variances, which are larger than weights.
HEAD = ("processes", "batch", "accumulate", "features", "≠ one process", "workers before → after", "gone on", "≠ moved")


def row(folder: Path, way: tuple[int, int, int], workers: tuple[int, int], **more: object) -> tuple[object, ...]:
    """Train one way, whole and in two parts; the run that it is compared with is made where it is absent."""
    processes, batch, accumulate = way
    common = {"optimizer__kind": "sgd", "optimizer__lr": 0.05, **more}
    if "tower__name" in more:
        common["tower__name"] = f"local-dir:{folder / str(more['tower__name'])}"
    name = "-".join(str(part) for part in (*way, *more.values()))
    base, whole = folder / f"base-{'-'.join(map(str, more.values()))}", folder / name
    if not (base / "model.json").exists():
        finished(options_of(folder, base, loop__batch_size=16, **common), base)
    options = {"loop__batch_size": batch, "loop__accumulate": accumulate, **common}
    if not (whole / "model.json").exists():
        finished(options_of(folder, whole, **options), whole, processes=processes)
    before, after = workers
    parts = folder / f"{name}-{before}-{after}"
    step = stopped(options_of(folder, parts, data__workers=before, **options), parts, steps=3, processes=processes)
    finished(options_of(folder, parts, data__workers=after, **options), parts, processes=processes)
    exact = same(parts, whole)
    moved = folder / f"{name}-{before}-{after}-moved"
    stopped(options_of(folder, moved, **options), moved, steps=3, processes=processes)
    finished(options_of(folder, moved, **options), moved, processes=processes % 3 + 1)
    gone_on = f"at {step}: {'the same bits' if exact else 'DIFFERS'}"
    return (
        *way,
        "batch norm" if "tower__name" in more else more.get("tower__features", "compute"),
        difference(whole, base),
        f"{before} → {after}",
        gone_on,
        difference(moved, base),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        print("  ".join(HEAD))
        cached = {"tower__features": "cache", "tower__feature_views": 2}
        cases = [(way, WORKERS[number % len(WORKERS)], {}) for number, way in enumerate(WAYS)]
        cases += [(WAYS[0], workers, {}) for workers in WORKERS[1:]]
        cases += [(way, (0, 0), cached) for way in (WAYS[0], WAYS[1], WAYS[2])]
        cases += [(way, (0, 0), WITH_BATCH_NORM) for way in (WAYS[2], WAYS[4])]
        for way, workers, more in cases:
            cells = row(folder, way, workers, **more)
            texts = [f"{cell:.1e}" if isinstance(cell, float) else str(cell) for cell in cells]
            print("  ".join(f"{text:>{len(head)}}" for text, head in zip(texts, HEAD, strict=True)), flush=True)
            limit = LIMIT_WITH_BATCH_NORM if more is WITH_BATCH_NORM else LIMIT
            good = good and "same" in texts[6] and float(texts[4]) <= limit and float(texts[7]) <= limit
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
