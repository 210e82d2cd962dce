"""The command that turns a trained model into a program, as a user calls it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.extras import require_extra
from helpers.training_toys import write_voc

from pvlr.core import PVLR, LabelSet, PVLRConfig, load_towers
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.inference.recognizer import Recognizer

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    towers, labels = load_towers("pvlr:scenes-clip"), LabelSet(("red_circle", "star"))
    Recognizer(PVLR.from_towers(PVLRConfig(), labels, towers)).save_pretrained(folder)
    return folder


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pvlr", "export", *map(str, arguments)]
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


def test_a_baseline_is_exported_as_any_model(tmp_path: Path) -> None:
    towers, labels = load_towers("pvlr:scenes-clip"), LabelSet(("red_circle", "star"))
    model = BaselineModel.from_towers(BaselineConfig(kind="linear_probe"), labels, towers)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape))
    Recognizer(model).save_pretrained(tmp_path / "model")
    told = export("--run", tmp_path / "model", "--out", tmp_path, "--kind", "torch", "--benchmark", "true")
    assert told.returncode == 0, told.stderr
    assert "batch  program is" in told.stdout
    with (tmp_path / "program.pt2").open("rb") as file:
        program = torch.export.load(file).module()
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(program(images), model.eval()(images).logits, rtol=1e-4, atol=1e-4)


def test_the_cost_of_8_bits_is_told_in_map_and_label_vectors_are_those_of_the_same_model(
    saved: Path, tmp_path: Path
) -> None:
    require_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    write_voc(tmp_path / "voc", train=4, test=5)
    config = tmp_path / "voc.yaml"
    config.write_text(yaml.safe_dump({"data": {"root": str(tmp_path / "voc"), "workers": 0}}))
    options = ["--labels", "input", "--precision", "int8", "--batch", 2, "--opset", 18]
    told = export(
        "--run", saved, "--out", tmp_path, *options, "--data", config, "--data_kind", "voc", "--split", "test"
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    assert re.search(r"^mAP (\d+\.\d) -> (\d+\.\d) of the program, on 5 pictures$", told.stdout, re.MULTILINE)
    assert "of probabilities" in told.stdout
    assert "over batches of 2 images" in told.stdout
    described = json.loads((tmp_path / "program.json").read_text())
    assert described["precision"] == "int8"
    assert described["inputs"]["images"] == [2, 3, 128, 128]

    towers, labels = load_towers("pvlr:scenes-clip"), LabelSet(("red_circle", "star"))
    with torch.random.fork_rng():
        torch.manual_seed(31)
        Recognizer(PVLR.from_towers(PVLRConfig(), labels, towers)).save_pretrained(tmp_path / "another")
    names = ["--labels", "input", "--names", "zebra"]
    told = export("--run", tmp_path / "another", "--out", tmp_path, *names)
    assert told.returncode == 2
    assert re.fullmatch(r"error: .*program\.json: expected a program of this model, .*\n", told.stderr)
    told = export("--run", saved, "--out", tmp_path, *names, "--precision", "float16")
    assert told.returncode == 2
    assert re.fullmatch(r"error: precision: expected none with names, .*, got float16; .*\n", told.stderr)
    told = export("--run", saved, "--out", tmp_path, "--split", "test")
    assert told.returncode == 2
    assert re.fullmatch(r"error: split: expected none without data, got test; .* --data CONFIG\n", told.stderr)


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    told = export("--run", tmp_path / "nowhere", "--out", tmp_path)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f"error: {tmp_path / 'nowhere'}: expected a folder with a trained model, found none\n"
