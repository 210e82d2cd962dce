"""The tables and figures of docs/results.md, from the cells of studies that lie beside this file.

    python docs/results/tables.py                         write them anew
    python docs/results/tables.py collect STUDY KIND      take over the finished cells of a study's folder

A file ``KIND.jsonl`` has a line for each cell of ``pvlr study … --config ablation_KIND``: what was measured, and the
mAP of 500 draws of the test pictures, the same for all cells of a study.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pvlr.train.evaluation.study_report import (
    ahead,
    draw_ahead,
    mean_and_deviation,
    paired_difference,
    regime_table,
    write_report,
)

HERE = Path(__file__).resolve().parent
PAGE, FIGURES = HERE.parent / "results.md", HERE.parent / "figures"
BLOCK = re.compile(r"(<!-- table: (\w+) (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
ALL = "all labels"
REGIMES = (ALL, "50 %", "10 %", "one positive", "64 positives", "16 positives", "4 positives", "1 positive")
WITH_BASE = ("linear probe + base", "ML-Decoder + base", "DualCoOp + base")
COMPARED = (*WITH_BASE, "linear probe", "ML-Decoder", "DualCoOp", "zero-shot")
PARTS = ("knowledge prompts alone", "learnable prompts alone", "attention labels to patches", "no attention")

Cells = list[dict[str, Any]]


def cells_of(kind: str) -> Cells:
    """Return the cells of a study, in the order of its recipe."""
    lines = (HERE / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def collect(study: Path, kind: str) -> int:
    """Add the finished cells of a study's folder to a file, in the place of older ones; return how many there are."""
    path = HERE / f"{kind}.jsonl"
    found = {(cell["group"], cell["row"], cell["seed"]): cell for cell in (cells_of(kind) if path.exists() else [])}
    for file in (study / "cells").glob("*.json"):
        cell = json.loads(file.read_text(encoding="utf-8"))
        cell["drawn"] = [round(value, 4) for value in cell["drawn"]]
        found[cell["group"], cell["row"], cell["seed"]] = cell
    order = {row: place for place, row in enumerate(_rows(kind))}
    kept = sorted(found.values(), key=lambda cell: (order[cell["group"], cell["row"]], cell["seed"]))
    path.write_text("".join(f"{json.dumps(cell)}\n" for cell in kept), encoding="utf-8")
    return len(kept)


def _rows(kind: str) -> list[tuple[str, str]]:
    import yaml

    from pvlr.cli.recipes import find_config

    rows = yaml.safe_load(find_config(f"ablation_{kind}").read_text(encoding="utf-8"))["study"]["rows"]
    return [(group, row) for group, named in rows.items() for row in named]


def _named(cells: Cells, group: str, method: str) -> Cells:
    """Return a method's cells in a regime."""
    name = method if group in (ALL, "parts") else f"{group}, {method}"
    return [cell for cell in cells if (cell["group"], cell["row"]) == (group, name)]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def regimes(kind: str) -> str:
    """The differences of each regime: the table of the report, of some methods and in an order of its own."""
    cells = cells_of(kind)
    return regime_table(
        [cell for regime in REGIMES for name in ("PVLR", *COMPARED) for cell in _named(cells, regime, name)]
    )


def methods(kind: str) -> str:
    """All methods with all labels, and what they cost."""
    cells, rows = [cell for cell in cells_of(kind) if cell["group"] == ALL], []
    own = _named(cells, ALL, "PVLR")
    # Of times the least over the seeds, which were not all trained on one machine: what else it does only ever adds.
    for name in dict.fromkeys(cell["row"] for cell in cells):
        found = _named(cells, ALL, name)
        rows.append((
            name, mean_and_deviation(cell["mAP"] for cell in found),
            "" if found == own else ahead(own, found, counted=True),
            f"{found[0]['parameters']:,}", f"{min(cell['seconds'] for cell in found):.0f}",
            f"{1000 * min(cell['inference'] for cell in found):.2f}", str(len(found)),
        ))  # fmt: skip
    header = (
        "all labels", "mAP", "PVLR is ahead by", "trained parameters", "seconds of training", "ms per picture", "seeds",
    )  # fmt: skip
    return _table(header, rows)


def of_unseen(kind: str) -> dict[str, Cells]:
    """Return the cells in which labels were left out of training, by row; the first row is PVLR's."""
    rows: dict[str, Cells] = {}
    for cell in cells_of(kind):
        if cell["group"] == "unseen labels":
            rows.setdefault(cell["row"], []).append(cell)
    return rows


