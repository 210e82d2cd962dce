"""Programs for other engines: equal to the model they were exported from, or refused."""

import copy
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.extras import require_extra
from helpers.messages import pinned
from helpers.strategies import Draw
from torch import Tensor, nn

from pvlr.core import PVLR, LabelSet, PVLRConfig, load_towers
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.core.models.network import PVLROutput
from pvlr.inference import export
from pvlr.inference.export import (
    LIMITS,
    ImageLogits,
    ProgramError,
    label_rows,
    model_digest,
    write_label_vectors,
    write_program,
)  # fmt: skip
from pvlr.inference.onnx_program import write_onnx

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
    path = write_label_vectors(tmp_path, other, kind="onnx")
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
        write_label_vectors(tmp_path, model, kind="torch")
    assert list(tmp_path.iterdir()) == []


def test_one_label_can_be_an_input(towers, tmp_path: Path) -> None:
    model = trained(towers).with_labels(["star"])
    program = write_program(tmp_path, model, kind="torch", labels="input")
    with torch.no_grad():
        assert program.run(images(2), label_rows(model)).shape == (2, 1)


def test_a_program_that_computes_something_else_is_not_kept(towers, tmp_path: Path, monkeypatch) -> None:
    model = trained(towers)
    (tmp_path / "program.pt2").write_bytes(b"an older one")

    def wrong(path: Path, program: torch.export.ExportedProgram):
        path.write_bytes(b"wrong")
        return lambda *inputs: program.module()(*inputs) + 0.01

    monkeypatch.setattr(export, "_write_torch", wrong)
    with pytest.raises(ProgramError, match=r"^program: expected .* 0.0001, found a difference of 0.01$"):
        write_program(tmp_path, model, kind="torch")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("program.pt2", b"an older one")]


@pytest.mark.parametrize("labels", ["baked", "input"])
def test_a_program_is_compared_with_the_model_and_not_with_what_it_was_made_of(
    towers, tmp_path: Path, monkeypatch, labels: str
) -> None:
    # A wrapper that takes patches where the model reads the pooled vector: both it and its program are wrong alike.
    model = trained(towers, learn=False, base=("pooled",))
    monkeypatch.setattr(export, "join_regions", lambda seen, regions: seen.patches)
    with pytest.raises(ProgramError, match=r"^program: expected .* 0.0001, found a difference of"):
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


# ------------------------------------------------------------------------------------------------- options of programs


def session_of(folder: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(folder / "program.onnx"), providers=["CPUExecutionProvider"])


def logits_of(folder: Path, shown: Tensor, *labels: Tensor) -> Tensor:
    fed = {name: value.numpy() for name, value in zip(("images", "labels"), (shown, *labels), strict=False)}
    return torch.from_numpy(session_of(folder).run(["logits"], fed)[0])


def onnx_packages() -> None:
    require_extra("onnx", "onnx", "onnxscript", "onnxruntime")


def test_axes_have_names_and_the_opset_is_the_one_asked_for(towers, tmp_path: Path) -> None:
    onnx_packages()
    import onnx

    model = trained(towers)
    write_program(tmp_path, model, kind="onnx", labels="input", opset=18)
    session = session_of(tmp_path)
    assert [(put.name, put.shape) for put in session.get_inputs()] == [
        ("images", ["batch", 3, 128, 128]),
        ("labels", ["labels", label_rows(model).shape[1]]),
    ]
    assert [(put.name, put.shape) for put in session.get_outputs()] == [("logits", ["batch", "labels"])]
    found = onnx.load(tmp_path / "program.onnx")
    assert [entry.version for entry in found.opset_import if not entry.domain] == [18]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_program_may_take_a_fixed_number_of_images(towers, tmp_path: Path, kind: str) -> None:
    onnx_packages()
    model = trained(towers)
    program = write_program(tmp_path, model, kind=kind, labels="input", batch=2)
    assert (program.batch, program.batches) == (2, (2,))
    described = json.loads((tmp_path / "program.json").read_text())
    assert described["inputs"]["images"] == [2, 3, 128, 128]
    other = model.with_labels(["zebra", "star"])
    with torch.no_grad():
        found, wanted = program.run(images(2), label_rows(other)), other(images(2)).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="2"):
        program.run(images(3), label_rows(other))
    if kind == "onnx":
        assert session_of(tmp_path).get_inputs()[0].shape == [2, 3, 128, 128]


