"""Metrics of a run: JSON lines, TensorBoard and other trackers, and progress on the console."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from torch import nn

from pvlr.console import say
from pvlr.core.metrics.report import MultiLabelReport
from pvlr.data.scan import Refused
from pvlr.files import write_atomically
from pvlr.train.monitoring.step_metrics import step_metrics
from pvlr.train.monitoring.trackers import Tracker, Trackers

if TYPE_CHECKING:
    from pvlr.train.monitoring.board import Board

__all__ = ["METRICS_NAME", "Monitor", "label_table", "results_table", "scan_progress"]

METRICS_NAME = "metrics.jsonl"


class StepResult(NamedTuple):
    """Result of a step.

    Attributes:
        loss: Mean over all known labels of the step, over all ranks.
        positive: Part of the loss that is due to present labels.
        gradient_norm: Norm of the gradient before clipping.
        images: Number of images, over all ranks.
    """

    loss: float
    positive: float
    gradient_norm: float
    images: int


class Monitor:
    """Writer of the metrics of each step into a run's folder.

    ``metrics.jsonl`` has one object a line: ``{"kind": "train", "step": …, "loss": …}`` after each step,
    ``{"kind": "evaluation", "step": …, "mAP": …}`` after each evaluation, and ``{"kind": "result", …}`` if the final
    report is of another split. A resumed run first removes the rows after its checkpoint, so that no step is written
    twice.

    Args:
        folder: The run's folder, which exists; None: nothing is written or printed (on ranks other than 0).
        step: Number of steps done; rows of later steps are removed.
        evaluated: Name of the split that is evaluated.
        tensorboard: Write TensorBoard event files too.
        log_every: Steps between those that TensorBoard and trackers are told of, in addition to the first.
        quiet: Print nothing.
        trackers: Other trackers, which have not been started.

    Attributes:
        trackers: TensorBoard and the other trackers; none on ranks other than 0.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        step: int = 0,
        evaluated: str = "test",
        tensorboard: bool = False,
        log_every: int = 1,
        quiet: bool = False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._quiet = quiet or folder is None
        self._file: IO[str] | None = None
        self._log_every, self._split = log_every, evaluated
        self._bar: Any = None
        self._line = ""
        rows: list[dict[str, Any]] = []
        if folder is not None:
            path = folder / METRICS_NAME
            rows = _rows_until(path, step)
            write_atomically(path, "".join(f"{json.dumps(row)}\n" for row in rows).encode())
            self._file = path.open("a", encoding="utf-8")
        self._evaluated = {row["step"] for row in rows if row["kind"] == "evaluation"}
        self._results = {row["step"] for row in rows if row["kind"] == "result"}
        board = None
        if folder is not None and tensorboard:
            board = _open_board(folder / "tensorboard", step, self._evaluated)
        self.trackers = Trackers(board, () if folder is None else trackers)
        self._losses: list[float] = []
        self._images, self._seconds = 0, 0.0
        self._began, self._steps = time.perf_counter(), 0

    def has_evaluation(self, step: int) -> bool:
        """Return True if an evaluation after this step has been written."""
        return step in self._evaluated

    @contextmanager
    def epoch(self, epoch: int, epochs: int, within: int, steps: int) -> Iterator[None]:
        """Show an epoch's progress: a bar in a terminal, and one line once the epoch is finished and evaluated.

        Args:
            epoch: Number of epochs done.
            epochs: Number of epochs of the run.
            within: Number of steps of this epoch that are done.
            steps: Number of steps of an epoch.
        """
        self._say_line()
        self._losses, self._images, self._seconds = [], 0, 0.0
        title = f"epoch {epoch + 1:{len(str(epochs))}}/{epochs}"
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=title, total=steps, initial=within, unit="step", leave=False)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
        if self._losses:
            mean = sum(self._losses) / len(self._losses)
            speed = self._images / max(self._seconds, 1e-9)
            # From the mean time per step since the start of this process, evaluations included.
            left = (time.perf_counter() - self._began) / self._steps * steps * (epochs - epoch - 1)
            eta = f"  ETA {timedelta(seconds=round(left))}" if epoch + 1 < epochs else ""
            self._line = f"{title}  loss {mean:.4f}{{}}  {speed:.0f} images/s{eta}"

    def step(
        self,
        step: int,
        result: StepResult,
        rates: Mapping[str, float],
        *,
        seconds: float,
        waiting: float,
        model: nn.Module,
    ) -> None:
        """Write the metrics of a step.

        Args:
            step: Number of steps done, this one included.
            result: Its loss, gradient norm and number of images.
            rates: Learning rate by parameter group.
            seconds: Time of the step, loading of the images included.
            waiting: Part of that time spent waiting for the images.
            model: The model after the step, with its gradients.
        """
        loss, positive, gradient_norm, images = result
        values = {
            "loss": loss,
            "loss_positive": positive,
            "loss_negative": loss - positive,
            "gradient_norm": gradient_norm,
        }
        speed = round(images / max(seconds, 1e-9), 2)
        self._write({"kind": "train", "step": step, **values, "images_per_second": speed, "lr": dict(rates)})
        self._losses.append(loss)
        self._steps += 1
        self._images, self._seconds = self._images + images, self._seconds + seconds
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self._bar.update()
        if self.trackers and (step == 1 or step % self._log_every == 0):
            scalars = {f"train/{name}": value for name, value in values.items()}
            scalars |= {f"lr/{name}": rate for name, rate in rates.items()}
            scalars |= {"speed/images_per_second": speed, "speed/waiting_percent": 100 * waiting / max(seconds, 1e-9)}
            self.trackers.scalars(scalars | step_metrics(model, gradient_norm), step=step)

    def evaluation(self, *, step: int, epoch: int, report: MultiLabelReport) -> None:
        """Write the report of an evaluation, unless one after the same step has been written."""
        self._line = self._line or f"epoch {epoch}{{}}"
        self._say_line(f"  mAP {_percent(report.mAP)}")
        if step in self._evaluated:
            return
        if self.trackers:
            scalars = _measures(self._split, report)
            self.trackers.scalars(scalars | {f"ap/{label}": value for label, value in report.ap.items()}, step=step)
            self.trackers.flush()  # Before the row, which marks the evaluation as complete for a resumed run.
        self._evaluated.add(step)
        self._write({"kind": "evaluation", "step": step, "epoch": epoch, **report.to_json()})

    def result(self, *, step: int, report: MultiLabelReport) -> None:
        """Write the final report on the test split, unless it has been written."""
        if step in self._results:
            return
        self._results.add(step)
        self.trackers.scalars(_measures("test", report), step=step)
        self._write({"kind": "result", "step": step, **report.to_json()})

    def flush(self) -> None:
        """Flush pending metrics to the files: called before a checkpoint, so that none is ahead of them."""
        self.trackers.flush()

    def close(self, *, finished: bool = False) -> None:
        """Write pending output and close the files; ``finished``: the training has come to its end."""
        self._say_line()
        if self._file is not None:
            self._file.close()
        self.trackers.close(finished=finished)

    def _say_line(self, result: str = "") -> None:
        if self._line and not self._quiet:
            say(self._line.format(result))
        self._line = ""

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(f"{json.dumps(row)}\n")
            self._file.flush()


