"""The training loop: label-normalised steps, refusals before damage, and a stop that loses nothing."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pvlr.core.losses import asymmetric_loss
from pvlr.core.report import MultiLabelReport
from pvlr.data.batch import Batch
from pvlr.data.sampling import derive_seed
from pvlr.train.config import LoopConfig, LossConfig, ScheduleConfig
from pvlr.train.distributed import World
from pvlr.train.evaluate import autocast, output_of
from pvlr.train.monitor import Monitor
from pvlr.train.optim import learning_rate_factor, set_learning_rates
from pvlr.train.state import TrainingState, running_statistics
from pvlr.train.stop import Interrupted, StopRequest

__all__ = ["StepResult", "TrainingBatches", "TrainingError", "fit", "train_step"]


class TrainingError(ValueError):
    """Training that cannot go on."""


@runtime_checkable
class TrainingBatches(Protocol):
    """What the loop needs of its data: batches as a function of the epoch."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one pass."""
        ...

    def training(self, epoch: int, start: int = 0) -> Iterable[Batch]:
        """Batches of an epoch from batch ``start`` on, or this process's parts of them; the same at each call."""
        ...


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        loss: Mean over all known labels of the step, of all processes.
        positive: The part of it that labels which are present have.
        gradient_norm: Length of the gradient before clipping.
        images: Number of images, of all processes.
    """

    loss: float
    positive: float
    gradient_norm: float
    images: int


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    *,
    loss: LossConfig,
    clip_norm: float = 0.0,
    device: torch.device | None = None,
    precision: str = "float32",
    where: str = "step",
    seed: int = 0,
    world: World | None = None,
) -> StepResult:
    """One step over one or more batches, the same as if they were one: summed losses over all their known labels.

    It is the same as well if several processes share the images, however unequally. A loss or a gradient that is not
    finite is refused by all of them before an optimiser has changed anything.

    Args:
        model: Images ``b 3 s s`` to an output with ``logits`` (``b c``).
        optimizer: Over the model's trained parameters.
        batches: At least one, of any sizes; of several processes, some may have none.
        loss: The asymmetric loss's settings.
        clip_norm: Longest gradient, 0 for any.
        device: Where the model is; None: the CPU.
        precision: ``"float32"`` or ``"bf16"`` (inside autocast).
        where: Names the step in an error.
        seed: Of what is random about each picture in the model: a function of it and the picture's index.
        world: The processes that take the step together; None: this one alone.

    Raises:
        TrainingError: naming the step and the indices of the images, where loss or gradient is not finite; where no
            process has a batch.
    """
    place = torch.device("cpu") if device is None else device
    everyone = World() if world is None else world
    if loss.unknown == "negative":  # Their target is 0 already.
        batches = [batch._replace(known=torch.ones_like(batch.known)) for batch in batches]
    mine = [index for batch in batches for index in batch.index.tolist()]
    images, known = map(int, everyone.sum(len(mine), sum(int(batch.known.sum()) for batch in batches)))
    if not images:
        raise TrainingError(f"{where}: expected images to train on, the data ended before")
    total, positive = 0.0, 0.0
    refused: tuple[float, list[int]] | None = None
    optimizer.zero_grad(set_to_none=True)
    mixture = getattr(model, "mixture", None)
    for batch in batches:
        if mixture is not None:
            mixture.draws = _draws(seed, batch.index).to(place)
        with autocast(place, precision):
            output = output_of(model, batch.image.to(place, non_blocking=True))
        if mixture is not None:
            mixture.draws = None  # They were of this batch.
        answers = getattr(output, "answers", ()) or (output.logits,)
        target, told = (x.to(place, non_blocking=True) for x in (batch.target, batch.known))
        part = _summed(answers, target, told, loss) / max(1, known)
        value = part.item()
        if not abs(value) < float("inf"):  # Written so that NaN is refused.
            bad = ~output.logits.detach().isfinite().all(dim=1).cpu()
            refused = value, (batch.index[bad] if bool(bad.any()) else batch.index).tolist()
            break
        with torch.no_grad():
            positive += _summed(answers, target, told & (target > 0), loss).item() / max(1, known)
        part.backward()  # type: ignore[no-untyped-call]
        total += value
    loss_of_all, positive_of_all, refusals = everyone.sum(total, positive, float(refused is not None))
    if refusals:
        optimizer.zero_grad(set_to_none=True)
        found = [one for one in everyone.gather(refused) if one is not None]
        indices = [index for _, bad_ones in found for index in bad_ones]
        raise TrainingError(f"{where}: expected a finite loss, got {found[0][0]} for the images {indices}")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    everyone.add_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm if clip_norm > 0 else float("inf")).item()
    if not norm < float("inf"):
        optimizer.zero_grad(set_to_none=True)
        indices = [index for share in everyone.gather(mine) for index in share]
        raise TrainingError(f"{where}: expected a finite gradient, its length is {norm} for the images {indices}")
    optimizer.step()
    return StepResult(loss_of_all, positive_of_all, norm, images)


def _draws(seed: int, indices: Tensor) -> Tensor:
    """A number in [0, 1) for each picture, whichever others are beside it."""
    seeds = [derive_seed(seed, index) for index in indices.tolist()]
    return torch.stack([torch.rand((), generator=torch.Generator().manual_seed(one)) for one in seeds])


def _summed(answers: Sequence[Tensor], target: Tensor, known: Tensor, loss: LossConfig) -> Tensor:
    """The loss of some labels, summed over them; the mean over a model's answers."""
    settings: Any = {"gamma_pos": loss.gamma_pos, "gamma_neg": loss.gamma_neg, "clip": loss.clip}
    parts = [asymmetric_loss(logits, target, known, reduction="sum", **settings) for logits in answers]
    return torch.stack(parts).mean()


