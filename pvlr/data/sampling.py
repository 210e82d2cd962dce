"""Order and randomness of samples, as functions of (seed, epoch, index) only."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from pvlr.data.batch import DataError

__all__ = ["Draw", "EpochSampler", "Share", "derive_seed"]


def derive_seed(*parts: int) -> int:
    """Mix numbers into one seed in [0, 2⁶³), by SHA-256 of their decimal digits.

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    digest = hashlib.sha256(",".join(str(int(part)) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Draw(NamedTuple):
    """Request of a sampler to a data set: a position, and the seed of all randomness of that sample.

    The seed is passed with the position, so a worker needs neither the epoch nor its own number.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed here
    seed: int


class Share(NamedTuple):
    """The part of the batches that one process reads.

    Attributes:
        rank: Number of the process, in [0, world).
        world: Number of processes.
        whole: Whether whole batches are divided among the processes, instead of the samples of each batch.
    """

    rank: int = 0
    world: int = 1
    whole: bool = False


ALL = Share()


class EpochSampler(Sampler[list[Draw]]):
    """Sampler of the batches of one epoch, as lists of `Draw`: the `batch_sampler` of a data loader.

    Every sample occurs exactly once; the last batch may be smaller, none is padded or dropped. The order is a function
    of (seed, epoch), so the only state of a loader is the step: an epoch started at `start_step` yields exactly the
    remaining batches. Several processes share the same batches: each reads its part of every batch, the parts as equal
    as possible and in the order of the ranks (a process without a part of a small last batch skips it), or (`whole`)
    every `world`-th batch.

    Args:
        n: number of samples.
        batch_size: samples per batch.
        seed: seed of the run.
        epoch: number of the epoch; without `shuffle` it changes the draws' seeds only.
        shuffle: whether the order is random.
        start_step: number of batches to skip at the beginning.
        share: part of the batches that this process reads.

    Raises:
        DataError: naming the argument that is out of range.

    Example:
        >>> [[draw.index for draw in batch] for batch in EpochSampler(5, 2, seed=0, epoch=0, shuffle=False)]
        [[0, 1], [2, 3], [4]]
        >>> len(EpochSampler(5, 2, seed=0, epoch=0, shuffle=True, start_step=1))
        2
        >>> [[draw.index for draw in batch] for batch in EpochSampler(8, 5, share=Share(rank=1, world=2))]
        [[3, 4], [7]]
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        shuffle: bool = False,
        start_step: int = 0,
        *,
        share: Share = ALL,
    ) -> None:
        rank, world, whole = share
        for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("epoch", epoch, 0)):
            if value < least:
                raise DataError(f"{name}: expected a number of at least {least}, got {value}")
        batches = -(-n // batch_size)
        if not 0 <= start_step <= batches:
            raise DataError(f"start_step: expected a number from 0 to the {batches} batches, got {start_step}")
        if not 0 <= rank < world:
            raise DataError(f"rank: expected a number from 0 to {world - 1}, got {rank}")
        if not whole and batch_size < world:
            raise DataError(f"batch_size: expected a sample for each of the {world} processes, got {batch_size}")
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, epoch
        self.shuffle, self.start_step, self.batches = shuffle, start_step, batches
        self.rank, self.world, self.whole = rank, world, whole

    def __len__(self) -> int:
        return sum(1 for _ in self._bounds())

    def __iter__(self) -> Iterator[list[Draw]]:
        order = list(range(self.n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.n, generator=generator).tolist()
        for start, end in self._bounds():
            yield [Draw(index, derive_seed(self.seed, self.epoch, index)) for index in order[start:end]]

    def _bounds(self) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each batch of this process in the order of all samples."""
        for number in range(self.start_step, self.batches):
            start = number * self.batch_size
            size = min(self.batch_size, self.n - start)
            if not self.whole:
                share, more = divmod(size, self.world)
                start, size = start + self.rank * share + min(self.rank, more), share + (self.rank < more)
            elif number % self.world != self.rank:
                continue
            if size:
                yield start, start + size

    def __repr__(self) -> str:
        return (
            f"EpochSampler(n={self.n}, batch_size={self.batch_size}, seed={self.seed}, epoch={self.epoch}, "
            f"shuffle={self.shuffle}, start_step={self.start_step}, "
            f"share={Share(self.rank, self.world, self.whole)})"
        )
