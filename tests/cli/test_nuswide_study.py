"""The study on NUS-WIDE's layout, with the three of its photographs that there are: it runs, and claims nothing."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import yaml

from pvlr.data.readers.nuswide import NUSWIDE_LABELS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS = {
    "all labels": {
        "PVLR": {},
        "zero-shot": {"model.learn": False, "model.base": ["pooled"], "loop.epochs": 1},
        "linear probe + base": {"baseline.kind": "linear_probe", "baseline.base": True},
        "one positive": {"data.keep_labels": "single_positive", "loss.unknown": "negative"},
        "1 positive a label": {"data.shots": 1},
    },
}


def write_three(shared: Path, folder: Path) -> None:
    """Write three photographs in the layout of the ASL authors' list; those without known labels are called sky."""
    found = {path.name.split("_")[-1]: path for path in (shared / "data" / "nuswide" / "images").iterdir()}
    with gzip.open(shared / "data" / "nuswide" / "labels81.csv.gz", "rt", encoding="utf-8") as file:
        rows = {row["file"].split("_")[1]: row["concept_indices"].split() for row in csv.DictReader(file)}
    told = {name: rows.get(Path(name).stem, []) for name in sorted(found)}
    assert len(told) == 3
    (folder / "images").mkdir()
    lines = []
    for number, (name, concepts) in enumerate(told.items()):
        (folder / "images" / name).write_bytes(found[name].read_bytes())
        names = [NUSWIDE_LABELS.names[int(index)] for index in concepts] or ["sky"]
        lines.append([f"images/{name}", str(names), "val" if number == 2 else "train"])
    with (folder / "nus_wid_data.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["filepath", "label", "split_name"], *lines])


def test_the_study_runs_on_its_layout(shared: Path, tmp_path: Path) -> None:
    write_three(shared, tmp_path)
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"study": {"rows": ROWS}}))
    options = {
        "config": tmp_path / "rows.yaml",
        "data.root": tmp_path,
        "data.lists": "asl",
        "data.workers": 0,
        "tower.name": "pvlr:scenes-clip",
        "loop.epochs": 1,
        "study.folder": tmp_path / "study",
        "study.seeds": "[0]",
    }
    call = [
        sys.executable,
        str(EXAMPLES / "ablate.py"),
        "nuswide",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "study" / "report.md").read_text()
    assert all(f"\n| {row} |" in table for row in ROWS["all labels"])
    cells = [json.loads(path.read_text()) for path in (tmp_path / "study" / "cells").iterdir()]
    assert len(cells) == len(ROWS["all labels"])
    assert all(0 <= cell["mAP"] <= 1 for cell in cells)
