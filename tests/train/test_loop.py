"""Steps, refusals, stopping and going on."""

import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from helpers.training_toys import LinearModel, Output, ToyBatches, ToyModel, toy_batch
from torch import Tensor

from pvlr.core.losses import asymmetric_loss
from pvlr.core.metrics.report import MultiLabelReport, multilabel_report
from pvlr.core.models.state import trained_state
from pvlr.data.batch import Batch
from pvlr.train.config import LoopConfig, LossConfig, OptimizerConfig, ScheduleConfig
from pvlr.train.distributed import World
from pvlr.train.loop import FitConfig, TrainingError, fit, train_step
from pvlr.train.monitoring.monitor import Monitor
from pvlr.train.optim import build_optimizer
from pvlr.train.state import TrainingState, WeightAverage
from pvlr.train.stop import Interrupted, StopRequest

LOSS = LossConfig(gamma_neg=2.0, gamma_pos=1.0)
REPORT = multilabel_report(torch.tensor([[0.9], [0.1]]), torch.tensor([[1], [0]]))


@pytest.mark.parametrize("sizes", [(9,), (4, 4, 1), (1, 8), (3, 3, 3)])
@pytest.mark.parametrize("clip_norm", [0.0, 0.01])
def test_accumulated_step_is_that_of_the_whole_batch(sizes: tuple[int, ...], clip_norm: float) -> None:
    whole = toy_batch(9, seed=3)
    parts = [Batch(*columns) for columns in zip(*(column.split(sizes) for column in whole), strict=True)]
    results, weights = [], []
    for batches in ([whole], parts):
        model = LinearModel()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        results.append(train_step(model, optimizer, batches, FitConfig(loss=LOSS, clip_norm=clip_norm)))
        weights.append(model.layer.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-5)
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-5)
    assert results[0].gradient_norm == pytest.approx(results[1].gradient_norm, rel=1e-5)
    assert results[0].images == results[1].images == 9


def test_step_without_a_known_label_moves_nothing() -> None:
    model = LinearModel()
    batch = toy_batch(3)._replace(known=torch.zeros(3, 3, dtype=torch.bool))
    before = model.layer.weight.detach().clone()
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), [batch], FitConfig(loss=LOSS))
    assert result.loss == 0
    assert torch.equal(model.layer.weight, before)


def test_unknown_labels_may_count_as_negatives() -> None:
    known = toy_batch(4)._replace(known=torch.ones(4, 3, dtype=torch.bool))
    hidden = known._replace(known=known.target > 0)  # Positives alone: what is hidden has the target 0.
    steps = {}
    for name, batch, unknown in (
        ("all known", known, "ignore"), ("assumed", hidden, "negative"), ("ignored", hidden, "ignore")
    ):  # fmt: skip
        model, loss = LinearModel(), LossConfig(unknown=unknown)  # type: ignore[arg-type]
        result = train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), [batch], FitConfig(loss=loss))
        steps[name] = (result.loss, model.layer.weight.detach())
    assert steps["assumed"][0] == steps["all known"][0] != steps["ignored"][0]
    assert torch.equal(steps["assumed"][1], steps["all known"][1])


class Answers(NamedTuple):
    logits: Tensor
    answers: tuple[Tensor, ...]


class Undecided(LinearModel):
    """Two answers, of which the second is the first's double."""

    def forward(self, images: Tensor) -> Answers:  # type: ignore[override]
        logits = super().forward(images).logits
        return Answers(1.5 * logits, (logits, 2 * logits))


def test_each_answer_is_trained_by_itself() -> None:
    batch, model = toy_batch(4), Undecided()
    result = train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), [batch], FitConfig(loss=LOSS))
    fresh = Undecided()
    parts = [
        asymmetric_loss(logits, batch.target, batch.known, gamma_pos=1.0, gamma_neg=2.0)
        for logits in fresh(batch.image).answers
    ]
    wanted = (parts[0] + parts[1]) / 2
    wanted.backward()
    assert result.loss == pytest.approx(wanted.item(), rel=1e-5)
    moved = Undecided().layer.weight - fresh.layer.weight.grad
    torch.testing.assert_close(model.layer.weight.detach(), moved.detach(), atol=1e-6, rtol=1e-5)
    of_mean = asymmetric_loss(fresh(batch.image).logits, batch.target, batch.known, gamma_pos=1.0, gamma_neg=2.0)
    assert abs(of_mean.item() - wanted.item()) > 1e-3


