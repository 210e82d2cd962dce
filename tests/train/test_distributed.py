"""Several processes do what one would, and none is left waiting."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.processes import on_ranks
from helpers.training_toys import LinearModel, Output, ToyModel, toy_batch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from pvlr.core.labels import LabelSet
from pvlr.core.metrics.report import multilabel_report
from pvlr.core.models.state import trained_state
from pvlr.core.towers.image.blocks import run_block_twice
from pvlr.data.batch import Batch
from pvlr.data.sampling import EpochSampler, Share
from pvlr.train.config import ConfigError, LoopConfig, LossConfig, OptimizerConfig, ScheduleConfig
from pvlr.train.distributed import GRACE, EndedElsewhere, ProcessLost, World, barrier, join_world, reports_failure
from pvlr.train.evaluation.predictions import predict_logits
from pvlr.train.loop import FitConfig, TrainingError, fit, train_step
from pvlr.train.monitoring.monitor import Monitor
from pvlr.train.optim import build_optimizer
from pvlr.train.state import TrainingState, WeightAverage
from pvlr.train.stop import Interrupted, StopRequest

LOSS = LossConfig(gamma_neg=2.0, gamma_pos=1.0)


def some(batch: Batch, rows: list[int]) -> Batch:
    return Batch(*(column[rows] for column in batch))


class OfTwo(LinearModel):
    """A model with a part that only images of an even index go through, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.unused = nn.Linear(12, 3), nn.Linear(12, 3)
        for parameter in (*self.even.parameters(), *self.unused.parameters()):
            nn.init.constant_(parameter, 0.1)

    def forward(self, images: Tensor) -> Output:
        logits = super().forward(images).logits
        even = images[:, 0, 0, 0] > 0
        if even.any():
            logits = logits + even[:, None] * self.even(images.flatten(1))
        return Output(logits)


def step(world: World, parts: list[list[list[int]]], clip_norm: float = 0.0) -> tuple[Any, dict[str, Tensor]]:
    """One step on images 0 to 8 of a batch; `parts` are the rows of each process's batches."""
    whole, model = toy_batch(9, seed=3), OfTwo()
    whole.image[:, 0, 0, 0] = torch.where(torch.arange(9) < 6, -1.0, 1.0)  # The last three are even.
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    batches = [some(whole, rows) for rows in parts[world.rank]]
    result = train_step(model, optimizer, batches, FitConfig(loss=LOSS, clip_norm=clip_norm), world=world)
    return result, {name: value.detach() for name, value in model.named_parameters()}


NINE = list(range(9))


@pytest.mark.parametrize(
    ("parts", "clip_norm"),
    [
        ([[NINE[:5]], [NINE[5:]]], 0.0),
        ([[NINE[:2], NINE[2:3]], [NINE[3:6], NINE[6:]]], 0.01),
        ([[NINE[:7]], [NINE[7:8]], [NINE[8:]]], 0.01),
        ([[NINE[:8], NINE[8:]], [], []], 0.0),
    ],
    ids=["even", "accumulated", "uneven", "nothing for some"],
)
def test_a_step_of_several_processes_is_that_of_one(parts: list[list[list[int]]], clip_norm: float) -> None:
    wanted, weights = step(World(), [[NINE]], clip_norm)
    for outcome in on_ranks(len(parts), step, parts, clip_norm):
        result, found = outcome
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert result.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-5)
        assert result.images == wanted.images == 9
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0, msg=name)
        # What no image went through anywhere is left as it was, even by the decay of weights.
        assert torch.equal(found["unused.weight"], torch.full((3, 12), 0.1))


