"""Trackers: each is told the numbers that TensorBoard has, a resumed run goes on, and a broken one costs nothing."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.messages import pinned
from helpers.training_toys import tiny_options, write_voc
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvlr.cli.command import command
from pvlr.core.models.network import PVLRConfig
from pvlr.train import (
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
    VOCData,
    train,
)
from pvlr.train.monitoring.trackers import MLflowTracker, Tracker, Trackers, WandbTracker, require_trackers


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[Path, dict[str, Any], int]] = []
        self.numbers: dict[tuple[str, int], float] = {}
        self.pictures: list[tuple[str, int, tuple[int, int]]] = []
        self.ended: list[bool] = []

    def start(self, folder: Path, settings: Mapping[str, Any], *, step: int) -> None:
        self.started.append((folder, dict(settings), step))

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        for tag, value in values.items():
            assert (tag, step) not in self.numbers, "told twice"
            self.numbers[tag, step] = value

    def picture(self, tag: str, picture: Image.Image, *, step: int) -> None:
        self.pictures.append((tag, step, picture.size))

    def close(self, *, finished: bool) -> None:
        self.ended.append(finished)


def run(root: Path, tower: Path, recorder: Recorder, *, epochs: int = 1, tensorboard: bool = True) -> Path:
    folder = root / "run"
    train(
        data=VOCData(root=str(root / "voc"), workers=0),
        tower=TowerConfig(name=f"local-dir:{tower}"),
        model=PVLRConfig(heads=4, feedforward=16, adapter_width=16),
        loss=LossConfig(),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        loop=LoopConfig(epochs=epochs, batch_size=4, device="cpu"),
        run=RunConfig(folder=str(folder), tensorboard=tensorboard, log_every=1),
        trackers=[recorder],
    )
    return folder


def test_a_tracker_is_told_what_tensorboard_has(tower: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    recorder = Recorder()
    assert isinstance(recorder, Tracker)
    folder = run(tmp_path, tower, recorder)
    ((where, settings, step),) = recorder.started
    assert (where, step, recorder.ended) == (folder, 0, [True])
    assert settings["loop.batch_size"] == 4
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    found = {(tag, one.step): one.value for tag in board.Tags()["scalars"] for one in board.Scalars(tag)}
    # TensorBoard's own marks of the hyperparameters are no numbers of the run.
    found = {place: value for place, value in found.items() if place[0] in {tag for tag, _ in recorder.numbers}}
    assert found.keys() == recorder.numbers.keys()
    assert {"train/loss", "test/mAP", "ap/red"} <= {tag for tag, _ in found}
    for place, value in found.items():
        assert value == pytest.approx(recorder.numbers[place], rel=1e-6), place
    shown = {(tag, one.step) for tag in board.Tags()["images"] for one in board.Images(tag)}
    assert shown == {(tag, step) for tag, step, _ in recorder.pictures}
    again = Recorder()
    run(tmp_path, tower, again, epochs=2)
    ((_, _, step),) = again.started
    assert step == 3
    assert {number for tag, number in again.numbers if tag == "train/loss"} == {4, 5, 6}


def test_a_tracker_alone_is_told_the_same(tower: Path, tmp_path: Path) -> None:
    recorders = Recorder(), Recorder()
    for number, recorder in enumerate(recorders):
        write_voc(tmp_path / str(number) / "voc")
        run(tmp_path / str(number), tower, recorder, tensorboard=number == 0)
    assert recorders[0].pictures == recorders[1].pictures
    same = {place for place in recorders[0].numbers if not place[0].startswith(("speed/", "memory/"))}
    assert {place: recorders[0].numbers[place] for place in same} == {
        place: recorders[1].numbers[place] for place in same
    }
    assert recorders[0].numbers.keys() == recorders[1].numbers.keys()


def test_one_that_fails_is_told_nothing_more_and_costs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(Recorder):
        def scalars(self, values: Mapping[str, float], *, step: int) -> None:
            raise ConnectionError("no route to\nthe server")

    broken, recorder = Broken(), Recorder()
    trackers = Trackers(None, [broken, recorder])
    for step in (1, 2):
        trackers.scalars({"train/loss": 0.5}, step=step)
    trackers.close(finished=True)
    assert capsys.readouterr().out == (
        "warning: the tracker Broken is told nothing more: ConnectionError: no route to the server\n"
    )
    assert recorder.numbers == {("train/loss", 1): 0.5, ("train/loss", 2): 0.5}
    assert (broken.ended, recorder.ended) == ([], [True])


class Package:
    """A stand-in for the functions of wandb and mlflow that are used, which keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            if name == self.fails:
                raise RuntimeError("api_key not configured")
            return self

        return called

    def all(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, options) for one, args, options in self.calls if one == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Package:
    package = Package()
    module = ModuleType("wandb")
    for name in ("init", "Settings", "Image"):
        setattr(module, name, getattr(package, name))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return package


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Package:
    package = Package()
    package.info = SimpleNamespace(run_id="r1")
    package.get_experiment_by_name = lambda name: None
    module = ModuleType("mlflow")
    module.MlflowClient = package.MlflowClient  # type: ignore[attr-defined]
    named = {name: lambda *args: args for name in ("Metric", "Param")}
    module.entities = SimpleNamespace(**named)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return package


