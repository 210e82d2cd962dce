"""The training loop: label-normalised steps, checks for non-finite values before each step, checkpointed stops."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pvlr.core.losses import asymmetric_loss
from pvlr.core.metrics.report import MultiLabelReport
from pvlr.data.batch import Batch
from pvlr.data.sampling import derive_seed
from pvlr.train.batch_norm import batch_norm_over, training_batch_norms
from pvlr.train.config import LoopConfig, LossConfig, ScheduleConfig
from pvlr.train.distributed import World
from pvlr.train.evaluation.predictions import autocast, output_of
from pvlr.train.monitoring.monitor import Monitor, StepResult
from pvlr.train.optim import learning_rate_factor, set_learning_rates
from pvlr.train.state import TrainingState, running_statistics
from pvlr.train.stop import Interrupted, StopRequest

__all__ = ["FitConfig", "Hooks", "StepResult", "TrainingBatches", "TrainingError", "fit", "train_step"]


class TrainingError(ValueError):
    """Error of a training that cannot continue."""


@runtime_checkable
class TrainingBatches(Protocol):
    """Interface of the training data: batches as a function of the epoch."""

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of one epoch."""
        ...

    def training(self, epoch: int, start: int = 0) -> Iterable[Batch]:
        """Return the batches of an epoch from ``start`` on, or this rank's shares of them; the same at each call."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of the loop and of its steps.

    Args:
        loop: Epochs, sizes, precision, seed and intervals.
        loss: Settings of the loss.
        schedule: Learning rate schedule.
        clip_norm: Maximum norm of the gradient; 0: no clipping.
        device: Device of the model.
    """

    loop: LoopConfig = field(default_factory=LoopConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip_norm: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@runtime_checkable
class Hooks(Protocol):
    """Callbacks of the loop; each is called by all ranks."""

    def evaluate(self) -> MultiLabelReport:
        """Evaluate the model; called while it has the averaged weights."""
        ...

    def save(self) -> object:
        """Save a checkpoint of the state."""
        ...

    def keep_best(self, score: float) -> object:
        """Keep the state as the best one if the mAP of its evaluation is the highest so far."""
        ...

    def best(self) -> int | None:
        """Return the step of the best evaluation so far, None if there is none; called if ``patience`` is not 0."""
        ...


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    config: FitConfig,
    *,
    where: str = "step",
    seed: int = 0,
    world: World | None = None,
) -> StepResult:
    """Take one step over one or more batches as over a single one: the loss is the mean over all their known labels.

    The step is the same if several ranks share the images, however unequally. If a loss or a gradient is not finite,
    all ranks raise the error before the optimiser changes any weight.

    Args:
        model: Images ``b 3 s s`` to an output with ``logits`` (``b c``).
        optimizer: Optimiser of the model's trained parameters.
        batches: At least one, of any sizes; some of several ranks may have none.
        config: Loss, maximum gradient norm, device and precision.
        where: Name of the step in error messages.
        seed: Seed of the random numbers that the model draws for each picture, by its index.
        world: The ranks that take the step together; None: this process alone.

    Raises:
        TrainingError: if loss or gradient is not finite, naming the step and the indices of the images; if no rank has
            a batch.
    """
    clip_norm = config.clip_norm
    world = World() if world is None else world
    if config.loss.unknown == "negative":  # Their target is 0 already.
        batches = [batch._replace(known=torch.ones_like(batch.known)) for batch in batches]
    local_indices = [index for batch in batches for index in batch.index.tolist()]
    images, known = map(int, world.all_reduce_sum(len(local_indices), sum(int(batch.known.sum()) for batch in batches)))
    if not images:
        raise TrainingError(f"{where}: expected images to train on, the data ended before")
    optimizer.zero_grad(set_to_none=True)
    total, positive, failed = 0.0, 0.0, None
    for part, together in _shared_parts(model, batches, world):
        with batch_norm_over(model, together):
            losses = _backward(model, part, config, count=max(1, known), seed=seed, world=together)
        total, positive, failed = total + losses[0], positive + losses[1], failed or losses[2]
    loss_of_all, positive_of_all, failures = world.all_reduce_sum(total, positive, float(failed is not None))
    if failures:
        optimizer.zero_grad(set_to_none=True)
        found = [one for one in world.all_gather(failed) if one is not None]
        indices = [index for _, bad_ones in found for index in bad_ones]
        raise TrainingError(f"{where}: expected a finite loss, got {found[0][0]} for the images {indices}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    world.all_reduce_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm if clip_norm > 0 else float("inf")).item()
    if not norm < float("inf"):
        optimizer.zero_grad(set_to_none=True)
        indices = [index for share in world.all_gather(local_indices) for index in share]
        raise TrainingError(f"{where}: expected a finite gradient, its length is {norm} for the images {indices}")
    optimizer.step()
    return StepResult(loss_of_all, positive_of_all, norm, images)


def _shared_parts(model: nn.Module, batches: Sequence[Batch], world: World) -> list[tuple[Sequence[Batch], World]]:
    """Return the batches to run one after the other, with the ranks that run each at the same time.

    Without batch norm each rank runs its own. With it all ranks run a batch together, except for a last batch that has
    fewer images than there are ranks: rank 0 runs all of it.
    """
    if world.size == 1 or not training_batch_norms(model):
        return [(batches, World())]
    counts = world.all_gather_int(len(batches))
    together, most = min(counts), max(counts)
    if together == most:
        return [(batches, world)]
    rest = [batch for share in world.all_gather(list(batches[together:])) for batch in share]
    whole = [Batch(*map(torch.cat, zip(*rest, strict=True)))] if world.rank == 0 else []
    return [(batches[:together], world), (whole, World())]


def _backward(
    model: nn.Module, batches: Sequence[Batch], config: FitConfig, *, count: int, seed: int, world: World
) -> tuple[float, float, tuple[float, list[int]] | None]:
    """Add the gradients of batches; return loss, its part of the positives, and loss and images of a failed batch.

    Args:
        model: As for :func:`train_step`.
        batches: Batches, which all ranks of ``world`` run at the same time.
        config: As for :func:`train_step`.
        count: Number of known labels of the step, by which the loss is divided.
        seed: As for :func:`train_step`.
        world: The ranks; none runs the backward pass of a batch if the forward pass of one has failed.
    """
    device, loss = config.device, config.loss
    total, positive = 0.0, 0.0
    mixture = getattr(model, "mixture", None)
    for batch in batches:
        if mixture is not None:
            mixture.draws = _draws(seed, batch.index).to(device)
        with autocast(device, config.loop.precision):
            output = output_of(model, batch.image.to(device, non_blocking=True))
        if mixture is not None:
            mixture.draws = None  # They belong to this batch.
        answers = getattr(output, "answers", ()) or (output.logits,)
        target, is_known = (x.to(device, non_blocking=True) for x in (batch.target, batch.known))
        part = _summed(answers, target, is_known, loss) / count
        value = part.item()
        failed: tuple[float, list[int]] | None = None
        if not abs(value) < float("inf"):  # Also True for NaN.
            bad = ~output.logits.detach().isfinite().all(dim=1).cpu()
            failed = value, (batch.index[bad] if bool(bad.any()) else batch.index).tolist()
        if world.all_reduce_sum(float(failed is not None))[0]:
            return total, positive, failed
        with torch.no_grad():
            positive += _summed(answers, target, is_known & (target > 0), loss).item() / count
        part.backward()  # type: ignore[no-untyped-call]
        total += value
    return total, positive, None


def _draws(seed: int, indices: Tensor) -> Tensor:
    """Return a random number in [0, 1) for each picture, independent of the other pictures of the batch."""
    seeds = [derive_seed(seed, index) for index in indices.tolist()]
    return torch.stack([torch.rand((), generator=torch.Generator().manual_seed(one)) for one in seeds])


def _summed(answers: Sequence[Tensor], target: Tensor, known: Tensor, loss: LossConfig) -> Tensor:
    """Return the loss summed over some labels, averaged over the model's outputs."""
    settings: Any = {"gamma_pos": loss.gamma_pos, "gamma_neg": loss.gamma_neg, "clip": loss.clip}
    parts = [asymmetric_loss(logits, target, known, reduction="sum", **settings) for logits in answers]
    return torch.stack(parts).mean()


def fit(
    state: TrainingState,
    data: TrainingBatches,
    config: FitConfig,
    hooks: Hooks,
    *,
    monitor: Monitor,
    stop: StopRequest | None = None,
    world: World | None = None,
) -> MultiLabelReport:
    """Train from the state's step to the end, and return the report of the final averaged weights.

    All random numbers of a step are functions of (seed, step) or (seed, epoch, index), and the learning rate is a
    function of the step: a run resumed from a saved state computes the same as an uninterrupted one.

    Args:
        state: The initial state; changed in place.
        data: The training split.
        config: Settings of the loop and of its steps.
        hooks: Evaluation and saving.
        monitor: Record of steps and evaluations.
        stop: Checked after every step.
        world: The ranks that train together; None: this process alone.

    Raises:
        TrainingError: if loss or gradient is not finite, or the state is past the last epoch.
        ValueError: if the number of epochs is ``auto``.
        Interrupted: if a stop was requested, after saving.
    """
    loop = _Loop(state, data, config, hooks, monitor)
    loop.stop = StopRequest() if stop is None else stop
    loop.world = World() if world is None else world
    return loop.run()


class _Loop:
    """State of a call of :func:`fit`."""

    stop: StopRequest
    world: World

    def __init__(
        self, state: TrainingState, data: TrainingBatches, config: FitConfig, hooks: Hooks, monitor: Monitor
    ) -> None:
        self.state, self.data, self.config, self.hooks, self.monitor = state, data, config, hooks, monitor
        epochs = config.loop.epochs
        if epochs == "auto":
            raise ValueError("loop.epochs: expected a number by now, see LoopConfig.for_pictures; got 'auto'")
        self.epochs = epochs
        self.per_epoch = -(-data.batches_per_epoch // config.loop.accumulate)
        self.total = self.per_epoch * epochs
        if state.step > self.total:
            raise TrainingError(
                f"loop.epochs: the saved run is at step {state.step}, past the {self.total} steps of {epochs} epochs"
            )

    def run(self) -> MultiLabelReport:
        """Train epoch after epoch, from the state's step on."""
        state, every = self.state, self.config.loop.checkpoint_every
        if state.step == 0:
            self.hooks.save()  # From here on there is always a checkpoint to resume from.
        while True:
            epoch, within = divmod(state.step, self.per_epoch)
            if state.step == self.total:
                return self._report_on(epoch)
            if self._ends_here():
                self.hooks.save()
                return self._report_on(epoch)
            with self.monitor.epoch(epoch, self.epochs, within, self.per_epoch):
                self._train_epoch(epoch, within)
            if self.stop.agreed is not None:
                saved = self.hooks.save()
                raise Interrupted(f"at step {state.step} of {self.total}, saved as {saved}", self.stop.agreed)
            ended = state.step % self.per_epoch == 0
            if ended and ((epoch + 1) % every == 0 or state.step == self.total):
                self.hooks.save()

    def _report_on(self, epoch: int) -> MultiLabelReport:
        try:
            with self.state.average.applied():
                report = self.hooks.evaluate()
        except Interrupted:
            self.hooks.save()  # With the trained weights, not the averaged ones.
            raise
        self.hooks.keep_best(report.mAP)  # Before it is recorded: a recorded evaluation is not repeated.
        self.monitor.evaluation(step=self.state.step, epoch=epoch, report=report)
        return report

    def _is_due(self) -> bool:
        """Return True if the model is evaluated after this step."""
        loop, step = self.config.loop, self.state.step
        epoch, within = divmod(step, self.per_epoch)
        by_epoch = within == 0 and loop.evaluate_every > 0 and epoch % loop.evaluate_every == 0
        by_step = loop.evaluate_every_steps > 0 and step % loop.evaluate_every_steps == 0
        return step > 0 and (by_epoch or by_step)

    def _ends_here(self) -> bool:
        """Evaluate, if due; return True if ``patience`` epochs have passed since the best evaluation.

        The step of the best evaluation is saved with its state, so a resumed run ends at the same step.
        """
        if not self._is_due():
            return False
        step, patience = self.state.step, self.config.loop.patience
        if not self.world.on_rank_zero(lambda: self.monitor.has_evaluation(step)):
            self._report_on(step // self.per_epoch)
        since = self.hooks.best() if patience else None
        return since is not None and step - since >= patience * self.per_epoch

    def _train_epoch(self, epoch: int, within: int) -> None:
        """Take the steps of an epoch from step ``within`` on, until it ends or a stop is requested."""
        accumulate = self.config.loop.accumulate
        batches = self.data.training(epoch, within * accumulate)
        steps = _grouped(batches, accumulate, self.per_epoch - within)
        self.state.model.train()
        shared = running_statistics(self.state.model) if self.world.size > 1 else []
        before = time.perf_counter()
        while True:
            group = self.world.on_all_ranks(lambda: next(steps, None), stop=self.stop)
            if group is None or self.stop.agreed is not None:
                return
            waiting = time.perf_counter() - before
            paused = time.perf_counter()
            if self._ends_here():
                return
            before += time.perf_counter() - paused
            rates, result = self._step(group)
            self.world.broadcast(shared)
            self.state.average.update()
            self.state.step += 1
            now = time.perf_counter()
            self.state.seconds += now - before
            self.monitor.step(
                self.state.step, result, rates, seconds=now - before, waiting=waiting, model=self.state.model
            )
            before = now

    def _step(self, batches: list[Batch]) -> tuple[dict[str, float], StepResult]:
        """Take one step; return its learning rates and its result."""
        state, seed = self.state, self.config.loop.seed
        # Random numbers inside the model, if any, are a function of the step and the rank, so that no generator state
        # has to be saved.
        torch.manual_seed(derive_seed(seed, state.step, self.world.rank))
        rates = set_learning_rates(state.optimizer, learning_rate_factor(state.step, self.total, self.config.schedule))
        result = train_step(
            state.model,
            state.optimizer,
            batches,
            self.config,
            where=f"step {state.step + 1}",
            seed=derive_seed(seed, state.step),
            world=self.world,
        )
        return rates, result


def _grouped(batches: Iterable[Batch], size: int, count: int) -> Iterator[list[Batch]]:
    """Yield ``count`` groups of up to ``size`` batches; empty ones where this rank has no share of the last steps."""
    source = iter(batches)
    for _ in range(count):
        yield list(islice(source, size))