def results_table(rows: Mapping[str, tuple[MultiLabelReport, float]]) -> str:
    """Return a table of methods: mAP, CF1 and OF1 in percent, and seconds of training.

    Args:
        rows: Mapping of method to its report and seconds.

    Example:
        >>> import torch
        >>> from pvlr.core.metrics.report import multilabel_report
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


def label_table(ap: Mapping[str, float], *, most: int = 40) -> str:
    """Return a table of labels by average precision in percent, best first; of more than ``most``, both ends.

    Example:
        >>> print(label_table({"cat": 0.25, "dog": 1.0, "cow": math.nan}))
        label     AP
        dog   100.00
        cat    25.00
        cow        –
    """
    ranked = sorted(ap.items(), key=lambda pair: (math.isnan(pair[1]), -pair[1]))
    width = max(len("label"), *(len(name) for name in ap))
    lines = [f"{name:<{width}} {_percent(value):>6}" for name, value in ranked]
    if len(lines) > most:
        lines[most // 2 : -(most // 2)] = [f"… {len(lines) - most // 2 * 2} more in run.json"]
    return "\n".join([f"{'label':<{width}} {'AP':>6}", *lines])


def _measures(split: str, report: MultiLabelReport) -> dict[str, float]:
    return {f"{split}/{name}": getattr(report, name) for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")}


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


def _open_board(folder: Path, step: int, evaluated: set[int]) -> "Board":
    from pvlr.train.monitoring.board import Board  # TensorBoard takes a second to load.

    return Board(folder, step=step, evaluated=evaluated)


def scan_progress(name: str, total: int, outcomes: Iterator[Refused | None]) -> Iterator[Refused | None]:
    """Yield the outcomes of a scan of pictures, with a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield from outcomes
        return
    from tqdm import tqdm

    yield from tqdm(outcomes, desc=f"looking at {name}", total=total, unit="image", leave=False)
