"""The training loop: label-normalised steps, refusals before damage, and a stop that loses nothing."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pvlr.core.losses import asymmetric_loss
from pvlr.core.metrics import MultiLabelReport
from pvlr.data.batch import Batch
from pvlr.data.sampling import derive_seed
from pvlr.train.config import LoopConfig, LossConfig, ScheduleConfig
from pvlr.train.evaluate import autocast, output_of
from pvlr.train.monitor import Monitor
from pvlr.train.optim import learning_rate_factor, set_learning_rates
from pvlr.train.state import TrainingState
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
        """Batches of an epoch from batch ``start`` on; the same ones whenever they are asked for."""
        ...


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        loss: Mean over all known labels of the step.
        positive: The part of it that labels which are present have.
        gradient_norm: Length of the gradient before clipping.
        images: Number of images.
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
) -> StepResult:
    """One step over one or more batches, the same as if they were one: summed losses over all their known labels.

    A loss or a gradient that is not finite is refused before the optimiser has changed anything.

    Args:
        model: Images ``b 3 s s`` to an output with ``logits`` (``b c``).
        optimizer: Over the model's trained parameters.
        batches: At least one, of any sizes.
        loss: The asymmetric loss's settings.
        clip_norm: Longest gradient, 0 for any.
        device: Where the model is; None: the CPU.
        precision: ``"float32"`` or ``"bf16"`` (inside autocast).
        where: Names the step in an error.

    Raises:
        TrainingError: naming the step and the indices of the images, where loss or gradient is not finite.
    """
    place = torch.device("cpu") if device is None else device
    known = max(1, sum(int(batch.known.sum()) for batch in batches))
    total, positive = 0.0, 0.0
    optimizer.zero_grad(set_to_none=True)
    for batch in batches:
        with autocast(place, precision):
            logits = output_of(model, batch.image.to(place, non_blocking=True)).logits
        part = (
            asymmetric_loss(
                logits,
                batch.target.to(place, non_blocking=True),
                batch.known.to(place, non_blocking=True),
                gamma_pos=loss.gamma_pos,
                gamma_neg=loss.gamma_neg,
                clip=loss.clip,
                reduction="sum",
            )
            / known
        )
        value = part.item()
        if not abs(value) < float("inf"):  # Written so that NaN is refused.
            bad = ~logits.detach().isfinite().all(dim=1).cpu()
            indices = (batch.index[bad] if bool(bad.any()) else batch.index).tolist()
            raise TrainingError(f"{where}: expected a finite loss, got {value} for the images {indices}")
        positive += _of_present(logits, batch, loss) / known
        part.backward()  # type: ignore[no-untyped-call]
        total += value
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm if clip_norm > 0 else float("inf")).item()
    if not norm < float("inf"):
        indices = [index for batch in batches for index in batch.index.tolist()]
        optimizer.zero_grad(set_to_none=True)
        raise TrainingError(f"{where}: expected a finite gradient, its length is {norm} for the images {indices}")
    optimizer.step()
    return StepResult(total, positive, norm, sum(len(batch.index) for batch in batches))


@torch.no_grad()
def _of_present(logits: Tensor, batch: Batch, loss: LossConfig) -> float:
    """The part of the summed loss that known labels which are present have."""
    present = batch.known & (batch.target > 0)
    return asymmetric_loss(
        logits.detach().cpu(), batch.target, present, gamma_pos=loss.gamma_pos, gamma_neg=loss.gamma_neg,
        clip=loss.clip, reduction="sum",
    ).item()  # fmt: skip


def fit(
    state: TrainingState,
    data: TrainingBatches,
    *,
    loop: LoopConfig,
    loss: LossConfig,
    schedule: ScheduleConfig,
    evaluate: Callable[[], MultiLabelReport],
    save: Callable[[], object],
    monitor: Monitor,
    clip_norm: float = 0.0,
    device: torch.device | None = None,
    stop: StopRequest | None = None,
) -> MultiLabelReport:
    """Train from the state's step to the end, and report on the final epoch's averaged weights.

    Everything random at a step is a function of (seed, step) or (seed, epoch, index), and the learning rate is one of
    the step: a run that goes on from a saved state computes what an uninterrupted one would have.

    Args:
        state: Where to start; changed in place.
        data: The training split.
        loop: Epochs, sizes, precision, seed and intervals.
        loss: The loss's settings.
        schedule: The learning rate's way.
        evaluate: Reports on the model as it is; called with the averaged weights in place.
        save: Saves the state.
        monitor: Is told about steps and evaluations.
        clip_norm: Longest gradient, 0 for any.
        device: Where the model is; None: the CPU.
        stop: Asked after every step.

    Raises:
        TrainingError: where loss or gradient is not finite, or the state is past the last epoch.
        Interrupted: where asked to stop, after saving.
    """
    per_epoch = -(-data.batches_per_epoch // loop.accumulate)
    total = per_epoch * loop.epochs
    if state.step > total:
        raise TrainingError(
            f"loop.epochs: the saved run is at step {state.step}, past the {total} steps of {loop.epochs} epochs"
        )
    asked = StopRequest() if stop is None else stop

    def report_on(epoch: int) -> MultiLabelReport:
        try:
            with state.average.applied():
                report = evaluate()
        except Interrupted:
            save()  # Outside of the averaged weights.
            raise
        monitor.evaluation(step=state.step, epoch=epoch, report=report)
        return report

    while True:
        epoch, within = divmod(state.step, per_epoch)
        if state.step == total:
            return report_on(epoch)
        due = state.step > 0 and within == 0 and loop.evaluate_every > 0 and epoch % loop.evaluate_every == 0
        if due and not monitor.has_evaluation(state.step):
            report_on(epoch)
        steps = _grouped(data.training(epoch, within * loop.accumulate), loop.accumulate)
        with monitor.epoch(epoch, loop.epochs, within, per_epoch):
            _train_epoch(state, steps, loop, loss, schedule, total, clip_norm, device, monitor, asked)
        if asked.requested is not None:
            raise Interrupted(f"at step {state.step} of {total}, saved as {save()}", asked.requested)
        if state.step % per_epoch:
            raise TrainingError(f"epoch {epoch + 1}: expected {per_epoch} steps, the data ended after {state.step}")
        if (epoch + 1) % loop.checkpoint_every == 0 or state.step == total:
            save()


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
) -> None:
    state.model.train()
    before = time.perf_counter()
    for batches in steps:
        waiting = time.perf_counter() - before
        # Randomness inside the model, if any, is a function of the step: there is no generator's state to save.
        torch.manual_seed(derive_seed(loop.seed, state.step))
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
        )
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
        if stop.requested is not None:
            return


def _grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    source = iter(batches)
    while group := list(islice(source, size)):
        yield group