@pytest.mark.parametrize("labels", ["baked", "input"])
@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_a_smaller_program_is_nearly_the_model_for_any_number_of_images_and_labels(
    towers, tmp_path: Path, precision: str, labels: str
) -> None:
    onnx_packages()
    model = trained(towers)
    program = write_program(tmp_path / "small", model, kind="onnx", labels=labels, precision=precision)
    assert program.path.stat().st_size < 0.75 * 4 * sum(x.numel() for x in ImageLogits(model).parameters())
    assert 1e-6 < program.probability_difference < LIMITS[precision]
    described = json.loads((tmp_path / "small" / "program.json").read_text())
    assert described["precision"] == precision
    assert described["largest_difference_of_probabilities"] == program.probability_difference
    assert sorted(path.name for path in (tmp_path / "small").iterdir()) == sorted(
        ["program.json", "program.onnx", *(["labels.npz"] if labels == "input" else [])]
    )
    other = model if labels == "baked" else model.with_labels(["zebra", "star", "fire truck", "tree"])
    for count in (1, 5):
        vectors = () if labels == "baked" else (label_rows(other),)
        found = logits_of(tmp_path / "small", images(count), *vectors)
        with torch.no_grad():
            wanted = other(images(count)).logits
        assert found.shape == wanted.shape
        assert found.dtype == torch.float32
        assert (found.sigmoid() - wanted.sigmoid()).abs().max() < LIMITS[precision]


def test_a_baseline_is_quantised_too(towers, tmp_path: Path) -> None:
    onnx_packages()
    model = trained_baseline(towers, kind="ml_decoder", groups=2, base=True)
    program = write_program(tmp_path, model, kind="onnx", precision="int8")
    with torch.no_grad():
        wanted = model(images(4)).logits.sigmoid()
    found = logits_of(tmp_path, images(4)).sigmoid()
    assert 1e-5 < (found - wanted).abs().max() < LIMITS["int8"]
    assert program.probability_difference < LIMITS["int8"]


