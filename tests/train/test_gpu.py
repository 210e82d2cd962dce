"""Training, tagging and evaluation on a GPU, beside the same on the CPU; needs a GPU, skipped without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.processes import free_port
from helpers.tagging_toys import make_recognizer, write_pictures
from helpers.training_toys import rows_of, tiny_options, write_voc
from safetensors.torch import load_file

from pvlr.cli.command import command
from pvlr.inference.recognizer import Recognizer
from pvlr.train import VOCData, train
from pvlr.train.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_voc.py"
PLAIN = {"data__flip": "false", "data__rand_augment": "false", "data__cutout": 0.0}
# What decides which way a weight moves must be more than rounding: only labels look, as in the tests of compilation.
LABELS = {"model__fusion": "knowledge", "model__direction": "labels"}
CACHE = {"tower__features": "cache", "tower__feature_dtype": "float32"}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, train=16, test=6)
    return folder


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32 and not in the GPU's shorter format, which is torch's default for them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def run_on(device: str, voc: Path, tower: Path, folder: Path, **more: object) -> dict[str, torch.Tensor]:
    """Train, and the weights that came out."""
    assert command(train, tiny_options(voc, tower, folder, loop__device=device, **PLAIN, **more), data=VOCData) == 0
    return load_file(folder / "model.safetensors")


def map_of(folder: Path) -> float:
    return json.loads((folder / "run.json").read_text())["results"]["PVLR"]["mAP"]


@pytest.mark.parametrize("more", [{}, CACHE, {"tower__train": "all"}], ids=["pictures", "cached", "fine-tuned"])
def test_a_run_trains_as_on_the_cpu(more: dict[str, object], voc: Path, tower: Path, tmp_path: Path) -> None:
    here, there = (run_on(name, voc, tower, tmp_path / name, **LABELS, **more) for name in ("cpu", "cuda"))
    assert list(here) == list(there)
    for name, value in here.items():
        one, other = value.clone(), there[name].clone()
        if name.endswith("attn.in_proj_bias"):
            # What all keys have in common changes nothing: its gradient is rounding.
            keys = slice(len(one) // 3, 2 * len(one) // 3)
            one[keys] = other[keys] = 0.0
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4, msg=name)
    assert map_of(tmp_path / "cuda") == pytest.approx(map_of(tmp_path / "cpu"), abs=1e-6)
    assert torch.cuda.get_device_name() in (tmp_path / "cuda" / "run.json").read_text()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_that_is_deterministic_goes_on_as_if_it_had_not_been_stopped(
    precision: str, voc: Path, tower: Path, tmp_path: Path
) -> None:
    more = {"loop__deterministic": "true", "loop__precision": precision, "loop__ema": 0.9}
    first = run_on("cuda", voc, tower, tmp_path / "first", **more)
    again = run_on("cuda", voc, tower, tmp_path / "again", **more)
    assert all(torch.equal(again[name], value) for name, value in first.items()), "twice the same"
    Checkpoints(tmp_path / "again" / "checkpoints").paths()[-1].unlink()  # As if killed before the second epoch.
    rest = run_on("cuda", voc, tower, tmp_path / "again", run__resume="require", **more)
    assert all(torch.equal(rest[name], value) for name, value in first.items()), "and after a stop"


def test_a_compiled_run_in_bf16_learns(voc: Path, tower: Path, tmp_path: Path) -> None:
    options = tiny_options(
        voc, tower, tmp_path / "run", loop__device="cuda", loop__precision="bf16", loop__compile="true", **PLAIN
    )
    # In a process of its own: a tracer stops at everything that is checked at run time in tests.
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in rows_of(tmp_path / "run") if row["kind"] == "train"]
    assert losses[-1] < losses[0]


def test_torchrun_of_one_process_uses_the_gpu(voc: Path, tower: Path, tmp_path: Path) -> None:
    alone = run_on("cuda", voc, tower, tmp_path / "alone", **LABELS)
    options = tiny_options(voc, tower, tmp_path / "run", loop__device="cuda", **PLAIN, **LABELS)
    call = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", f"--master_port={free_port()}"]
    done = subprocess.run([*call, str(SCRIPT), *options], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    for name, value in load_file(tmp_path / "run" / "model.safetensors").items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4, msg=name)


def test_tags_are_those_of_the_cpu(tmp_path: Path) -> None:
    make_recognizer(tmp_path / "tower").save_pretrained(tmp_path / "model")
    pictures = write_pictures(tmp_path / "pictures", 5)
    scores = []
    for device in ("cpu", "cuda"):
        recognizer = Recognizer.from_pretrained(tmp_path / "model", device=device)
        found = recognizer.tag_batch(torch.stack([recognizer.prepare(picture) for picture in pictures]), threshold=0.0)
        scores.append(
            torch.tensor([[p for _, p in sorted((tag.name, tag.probability) for tag in tags)] for tags in found])
        )
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-4)


def test_a_model_of_a_gpu_is_evaluated_and_tags_without_one(voc: Path, tower: Path, tmp_path: Path) -> None:
    run_on("cuda", voc, tower, tmp_path / "run", **LABELS)
    pictures = voc / "VOCdevkit" / "VOC2007" / "JPEGImages"
    call = [sys.executable, "-m", "pvlr", "tag", "--run", str(tmp_path / "run"), str(pictures)]
    call += ["--out", str(tmp_path / "tags.jsonl")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(call, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "tags.jsonl").read_text().splitlines()) == 22
