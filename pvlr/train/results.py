"""What a run reached: for its record, for the model's card and for people."""

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pvlr.core.model_card import ModelCard
from pvlr.core.report import MultiLabelReport
from pvlr.train.baselines import Baseline
from pvlr.train.monitor import label_table, results_table, say

__all__ = ["Results", "card_of", "show"]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run reached on the test split.

    Attributes:
        report: Of the averaged weights.
        of: Of which ones: ``final epoch``, or ``best on validation``.
        baselines: By name; empty unless asked for.
        folder: Where the run's files are.
        seconds: Time spent training.
    """

    report: MultiLabelReport
    of: str
    baselines: Mapping[str, Baseline]
    folder: Path
    seconds: float

    def to_json(self, name: str) -> dict[str, Any]:
        """As ``run.json`` holds them.

        Args:
            name: Of the method that was trained.
        """
        told: dict[str, Any] = {name: {"seconds": self.seconds, **self.report.to_json()}}
        for name, found in self.baselines.items():
            told[name] = {"seconds": found.seconds, "detail": found.detail, **found.report.to_json()}
        return told


def card_of(summaries: Sequence[str], report: MultiLabelReport, versions: Mapping[str, str]) -> ModelCard:
    """What a model's card tells of its training."""
    metrics = {name: getattr(report, name) for name in ("mAP", "CF1", "OF1")}
    return ModelCard(
        data=tuple(summaries),
        metrics={name: value for name, value in metrics.items() if not math.isnan(value)},
        command=shlex.join(["python", *sys.argv]),
        versions={name: versions[name] for name in ("python", "pvlr", "torch", "open_clip_torch") if name in versions},
    )


def show(name: str, results: Results, *, tensorboard: bool) -> None:
    """Print the results, and what to do next.

    Args:
        name: Of the method that was trained.
        results: What it reached.
        tensorboard: Whether there are curves to look at.
    """
    rows = {f"{name} ({results.of}, averaged)": (results.report, results.seconds)}
    rows |= {name: (found.report, found.seconds) for name, found in results.baselines.items()}
    say(f"\n{label_table(results.report.ap)}")
    say(f"\n{results_table(rows)}")
    for other, found in results.baselines.items():
        say(f"{other}: {found.detail}")
    if results.report.absent:
        say(f"labels without a positive in the test split: {', '.join(results.report.absent)}")
    folder = shlex.quote(str(results.folder))
    say(f"\nrun folder: {results.folder}")
    if tensorboard:
        say(f"look:       tensorboard --logdir {folder}")
    if name == "PVLR":  # A baseline's run is compared, and tags nothing.
        say(f"tag yours:  python examples/predict.py --run {folder} PICTURE.jpg")
