"""Where to compute, and how: a device by its name, results that repeat, compiled code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pvlr.core.baselines import BaselineModel
from pvlr.core.model import PVLR
from pvlr.train.config import ConfigError

__all__ = ["compile_model", "determinism", "find_device", "one_core_free", "require_compiler"]


def find_device(name: str, *, field: str = "device") -> torch.device:
    """The device of a name.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:<number>``.
        field: What the name was given as, for the message.

    Raises:
        ConfigError: where this is no such name, or the machine has no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{field}: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got {name!r}")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        raise ConfigError(f"{field}: expected a device of this machine, {name!r} is not there")
    return device


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Compute the same at every run of the same machine, during a ``with`` block.

    On a CPU it is so anyway. On a GPU torch is told to use algorithms whose sums have one order, and cuBLAS to use a
    workspace of its own per stream, which it reads when it is first used: before the block nothing may be computed.
    An operation that has no such algorithm ends the run with its name.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # The fastest of several algorithms is another one each time.
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def one_core_free(device: torch.device) -> Iterator[None]:
    """Compute on a CPU with a thread less than there are cores, during a ``with`` block.

    OpenMP's threads wait for each other in a loop, so as soon as one of them has to share its core, with a process that
    reads pictures or with anything else, all cores are busy with waiting. Measured on two cores with the quickstart's
    tower and two reading processes, in images per second: with two threads 17 to 50 beside another busy process, where
    one thread makes 180; alone on the machine about 180 either way. Without readers two threads make 311, one 253;
    beside a busy process 154 and 212. The number of threads decides how sums are rounded, so it does not depend on
    ``data.workers``, with which a run may go on as it likes. ``OMP_NUM_THREADS`` has precedence.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, min(before, cores - 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def require_compiler(device: torch.device, *, field: str = "loop.compile") -> None:
    """Refuse a machine on which ``torch.compile`` does not work, by compiling next to nothing.

    Raises:
        ConfigError: with the compiler's own reason.
    """
    try:
        torch.compile(_next_to_nothing)(torch.zeros(8, device=device))
    except RuntimeError as err:  # A compiler that is missing or too old for the installed torch, or does not start.
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"{field}: expected a machine that can compile for {device.type}, but {reason}") from None


def compile_model(model: PVLR | BaselineModel, *, of_features: bool = False) -> None:
    """Compile a model in place: names of weights stay what they are, since nothing is put around it.

    Args:
        model: The model.
        of_features: Whether it is given patch vectors and not images.
    """
    if of_features:
        model.forward_features = torch.compile(model.forward_features)  # type: ignore[method-assign,assignment]
    else:
        model.compile()


def _next_to_nothing(x: Tensor) -> Tensor:
    return x.sin() + 1