def fit(
    state: TrainingState,
    data: TrainingBatches,
    *,
    loop: LoopConfig,
    loss: LossConfig,
    schedule: ScheduleConfig,
    evaluate: Callable[[], MultiLabelReport],
    save: Callable[[], object],
    offer: Callable[[float], object],
    best: Callable[[], int | None] = lambda: None,
    monitor: Monitor,
    clip_norm: float = 0.0,
    device: torch.device | None = None,
    stop: StopRequest | None = None,
    world: World | None = None,
) -> MultiLabelReport:
    """Train from the state's step to the end, and report on the averaged weights that it ends with.

    Everything random at a step is a function of (seed, step) or (seed, epoch, index), and the learning rate is one of
    the step: a run that goes on from a saved state computes what an uninterrupted one would have.

    Args:
        state: Where to start; changed in place.
        data: The training split.
        loop: Epochs, sizes, precision, seed and intervals.
        loss: The loss's settings.
        schedule: The learning rate's way.
        evaluate: Reports on the model as it is; called with the averaged weights in place, by all processes.
        save: Saves the state; called by all processes.
        offer: Is offered the state with the mAP of each evaluation, to keep the best; called by all processes.
        best: The step of the best evaluation so far, None where there is none; asked by all processes, if
            ``loop.patience`` is not 0.
        monitor: Is told about steps and evaluations.
        clip_norm: Longest gradient, 0 for any.
        device: Where the model is; None: the CPU.
        stop: Asked after every step.
        world: The processes that train together; None: this one alone.

    Raises:
        TrainingError: where loss or gradient is not finite, or the state is past the last epoch.
        ValueError: where the number of epochs is not told.
        Interrupted: where asked to stop, after saving.
    """
    epochs = loop.epochs
    if epochs == "auto":
        raise ValueError("loop.epochs: expected a number by now, see LoopConfig.for_pictures; got 'auto'")
    per_epoch = -(-data.batches_per_epoch // loop.accumulate)
    total = per_epoch * epochs
    if state.step > total:
        raise TrainingError(
            f"loop.epochs: the saved run is at step {state.step}, past the {total} steps of {epochs} epochs"
        )
    asked = StopRequest() if stop is None else stop
    everyone = World() if world is None else world
    if state.step == 0:
        save()  # From here on there is always one to go back to.

    def report_on(epoch: int) -> MultiLabelReport:
        try:
            with state.average.applied():
                report = evaluate()
        except Interrupted:
            save()  # Outside of the averaged weights.
            raise
        offer(report.mAP)  # Before it is told: an evaluation that was told is not made again.
        monitor.evaluation(step=state.step, epoch=epoch, report=report)
        return report

    def ends_here() -> bool:
        """Evaluate, where it is due; whether too many epochs have gone by since the best evaluation.

        Where the best one was is saved with the state that it was of, so a run that goes on ends at the same step.
        """
        if not _due(state.step, per_epoch, loop):
            return False
        if not everyone.first(lambda: monitor.has_evaluation(state.step)):
            report_on(state.step // per_epoch)
        since = best() if loop.patience else None
        return since is not None and state.step - since >= loop.patience * per_epoch

    while True:
        epoch, within = divmod(state.step, per_epoch)
        if state.step == total:
            return report_on(epoch)
        if ends_here():
            save()
            return report_on(epoch)
        steps = _grouped(data.training(epoch, within * loop.accumulate), loop.accumulate, per_epoch - within)
        with monitor.epoch(epoch, epochs, within, per_epoch):
            _train_epoch(
                state, steps, loop, loss, schedule, total, clip_norm, device, monitor, asked, everyone, ends_here
            )
        if asked.agreed is not None:
            raise Interrupted(f"at step {state.step} of {total}, saved as {save()}", asked.agreed)
        if state.step % per_epoch == 0 and ((epoch + 1) % loop.checkpoint_every == 0 or state.step == total):
            save()


def _due(step: int, per_epoch: int, loop: LoopConfig) -> bool:
    """Whether the model is evaluated after a step."""
    epoch, within = divmod(step, per_epoch)
    by_epoch = within == 0 and loop.evaluate_every > 0 and epoch % loop.evaluate_every == 0
    by_step = loop.evaluate_every_steps > 0 and step % loop.evaluate_every_steps == 0
    return step > 0 and (by_epoch or by_step)


def _train_epoch(
    state: TrainingState,
    steps: Iterator[list[Batch]],
    loop: LoopConfig,
    loss: LossConfig,
    schedule: ScheduleConfig,
    total: int,
    clip_norm: float,
    device: torch.device | None,
    monitor: Monitor,
    stop: StopRequest,
    world: World,
    ends_here: Callable[[], bool],
) -> None:
    state.model.train()
    shared = running_statistics(state.model) if world.size > 1 else []
    before = time.perf_counter()
    while True:
        batches = world.together(lambda: next(steps, None), stop=stop)
        if batches is None or stop.agreed is not None:
            return
        waiting = time.perf_counter() - before
        paused = time.perf_counter()
        if ends_here():
            return
        before += time.perf_counter() - paused
        # Randomness inside the model, if any, is a function of the step (and the process, which has images of its own):
        # there is no generator's state to save.
        torch.manual_seed(derive_seed(loop.seed, state.step, world.rank))
        rates = set_learning_rates(state.optimizer, learning_rate_factor(state.step, total, schedule))
        result = train_step(
            state.model,
            state.optimizer,
            batches,
            loss=loss,
            clip_norm=clip_norm,
            device=device,
            precision=loop.precision,
            where=f"step {state.step + 1}",
            seed=derive_seed(loop.seed, state.step),
            world=world,
        )
        world.equalise(shared)
        state.average.update()
        state.step += 1
        now = time.perf_counter()
        state.seconds += now - before
        monitor.step(
            step=state.step,
            loss=result.loss,
            positive=result.positive,
            gradient_norm=result.gradient_norm,
            rates=rates,
            images=result.images,
            seconds=now - before,
            waiting=waiting,
            model=state.model,
        )
        before = now


def _grouped(batches: Iterable[Batch], size: int, count: int) -> Iterator[list[Batch]]:
    """So many groups of up to so many batches: a process without a part of the last ones takes part in their step."""
    source = iter(batches)
    for _ in range(count):
        yield list(islice(source, size))