class Normed(nn.Module):
    """Convolutions with batch norm, one of which applies the activation too, and one inside a checkpointed block."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.norm, self.with_act, self.frozen = nn.BatchNorm2d(4), BatchNormAct2d(4), nn.BatchNorm1d(4).eval()

    def forward(self, images: Tensor) -> Output:
        def block(x: Tensor) -> Tensor:
            return self.with_act(self.second(x))

        x = self.norm(self.first(images)).relu()
        x = run_block_twice([self.second, self.with_act], block, x)
        return Output(self.last(self.frozen(x.mean(dim=(2, 3)))))


def normed_step(world: World, parts: list[list[list[int]]], spoilt: bool = False) -> Any:
    whole, model = toy_batch(9, seed=3), Normed()
    if spoilt:
        whole.image[8] = torch.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batches = [some(whole, rows) for rows in parts[world.rank]]
    result = train_step(model, optimizer, batches, FitConfig(loss=LOSS), world=world)
    assert "forward" not in vars(model.norm), "the model is left as it was"
    return result, {name: value.detach() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("one", "parts"),
    [
        ([NINE], [[NINE[:5]], [NINE[5:]]]),
        ([NINE], [[NINE[:1]], [NINE[1:8]], [NINE[8:]]]),
        ([NINE[:4], NINE[4:]], [[NINE[:2], NINE[4:5]], [NINE[2:4], NINE[5:]]]),
        ([NINE[:7], NINE[7:]], [[NINE[:2], NINE[7:8]], [NINE[2:4], NINE[8:]], [NINE[4:7]]]),
        ([NINE[:1]], [[NINE[:1]], []]),
    ],
    ids=["even", "uneven", "accumulated", "fewer images than processes", "one image"],
)
def test_batch_norm_is_over_the_images_of_all_processes(one: list[list[int]], parts: list[list[list[int]]]) -> None:
    wanted, weights = normed_step(World(), [one])
    for number, (result, found) in enumerate(on_ranks(len(parts), normed_step, parts)):
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert result.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-5)
        for name, value in weights.items():
            if number == 0 or not name.endswith(("mean", "var", "tracked")):  # The loop gives the first one's to all.
                torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_an_image_that_is_not_finite_leaves_no_process_in_the_middle_of_batch_norm() -> None:
    for error in on_ranks(2, normed_step, [[NINE[:5]], [NINE[5:]]], True, timeout=60):
        assert isinstance(error, TrainingError)
        assert "expected a finite loss, got nan" in str(error)


def refuse(world: World, how: str) -> tuple[str, bool]:
    model = LinearModel()
    before = model.layer.weight.detach().clone()
    batch = toy_batch(2, seed=world.rank)._replace(known=torch.ones(2, 3, dtype=torch.bool))
    if world.rank == 1:
        batch.image[1] = torch.nan if how == "loss" else batch.image[1]
    if how == "gradient" and world.rank == 1:
        model.layer.weight.register_hook(lambda grad: grad * torch.inf)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    with pytest.raises(TrainingError) as err:
        train_step(model, optimizer, [batch], FitConfig(loss=LOSS), where="step 7", world=world)
    return str(err.value), torch.equal(model.layer.weight, before) and not optimizer.state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("loss", "step 7: expected a finite loss, got nan for the images [101]"),
        ("gradient", "step 7: expected a finite gradient, its length is nan for the images [0, 1, 100, 101, 200, 201]"),
    ],
)
def test_what_is_not_finite_in_one_process_is_refused_by_all(how: str, message: str) -> None:
    for said, untouched in on_ranks(3, refuse, how):
        assert said.replace("inf", "nan") == message.replace("inf", "nan")
        assert untouched


class Numbered:
    """An epoch of 9 images in batches of 4, 4 and 1, shared as a sampler says."""

    def __init__(self, world: World, images: int = 9) -> None:
        self.world, self.images, self.batches_per_epoch = world, images, -(-images // 4)

    def training(self, epoch: int, start: int = 0) -> Any:
        whole = toy_batch(9, seed=5)
        share = Share(self.world.rank, self.world.size)
        for draws in EpochSampler(self.images, 4, 1, epoch, shuffle=True, start_step=start, share=share):
            yield some(whole, [draw.index for draw in draws])


def trained(world: World, folder: Path, accumulate: int, stop_after: int, resume: bool) -> dict[str, Any]:
    """Weights after three epochs of 9 images in batches of 4, 4 and 1; or what a stop at one process left."""
    model = LinearModel()
    state = TrainingState(model, build_optimizer(model, OptimizerConfig(kind="sgd", lr=0.5)), WeightAverage(model, 0.9))
    path = folder / "state.pt"
    if resume:
        state.load(torch.load(path, weights_only=True))
    report = multilabel_report(torch.tensor([[0.9], [0.1]]), torch.tensor([[1], [0]]))
    monitor = Monitor(folder if world.rank == 0 else None, step=state.step, quiet=True)
    stop = StopRequest(patient=True)

    class Watched(Numbered):
        def training(self, epoch: int, start: int = 0) -> Any:
            for batch in super().training(epoch, start):
                if state.step == stop_after and self.world.rank == self.world.size - 1:
                    stop.requested = signal.SIGTERM
                yield batch

    def save() -> str:
        world.on_rank_zero(lambda: torch.save(state.to_dict(), path))
        return path.name

    loop = LoopConfig(epochs=3, accumulate=accumulate, batch_size=4)
    try:
        fit(
            state,
            Watched(world),
            FitConfig(loop=loop, loss=LOSS, schedule=ScheduleConfig()),
            SimpleNamespace(evaluate=lambda: report, save=save, keep_best=lambda score: None, best=lambda: None),
            monitor=monitor,
            stop=stop,
            world=world,
        )
        stopped = False
    except Interrupted as err:
        stopped = "saved as state.pt" in str(err) and err.signal_number == signal.SIGTERM
    finally:
        monitor.close()
    return {"weights": dict(state.average.weights), "step": state.step, "stopped": stopped}


@pytest.mark.parametrize(
    ("before", "after", "accumulate", "step"), [(2, 2, 1, 4), (3, 1, 1, 4), (2, 2, 2, 2), (1, 3, 2, 2)]
)
def test_stopped_in_one_process_and_gone_on_in_other_many_is_the_same(
    tmp_path: Path, before: int, after: int, accumulate: int, step: int
) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = trained(World(), tmp_path / "whole", accumulate, -1, False)
    for one in on_ranks(before, trained, tmp_path / "parts", accumulate, step, False):
        assert one["stopped"], one
        assert one["step"] == step
    ends = on_ranks(after, trained, tmp_path / "parts", accumulate, -1, True)
    for one in ends:
        assert one["step"] == whole["step"]
        for name, value in whole["weights"].items():
            torch.testing.assert_close(one["weights"][name], value, atol=1e-6, rtol=0)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().count('"train"') for name in ("whole", "parts")]
    assert rows[0] == rows[1] == whole["step"]


def fates(world: World) -> list[str]:
    """Ends of each of several works, in this process."""
    stop = StopRequest(patient=True)

    def work(bad: int, error: Exception) -> int:
        if world.rank == bad:
            raise error
        return 10 + world.rank

    ends = []
    for do in (
        lambda: world.on_all_ranks(lambda: work(9, ValueError())),
        lambda: world.on_all_ranks(lambda: work(1, ConfigError("bad"))),
        lambda: world.on_all_ranks(lambda: work(0, Interrupted("here", signal.SIGINT))),
        lambda: world.on_rank_zero(lambda: work(9, ValueError())),
        lambda: world.on_rank_zero(lambda: work(0, ConfigError("bad"))),
        lambda: world.on_rank_zero(lambda: work(0, Interrupted("here", signal.SIGTERM))),
        lambda: world.rank_zero_first(lambda: work(9, ValueError())),
        lambda: world.rank_zero_first(lambda: work(1, ConfigError("bad"))),
    ):
        try:
            ends.append(repr(do()))
        except Exception as err:
            ends.append(repr(err))
    stop.requested = signal.SIGTERM if world.rank == 1 else None
    world.on_all_ranks(lambda: None, stop=stop)
    told = world.all_gather(reports_failure())
    return [*ends, str(stop.requested == signal.SIGTERM), str(sum(told))]


def ends(world: World) -> tuple[float, bool]:
    """Ends the first process at once; the second asks half a second later. Returns each one's wait, and who told."""
    time.sleep(0.5 * world.rank)
    start, told = time.monotonic(), reports_failure()
    barrier()
    return time.monotonic() - start, told


