"""Programs for other engines: equal to the model they were exported from, or refused."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.extras import require_extra
from helpers.strategies import Draw
from torch import Tensor, nn

from pvlr.core import PVLR, LabelSet, PVLRConfig, load_towers
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.core.models.network import PVLROutput
from pvlr.inference import export
from pvlr.inference.export import ImageLogits, ProgramError, label_rows, write_label_vectors, write_program

pytestmark = pytest.mark.usefixtures("unchecked")
LABELS = LabelSet(("red_circle", "blue_square", "star"))
KINDS = ({}, {"fusion": "context", "direction": "labels"}, {"learn": False}, {"learn": False, "base": ("pooled",)})
"""With both halves, with either alone, and with the pooled vector alone."""


@pytest.fixture(scope="module")
def towers():
    return load_towers("pvlr:scenes-clip")


def trained(towers, **switches) -> PVLR:
    """A model whose every parameter has moved."""
    model = PVLR.from_towers(PVLRConfig(**switches), LABELS, towers).eval()
    model.set_known_positives(torch.tensor([3.0, 40.0, 0.0]))
    draw = Draw(0, torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("text.", "image.")):
                parameter.add_(0.1 * draw.normal(*parameter.shape))
    return model


def images(count: int, size: int = 128) -> Tensor:
    return Draw(count, torch.float32).normal(count, 3, size, size)


@pytest.mark.parametrize("switches", KINDS)
def test_a_torch_program_with_its_labels_is_the_model(towers, tmp_path: Path, switches: dict[str, Any]) -> None:
    model = trained(towers, **switches)
    program = write_program(tmp_path, model, kind="torch", preprocess={"size": 128}, extra={"decision": {}})
    assert program.difference < 1e-4
    with program.path.open("rb") as file:
        loaded = torch.export.load(file).module()
    with torch.no_grad():
        for count in (1, 5):  # Other numbers of images than it was made and checked with.
            torch.testing.assert_close(loaded(images(count)), model(images(count)).logits, rtol=1e-4, atol=1e-4)
    described = json.loads((tmp_path / "program.json").read_text())
    assert described["labels"] == list(LABELS)
    assert described["readable"][0] == "red circle"
    assert described["inputs"] == {"images": ["any", 3, 128, 128]}
    assert described["output"] == {"logits": ["images", 3]}
    assert described["preprocess"] == {"size": 128}
    assert described["decision"] == {}
    assert described["largest_difference"] == program.difference
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.json", "program.pt2"]


@pytest.mark.parametrize("switches", KINDS)
def test_an_onnx_program_takes_the_rows_of_labels_it_was_not_made_with(
    towers, tmp_path: Path, switches: dict[str, Any]
) -> None:
    require_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    model = trained(towers, **switches)
    write_program(tmp_path, model, kind="onnx", labels="input")
    session = onnxruntime.InferenceSession(str(tmp_path / "program.onnx"), providers=["CPUExecutionProvider"])
    other = model.with_labels(["zebra", "star", "fire truck", "tree", "a red circle"])
    path = write_label_vectors(tmp_path, other)
    with np.load(path) as file:
        assert list(file["names"]) == list(other.labels)
        vectors = file["vectors"]
    for count in (1, 4):
        found = session.run(["logits"], {"images": images(count).numpy(), "labels": vectors})[0]
        with torch.no_grad():
            wanted = other(images(count)).logits
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "program.onnx").stat().st_size < 12e6  # No text tower in it.


BASELINES = (
    {"kind": "linear_probe"},
    {"kind": "linear_probe", "base": True},
    {"kind": "coop", "context_tokens": 2},
    {"kind": "dualcoop", "context_tokens": 2, "base": True},
    {"kind": "query2label", "decoder_layers": 1},
    {"kind": "ml_decoder", "groups": 2},
)


def trained_baseline(towers, **config) -> BaselineModel:
    """A baseline whose every parameter has moved."""
    model = BaselineModel.from_towers(BaselineConfig(width=16, heads=2, hidden=16, **config), LABELS, towers).eval()
    model.set_known_positives(torch.tensor([3.0, 40.0, 0.0]))
    draw = Draw(0, torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("text.", "image.")):
                parameter.add_(0.1 * draw.normal(*parameter.shape))
    return model


@pytest.mark.parametrize("config", BASELINES, ids=lambda config: "+".join(map(str, config.values())))
def test_a_torch_program_of_a_baseline_is_the_model(towers, tmp_path: Path, config: dict[str, Any]) -> None:
    model = trained_baseline(towers, **config)
    program = write_program(tmp_path, model, kind="torch")
    with program.path.open("rb") as file:
        exported = torch.export.load(file)
    assert not any(".text." in name for name in exported.state_dict)
    with torch.no_grad():
        for count in (1, 5):
            found, wanted = exported.module()(images(count)), model(images(count)).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    described = json.loads((tmp_path / "program.json").read_text())
    assert described["labels"] == list(LABELS)
    assert described["output"] == {"logits": ["images", 3]}


def test_labels_of_a_baseline_are_no_input(towers, tmp_path: Path) -> None:
    model = trained_baseline(towers, kind="coop", context_tokens=2)
    with pytest.raises(ProgramError, match=r"^labels: expected 'baked' for a baseline, here 'coop', got 'input'$"):
        write_program(tmp_path / "new", model, kind="torch", labels="input")
    with pytest.raises(ProgramError, match=r"^labels: expected 'baked' for a baseline"):
        write_label_vectors(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_one_label_can_be_an_input(towers, tmp_path: Path) -> None:
    model = trained(towers).with_labels(["star"])
    program = write_program(tmp_path, model, kind="torch", labels="input")
    with torch.no_grad():
        assert program.run(images(2), label_rows(model)).shape == (2, 1)


def test_a_program_that_computes_something_else_is_not_kept(towers, tmp_path: Path, monkeypatch) -> None:
    model = trained(towers)
    (tmp_path / "program.pt2").write_bytes(b"an older one")

    def wrong(path: Path, network: nn.Module, vectors: Tensor | None):
        path.write_bytes(b"wrong")
        return lambda *inputs: network(*inputs) + 0.01

    monkeypatch.setattr(export, "_write_torch", wrong)
    with pytest.raises(ProgramError, match=r"^program: expected the model's logits within 0.0001, found shape"):
        write_program(tmp_path, model, kind="torch")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("program.pt2", b"an older one")]


@pytest.mark.parametrize("labels", ["baked", "input"])
def test_a_program_is_compared_with_the_model_and_not_with_what_it_was_made_of(
    towers, tmp_path: Path, monkeypatch, labels: str
) -> None:
    # A wrapper that takes patches where the model reads the pooled vector: both it and its program are wrong alike.
    model = trained(towers, learn=False, base=("pooled",))
    monkeypatch.setattr(export, "join_regions", lambda seen, regions: seen.patches)
    with pytest.raises(ProgramError, match=r"^program: expected the model's logits within 0.0001, found shape"):
        write_program(tmp_path, model, kind="torch", labels=labels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("switches", KINDS)
def test_the_recogniser_is_the_model_in_evaluation(towers, switches: dict[str, Any]) -> None:
    model = trained(towers, **switches).train()
    network = ImageLogits(model)
    assert not model.training
    with torch.no_grad():
        out: PVLROutput = model(images(2))
        torch.testing.assert_close(network(images(2)), out.logits)
    assert not any(name.startswith("text") for name, _ in network.named_parameters())


def test_refusals_name_the_argument(towers, tmp_path: Path) -> None:
    model = trained(towers)
    with pytest.raises(ValueError, match=r"^kind: expected one of 'torch', 'onnx', got 'tflite'$"):
        write_program(tmp_path, model, kind="tflite")
    with pytest.raises(ValueError, match=r"^labels: expected one of 'baked', 'input', got 'both'$"):
        ImageLogits(model, labels="both")


def test_without_its_packages_onnx_is_refused_with_the_command_that_installs_them(
    towers, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ProgramError, match=r"^kind: 'onnx' needs the package onnx: pip install 'pvlr\[onnx\]'$"):
        write_program(tmp_path, trained(towers), kind="onnx")
    assert list(tmp_path.iterdir()) == []
