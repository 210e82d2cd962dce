"""Report of a study: a table in Markdown and figures."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from pvlr.core.metrics.bootstrap import percentile_interval
from pvlr.files import write_atomically

__all__ = [
    "ahead",
    "draw_ahead",
    "learning_curve",
    "mean_and_deviation",
    "paired_difference",
    "regime_table",
    "study_table",
    "write_report",
]

Cells = Sequence[Mapping[str, Any]]
ALL = "all labels"
FEW = re.compile(r"(\d+) positives?")
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def study_table(cells: Cells) -> str:
    """Return a table per group: mean and standard deviation over the seeds, in the order of the cells.

    The other rows of a group are compared with the first: the difference by which it is ahead (above 0) or behind, and
    its 95 % bootstrap interval over seeds and test pictures, resampled the same for both.

    Example:
        >>> cell = {"group": "methods", "row": "PVLR", "CF1": 0.5, "OF1": 0.5, "parameters": 1234, "seconds": 2.0,
        ...     "inference": 1e-5}
        >>> cell |= {"drawn": [0.5, 0.5]}
        >>> found = [{**cell, "mAP": 0.5, "seed": 0}, {**cell, "mAP": 0.52, "seed": 1}]
        >>> print(study_table([*found, {**found[0], "row": "probe", "mAP": 0.4, "drawn": [0.4, 0.4]}]))
        ### methods
        <BLANKLINE>
        | | mAP | the first is ahead by | CF1 | OF1 | trained parameters | seconds | ms per image | seeds |
        |---|---|---|---|---|---|---|---|---|
        | PVLR | 51.0 ± 1.4 | | 50.0 ± 0.0 | 50.0 ± 0.0 | 1,234 | 2.0 | 0.01 | 2 |
        | probe | 40.0 | 10.0 [10.0, 10.0] | 50.0 | 50.0 | 1,234 | 2.0 | 0.01 | 1 |
    """
    parts = []
    for group, rows in _grouped(cells).items():
        new = any("harmonic" in cell for found in rows.values() for cell in found)
        figures = ("mAP", "CF1", "OF1", *(("seen", "unseen", "harmonic") if new else ()))
        first = next(iter(rows.values()))
        names = [
            "",
            figures[0],
            "the first is ahead by",
            *figures[1:],
            "trained parameters",
            "seconds",
            "ms per image",
            "seeds",
        ]
        lines = [f"### {group}", "", f"|{'|'.join(f' {name} ' if name else ' ' for name in names)}|"]
        lines.append("|" + "---|" * len(names))
        for row, found in rows.items():
            values = [mean_and_deviation([cell[name] for cell in found]) for name in figures]
            cost = [f"{found[0]['parameters']:,}", f"{mean(cell['seconds'] for cell in found):.1f}"]
            cost.append(f"{1000 * mean(cell['inference'] for cell in found):.2f}")
            by = "" if found is first else f" {ahead(first, found)}"
            lines.append(f"| {row} | {values[0]} |{by} | {' | '.join([*values[1:], *cost, str(len(found))])} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def regime_table(cells: Cells) -> str:
    """Return one table of all regimes: mAP of the first method, and by how much it is ahead of each other one.

    A regime is a group whose rows are named after it and a method, ``10 %, PVLR``; the group ``all labels`` names the
    methods, of which the first is compared. Each difference is as in :func:`study_table`, with the number of its seeds
    if not all have the method.

    Returns:
        The table; an empty text without the group ``all labels`` or without another regime.

    Example:
        >>> named = [("all labels", "PVLR"), ("all labels", "probe"), ("10 %", "10 %, PVLR"), ("10 %", "10 %, probe")]
        >>> print(regime_table([{"group": group, "row": row, "mAP": 0.5, "seed": 0, "drawn": [0.5, 0.5]}
        ...     for group, row in named]))
        | labels known | seeds | PVLR | ahead of probe |
        |---|---|---|---|
        | all | 1 | 50.0 | 0.0 [0.0, 0.0] |
        | 10 % | 1 | 50.0 | 0.0 [0.0, 0.0] |
    """
    groups = _grouped(cells)
    methods = list(groups.get(ALL, {}))
    regimes = {ALL: groups.get(ALL, {})}
    for group, rows in groups.items():
        if methods and f"{group}, {methods[0]}" in rows:
            regimes[group] = {row.removeprefix(f"{group}, "): found for row, found in rows.items()}
    if len(regimes) == 1:
        return ""
    others = [name for name in methods[1:] if sum(name in rows for rows in regimes.values()) > 1]
    lines = [f"| labels known | seeds | {methods[0]} | {' | '.join(f'ahead of {name}' for name in others)} |"]
    lines.append("|" + "---|" * (3 + len(others)))
    for regime, rows in regimes.items():
        first = rows[methods[0]]
        told = [ahead(first, rows[name], counted=True) if name in rows else "" for name in others]
        own = mean_and_deviation(cell["mAP"] for cell in first)
        start = f"| {'all' if regime == ALL else regime} | {len(first)} | {own} |"
        lines.append(f"{start} {' | '.join(told)} |")
    return "\n".join(lines)


def ahead(first: Cells, other: Cells, *, counted: bool = False) -> str:
    """Return the mean difference over the common seeds and its interval, in points; a dash without a common seed.

    Args:
        first: Cells of a row.
        other: Those of the row it is compared with.
        counted: Whether the number of common seeds is added where the first has more.

    Example:
        >>> ahead([{"seed": 0, "mAP": 0.5, "drawn": [0.5]}], [{"seed": 0, "mAP": 0.25, "drawn": [0.25]}])
        '25.0 [25.0, 25.0]'
    """
    found = paired_difference(first, other)
    # Rounded before it is printed, so that there is no -0.0.
    if found is None:
        return "–"
    value, low, high = (round(value, 1) + 0.0 for value in found)
    common = sum(a["seed"] == b["seed"] for a in first for b in other)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]" + (f" ({common})" if counted and common < len(first) else "")


def paired_difference(first: Cells, other: Cells) -> tuple[float, float, float] | None:
    """Return the mean difference over the common seeds, and the ends of its 95 % bootstrap interval, in points.

    Seeds and test pictures are resampled, the same for both. It is the difference of mAP, or of the harmonic mean of
    seen and unseen labels where both have it; None without a common seed.
    """
    score = "harmonic" if all("harmonic" in cell for cell in (*first, *other)) else "mAP"
    pairs = [(a, b) for a in first for b in other if a["seed"] == b["seed"]]
    if not pairs:
        return None
    drawn = torch.tensor([[x - y for x, y in zip(a["drawn"], b["drawn"], strict=True)] for a, b in pairs])
    # Seeds are resampled too: their variation is part of the uncertainty.
    seeds = torch.randint(len(pairs), drawn.T.shape, generator=torch.Generator().manual_seed(0))
    low, high = percentile_interval(drawn.gather(0, seeds.T).mean(dim=0))
    return 100 * mean(a[score] - b[score] for a, b in pairs), 100 * low, 100 * high


def write_report(folder: Path, cells: Cells) -> Path:
    """Write ``report.md`` and ``report.png`` into a study's folder.

    Beside them: ``ahead.svg``, the differences of each group's rows from its first with their intervals, and
    ``curve.svg`` if the study has a learning curve.

    Returns:
        Path of the table.
    """
    path = folder / "report.md"
    parts = [part for part in (regime_table(cells), study_table(cells)) if part]
    write_atomically(path, f"{(chr(10) * 2).join(parts)}\n".encode())
    if cells:
        _draw(folder / "report.png", cells)
    compared = {}
    for group, rows in _grouped(cells).items():
        if len(rows) > 1:
            first = next(iter(rows.values()))
            found = {row: paired_difference(first, other) for row, other in rows.items()}
            compared[group] = {row: difference for row, difference in found.items() if difference is not None}
    if compared:
        draw_ahead(folder / "ahead.svg", compared)
    curve = learning_curve(cells)
    if curve:
        _draw_curve(folder / "curve.svg", curve)
    return path


def learning_curve(cells: Cells) -> dict[str, dict[float, list[float]]]:
    """Return the mAP of each method by the number of known positives a label: groups ``4 positives``, ``all labels`` …

    A row of such a group is named after its method, ``4 positives, PVLR``; methods with fewer than three numbers are
    left out.

    Returns:
        Mapping of method to number of positives (infinity for ``all labels``) to the mAP of each seed.

    Example:
        >>> named = [("1 positive", "1 positive, PVLR"), ("4 positives", "4 positives, PVLR"), ("all labels", "PVLR")]
        >>> learning_curve([{"group": group, "row": row, "mAP": 0.5, "seed": 0} for group, row in named])
        {'PVLR': {1.0: [0.5], 4.0: [0.5], inf: [0.5]}}
    """
    found: dict[str, dict[float, list[float]]] = {}
    for cell in cells:
        few = FEW.fullmatch(cell["group"])
        if few or cell["group"] == ALL:
            method = cell["row"].removeprefix(f"{cell['group']}, ")
            positives = float(few[1]) if few else math.inf
            found.setdefault(method, {}).setdefault(positives, []).append(cell["mAP"])
    return {method: dict(sorted(values.items())) for method, values in found.items() if len(values) > 2}


def _pyplot() -> Any:
    """Return matplotlib's pyplot with the Agg backend, imported only when a figure is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _draw_curve(path: Path, curve: Mapping[str, Mapping[float, Sequence[float]]]) -> None:
    """Draw a line per method, the first one thicker; ``method + addition`` has its method's colour, and dashes."""
    pyplot = _pyplot()
    positions = sorted({positives for values in curve.values() for positives in values})
    figure, axis = pyplot.subplots(figsize=(8.0, 4.0))
    kinds = list(dict.fromkeys(method.partition(" + ")[0] for method in curve))
    for number, (method, values) in enumerate(curve.items()):
        kind, _, addition = method.partition(" + ")
        places = [positions.index(positives) for positives in values]
        means = [100 * mean(found) for found in values.values()]
        spread = [100 * stdev(found) if len(found) > 1 else 0.0 for found in values.values()]
        axis.errorbar(
            places, means, yerr=spread, label=method, marker="o", markersize=4, capsize=2,
            color=COLOURS[kinds.index(kind) % len(COLOURS)], linestyle="--" if addition else "-",
            linewidth=1.5 if number else 2.5,
        )  # fmt: skip
    axis.set_xticks(range(len(positions)), ["all" if math.isinf(one) else f"{one:.0f}" for one in positions])
    axis.set_xlabel("known positives of each label")
    axis.set_ylabel("mAP in percent, mean ± sd over the seeds")
    axis.grid(alpha=0.3)
    last = {method: mean(list(values.values())[-1]) for method, values in curve.items()}
    lines = dict(zip(curve, axis.get_legend_handles_labels()[0], strict=True))
    order = sorted(curve, key=lambda method: -last[method])  # As the lines end, from above.
    axis.legend([lines[method] for method in order], order, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    with pyplot.rc_context({"svg.hashsalt": "pvlr"}):  # For reproducible bytes.
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def draw_ahead(path: Path, compared: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> None:
    """Draw a panel per group: how far its first row is ahead of each other one, which is 0 for the first itself.

    Args:
        path: File to write, in a format that matplotlib knows by its extension.
        compared: Group to row to its difference from the first, of :func:`paired_difference`.
    """
    pyplot = _pyplot()
    columns = min(2, len(compared))
    lines = math.ceil(len(compared) / columns)
    heights = [max(len(rows) for rows in list(compared.values())[at::columns]) for at in range(columns)]
    size = (5.6 * columns, lines * (0.9 + 0.22 * max(heights)))
    figure, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, sharex=True)
    for axis, (group, rows) in zip(axes.flat, compared.items(), strict=False):
        places = range(0, -len(rows) + 1, -1)
        for place, found in zip(places, list(rows.values())[1:], strict=True):
            value, low, high = found
            sure = COLOURS[0] if low > 0 else COLOURS[1] if high < 0 else "#777777"
            axis.plot((low, high), (place, place), color=sure, linewidth=2)
            axis.plot(value, place, marker="o", markersize=4, color=sure)
        axis.set_yticks(list(places), [row.removeprefix(f"{group}, ") for row in list(rows)[1:]], fontsize=8)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(f"{group}: {next(iter(rows)).removeprefix(f'{group}, ')} is ahead of", fontsize=9, loc="left")
        axis.set_ylim(-len(rows) + 1.5, 0.5)
        axis.grid(axis="x", alpha=0.3)
    for axis in list(axes.flat)[len(compared) :]:
        axis.axis("off")
    for axis in list(axes.flat)[: len(compared)][-columns:]:  # The lowest of each column.
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("points of mAP (unseen labels: harmonic mean), 95 %", fontsize=8)
    figure.tight_layout()
    with pyplot.rc_context({"svg.hashsalt": "pvlr"}):  # For reproducible bytes.
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _draw(path: Path, cells: Cells) -> None:
    pyplot = _pyplot()
    groups = _grouped(cells)
    rows = [(group, row, found) for group, named in groups.items() for row, found in named.items()]
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 1.2 + 0.3 * len(rows)), sharey=True, width_ratios=(3, 1, 1, 1))
    places = [-(number + 0.8 * list(groups).index(group)) for number, (group, _, _) in enumerate(rows)]
    colours = [COLOURS[list(groups).index(group) % len(COLOURS)] for group, _, _ in rows]
    values = [[100 * cell["mAP"] for cell in found if not math.isnan(cell["mAP"])] or [0.0] for _, _, found in rows]
    spread = [stdev(value) if len(value) > 1 else math.nan for value in values]  # NaN: nothing is drawn.
    axes[0].barh(places, [mean(value) for value in values], xerr=spread, color=colours, capsize=2)
    axes[0].set_xlim(max(0.0, min(map(min, values)) - 3), max(map(max, values)) + 2)
    axes[0].set_yticks(places, [row for _, row, _ in rows])
    axes[0].set_xlabel("mAP in percent, mean ± sd over the seeds (the axis does not start at 0)")
    costs = (("trained parameters", "parameters", 1.0), ("seconds of training", "seconds", 1.0))
    for axis, (title, name, factor) in zip(axes[1:], (*costs, ("ms per image", "inference", 1000.0)), strict=True):
        axis.scatter([factor * mean(cell[name] for cell in found) for _, _, found in rows], places, color=colours)
        axis.set_xscale("log")
        axis.set_xlabel(title)
    for axis in axes:
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[n % len(COLOURS)]) for n in range(len(groups))]
    figure.legend(handles, list(groups), loc="upper center", ncols=len(groups), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / (1.2 + 0.3 * len(rows))))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _grouped(cells: Cells) -> dict[str, dict[str, list[Mapping[str, Any]]]]:
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for cell in cells:
        found.setdefault(cell["group"], {}).setdefault(cell["row"], []).append(cell)
    return found


def mean_and_deviation(values: Iterable[float]) -> str:
    """Return mean and standard deviation of fractions in percent; a dash where none is a number.

    Example:
        >>> mean_and_deviation([0.5, 0.52]), mean_and_deviation([0.5]), mean_and_deviation([])
        ('51.0 ± 1.4', '50.0', '–')
    """
    percent = [100 * value for value in values if not math.isnan(value)]
    if not percent:
        return "–"  # Without a positive there is no average precision.
    if len(percent) == 1:
        return f"{percent[0]:.1f}"
    return f"{mean(percent):.1f} ± {stdev(percent):.1f}"