def test_the_first_process_lasts_until_the_others_have_asked_who_tells() -> None:
    (first, told), (second, told_too) = on_ranks(2, ends)
    assert first > 0.3
    assert second < 0.3
    assert (told, told_too) == (True, False)


def ends_alone(world: World) -> float:
    """The second process is gone without a word."""
    start = time.monotonic()
    if world.rank == 0:
        barrier()
    return time.monotonic() - start


def test_barrier_does_not_wait_for_a_rank_that_never_comes() -> None:
    assert GRACE <= on_ranks(2, ends_alone)[0] < 2 * GRACE


def test_what_happens_to_one_is_known_to_all() -> None:
    elsewhere = repr(EndedElsewhere("another process has refused to go on"))
    signals = [
        f"Interrupted('{name} in another process; the training so far is saved')" for name in ("SIGINT", "SIGTERM")
    ]
    bad, here = "ConfigError('bad')", "Interrupted('here')"
    first, second = on_ranks(2, fates)
    assert first == [
        "10",
        elsewhere,
        here,
        "10",
        bad,
        here,
        "10",
        elsewhere,
        "True",
        "1",
    ]
    assert second == ["11", bad, signals[0], "10", elsewhere, signals[1], "11", bad, "True", "1"]


def test_alone_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world()
    assert (world.rank, world.size) == (0, 1)
    assert world.device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match="bad"):
        world.on_rank_zero(lambda: (_ for _ in ()).throw(ConfigError("bad")))


