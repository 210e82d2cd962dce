"""The process group of a run: rank and world size, broadcast, all-gather and all-reduce, and errors on other ranks.

torchrun starts the processes and sets the rank of each; without it the world size is 1. Gradients are summed by plain
all-reduce, in a few large buckets once a step, and not by ``DistributedDataParallel``, which averages over ranks,
requires a backward pass of each at every step and wraps the model in a module. Here a rank may have fewer images than
another, or none, and accumulation needs no communication. The cost: no overlap with the backward pass.
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

from pvlr.console import is_rank_zero
from pvlr.inference.device import find_device
from pvlr.train.config import ConfigError
from pvlr.train.stop import Interrupted, StopRequest

__all__ = [
    "EndedElsewhere",
    "ProcessLost",
    "World",
    "barrier",
    "destroy_process_group",
    "join_world",
    "reports_failure",
]

T = TypeVar("T")

# Timeouts of collectives within a step, and of work that rank 0 does alone (a data set to download, features to
# compute). A rank that has ended is detected at once.
TIMEOUT = timedelta(minutes=10)
PATIENCE = timedelta(days=2)
PART = 2**24  # Elements of a bucket, which are reduced in one call.
GRACE = 3.0  # Seconds that rank 0 waits in the final barrier, since it hosts the store.


class EndedElsewhere(ValueError):
    """Error raised on all other ranks if a rank has raised one, which that rank reports."""


class ProcessLost(RuntimeError):
    """Error raised if another rank of the run has ended without an error message, or does not respond."""


class World:
    """The process group of a run, seen from one rank.

    All methods but :meth:`device` are collective: called by all ranks, in the same order.

    Attributes:
        rank: Rank of this process, from 0.
        size: World size.

    Args:
        rank: As above.
        size: As above.
        local_rank: Rank of this process among those of its machine.
        store: Key-value store of the process group, for counters.

    Example:
        >>> world = World()
        >>> world.all_reduce_sum(2, 0.5), world.all_gather("a"), world.on_rank_zero(lambda: 3)
        ([2.0, 0.5], ['a'], 3)
    """

    def __init__(self, rank: int = 0, size: int = 1, *, local_rank: int = 0, store: Any = None) -> None:
        self.rank, self.size = rank, size
        self._local_rank, self._store = local_rank, store
        self._long_timeout_group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if size > 1 else None

    def device(self, name: str, *, field: str = "device") -> torch.device:
        """Return the device of a name; with several ranks, the GPU of the local rank.

        Raises:
            ConfigError: if the device does not exist, or would be shared.
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

    def all_gather_int(self, number: int) -> list[int]:
        """All-gather an integer; return those of all ranks, by rank."""
        if self.size == 1:
            return [number]
        every = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _raising_process_lost():
            dist.all_gather(every, torch.tensor([number]))
        return [int(one) for one in every]

    def all_reduce_sum(self, *numbers: int | float) -> list[float]:
        """All-reduce numbers; return their sums over all ranks, in float64."""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.size > 1:
            with _raising_process_lost():
                dist.all_reduce(total)
        return [float(one) for one in total.tolist()]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """All-reduce a tensor in place; return it, the sum over all ranks."""
        if self.size > 1:
            with _raising_process_lost():
                dist.all_reduce(tensor)
        return tensor

    def all_gather(self, value: T) -> list[T]:
        """All-gather a picklable object; return those of all ranks, by rank."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size
        with _raising_process_lost():
            dist.all_gather_object(every, value)
        return every

    def gather(self, value: T) -> list[T]:
        """Gather a picklable object on rank 0: return those of all ranks, by rank, there, and none on the others."""
        if self.size == 1:
            return [value]
        every: list[Any] = [None] * self.size if self.rank == 0 else []
        with _raising_process_lost():
            dist.gather_object(value, every if self.rank == 0 else None, dst=0)
        return every

    def on_all_ranks(self, work: Callable[[], T], *, stop: StopRequest | None = None) -> T:
        """Call a function on every rank and return its local result; raise on all ranks if it failed on one.

        Args:
            work: Function of this rank, without collective calls.
            stop: If any rank received a stop request, it is agreed upon by all ranks here.

        Raises:
            Interrupted: if the function was interrupted on a rank.
            EndedElsewhere: if the function failed on another rank.
        """
        if self.size == 1:
            result = work()
            if stop is not None:
                stop.agreed = stop.requested
            return result
        outcome: T | None = None
        failure: Exception | None = None
        try:
            outcome = work()
        except Exception as err:
            failure = err
        status = 0 if failure is None else failure.signal_number if isinstance(failure, Interrupted) else -1
        statuses = self.all_gather_int(status)
        if failure is not None and (status == -1 or -1 not in statuses):
            raise failure
        self._raise_if_failed(-1 if -1 in statuses else max(statuses))
        if stop is not None:
            requested = max(self.all_gather_int(stop.requested or 0))
            if requested:
                stop.requested = stop.agreed = requested
        return outcome  # type: ignore[return-value]

    def on_rank_zero(self, work: Callable[[], T]) -> T:
        """Call a function on rank 0 and broadcast its result, as a pickle; the other ranks wait for it.

        Raises:
            Interrupted: if the function was interrupted.
            EndedElsewhere: on the other ranks, if the function failed.
        """
        if self.size == 1:
            return work()
        payload: list[Any] = [0, None]  # Status and result.
        failure: Exception | None = None
        if self.rank == 0:
            try:
                payload[1] = work()
            except Exception as err:
                failure = err
                payload[0] = err.signal_number if isinstance(err, Interrupted) else -1
        with _raising_process_lost():
            dist.broadcast_object_list(payload, src=0, group=self._long_timeout_group)
        if failure is not None:
            raise failure
        self._raise_if_failed(payload[0])
        return payload[1]  # type: ignore[no-any-return]

    def rank_zero_first(self, work: Callable[[], T]) -> T:
        """Call a function on rank 0, then on the other ranks: files that it downloads or creates are created once.

        Raises:
            Interrupted: if the function was interrupted on a rank.
            EndedElsewhere: if the function failed on another rank.
        """
        made: list[T] = []
        self.on_rank_zero(lambda: made.append(work()))
        return self.on_all_ranks(lambda: made.pop() if made else work())

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Broadcast tensors of rank 0 into those of all ranks, in place."""
        if self.size == 1:
            return
        for part in _parts(list(tensors)):
            flat = torch.cat([tensor.reshape(-1) for tensor in part])
            with _raising_process_lost():
                dist.broadcast(flat, src=0)
            for tensor, values in zip(part, torch.split(flat, [tensor.numel() for tensor in part]), strict=True):
                tensor.copy_(values.view_as(tensor))

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """All-reduce gradients: replace each by its sum over all ranks.

        A parameter without a gradient on this rank counts as 0; one without a gradient on any rank keeps none.
        """
        if self.size == 1:
            return
        counts = self.all_reduce_sum(*(float(parameter.grad is not None) for parameter in parameters))
        used = [parameter for parameter, count in zip(parameters, counts, strict=True) if count]
        for part in _parts(used):
            grads = [torch.zeros_like(one) if one.grad is None else one.grad for one in part]
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            with _raising_process_lost():
                dist.all_reduce(flat)
            for parameter, values in zip(part, torch.split(flat, [one.numel() for one in part]), strict=True):
                parameter.grad = values.view_as(parameter)

    def _raise_if_failed(self, status: int) -> None:
        """Raise the error of another rank's status: 0 is none, -1 an error, any other the number of a signal."""
        if status > 0:
            name = signal.Signals(status).name
            raise Interrupted(f"{name} in another process; the training so far is saved", status)
        if status:
            raise EndedElsewhere("another process has refused to go on")


