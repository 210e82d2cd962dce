"""PVLR's head with its defaults in training, beside single layers that do less: time and memory by labels."""

from collections.abc import Iterator

from blocks import BATCH, HEADS, PATCHES, WIDTH, training_step
from measure import measure, table

COMPARED = ("pvlr, complete", "one cross-attention layer", "nn.TransformerDecoderLayer")


def report(small: bool = False) -> Iterator[str]:
    """A table for each number of labels, ratio first."""
    for labels, repeat in ((4, 1), (8, 0)) if small else ((80, 5), (1_000, 3), (10_000, 0)):
        found = {kind: measure(training_step, repeat=repeat, kind=kind, labels=labels) for kind in COMPARED}
        unit = found[COMPARED[0]]
        rows = [
            (kind, f"{cost.seconds / unit.seconds:.2f}×", f"{cost.megabytes / unit.megabytes:.2f}×",
             f"{cost.seconds:.3f}", f"{cost.megabytes:,.0f}")
            for kind, cost in found.items()
        ]  # fmt: skip
        yield table(
            f"{labels:,} labels, forward + backward: batch {BATCH}, {PATCHES} patches, width {WIDTH}, {HEADS} heads, "
            f"float32{'' if repeat else ', one step, not warmed up'}",
            ("head", "time", "memory", "seconds", "MiB"),
            rows,
        )
