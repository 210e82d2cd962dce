"""Output formats of an evaluation: a text table, JSON and CSV."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from pvlr.core.metrics.bootstrap import Interval
from pvlr.core.metrics.ranking import PrecisionRecall
from pvlr.core.metrics.report import MultiLabelReport
from pvlr.files import write_atomically

__all__ = ["report_table", "write_report_csv", "write_report_json"]


def report_table(
    report: MultiLabelReport, interval: Interval | None = None, fitted: PrecisionRecall | None = None
) -> str:
    """Return the report as a table in percent, with the name of each number.

    Args:
        report: The evaluation.
        interval: 95 % interval of the mAP.
        fitted: Precision and recall by the thresholds that the model was fitted, one for each label.

    Example:
        >>> import torch
        >>> from pvlr.core.metrics.report import multilabel_report
        >>> report = multilabel_report(torch.tensor([[0.9, 0.2], [0.6, 0.7]]), torch.tensor([[1, 0], [0, 1]]))
        >>> print(report_table(report, Interval(0.5, 1.0)))
        mAP                   100.00   95 % interval [50.00, 100.00]
        <BLANKLINE>
        decided                   CP      CR     CF1 mean F1      OP      OR     OF1
        at 0.5                 75.00  100.00   85.71   83.33   66.67  100.00   80.00
        ...
    """
    lines = [f"{'mAP':<20} {_percent(report.mAP)}"]
    if interval is not None:
        lines[0] += f"   95 % interval [{_percent(interval.low).strip()}, {_percent(interval.high).strip()}]"
    decided: dict[str, MultiLabelReport | PrecisionRecall] = {
        f"at {report.threshold:g}": report,
        "top-3": report.top3,
        f"top-3 and ≥ {report.threshold:g}": report.top3_from_threshold,
    }
    if fitted is not None:
        decided["at its thresholds"] = fitted
    lines = [
        *lines,
        "",
        f"{'decided':<20} {'CP':>7} {'CR':>7} {'CF1':>7} {'mean F1':>7} {'OP':>7} {'OR':>7} {'OF1':>7}",
    ]
    for name, way in decided.items():
        values = (way.CP, way.CR, way.CF1, way.mean_F1, way.OP, way.OR, way.OF1)
        lines.append(f"{name:<20} {' '.join(map(_percent, values))}")
    lines += [
        "",
        f"{'ranking AP':<20} {_percent(report.ranking_ap)}   per image",
        f"{'Hamming loss':<20} {_percent(report.hamming)}",
        f"{'calibration error':<20} {_percent(report.calibration_error)}   15 bins",
        f"{'images':<20} {report.images:>7}",
    ]
    width = max(20, *(len(name) for name in report.ap))
    lines += ["", f"{'AP of each label':<{width}}"]
    lines += [f"{name:<{width}} {_percent(value)}" for name, value in report.ap.items()]
    return "\n".join(lines)


def write_report_json(path: Path, report: MultiLabelReport, **more: Any) -> None:
    """Write all numbers as fractions; undefined ones are null.

    Args:
        path: The file; its folder exists.
        report: The evaluation.
        **more: Further entries.
    """
    write_atomically(path, f"{json.dumps({**report.to_json(), **more}, indent=1, ensure_ascii=False)}\n".encode())


def write_report_csv(path: Path, report: MultiLabelReport) -> None:
    """Write a row per number: ``metric,label,value``; the label is empty except for AP; an undefined value is empty.

    Args:
        path: The file; its folder exists.
        report: The evaluation.
    """
    content = report.to_json()
    rows = [("metric", "label", "value")]
    for name, value in content.items():
        if name == "ap":
            rows += [("ap", label, _cell(part)) for label, part in value.items()]
        elif isinstance(value, dict):
            rows += [(f"{name}.{part}", "", _cell(number)) for part, number in value.items()]
        elif name != "absent":
            rows.append((name, "", _cell(value)))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _cell(value: float | int | None) -> str:
    return "" if value is None else repr(value)


def _percent(value: float) -> str:
    return f"{'–':>7}" if math.isnan(value) else f"{100 * value:>7.2f}"