_joined: World | None = None


def join_world(timeout: timedelta = TIMEOUT) -> World:
    """Initialise the process group that torchrun started and return it; without torchrun, a world of size 1.

    The backend is gloo for CPU tensors and NCCL for GPU tensors. Later calls return the same group.

    Args:
        timeout: Timeout of the initialisation and of collectives.

    Raises:
        ProcessLost: if the other ranks do not join.
    """
    global _joined
    if _joined is None:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return World()
        if not is_rank_zero():
            logging.getLogger("pvlr").setLevel(logging.ERROR)  # Rank 0 warns.
        backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() and torch.cuda.is_available() else "gloo"
        with _raising_process_lost():
            store, rank, size = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
            # Keys with a prefix, apart from those that torch writes.
            counters = dist.PrefixStore("pvlr", store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            world = World(rank, size, local_rank=int(os.environ.get("LOCAL_RANK", str(rank))), store=counters)
        world.all_gather_int(rank)  # A rank that fails at once must not exit before all have joined.
        _joined = world
    return _joined


def destroy_process_group() -> None:
    """Destroy the process group, at the end of a successful run."""
    global _joined
    if _joined is not None:
        _joined = None
        dist.destroy_process_group()


def reports_failure() -> bool:
    """Return True on the rank that prints how the run ended: of several that fail, the first one to call this."""
    if _joined is None or _joined._store is None:
        return is_rank_zero()
    try:
        return bool(_joined._store.add("reported", 1) == 1)
    except RuntimeError:  # Rank 0, which hosts the store, has ended as well.
        return is_rank_zero()


def barrier() -> None:
    """Let rank 0, which hosts the store, wait for the other ranks before the end of a failed run.

    Without it a rank that reads the store later finds it closed, for which torch prints a long traceback. It waits for
    a few seconds at most, since another rank may have ended already.
    """
    if _joined is None or _joined._store is None:
        return
    try:
        ended, deadline = _joined._store.add("ended", 1), time.monotonic() + GRACE
        while is_rank_zero() and ended < _joined.size and time.monotonic() < deadline:
            time.sleep(0.02)
            ended = _joined._store.add("ended", 0)
    except RuntimeError:  # As above.
        return


@contextmanager
def _raising_process_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as err:
        raise ProcessLost(
            "another process of this run has ended or does not answer; what was saved is whole, and the same command "
            f"goes on from there ({str(err).splitlines()[0]})"
        ) from err


def _parts(tensors: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield buckets of consecutive tensors of one dtype and device, of at most ``PART`` elements or one tensor."""
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
