"""The command that turns a trained model into a program, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pvlr.core import PVLR, LabelSet, PVLRConfig, load_towers

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    PVLR.from_towers(PVLRConfig(), LabelSet(("red_circle", "star")), load_towers("pvlr:scenes-clip")).save_pretrained(
        folder
    )
    return folder


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "examples/export.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


def test_a_program_its_description_and_then_other_labels(saved: Path, tmp_path: Path) -> None:
    told = export("--run", saved, "--out", tmp_path, "--kind", "torch", "--labels", "input", "--benchmark", "true")
    assert told.returncode == 0, told.stderr
    assert "program.pt2: " in told.stdout
    assert "largest difference from the model's logits" in told.stdout
    assert "batch  program is" in told.stdout
    described = json.loads((tmp_path / "program.json").read_text())
    assert described["labels"] == ["red_circle", "star"]
    assert described["preprocess"]["size"] == 128
    assert described["decision"]["temperature"] == 1.0
    made = (tmp_path / "program.pt2").stat().st_mtime_ns

    other = ["--kind", "torch", "--labels", "input", "--names", "zebra, fire truck"]
    told = export("--run", saved, "--out", tmp_path, *other)
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == f"{tmp_path / 'labels.npz'}: vectors of 2 labels"
    with np.load(tmp_path / "labels.npz") as file:
        assert list(file["names"]) == ["zebra", "fire truck"]
    assert (tmp_path / "program.pt2").stat().st_mtime_ns == made


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    told = export("--run", tmp_path / "nowhere", "--out", tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f"error: {tmp_path / 'nowhere'}: expected a folder with a trained model, found none\n"