@pytest.mark.parametrize("wrong", [0.3, float("nan")])
def test_a_smaller_program_that_differs_too_much_is_not_kept(towers, tmp_path: Path, monkeypatch, wrong) -> None:
    def written(path: Path, program: torch.export.ExportedProgram, **options):
        path.write_bytes(b"wrong")
        return lambda *inputs: torch.logit(program.module()(*inputs).sigmoid() * (1 - wrong))

    monkeypatch.setattr(export, "write_onnx", written)
    message = "precision: expected probabilities within 0.25 for 'int8', found"
    with pytest.raises(ProgramError, match=pinned(message)):
        write_program(tmp_path, trained(towers, learn=False, base=("pooled",)), kind="onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "an opset of torch": ({"kind": "torch", "opset": 20}, "opset: expected none for kind 'torch', got 20"),
    "8 bits of torch": (
        {"kind": "torch", "precision": "int8"},
        "precision: expected 'float32' for 'torch', got 'int8'",
    ),
    "an old opset": ({"opset": 17}, "opset: expected a whole number of at least 18, got 17"),
    "an opset that is none": ({"opset": 18.0}, "opset: expected a whole number of at least 18, got 18.0"),
    "no images": ({"batch": 0}, "batch: expected a whole number of at least 1, got 0"),
    "4 bits": (
        {"precision": "int4"},
        "precision: expected one of 'float32', 'float16', 'int8', got 'int4'",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(towers, tmp_path: Path, name: str) -> None:
    options, message = OPTIONS[name]
    with pytest.raises(ValueError, match=pinned(message)):
        write_program(tmp_path / "new", trained(towers), **({"kind": "onnx"} | options))
    assert list(tmp_path.iterdir()) == []


def test_an_opset_of_the_future_is_refused_in_a_sentence(towers, tmp_path: Path) -> None:
    onnx_packages()
    with pytest.raises(ProgramError, match=r"^opset: expected one that .*, got 99"):
        write_program(tmp_path, trained(towers, learn=False, base=("pooled",)), kind="onnx", opset=99)
    assert list(tmp_path.iterdir()) == []


def test_a_tower_without_matrix_products_is_not_quantised(tmp_path: Path) -> None:
    onnx_packages()

    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleDict({"image": nn.Conv2d(3, 2, 4)})

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks["image"](x).flatten(1)

    exported = torch.export.export(Convolution().eval(), (torch.zeros(2, 3, 4, 4),))
    message = "precision: expected 'float32' or 'float16' for this image tower, got 'int8'"
    with pytest.raises(ProgramError, match=pinned(message)):
        write_onnx(tmp_path / "program.onnx", exported, inputs=["images"], precision="int8")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------- label vectors of a program


def with_another_weight(model: PVLR, name: str) -> PVLR:
    """A copy one number of one weight of which is another."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name).view(-1)[-1] += 0.5
    return other


def edited_description(folder: Path, **changes: Any) -> None:
    path = folder / "program.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_weights_are_known_by_their_digest_whatever_the_labels(towers) -> None:
    model = trained(towers)
    digest = model_digest(model)
    assert digest == model_digest(copy.deepcopy(model)) == model_digest(model.with_labels(["zebra"]))
    names = [name for name, _ in model.named_parameters()]
    # Of what was trained, and of either tower.
    for name in (names[0], names[-1], *(next(x for x in names if x.startswith(part)) for part in ("text.", "image."))):
        assert model_digest(with_another_weight(model, name)) != digest
    model.set_known_positives(torch.tensor([4.0, 40.0, 0.0]))  # They weigh scores in a program's rows.
    assert model_digest(model) != digest


BROKEN: dict[str, tuple[Any, str]] = {
    "no description": (
        lambda folder: (folder / "program.json").unlink(),
        "{folder}/program.json: expected a program with its description, but No such file or directory",
    ),
    "no program": (
        lambda folder: (folder / "program.pt2").unlink(),
        "{folder}/program.pt2: expected a program with its description, but No such file or directory",
    ),
    "another program in its place": (
        lambda folder: (folder / "program.pt2").write_bytes(b"of another model"),
        "{folder}/program.json: expected the description of program.pt2, found",
    ),
    "that of another kind": (
        lambda folder: edited_description(folder, program="program.onnx"),
        "{folder}/program.json: expected the description of program.pt2, found",
    ),
    "labels of its own": (
        lambda folder: edited_description(folder, inputs={"images": ["any", 3, 128, 128]}),
        "{folder}/program.json: expected a program, found one with labels 'input'",
    ),
    "an earlier description": (
        lambda folder: (folder / "program.json").write_text('{"program": "program.pt2"}'),
        "{folder}/program.json: expected the description of a program, found",
    ),
    "half a description": (
        lambda folder: (folder / "program.json").write_text('{"program": '),
        "{folder}/program.json: expected the description of a program, found",
    ),
    "a list": (
        lambda folder: (folder / "program.json").write_text("[]"),
        "{folder}/program.json: expected the description of a program, found",
    ),
    "bytes": (
        lambda folder: (folder / "program.json").write_bytes(b"\xff\xfe"),
        "{folder}/program.json: expected the description of a program, found",
    ),
}


@pytest.fixture(scope="module")
def model(towers) -> PVLR:
    return trained(towers)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("program")


@pytest.fixture
def program(unchecked, model: PVLR, place: Path) -> Path:
    """A program of the model that is written once, by the first test: a fixture of the module would be checked."""
    if not (place / "program.json").exists():
        write_program(place, model, kind="torch", labels="input")
    return place


@pytest.mark.parametrize("name", BROKEN)
def test_label_vectors_are_not_written_for_a_program_that_is_not_known(
    model: PVLR, program: Path, tmp_path: Path, name: str
) -> None:
    folder, (change, message) = tmp_path / "p", BROKEN[name]
    shutil.copytree(program, folder)
    change(folder)
    vectors = (folder / "labels.npz").read_bytes()
    with pytest.raises(ProgramError) as caught:
        write_label_vectors(folder, model.with_labels(["zebra"]), kind="torch")
    assert re.fullmatch(pinned(message.format(folder=folder)), str(caught.value))
    assert (folder / "labels.npz").read_bytes() == vectors


def test_label_vectors_of_another_model_are_refused(model: PVLR, program: Path, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(program, folder)
    other = with_another_weight(model, next(name for name, _ in model.named_parameters() if name.startswith("text.")))
    digests = [model_digest(one)[:12] for one in (other, model)]
    message = rf"program.json: expected a program of this model, .* {digests[0]}…, found one of {digests[1]}…"
    with pytest.raises(ProgramError, match=message):
        write_label_vectors(folder, other.with_labels(["zebra"]), kind="torch")
    with np.load(folder / "labels.npz") as file:
        assert list(file["names"]) == list(LABELS)
    path = write_label_vectors(folder, model.with_labels(["zebra"]), kind="torch")
    with np.load(path) as file:
        assert list(file["names"]) == ["zebra"]
        assert str(file["model"]) == model_digest(model)
