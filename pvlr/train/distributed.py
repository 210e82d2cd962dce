"""Several processes as one: who this one is, what all agree upon, and sums over all of them.

torchrun starts the processes and tells each who it is; without it there is one. Gradients are summed by plain
all-reduce, in few large parts and once a step, and not by ``DistributedDataParallel``: that averages over processes,
wants a backward pass of each at every step and is a module around the model. Here a process may have fewer images than
another, or none, and accumulation talks to nobody. What is given up is the overlap with the backward pass.
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pvlr.train.config import ConfigError
from pvlr.train.device import find_device
from pvlr.train.stop import Interrupted, StopRequest

__all__ = [
    "EndedElsewhere",
    "ProcessLost",
    "World",
    "is_first",
    "join_world",
    "leave_world",
    "tells",
    "wait_for_others",
]

T = TypeVar("T")

# How long processes wait for each other within a step, and for what the first one alone does (a data set that is
# fetched, features that are computed). One that has ended is noticed at once.
TIMEOUT = timedelta(minutes=10)
PATIENCE = timedelta(days=2)
PART = 2**24  # Numbers that are summed at once.
GRACE = 3.0  # Seconds that the first process lasts for others which end with it.


class EndedElsewhere(ValueError):
    """Another process of the run has refused to go on, and says why."""


class ProcessLost(RuntimeError):
    """Another process of the run has ended without a word, or does not answer."""


class World:
    """The processes of a run, one of which is this.

    All methods but :meth:`device` are called by all processes, in the same order.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.

    Args:
        rank: As above.
        size: As above.
        local_rank: Number of this process among those of its machine.
        store: What all of them can write small notes into.

    Example:
        >>> world = World()
        >>> world.sum(2, 0.5), world.gather("a"), world.first(lambda: 3)
        ([2.0, 0.5], ['a'], 3)
    """

    def __init__(self, rank: int = 0, size: int = 1, *, local_rank: int = 0, store: Any = None) -> None:
        self.rank, self.size = rank, size
        self._local_rank, self._store = local_rank, store
        self._patient: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None

    def device(self, name: str, *, field: str = "device") -> torch.device:
        """The device of a name, this process's own GPU where there are several processes.

        Raises:
            ConfigError: where the device is not there, or would be shared.
        """
        if self.size == 1:
            return find_device(name, field=field)
        if name.startswith("cuda:"):
            raise ConfigError(f"{field}: expected 'auto', 'cpu' or 'cuda' with {self.size} processes, got {name!r}")
        device = find_device(name, field=field)
        if device.type == "cuda":
            device = find_device(f"cuda:{self._local_rank}", field=field)
            torch.cuda.set_device(device)
        return device

    def exchange(self, number: int) -> list[int]:
        """The numbers of all processes, by rank."""
        if self.size == 1:
            return [number]
        every = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _contact():
            dist.all_gather(every, torch.tensor([number]))
        return [int(one) for one in every]

    def sum(self, *numbers: int | float) -> list[float]:
        """Sums over all processes, in float64."""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            with _contact():
                dist.all_reduce(total)
        return [float(one) for one in total.tolist()]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; they go as pickles between processes of one run."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        with _contact():
            dist.all_gather_object(every, value)
        return every

    def together(self, work: Callable[[], T], *, stop: StopRequest | None = None) -> T:
        """Do what no other process takes part in, and go on only if it went well with all.

        Args:
            work: What this process does.
            stop: If any process was asked to stop, all agree upon it here.

        Raises:
            Interrupted: where the work of a process was.
            EndedElsewhere: where the work of another process failed.
        """
        if self.size == 1:
            alone = work()
            if stop is not None:
                stop.agreed = stop.requested
            return alone
        outcome: T | None = None
        failure: Exception | None = None
        try:
            outcome = work()
        except Exception as err:
            failure = err
        fate = 0 if failure is None else failure.signal_number if isinstance(failure, Interrupted) else -1
        fates = self.exchange(fate)
        if failure is not None and (fate == -1 or -1 not in fates):
            raise failure
        self._obey(-1 if -1 in fates else max(fates))
        if stop is not None:
            asked = max(self.exchange(stop.requested or 0))
            if asked:
                stop.requested = stop.agreed = asked
        return outcome  # type: ignore[return-value]

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process do something alone, and give all of them its result; the others wait for it.

        The result goes as a pickle between processes of one run.

        Raises:
            Interrupted: where the work was.
            EndedElsewhere: where it failed, in the other processes.
        """
        if self.size == 1:
            return work()
        box: list[Any] = [0, None]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                box[1] = work()
            except Exception as err:
                failure = err
                box[0] = err.signal_number if isinstance(err, Interrupted) else -1
        with _contact():
            dist.broadcast_object_list(box, src=0, group=self._patient)
        if failure is not None:
            raise failure
        self._obey(box[0])
        return box[1]  # type: ignore[no-any-return]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Do what all do, the first process before the others: what has to be fetched or made is so once.

        Raises:
            Interrupted: where the work of a process was.
            EndedElsewhere: where the work of another process failed.
        """
        made: list[T] = []
        self.first(lambda: made.append(work()))
        return self.together(lambda: made.pop() if made else work())

    @torch.no_grad()
    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Write the first process's values into the tensors of all."""
        if self.size == 1:
            return
        for part in _parts(list(tensors)):
            flat = torch.cat([tensor.reshape(-1) for tensor in part])
            with _contact():
                dist.broadcast(flat, src=0)
            for tensor, values in zip(part, torch.split(flat, [tensor.numel() for tensor in part]), strict=True):
                tensor.copy_(values.view_as(tensor))

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by the sum of all processes' gradients.

        A parameter without a gradient here counts as 0; one without a gradient anywhere keeps none.
        """
        if self.size == 1:
            return
        there = self.sum(*(float(parameter.grad is not None) for parameter in parameters))
        used = [parameter for parameter, count in zip(parameters, there, strict=True) if count]
        for part in _parts(used):
            grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in part]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            with _contact():
                dist.all_reduce(flat)
            for parameter, values in zip(part, torch.split(flat, [one.numel() for one in part]), strict=True):
                parameter.grad = values.view_as(parameter)

    def _obey(self, fate: int) -> None:
        """End as another process did: -1 by a refusal, else by that signal."""
        if fate > 0:
            name = signal.Signals(fate).name
            raise Interrupted(f"{name} in another process; the training so far is saved", fate)
        if fate:
            raise EndedElsewhere("another process has refused to go on")


_joined: World | None = None


def join_world(timeout: timedelta = TIMEOUT) -> World:
    """The processes that torchrun started along with this one; without it, this one alone.

    Over gloo between CPUs and NCCL between GPUs. Once joined, they stay so.

    Args:
        timeout: How long a process waits for the others.

    Raises:
        ProcessLost: where the others do not come.
    """
    global _joined
    if _joined is None:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return World()
        if not is_first():
            logging.getLogger("pvlr").setLevel(logging.ERROR)  # The first process warns.
        backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() and torch.cuda.is_available() else "gloo"
        with _contact():
            store, rank, size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
            # Of its own, since what torch writes into the other is its business.
            notes = dist.PrefixStore("pvlr", store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            world = World(rank, size, local_rank=int(os.environ.get("LOCAL_RANK", str(rank))), store=notes)
        world.exchange(rank)  # One that refuses at once must not leave before all have come.
        _joined = world
    return _joined


def leave_world() -> None:
    """End the company of processes, at the end of a run that went well."""
    global _joined
    if _joined is not None:
        _joined = None
        dist.destroy_process_group()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


def tells() -> bool:
    """Whether this is the process that says how the run ended: of several that end, the first one that asks."""
    if _joined is None or _joined._store is None:
        return is_first()
    try:
        return bool(_joined._store.add("told", 1) == 1)
    except RuntimeError:  # Whoever keeps the notes has ended as well.
        return is_first()


def wait_for_others() -> None:
    """Before the end of a run that did not go well: the process that keeps the notes lets the others read them.

    Without it whoever asks a moment later finds nobody there, of which torch prints a page. It waits for a few seconds
    at most, since another process may be gone already.
    """
    if _joined is None or _joined._store is None:
        return
    try:
        ended, deadline = _joined._store.add("ended", 1), time.monotonic() + GRACE
        while is_first() and ended < _joined.size and time.monotonic() < deadline:
            time.sleep(0.02)
            ended = _joined._store.add("ended", 0)
    except RuntimeError:  # As above.
        return


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as err:
        raise ProcessLost(
            "another process of this run has ended or does not answer; what was saved is whole, and the same command "
            f"goes on from there ({str(err).splitlines()[0]})"
        ) from err


def _parts(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    """Neighbours of one type and device, up to so many numbers together."""
    part: list[Any] = []
    size = 0
    for tensor in tensors:
        if part and (size + tensor.numel() > PART or (tensor.dtype, tensor.device) != (part[0].dtype, part[0].device)):
            yield part
            part, size = [], 0
        part.append(tensor)
        size += tensor.numel()
    if part:
        yield part
