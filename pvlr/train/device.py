"""Deterministic algorithms, number of CPU threads and compilation of models."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pvlr.core.models.baselines import BaselineModel
from pvlr.core.models.network import PVLR
from pvlr.train.config import ConfigError

__all__ = ["compile_model", "determinism", "one_core_free", "require_compiler"]


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Use deterministic algorithms during a ``with`` block: the same results at every run on the same machine.

    A CPU is always deterministic. On a GPU torch is set to use deterministic algorithms, and cuBLAS to use one
    workspace per stream, a setting that is read at its first use: nothing may be computed before the block. An
    operation without a deterministic algorithm raises an error with its name.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False  # The fastest of several algorithms differs between runs.
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def one_core_free(device: torch.device) -> Iterator[None]:
    """Compute on a CPU with one thread fewer than there are cores, during a ``with`` block.

    OpenMP's threads busy-wait for each other, so as soon as one of them has to share its core, with a worker process or
    any other, all cores are busy with waiting. Measured on two cores with the quickstart's
    tower and two worker processes, in images per second: with two threads 17 to 50 beside another busy process, where
    one thread makes 180; alone on the machine about 180 either way. Without workers two threads make 311, one 253;
    beside a busy process 154 and 212. The number of threads affects how sums are rounded, so it does not depend on
    ``data.workers``, which may change when a run is resumed. ``OMP_NUM_THREADS`` has precedence.
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
    """Check that ``torch.compile`` works on this machine, by compiling a tiny function.

    Raises:
        ConfigError: if not, with the message of the compiler.
    """
    try:
        torch.compile(_tiny_function)(torch.zeros(8, device=device))
    except RuntimeError as err:  # A compiler that is missing or too old for the installed torch, or does not start.
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise ConfigError(f"{field}: expected a machine that can compile for {device.type}, but {reason}") from None


def compile_model(model: PVLR | BaselineModel, *, of_features: bool = False) -> None:
    """Compile a model in place, without a wrapper module: the names of its weights stay the same.

    Args:
        model: The model.
        of_features: Whether its inputs are patch vectors and not images.
    """
    if of_features:
        model.forward_features = torch.compile(model.forward_features)  # type: ignore[method-assign,assignment]
    else:
        model.compile()


def _tiny_function(x: Tensor) -> Tensor:
    return x.sin() + 1