class Poisoned(LinearModel):
    """NaN logits for one image, or a finite loss with an infinite gradient."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: Tensor) -> Output:
        logits = super().forward(images).logits
        if self.how == "logits":
            return Output(torch.where(torch.arange(len(images))[:, None] == 1, torch.nan, logits))
        return Output(logits + (self.layer.weight.sum() * 0).sqrt())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("logits", r"step 7: expected a finite loss, got nan for the images \[201\]"),
        ("gradient", r"step 7: expected a finite gradient, its length is nan for the images \[200, 201, 202\]"),
    ],
)
def test_what_is_not_finite_is_refused_before_the_step(how: str, message: str) -> None:
    model = Poisoned(how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = toy_batch(3, seed=2)._replace(known=torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(TrainingError, match=message):
        train_step(model, optimizer, [batch], FitConfig(loss=LOSS), where="step 7")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state


class Stopping(StopRequest):
    """A request to stop as of a signal during step `after`."""

    def __init__(self, state: TrainingState, after: int) -> None:
        self._state, self._after = state, after
        super().__init__()

    @property  # type: ignore[override]
    def requested(self) -> int | None:
        return signal.SIGTERM if self._state.step >= self._after else None

    @requested.setter
    def requested(self, value: int | None) -> None:
        pass


def new_state(average: float = 0.9) -> TrainingState:
    model = ToyModel()
    config = OptimizerConfig(lr=0.05)
    return TrainingState(model, build_optimizer(model, config), WeightAverage(model, average))


def run_loop(
    state: TrainingState,
    folder: Path,
    loop: LoopConfig,
    stop: StopRequest | None = None,
    evaluate: Callable[[], MultiLabelReport] = lambda: REPORT,
    keep_best: Callable[[float], object] = lambda score: None,
    world: World | None = None,
) -> list[dict[str, Any]]:
    saved: list[dict[str, Any]] = []

    def save() -> str:
        # Through bytes, as a checkpoint goes.
        torch.save(state.to_dict(), folder / "state.pt")
        saved.append(torch.load(folder / "state.pt", weights_only=True))
        return "state.pt"

    monitor = Monitor(folder, step=state.step, quiet=True)
    stopped = nullcontext() if stop is None else pytest.raises(Interrupted, match=r"saved as state\.pt")
    try:
        with stopped:
            fit(
                state,
                ToyBatches(),
                FitConfig(loop=loop, loss=LOSS, schedule=ScheduleConfig(), clip_norm=1.0),
                SimpleNamespace(evaluate=evaluate, save=save, keep_best=keep_best, best=lambda: None),
                monitor=monitor,
                stop=stop,
                world=world,
            )
    finally:
        monitor.close()
    return saved


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("after", [1, 2, 4, 6, 8])
def test_going_on_gives_the_same_weights_and_metrics_as_never_having_stopped(
    tmp_path: Path, after: int, accumulate: int
) -> None:
    loop = LoopConfig(epochs=3, accumulate=accumulate, ema=0.9, checkpoint_every=2)
    whole, first, second = new_state(), new_state(), new_state()
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run_loop(whole, tmp_path / "whole", loop)
    saved = run_loop(first, tmp_path / "parts", loop, Stopping(first, after))
    assert saved[-1]["step"] == after
    second.load(saved[-1])
    run_loop(second, tmp_path / "parts", loop)
    assert second.step == whole.step == 3 * -(-5 // accumulate)
    for name, value in trained_state(whole.model).items():
        assert torch.equal(value, trained_state(second.model)[name]), name
    for name, value in whole.average.weights.items():
        assert torch.equal(value, second.average.weights[name]), name
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_a_run_killed_after_a_checkpoint_repeats_steps_but_not_their_metrics(tmp_path: Path) -> None:
    loop = LoopConfig(epochs=2, ema=0.9)
    whole, second = new_state(), new_state()
    saved = run_loop(whole, tmp_path, loop)
    before = rows_of(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 11, "lo')
    second.load(saved[1])  # Of the end of the first epoch; all rows of the second are there already.
    run_loop(second, tmp_path, loop)
    assert rows_of(tmp_path) == before
    steps = [(row["kind"], row["step"]) for row in before]
    assert len(steps) == len(set(steps)) == 12


def test_evaluation_sees_the_average_and_the_loop_its_own_weights(tmp_path: Path) -> None:
    state = new_state(average=0.99)
    seen = []

    def evaluate() -> MultiLabelReport:
        seen.append(all(torch.equal(p, state.average.weights["scale"]) for p in [state.model.scale]))
        return REPORT

    run_loop(state, tmp_path, LoopConfig(epochs=4, evaluate_every=2), evaluate=evaluate)
    assert seen == [True, True]
    assert not torch.equal(state.model.scale, state.average.weights["scale"])


def test_a_state_is_offered_with_its_own_weights_before_its_evaluation_is_told(tmp_path: Path) -> None:
    state = new_state(average=0.99)
    seen = []

    def keep_best(score: float) -> None:
        told = sum(row["kind"] == "evaluation" for row in rows_of(tmp_path))
        own = not torch.equal(state.model.scale, state.average.weights["scale"])
        seen.append((state.step, score, told, own))

    run_loop(state, tmp_path, LoopConfig(epochs=4, evaluate_every=2), keep_best=keep_best)
    assert seen == [(10, REPORT.mAP, 0, True), (20, REPORT.mAP, 1, True)]


def test_there_is_a_state_to_go_back_to_before_the_first_step(tmp_path: Path) -> None:
    saved = run_loop(new_state(), tmp_path, LoopConfig(epochs=1))
    assert [one["step"] for one in saved] == [0, 5]


def test_stopping_during_an_evaluation_saves_the_weights_themselves(tmp_path: Path) -> None:
    state = new_state()

    def evaluate() -> MultiLabelReport:
        raise Interrupted("SIGTERM, saved as state.pt", signal.SIGTERM)

    saved = run_loop(state, tmp_path, LoopConfig(epochs=2, checkpoint_every=9), StopRequest(), evaluate)
    assert saved[-1]["step"] == 5
    assert torch.equal(saved[-1]["model"]["scale"], state.model.scale)
    assert not torch.equal(saved[-1]["model"]["scale"], saved[-1]["average"]["weights"]["scale"])


class LateSignal(World):
    """A signal comes just after each agreement about going on, when the others know nothing of it."""

    def on_all_ranks(self, work: Callable[[], Any], *, stop: StopRequest | None = None) -> Any:
        found = super().on_all_ranks(work, stop=stop)
        if stop is not None:
            stop.requested = signal.SIGTERM
        return found


def test_a_signal_that_was_not_agreed_upon_is_obeyed_at_the_next_step_with_all_others(tmp_path: Path) -> None:
    state = new_state()
    run_loop(state, tmp_path, LoopConfig(epochs=2), StopRequest(), world=LateSignal())
    assert state.step == 1  # Had it stopped at 0, another process would wait for it in the first step for ever.


def test_a_finished_run_is_evaluated_again_and_not_told_twice(tmp_path: Path) -> None:
    state = new_state()
    run_loop(state, tmp_path, LoopConfig(epochs=1))
    before = rows_of(tmp_path)
    run_loop(state, tmp_path, LoopConfig(epochs=1))
    assert rows_of(tmp_path) == before
    run_loop(state, tmp_path, LoopConfig(epochs=2))
    assert rows_of(tmp_path)[: len(before)] == before
    assert state.step == 10


def test_fewer_epochs_than_done_are_refused(tmp_path: Path) -> None:
    state = new_state()
    state.step = 6
    with pytest.raises(TrainingError, match=r"loop.epochs: the saved run is at step 6, past the 5 steps of 1 epochs"):
        run_loop(state, tmp_path, LoopConfig(epochs=1))


def test_signals_are_remembered_once_and_then_taken_at_their_word() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
        with pytest.raises(Interrupted, match="SIGTERM during the test; the training so far is saved"):
            list(stop.watch([1], "the test"))
    assert signal.getsignal(signal.SIGTERM) == before
