"""Results of a run: for ``run.json``, the model card and the console."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvlr.console import pvlr_command, say, started_as
from pvlr.core.metrics.report import MultiLabelReport
from pvlr.inference.card import ModelCard
from pvlr.train.evaluation.baselines import Baseline
from pvlr.train.monitoring.monitor import label_table, results_table

__all__ = ["Results", "card_of", "show"]

MOST_NAMES = 40
"""Maximum number of labels that are listed on the console."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of a run on the test split.

    Attributes:
        report: Report of the averaged weights.
        of: State of the weights: ``final epoch``, or ``best on validation``.
        baselines: Results by name; empty unless configured.
        folder: Folder of the run.
        seconds: Time spent training.
        untrained: Labels that have a positive in the test split, but none in the training split; they are part of the
            mAP.
    """

    report: MultiLabelReport
    of: str
    baselines: Mapping[str, Baseline]
    folder: Path
    seconds: float
    untrained: tuple[str, ...] = ()

    def to_json(self, name: str) -> dict[str, Any]:
        """Return the results as ``run.json`` stores them.

        Args:
            name: Name of the method that was trained.
        """
        entries: dict[str, Any] = {name: {"seconds": self.seconds, **self.report.to_json()}}
        for name, found in self.baselines.items():
            entries[name] = {"seconds": found.seconds, "detail": found.detail, **found.report.to_json()}
        return entries


def card_of(summaries: Sequence[str], report: MultiLabelReport, versions: Mapping[str, str]) -> ModelCard:
    """Return the model card of a run: data, metrics, command and versions."""
    metrics = {name: getattr(report, name) for name in ("mAP", "CF1", "OF1")}
    return ModelCard(
        data=tuple(summaries),
        metrics={name: value for name, value in metrics.items() if not math.isnan(value)},
        command=shlex.join([*started_as(), *sys.argv[1:]]),
        versions={name: versions[name] for name in ("python", "pvlr", "torch", "open_clip_torch") if name in versions},
    )


def show(name: str, results: Results, *, tensorboard: bool) -> None:
    """Print the results, and commands for the next steps.

    Args:
        name: Name of the method that was trained.
        results: Its results.
        tensorboard: Whether TensorBoard files were written.
    """
    rows = {f"{name} ({results.of}, averaged)": (results.report, results.seconds)}
    rows |= {name: (found.report, found.seconds) for name, found in results.baselines.items()}
    say(f"\n{label_table(results.report.ap)}")
    say(f"\n{results_table(rows)}")
    for other, found in results.baselines.items():
        say(f"{other}: {found.detail}")
    if results.report.absent:
        say(f"labels without a positive in the test split: {_listed(results.report.absent)}")
    if results.untrained:
        say(f"labels without a positive in training, which count in these figures: {_listed(results.untrained)}")
    folder = shlex.quote(str(results.folder))
    say(f"\nrun folder: {results.folder}")
    if tensorboard:
        say(f"look:       {shlex.join(pvlr_command('tensorboard', 'tensorboard.main'))} --logdir {folder}")
    say(f"tag yours:  {shlex.join(pvlr_command())} tag --run {folder} PICTURE.jpg")


def _listed(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others, which ``run.json`` lists."""
    more = f" and {len(names) - MOST_NAMES:,} more in run.json" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
