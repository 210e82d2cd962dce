"""Ways to compute: compiled, in bf16, deterministic, on any number of threads; the outcome is the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tower_models import small_model
from helpers.training_toys import tiny_options, toy_batch, write_voc
from safetensors.torch import load_file

from pvlr.cli.command import command
from pvlr.core.labels import LabelSet
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.models.state import trained_state
from pvlr.core.towers.image.tower import OpenClipImageTower
from pvlr.core.towers.text.open_clip import OpenClipTextTower
from pvlr.data.batch import Batch
from pvlr.train import device as devices
from pvlr.train import run as runs
from pvlr.train import train
from pvlr.train.checkpoint import Checkpoints
from pvlr.train.config import ConfigError, LoopConfig
from pvlr.train.data_config import VOCData
from pvlr.train.device import determinism, one_core_free, require_compiler
from pvlr.train.evaluation.predictions import predict_logits
from pvlr.train.loop import FitConfig, train_step
from pvlr.train.state import WeightAverage

CPU = torch.device("cpu")
PLAIN = {"data__flip": "false", "data__rand_augment": "false", "data__cutout": 0.0}
CACHE = {"tower__features": "cache", "tower__feature_dtype": "float32"}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, train=8, test=4)  # Batches of one size, so that each graph is traced once.
    return folder


def weights_of(voc: Path, tower: Path, run: Path, **options: object) -> dict[str, torch.Tensor]:
    assert command(train, tiny_options(voc, tower, run, **PLAIN, **options), data=VOCData) == 0
    return load_file(run / "model.safetensors")


def seen_while_fitting(monkeypatch: pytest.MonkeyPatch, look: Callable[[], Any]) -> list[Any]:
    """Return a list that gets what ``look`` returns when each run begins to fit."""
    seen: list[Any] = []

    def fit(*given: Any, **named: Any) -> Any:
        seen.append(look())
        return original(*given, **named)

    original = runs.fit
    monkeypatch.setattr(runs, "fit", fit)
    return seen


# Compiled as always, but the graphs run as they are: code for each would take a minute to generate. In a process of its
# own, since a tracer stops at everything that is checked at run time in tests.
COMPILED = """
import functools, json, sys, torch
from pvlr.train import train
from pvlr.cli.command import command
from pvlr.train.data_config import VOCData

graphs = []

def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

