"""Batch norm over the images of all ranks: the statistics of a step do not depend on how many processes share it.

``torch.nn.SyncBatchNorm`` does not run on the CPU, and replaces modules, of which some do more than batch norm (timm's
also apply the activation). Here the modules stay: while a step is taken, their calls of ``F.batch_norm`` are replaced.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pvlr.train.distributed import World

__all__ = ["batch_norm_over", "training_batch_norms"]

SIGNATURE = inspect.signature(F.batch_norm)


def training_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that use the statistics of the batch.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(3))
        >>> [part.num_features for part in training_batch_norms(model)]
        [3]
    """
    return [part for part in model.modules() if isinstance(part, _BatchNorm) and part.training]


@contextmanager
def batch_norm_over(model: nn.Module, world: World) -> Iterator[None]:
    """Let the batch norms of a model use the statistics over all ranks during a ``with`` block.

    All ranks run the same forward and backward passes in the block, on at least one image each. The gradients of the
    block's loss are those of its sum over the ranks.

    Args:
        model: The model; its batch norms in evaluation mode are left as they are.
        world: The ranks; one alone changes nothing.
    """
    norms = training_batch_norms(model) if world.size > 1 else []
    for norm in norms:
        # Around each module and not around the model: a checkpointed block runs again in autograd's own threads.
        norm.forward = partial(_run_over, world, norm.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _run_over(world: World, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with _Over(world):
        return forward(x)


class _Over(TorchFunctionMode):
    """Replace ``F.batch_norm`` by its counterpart over all ranks."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.batch_norm:
            return func(*args, **(kwargs or {}))
        given = SIGNATURE.bind(*args, **(kwargs or {}))
        given.apply_defaults()
        return _batch_norm(self.world, given.arguments) if given.arguments["training"] else func(*given.args)


def _batch_norm(world: World, given: Mapping[str, Any]) -> Tensor:
    """Return ``F.batch_norm`` of its arguments, with the statistics over all ranks."""
    x, momentum, mean_so_far, variance_so_far = (
        given[name] for name in ("input", "momentum", "running_mean", "running_var")
    )
    found, mean, variance, count = _Normalised.apply(x, given["eps"], world)
    with torch.no_grad():
        if mean_so_far is not None:
            mean_so_far.lerp_(mean.to(mean_so_far.dtype), momentum)
            variance_so_far.lerp_((variance * count / (count - 1)).to(variance_so_far.dtype), momentum)
    if given["weight"] is not None:
        found = found * _by_channel(given["weight"], x)
    if given["bias"] is not None:
        found = found + _by_channel(given["bias"], x)
    return found.to(x.dtype)  # type: ignore[no-any-return]


class _Normalised(torch.autograd.Function):
    """Values ``b c …`` at mean 0 and variance 1 over all ranks; mean, variance and number of values of a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, world: World) -> tuple[Tensor, Tensor, Tensor, int]:
        values, dims = x.float(), [0, *range(2, x.dim())]
        count = int(world.all_reduce_sum(x.numel() / x.shape[1])[0])
        if count < 2:
            raise ValueError("batch norm: expected more than 1 value per channel in training, got 1")
        # Two passes, since the difference of large sums would lose the digits of a small variance.
        mean = world.all_reduce(values.sum(dims)) / count
        centred = values - _by_channel(mean, x)
        variance = world.all_reduce(centred.square().sum(dims)) / count
        scale = (variance + eps).rsqrt()
        normalised = centred * _by_channel(scale, x)
        ctx.save_for_backward(normalised, scale)
        ctx.world, ctx.count, ctx.dtype = world, count, x.dtype
        ctx.mark_non_differentiable(mean, variance)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        normalised, scale = ctx.saved_tensors
        dims = [0, *range(2, grad.dim())]
        sums = torch.stack([grad.sum(dims), (grad * normalised).sum(dims)])
        of_ones, of_values = ctx.world.all_reduce(sums) / ctx.count
        inner = grad - _by_channel(of_ones, grad) - normalised * _by_channel(of_values, grad)
        return (inner * _by_channel(scale, grad)).to(ctx.dtype), None, None


def _by_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(1, -1, *[1] * (x.dim() - 2))
