"""Times of importing, each in interpreters of its own."""

import statistics
import subprocess
import sys
from collections.abc import Iterator

from measure import table

CODE = "import time, torch, einops; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"


def seconds(module: str) -> float:
    """Median of five interpreters: the time for ``module`` beyond torch and einops."""
    code = [sys.executable, "-c", CODE.format(module=module)]
    return statistics.median(float(subprocess.run(code, capture_output=True, check=True).stdout) for _ in range(5))


def report() -> Iterator[str]:
    """The table."""
    rows = [(module, f"{seconds(module):.3f}") for module in ("pvlr.core", "open_clip")]
    yield table("Importing, beyond torch and einops", ("module", "seconds"), rows)
