"""Telling how it goes: one JSON object a line, TensorBoard, and a terminal or a log."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pvlr.core.files import write_atomically
from pvlr.core.metrics import MultiLabelReport
from pvlr.data.scan import Refused
from pvlr.train.distributed import is_first

__all__ = ["METRICS_NAME", "Monitor", "results_table", "say", "scan_progress"]

METRICS_NAME = "metrics.jsonl"


def say(text: str) -> None:
    """Print a line at once, also into a pipe; of several processes, the first one does."""
    if is_first():
        print(text, flush=True)


class Monitor:
    """Writes what happens at each step into a run's folder.

    ``metrics.jsonl`` holds one object a line: ``{"kind": "train", "step": …, "loss": …}`` after each step, and
    ``{"kind": "evaluation", "step": …, "mAP": …}`` after each evaluation. A resumed run first takes out whatever lies
    after its checkpoint, so that no step is told twice.

    Args:
        folder: The run's folder, which exists; None: nothing is told to anybody (by a process that is not the first).
        step: Number of steps done; what is told of later ones is taken out.
        tensorboard: Write TensorBoard's files too.
        quiet: Print nothing.
    """

    def __init__(self, folder: Path | None, *, step: int = 0, tensorboard: bool = False, quiet: bool = False) -> None:
        self._quiet = quiet or folder is None
        self._file: IO[str] | None = None
        self._writer: Any = None
        self._bar: Any = None
        rows: list[dict[str, Any]] = []
        if folder is not None:
            path = folder / METRICS_NAME
            rows = _rows_until(path, step)
            write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
            self._file = path.open("a", encoding="utf-8")
            self._writer = _summary_writer(folder / "tensorboard", step) if tensorboard else None
        self._evaluated = {row["step"] for row in rows if row["kind"] == "evaluation"}
        self._losses: list[float] = []
        self._images, self._seconds, self._rate = 0, 0.0, 0.0

    def has_evaluation(self, step: int) -> bool:
        """Whether an evaluation after this step has been told."""
        return step in self._evaluated

    @contextmanager
    def epoch(self, epoch: int, epochs: int, within: int, steps: int) -> Iterator[None]:
        """Show an epoch's progress: a bar in a terminal, else one line at its end.

        Args:
            epoch: Number of epochs done.
            epochs: Of the whole run.
            within: Steps of this one that are done.
            steps: Of an epoch.
        """
        self._losses, self._images, self._seconds = [], 0, 0.0
        title = f"epoch {epoch + 1}/{epochs}"
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=title, total=steps, initial=within, unit="step", leave=False)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        if self._losses and not self._quiet:
            mean = sum(self._losses) / len(self._losses)
            speed = self._images / max(self._seconds, 1e-9)
            say(f"{title}  loss {mean:.4f}  lr {self._rate:.1e}  {speed:.0f} images/s")

    def step(
        self, *, step: int, loss: float, gradient_norm: float, rates: Mapping[str, float], images: int, seconds: float
    ) -> None:
        """Tell a step.

        Args:
            step: Number of steps done, this one included.
            loss: Its loss.
            gradient_norm: Length of its gradient before clipping.
            rates: Learning rate by parameter group.
            images: Number of its images.
            seconds: Time it took, reading the images included.
        """
        values = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "images_per_second": round(images / max(seconds, 1e-9), 2),
        }
        self._write({"kind": "train", "step": step, **values, "lr": dict(rates)})
        self._losses.append(loss)
        self._images, self._seconds, self._rate = self._images + images, self._seconds + seconds, max(rates.values())
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()
        for name, value in values.items():
            self._scalar(f"train/{name}", value, step)
        for name, rate in rates.items():
            self._scalar(f"lr/{name}", rate, step)

    def evaluation(self, *, step: int, epoch: int, report: MultiLabelReport) -> None:
        """Tell an evaluation, unless one after the same step has been told."""
        if not self._quiet:
            say(f"epoch {epoch}  mAP {_percent(report.mAP)}  CF1 {_percent(report.CF1)}  OF1 {_percent(report.OF1)}")
        if step in self._evaluated:
            return
        self._evaluated.add(step)
        self._write({"kind": "evaluation", "step": step, "epoch": epoch, **report.to_json()})
        for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"):
            self._scalar(f"test/{name}", getattr(report, name), step)
        for label, value in report.ap.items():
            self._scalar(f"ap/{label}", value, step)

    def close(self) -> None:
        """Write out what is pending."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is not None and not math.isnan(value):
            self._writer.add_scalar(name, value, step)


def results_table(rows: Mapping[str, tuple[MultiLabelReport, float]]) -> str:
    """A table of methods: mAP, CF1 and OF1 in percent, and seconds of training.

    Args:
        rows: Method to its report and seconds.

    Example:
        >>> import torch
        >>> from pvlr.core.metrics import multilabel_report
        >>> report = multilabel_report(torch.tensor([[0.9], [0.2]]), torch.tensor([[1], [0]]))
        >>> print(results_table({"probe": (report, 1.5)}))
        method    mAP    CF1    OF1   seconds
        probe  100.00 100.00 100.00       1.5
    """
    width = max(len("method"), *(len(name) for name in rows))
    lines = [f"{'method':<{width}} {'mAP':>6} {'CF1':>6} {'OF1':>6} {'seconds':>9}"]
    for name, (report, seconds) in rows.items():
        values = " ".join(f"{_percent(value):>6}" for value in (report.mAP, report.CF1, report.OF1))
        lines.append(f"{name:<{width}} {values} {seconds:>9.1f}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f}"


def _rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                if row["step"] <= step and row["kind"]:
                    rows.append(row)
            except (ValueError, KeyError, TypeError):
                continue  # The line that a killed run was writing.
    return rows


def _summary_writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)


def scan_progress(name: str, total: int, outcomes: Iterator[Refused | None]) -> Iterator[Refused | None]:
    """A bar on a terminal while pictures are looked at; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield from outcomes
        return
    from tqdm import tqdm

    yield from tqdm(outcomes, desc=f"looking at {name}", total=total, unit="image", leave=False)
