"""Times of evaluation, and an early end of training by their results."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tower_models import write_folder
from helpers.training_toys import ToyBatches, ToyModel, tiny_options, write_voc
from safetensors.torch import load_file

from pvlr.cli.command import command
from pvlr.core.metrics.report import multilabel_report
from pvlr.data.readers.voc import read_voc
from pvlr.train import Recognizer, train
from pvlr.train.checkpoint import Checkpoints
from pvlr.train.config import LoopConfig, LossConfig, OptimizerConfig, ScheduleConfig
from pvlr.train.data_config import VOCData
from pvlr.train.loop import FitConfig, fit
from pvlr.train.monitoring.monitor import Monitor
from pvlr.train.optim import build_optimizer
from pvlr.train.run import _Run
from pvlr.train.state import TrainingState, WeightAverage
from pvlr.train.stop import StopRequest

PER_EPOCH = 5


class Killed(Exception):
    """Stands in for the death of the process."""


def trained(folder: Path, loop: LoopConfig, scores: Iterable[float], *, killed_at: int | None = None) -> list[int]:
    """Train a toy whose evaluation after each step is known; go on from a checkpoint if there is one.

    Returns the steps after which it was evaluated, by this process.
    """
    worth = dict(zip(range(1, 1000), scores, strict=False))
    checkpoints = Checkpoints(folder / "checkpoints")
    model = ToyModel()
    state = TrainingState(model, build_optimizer(model, OptimizerConfig(lr=0.05)), WeightAverage(model, 0.9))
    found = checkpoints.load()
    if found is not None:
        state.load(found[1])
    evaluated: list[int] = []

    def evaluate() -> Any:
        evaluated.append(state.step)
        ordinary = multilabel_report(torch.tensor([[0.9], [0.1]]), torch.tensor([[1], [0]]))
        return replace(ordinary, mAP=worth[state.step])

    class Dying(StopRequest):
        @property  # type: ignore[override]
        def requested(self) -> None:
            if killed_at is not None and state.step >= killed_at:
                raise Killed

        @requested.setter
        def requested(self, value: int | None) -> None:
            pass

    monitor = Monitor(folder, step=state.step, quiet=True)
    try:
        fit(
            state,
            ToyBatches(),
            FitConfig(loop=loop, loss=LossConfig(), schedule=ScheduleConfig()),
            SimpleNamespace(
                evaluate=evaluate,
                save=lambda: checkpoints.save(state.to_dict(), step=state.step),
                keep_best=lambda score: checkpoints.keep_best(state.to_dict, step=state.step, score=score),
                best=lambda: (checkpoints.best() or (None,))[0],
            ),
            monitor=monitor,
            stop=Dying(),
        )
    finally:
        monitor.close()
    return evaluated


def told(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["mAP"]) for row in rows if row["kind"] == "evaluation"]


def last_step(folder: Path) -> int:
    found = Checkpoints(folder / "checkpoints").load()
    assert found is not None
    return int(found[1]["step"])


FLAT = [0.1] * 100


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [5, 10, 15]),
        ({"evaluate_every": 2}, [10, 15]),
        ({"evaluate_every": 0}, [15]),
        ({"evaluate_every": 0, "evaluate_every_steps": 4}, [4, 8, 12, 15]),
        ({"evaluate_every_steps": 3}, [3, 5, 6, 9, 10, 12, 15]),
    ],
)
def test_evaluations_come_by_epochs_and_by_steps(options: dict[str, int], expected: list[int], tmp_path: Path) -> None:
    assert trained(tmp_path, LoopConfig(epochs=3, **options), FLAT) == expected
    assert [step for step, _ in told(tmp_path)] == expected


# After step n the mAP is the n-th number: best after 6 steps, where it is only seen if steps are looked at.
SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.3, 0.3, 0.3, 0.6, *[0.3] * 50]


@pytest.mark.parametrize(
    ("options", "end", "best"),
    [
        ({}, 30, 10),
        ({"patience": 1}, 15, 10),
        ({"patience": 2}, 20, 10),
        ({"patience": 1, "evaluate_every": 0, "evaluate_every_steps": 3}, 12, 6),
        ({"patience": 2, "evaluate_every": 2}, 20, 10),
    ],
)
def test_training_ends_after_so_many_epochs_without_a_better_evaluation(
    options: dict[str, int], end: int, best: int, tmp_path: Path
) -> None:
    trained(tmp_path, LoopConfig(epochs=6, **options), SCORES)
    assert last_step(tmp_path) == end
    assert Checkpoints(tmp_path / "checkpoints").best() == (best, SCORES[best - 1])
    # Once more: it has ended, and says the same.
    before = told(tmp_path)
    trained(tmp_path, LoopConfig(epochs=6, **options), SCORES)
    assert last_step(tmp_path) == end
    assert told(tmp_path) == before


def test_scores_that_are_no_numbers_end_nothing(tmp_path: Path) -> None:
    trained(tmp_path, LoopConfig(epochs=3, patience=1), [float("nan")] * 20)
    assert last_step(tmp_path) == 15


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("killed_at", [2, 6, 7, 10, 11, 14])
def test_a_killed_run_ends_where_it_would_have(steps: int, killed_at: int, tmp_path: Path) -> None:
    loop = LoopConfig(epochs=6, patience=1, evaluate_every_steps=steps, checkpoint_every=2)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    trained(tmp_path / "whole", loop, SCORES)
    if killed_at < last_step(tmp_path / "whole"):
        with pytest.raises(Killed):
            trained(tmp_path / "parts", loop, SCORES, killed_at=killed_at)
    trained(tmp_path / "parts", loop, SCORES)
    assert told(tmp_path / "parts") == told(tmp_path / "whole")
    ends = [Checkpoints(tmp_path / name / "checkpoints") for name in ("whole", "parts")]
    assert ends[0].best() == ends[1].best()
    whole, parts = (found.load() for found in ends)
    assert whole is not None
    assert parts is not None
    assert whole[1]["step"] == parts[1]["step"] == {0: 15, 3: 11}[steps] + (steps > 0)
    for name, value in whole[1]["average"]["weights"].items():
        assert torch.equal(value, parts[1]["average"]["weights"][name]), name


def test_the_result_is_the_best_on_validation_reported_on_the_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "tower", "vit")
    write_voc(tmp_path / "voc", train=24, test=6)
    shares = {"data__val_share": 0.3, "data__flip": "false", "data__cutout": 0.0, "data__rand_augment": "false"}
    # A learning rate that ruins: some evaluation before the last is the best.
    options = {**shares, "loop__epochs": 6, "loop__patience": 2, "optimizer__lr": 0.3, "loop__ema": 0.0}

    def run(folder: str, **more: object) -> dict[str, Any]:
        given = tiny_options(tmp_path / "voc", tmp_path / "tower", tmp_path / folder, **options, **more)
        assert command(train, given, data=VOCData) == 0
        record: dict[str, Any] = json.loads((tmp_path / folder / "run.json").read_text())
        return record

    record = run("run")
    said = capsys.readouterr().out
    assert "PVLR (best on validation, averaged)" in said
    assert len(record["data"]) == 3
    best = Checkpoints(tmp_path / "run" / "checkpoints").best()
    assert best is not None
    assert best[0] == record["result_of_step"] < record["steps"]
    assert best[1] == max(score for _, score in told(tmp_path / "run"))
    saved = Checkpoints(tmp_path / "run" / "checkpoints").load(best[0])
    assert saved is not None
    kept = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in saved[1]["average"]["weights"].items():
        assert torch.equal(kept[name], value), name
    # Features kept on the disk lead to the same.
    cache = {"tower__features": "cache", "tower__feature_dtype": "float32"}
    again = run("cached", **cache)
    assert (again["result_of_step"], again["steps"]) == (record["result_of_step"], record["steps"])
    assert (tmp_path / "cached" / "features" / "validation").is_dir()


def test_the_test_split_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tiny_options(tmp_path / "voc", tmp_path / "tower", tmp_path / "run", loop__patience=3)
    assert command(train, given, data=VOCData) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "loop.patience: expected a validation split with it (data.val_split or data.val_share)" in error


@pytest.mark.parametrize("patience", [0, 2])
def test_the_report_is_of_the_test_split_by_the_averaged_weights_that_are_kept(tmp_path: Path, patience: int) -> None:
    write_folder(tmp_path / "tower", "vit")
    write_voc(tmp_path / "voc", train=24, test=6)
    options = {"data__val_share": 0.3, "loop__epochs": 3, "loop__patience": patience, "optimizer__lr": 0.05}
    given = tiny_options(tmp_path / "voc", tmp_path / "tower", tmp_path / "run", **options, loop__ema=0.9)
    assert command(train, given, data=VOCData) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    saved = Checkpoints(tmp_path / "run" / "checkpoints").load(record["result_of_step"] if patience else None)
    assert saved is not None
    kept, state = load_file(tmp_path / "run" / "model.safetensors"), saved[1]
    assert all(torch.equal(kept[name], value) for name, value in state["average"]["weights"].items())
    assert any(not torch.equal(kept[name], value) for name, value in state["model"].items())

    recognizer = Recognizer.from_pretrained(tmp_path / "run")
    reports = {}
    for split in ("test", "trainval"):
        data = read_voc(tmp_path / "voc", split=split, train=False).with_transform(recognizer.transform)
        with torch.no_grad():
            logits = recognizer.model(torch.stack([data[row].image for row in range(len(data))])).logits
        reports[split] = multilabel_report(logits.sigmoid(), data.target, data.known, data.labels, scores=logits)
    names, told = ("mAP", "CF1", "OF1", "hamming"), record["results"]["PVLR"]
    for name in names:
        assert told[name] == pytest.approx(getattr(reports["test"], name), abs=1e-4)
    assert [told[name] for name in names] != pytest.approx(
        [getattr(reports["trainval"], name) for name in names], abs=1e-3
    )


@pytest.mark.usefixtures("unchecked")
def test_the_prior_is_fitted_to_training_pictures() -> None:
    asked: list[object] = []

    class Dataloaders:
        """Loaders of nothing but training pictures."""

        def plain_training(self, *, shuffle: bool) -> list[Any]:
            asked.append(shuffle)
            return list(ToyBatches().training(0))

    class Built:
        def eval(self) -> None: ...

        def regions(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def fit_prior(self, regions: torch.Tensor) -> None:
            asked.append(regions)

    run = SimpleNamespace(built=Built(), loaders=Dataloaders(), device=torch.device("cpu"))
    _Run._set_prior(run)  # type: ignore[arg-type]
    assert asked[0] is True
    assert len(asked) == 2


@pytest.mark.parametrize(("split", "refused"), [({"data__val_share": 0.4}, True), ({"data__val_split": "test"}, False)])
def test_validation_pictures_of_positives_alone_end_nothing(
    split: dict[str, object], refused: bool, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every ranking of positives is perfect: the first evaluation would be the best one."""
    write_voc(tmp_path / "voc", train=20, test=6)
    more = {**split, "data__keep_labels": "single_positive", "loss__unknown": "negative", "loop__epochs": 1}
    options = tiny_options(tmp_path / "voc", tower, tmp_path / "run", **more)
    assert command(train, [*options, "--loop.patience=1"], data=VOCData) == (2 if refused else 0)
    said = capsys.readouterr()
    start = "error: loop.patience: expected validation pictures in which some label is known to be present and known"
    assert said.err.startswith(start) == refused
    if refused:
        assert command(train, options, data=VOCData) == 0
        (warning,) = [line for line in capsys.readouterr().out.splitlines() if "some label known to be present" in line]
        assert warning.startswith("warning: ")
    else:
        assert "some label known to be present" not in said.out
