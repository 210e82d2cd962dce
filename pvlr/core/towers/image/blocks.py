"""Interface of the kinds of image towers, and execution of their blocks with or without gradient checkpointing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from pvlr.core.protocols import ImageFeatures
from pvlr.core.towers.errors import TowerError

__all__ = ["Block", "Family", "PatchFeatures", "RunBlock", "run_block", "run_block_twice", "side", "wider"]

PatchFeatures = Literal["value", "final"]
# Modules that count as one block: the downsampling at the beginning of a stage belongs to the stage's first block.
Block = Sequence[nn.Module]
# Function that runs a block: the block, the function to call (its modules, or one that uses their parameters), the
# input.
RunBlock = Callable[[Block, Callable[[Tensor], Tensor], Tensor], Tensor]


class Family(NamedTuple):
    """Functions and sizes of one kind of image tower.

    Attributes:
        features: Function of the tower, images ``b 3 s s``, the kind of patches and a function that runs blocks.
        resize: Sets the tower to another image size, in place.
        blocks: The tower's blocks, first to last.
        tail: Modules after the blocks: norm, pool, projection.
        stride: Pixels along one side of a patch.
        size: Side of the images it takes, in pixels.
        dim: Width of the joint space (``d``).
        source_dim: Width of the features that the pooled vector is computed from, where they are provided; else 0.
        own_dim: Width of the features that each patch vector is computed from, where it is larger than ``dim``; else 0.
    """

    features: Callable[[Any, Tensor, PatchFeatures, RunBlock], ImageFeatures]
    resize: Callable[[Any, int], None]
    blocks: Callable[[Any], list[Block]]
    tail: Callable[[Any], list[nn.Module | nn.Parameter]]
    stride: int
    size: int
    dim: int
    source_dim: int = 0
    own_dim: int = 0


def side(size: Any, what: str) -> int:
    """Return the side of a square size.

    Raises:
        TowerError: naming ``what`` is not square.
    """
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise TowerError(f"image tower: expected a square {what}, got {height} × {width}")
    return int(height)


def wider(own: int, dim: int) -> int:
    """Return the width of features, where it is larger than that of the joint space; else 0."""
    return own if own > dim else 0


def run_block(block: Block, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a block as it is."""
    return call(x)


def run_block_twice(block: Block, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Store only a block's input for the backward pass, which runs the block again (arXiv 1604.06174).

    The blocks are deterministic, so no generator's state is stored.
    """
    if not x.requires_grad and not any(value.requires_grad for part in block for value in part.parameters()):
        return call(x)  # frozen, like all blocks before it: the backward pass does not reach it
    if not _batch_norms(block):
        return checkpoint(call, x, use_reentrant=False, preserve_rng_state=False)
    if torch.compiler.is_compiling():  # The contexts of the second run cannot be traced.
        return torch.compiler.disable(_run_holding_statistics)(block, call, x)  # type: ignore[no-untyped-call,no-any-return]
    return _run_holding_statistics(block, call, x)


def _run_holding_statistics(block: Block, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _statistics_held(block)

    return checkpoint(call, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _batch_norms(block: Block) -> list[_BatchNorm]:
    return [part for module in block for part in module.modules() if isinstance(part, _BatchNorm) and part.training]


@contextmanager
def _statistics_held(block: Block) -> Iterator[None]:
    """Restore the running statistics after the second run of a batch, which must not count twice."""
    saved = [(norm, dict(norm.named_buffers(recurse=False))) for norm in _batch_norms(block)]
    for norm, buffers in saved:
        for name, buffer in buffers.items():
            setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, buffers in saved:
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)