def test_wandb_goes_on_with_the_run_of_the_folder(wandb: Package, tmp_path: Path) -> None:
    for step in (0, 5, 0):
        tracker = WandbTracker()
        tracker.start(tmp_path, {"loop.seed": 3}, step=step)
        tracker.scalars({"train/loss": 0.5}, step=step + 1)
        tracker.picture("pictures/attention", Image.new("RGB", (2, 2)), step=step + 1)
        tracker.close(finished=step > 0)
    first, resumed, new = (options for _, options in wandb.all("init"))
    assert first["id"] == resumed["id"] != new["id"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": new["id"]}
    assert (first["config"], first["resume"], first["dir"]) == ({"loop.seed": 3}, "allow", str(tmp_path))
    logged = wandb.all("log")
    assert logged[0] == (({"train/loss": 0.5},), {"step": 1})
    assert list(logged[1][0][0]) == ["pictures/attention"]
    assert [options for _, options in wandb.all("finish")] == [{"exit_code": 1}, {"exit_code": 0}, {"exit_code": 1}]


def test_mlflow_goes_on_with_the_run_of_the_folder(mlflow: Package, tmp_path: Path) -> None:
    settings = {f"s.{number}": "x" * 600 for number in range(150)}
    for step in (0, 5):
        tracker = MLflowTracker()
        tracker.start(tmp_path, settings, step=step)
        tracker.scalars({f"ap/{number}": number / 4096 for number in range(1500)}, step=step + 1)
        tracker.picture("pictures/attention", Image.new("RGB", (2, 2)), step=step + 1)
        tracker.close(finished=step > 0)
    assert [options for _, options in mlflow.all("MlflowClient")] == [
        {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    ] * 2
    assert len(mlflow.all("create_run")) == 1
    assert mlflow.all("update_run") == [(("r1",), {"status": "RUNNING"})]
    batches = [options for _, options in mlflow.all("log_batch")]
    assert [len(one["params"]) for one in batches if "params" in one] == [100, 50]
    assert [len(one["metrics"]) for one in batches if "metrics" in one] == [1000, 500] * 2
    assert batches[0]["params"][0] == ("s.0", "x" * 500)
    key, value, _, step = batches[2]["metrics"][7]
    assert (key, value, step) == ("ap/7", 7 / 4096, 1)
    assert [options["artifact_file"] for _, options in mlflow.all("log_image")] == [
        "pictures/attention/step-00000001.png",
        "pictures/attention/step-00000006.png",
    ]
    assert [options for _, options in mlflow.all("set_terminated")] == [{"status": "KILLED"}, {"status": "FINISHED"}]


def test_one_that_does_not_start_is_refused_in_a_sentence(wandb: Package, tmp_path: Path) -> None:
    wandb.fails = "init"
    message = (
        "run.trackers: expected wandb to start, found: api_key not configured; WANDB_MODE=offline needs no network and "
        "no account"
    )
    with pytest.raises(ConfigError, match=f"^{pinned(message)}$"):
        WandbTracker().start(tmp_path, {}, step=0)


def test_a_package_that_is_not_installed_is_refused_before_anything_is_read(
    tmp_path: Path, tower: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvlr.train.monitoring.trackers.find_spec", lambda name: None)
    options = tiny_options(tmp_path / "no data", tower, tmp_path / "run", run__trackers="[wandb]")
    assert command(train, options, data=VOCData) == 2
    assert capsys.readouterr().err == (
        "error: run.trackers: expected the package wandb, found none; pip install wandb\n"
    )
    assert command(train, tiny_options(tmp_path, tower, tmp_path / "run", run__trackers="[neptune]"), data=VOCData) == 2
    assert "neptune" in capsys.readouterr().err
    require_trackers(())


def test_objects_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(train, ["--help", "all"], data=VOCData) == 0
    told = capsys.readouterr().out
    assert "--run.trackers" in told
    assert "--trackers" not in told


def test_numbers_that_are_none_are_left_out() -> None:
    recorder = Recorder()
    values = {"a": 0.5, "b": float("nan"), "c": float("inf")}
    Trackers(None, [recorder]).scalars(values, step=1)
    Trackers(None, [recorder]).scalars({"b": torch.nan}, step=2)
    assert recorder.numbers == {("a", 1): 0.5}