torch.compile = functools.partial(torch.compile, backend=backend)
counts = []
for options in json.load(sys.stdin):
    assert command(train, options, data=VOCData) == 0
    counts.append(len(graphs))
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def compiled(voc: Path, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A folder of runs, with and without compilation, and how many graphs there were after each."""
    folder = tmp_path_factory.mktemp("compiled")
    # Patches that look have a bias whose gradient is next to nothing in these few steps, and Adam makes steps of its
    # rounding: of pictures only labels look.
    of_pictures = {"model__fusion": "knowledge", "model__direction": "labels"}
    runs = [
        tiny_options(voc, tower, folder / f"{name}{end}", **PLAIN, **more, loop__compile=flag)
        for name, more in (("pictures", of_pictures), ("features", CACHE))
        for end, flag in (("", "false"), ("_compiled", "true"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], input=json.dumps(runs), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["pictures", "features"])
def test_a_compiled_run_trains_and_evaluates_like_another(name: str, compiled: tuple[Path, list[int]]) -> None:
    folder, counts = compiled
    plain, other = (load_file(folder / part / "model.safetensors") for part in (name, f"{name}_compiled"))
    assert list(plain) == list(other), "no name tells that something was compiled"
    for key, value in plain.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-5, msg=key)
    records = [json.loads((folder / part / "run.json").read_text()) for part in (name, f"{name}_compiled")]
    assert records[0]["results"]["PVLR"]["mAP"] == pytest.approx(records[1]["results"]["PVLR"]["mAP"])
    # One graph is of the try whether it works at all; training and evaluation have others. What comes after the label
    # vectors in evaluation is the same for cached features, and is not traced again.
    assert counts[0] == 0
    assert counts[1] >= 3
    assert counts[2] == counts[1] < counts[3]


def test_a_compiled_run_goes_on_without_and_the_other_way_round(
    compiled: tuple[Path, list[int]], voc: Path, tower: Path
) -> None:
    run = compiled[0] / "features_compiled"
    before = load_file(run / "model.safetensors")
    checkpoints = Checkpoints(run / "checkpoints")
    assert not any("_orig_mod" in name for name in checkpoints.load()[1]["model"])  # type: ignore[index]
    checkpoints.paths()[-1].unlink()  # As if it had been killed before the second epoch.
    again = weights_of(voc, tower, run, **CACHE, run__resume="require")
    for name, value in before.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_compiled_code_is_generated(voc: Path, tower: Path) -> None:
    torch.compiler.reset()
    require_compiler(CPU)
    torch.compiler.reset()


@pytest.mark.usefixtures("unchecked")
def test_a_machine_that_cannot_compile_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tower: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n  many more lines")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(
        ConfigError, match=r"loop\.compile: expected a machine that can compile for cpu, but InvalidCxx"
    ):
        require_compiler(CPU)
    given = tiny_options(tmp_path / "nowhere", tower, tmp_path / "run", loop__compile="true")
    assert command(train, given, data=VOCData) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No working C++ compiler found" in error


def small_pvlr() -> PVLR:
    from open_clip import SimpleTokenizer

    clip = small_model("vit")
    text = OpenClipTextTower(clip, SimpleTokenizer(context_length=24))
    return PVLR(PVLRConfig(heads=4), LabelSet(("red", "green", "blue")), text, OpenClipImageTower(clip.visual))


def batch_of(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return toy_batch(count, seed)._replace(image=torch.randn(count, 3, 32, 32, generator=generator))


@pytest.mark.parametrize("mode", ["frozen", "all"])
def test_bf16_moves_the_weights_the_way_float32_does(mode: Any) -> None:
    moved: dict[str, torch.Tensor] = {}
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bf16"):
        torch.manual_seed(0)
        model = small_pvlr()
        model.image.set_trainable(mode)
        before = {name: value.clone() for name, value in trained_state(model).items()}
        # Steps that are small enough for the two to stay on one way: longer ones overshoot, and after those every
        # rounding takes another.
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0005)
        average = WeightAverage(model, 0.9)
        model.train()
        losses[precision] = []
        config = FitConfig(loop=LoopConfig(precision=precision))
        for step in range(12):
            done = train_step(model, optimizer, [batch_of(8, step % 2)], config)
            losses[precision].append(done.loss)
            average.update()
        after = trained_state(model)
        moved[precision] = torch.cat([(after[name] - value).flatten().float() for name, value in before.items()])
        # Weights, gradients, their average and the scores are float32 whatever is computed in between.
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {value.dtype for p in trained for value in (p, p.grad)} == {torch.float32}
        assert {value.dtype for value in average.weights.values()} == {torch.float32}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            out = model(batch_of(2, 0).image)
        assert out.logits.dtype == torch.float32
        assert predict_logits(model, [batch_of(2, 0)], precision=precision).logits.dtype == torch.float32
    assert losses["bf16"][0] != losses["float32"][0], "something is computed in bf16"
    # On each of the two batches.
    assert losses["bf16"][-2] < losses["bf16"][0]
    assert losses["bf16"][-1] < losses["bf16"][1]
    assert losses["bf16"][-1] < losses["bf16"][0]
    assert torch.cosine_similarity(moved["bf16"], moved["float32"], dim=0) > 0.98
    assert moved["bf16"].norm() == pytest.approx(moved["float32"].norm().item(), rel=0.1)


def test_deterministic_algorithms_are_asked_for_and_given_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_a_run_asks_for_them_and_another_may_go_on_without(
    monkeypatch: pytest.MonkeyPatch, voc: Path, tower: Path, tmp_path: Path
) -> None:
    seen = seen_while_fitting(monkeypatch, torch.are_deterministic_algorithms_enabled)
    first = weights_of(voc, tower, tmp_path / "run", loop__deterministic="true")
    assert all(torch.equal(value, first[name]) for name, value in weights_of(voc, tower, tmp_path / "run").items())
    assert seen == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_from_the_cache_computes_on_all_cores(
    monkeypatch: pytest.MonkeyPatch, voc: Path, tower: Path, tmp_path: Path
) -> None:
    seen, before = seen_while_fitting(monkeypatch, torch.get_num_threads), torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: range(2), raising=False)
    torch.set_num_threads(2)
    try:
        weights_of(voc, tower, tmp_path / "read")
        weights_of(voc, tower, tmp_path / "cached", **CACHE)
        assert seen == [1, 2]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 2), (64, 4)])
def test_a_core_is_left_free_unless_somebody_has_chosen(
    cores: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: range(cores), raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with one_core_free(CPU):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 4
        with one_core_free(torch.device("cuda")):
            assert torch.get_num_threads() == 4
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        with one_core_free(CPU):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