def predicted(world: World, batches: int) -> Any:
    mine = [toy_batch(3, seed=number) for number in range(batches)][world.rank :: world.size]
    return predict_logits(LinearModel(), mine, world=world)


@pytest.mark.parametrize("batches", [5, 2])
def test_shared_evaluation_is_that_of_one_process_to_the_last_bit(batches: int) -> None:
    alone = predicted(World(), batches)
    assert len(alone.indices) == len(set(alone.indices.tolist())) == 3 * batches
    labels = LabelSet(("a", "b", "c"))
    wanted = multilabel_report(alone.logits.sigmoid(), alone.target, alone.known, labels, scores=alone.logits)
    for found in on_ranks(3, predicted, batches):
        assert all(torch.equal(x, y) for x, y in zip(found, alone, strict=True))
        report = multilabel_report(found.logits.sigmoid(), found.target, found.known, labels, scores=found.logits)
        assert repr(report) == repr(wanted)


def die(world: World) -> str:
    world.all_reduce_sum(1)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(ProcessLost, match="another process of this run has ended or does not answer"):
        world.all_reduce_sum(1)
    return "soon" if time.monotonic() - started < 30 else "late"


def test_a_process_that_dies_is_missed_at_once() -> None:
    assert on_ranks(2, die) == ["soon", None]


def normalised(world: World, folder: Path) -> dict[str, Tensor]:
    """A model with running statistics, after an epoch of two batches."""
    model = ToyModel()
    state = TrainingState(model, build_optimizer(model, OptimizerConfig()), WeightAverage(model, 0.9))
    monitor = Monitor(folder if world.rank == 0 else None, quiet=True)
    report = multilabel_report(torch.tensor([[0.9], [0.1]]), torch.tensor([[1], [0]]))
    hooks = SimpleNamespace(evaluate=lambda: report, save=lambda: None, keep_best=lambda score: None, best=lambda: None)
    config = FitConfig(loop=LoopConfig(epochs=1), loss=LOSS, schedule=ScheduleConfig())
    fit(state, Numbered(world, images=8), config, hooks, monitor=monitor, world=world)
    return trained_state(model)


def test_running_statistics_are_the_same_in_all_processes(tmp_path: Path) -> None:
    first, second = on_ranks(2, normalised, tmp_path)
    assert not torch.equal(first["image.norm.running_mean"], torch.zeros(8))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def broadcast(world: World) -> list[Tensor]:
    tensors = [torch.full((2, 3), float(world.rank)), torch.tensor(world.rank), torch.full((4,), 1.0 + world.rank)]
    world.broadcast(tensors)
    return tensors


def test_values_of_the_first_are_given_to_all() -> None:
    wanted = broadcast(World())
    for found in on_ranks(2, broadcast):
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, wanted, strict=True))


def own_device(world: World, name: str) -> str:
    return str(world.device(name, field="loop.device"))


def test_a_gpu_of_a_number_is_not_shared() -> None:
    assert on_ranks(2, own_device, "cpu") == ["cpu", "cpu"]
    for error in on_ranks(2, own_device, "cuda:0"):
        assert str(error) == "loop.device: expected 'auto', 'cpu' or 'cuda' with 2 processes, got 'cuda:0'"