def unseen(kind: str) -> str:
    """Labels that were left out of training."""
    named, rows = of_unseen(kind), []
    if not named:
        return ""
    first, own = next(iter(named.items()))
    for name, found in named.items():
        rows.append((
            name.partition(",")[0], str(len(found)),
            *(mean_and_deviation(cell[part] for cell in found) for part in ("seen", "unseen", "harmonic")),
            "" if name == first else ahead(own, found, counted=True),
        ))  # fmt: skip
    header = (f"{first.partition(', ')[2]} in training", "seeds", "seen", "unseen", "harmonic", "PVLR is ahead by")
    return _table(header, rows)


def without(kind: str) -> dict[str, tuple[Cells, list[Cells]]]:
    """Return the cells of PVLR, and those without each of :data:`PARTS`, of every regime that has some."""
    cells, kept = cells_of(kind), {}
    for regime in REGIMES:
        group = "parts" if regime == ALL else regime
        found = [_named(cells, group, name) for name in PARTS]
        if any(found):
            kept[regime] = (_named(cells, regime, "PVLR"), found)
    return kept


def parts(kind: str) -> str:
    """Parts of PVLR left out, by regime."""
    rows = [
        (regime.removesuffix(" labels"), *(ahead(own, other, counted=True) if other else "" for other in found))
        for regime, (own, found) in without(kind).items()
    ]
    return _table(("labels known", *PARTS), rows)


def switches(kind: str) -> str:
    """Every part left out or put in another's place, with all labels."""
    cells = [cell for cell in cells_of(kind) if cell["group"] == "parts"]
    own, rows = _named(cells, "parts", "complete"), []
    for name in dict.fromkeys(cell["row"] for cell in cells):
        found = _named(cells, "parts", name)
        than = "" if found == own else ahead(own, found, counted=True)
        rows.append((name, mean_and_deviation(cell["mAP"] for cell in found), than, f"{found[0]['parameters']:,}"))
    return _table(("all labels", "mAP", "the complete model is ahead by", "trained parameters"), rows)


TABLES: dict[str, Callable[[str], str]] = {
    "regimes": regimes, "methods": methods, "unseen": unseen, "parts": parts, "switches": switches,
}  # fmt: skip


def page(text: str) -> str:
    """Return a page with its tables written anew, each between its marker and the next end."""
    return BLOCK.sub(lambda block: f"{block[1]}{TABLES[block[2]](block[3])}{block[4]}", text)


def draw(kind: str, folder: Path = FIGURES) -> None:
    """Write the figures of a study that the page shows: its differences, and its learning curve."""
    shown = PAGE.read_text(encoding="utf-8")
    with TemporaryDirectory() as name:
        write_report(Path(name), cells_of(kind))
        for figure in ("ahead", "curve"):
            if f"{figure}_{kind}.svg" not in shown:
                continue
            (folder / f"{figure}_{kind}.svg").write_bytes(Path(name, f"{figure}.svg").read_bytes())


def draw_questions(folder: Path = FIGURES) -> None:
    """Write the figures of all studies: parts left out in each regime, and labels that were left out of training."""
    scenes, voc = without("scenes"), without("voc")
    compared: dict[str, dict[str, Any]] = {}
    for regime in scenes:
        for data, (own, found) in (("scenes", scenes[regime]), ("VOC", voc[regime])):
            compared[f"{data}, {regime}"] = {
                name: paired_difference(own, other) for name, other in zip(("PVLR", *PARTS), (own, *found), strict=True)
            }
    draw_ahead(folder / "parts.svg", compared)
    compared = {}
    for kind, data in (("scenes", "scenes"), ("voc", "VOC"), ("coco", "COCO")):
        rows = {name.partition(",")[0]: found for name, found in of_unseen(kind).items()}
        compared[data] = {name: paired_difference(rows["PVLR"], other) for name, other in rows.items()}
    draw_ahead(folder / "unseen.svg", compared)


def main() -> None:
    """Write tables and figures, or collect cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="collect STUDY KIND")
    words = parser.parse_args().words
    if words[:1] == ["collect"] and len(words) == 3:
        print(f"{collect(Path(words[1]), words[2])} cells")
    elif words:
        sys.exit("expected no word, or: collect STUDY KIND")
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        for path in sorted(HERE.glob("*.jsonl")):
            draw(path.stem)
        draw_questions()


if __name__ == "__main__":
    main()
