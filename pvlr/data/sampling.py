"""Which samples, in which order, with which randomness: functions of (seed, epoch, index) and nothing else."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pvlr.data.batch import Batch, DataError, Sample, collate

__all__ = ["Draw", "EpochSampler", "derive_seed", "make_loader"]


def derive_seed(*parts: int) -> int:
    """Mix numbers into one seed in [0, 2⁶³), by SHA-256 of their decimal digits.

    Example:
        >>> derive_seed(0, 1) == derive_seed(0, 1), derive_seed(0, 1) == derive_seed(1, 0)
        (True, False)
    """
    digest = hashlib.sha256(",".join(str(int(part)) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Draw(NamedTuple):
    """What a sampler asks a data set for: a position, and the seed of everything random about that sample.

    The seed travels with the position, so a worker needs to know neither the epoch nor who it is.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    seed: int


class EpochSampler(Sampler[list[Draw]]):
    """The batches of one epoch, as lists of `Draw`: the `batch_sampler` of a data loader.

    Every sample comes exactly once; the last batch may be smaller, none is padded or dropped. The order is a function
    of (seed, epoch), so the only state of a loader is the step: an epoch entered at `start_step` gives exactly the
    batches that were left.

    Args:
        n: number of samples.
        batch_size: samples a batch.
        seed: seed of the run.
        epoch: number of the epoch; without `shuffle` it changes the draws' seeds only.
        shuffle: whether the order is random.
        start_step: number of batches to leave out at the beginning.

    Raises:
        DataError: naming the argument that is out of range.

    Example:
        >>> [[draw.index for draw in batch] for batch in EpochSampler(5, 2, seed=0, epoch=0, shuffle=False)]
        [[0, 1], [2, 3], [4]]
        >>> len(EpochSampler(5, 2, seed=0, epoch=0, shuffle=True, start_step=1))
        2
    """

    def __init__(
        self, n: int, batch_size: int, seed: int = 0, epoch: int = 0, shuffle: bool = False, start_step: int = 0
    ) -> None:
        for name, value, least in (("n", n, 1), ("batch_size", batch_size, 1), ("epoch", epoch, 0)):
            if value < least:
                raise DataError(f"{name}: expected a number of at least {least}, got {value}")
        batches = -(-n // batch_size)
        if not 0 <= start_step <= batches:
            raise DataError(f"start_step: expected a number from 0 to the {batches} batches, got {start_step}")
        self.n, self.batch_size, self.seed, self.epoch = n, batch_size, seed, epoch
        self.shuffle, self.start_step, self.batches = shuffle, start_step, batches

    def __len__(self) -> int:
        return self.batches - self.start_step

    def __iter__(self) -> Iterator[list[Draw]]:
        order = list(range(self.n))
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
            order = torch.randperm(self.n, generator=generator).tolist()
        for start in range(self.start_step * self.batch_size, self.n, self.batch_size):
            chosen = order[start : start + self.batch_size]
            yield [Draw(index, derive_seed(self.seed, self.epoch, index)) for index in chosen]

    def __repr__(self) -> str:
        return (
            f"EpochSampler(n={self.n}, batch_size={self.batch_size}, seed={self.seed}, epoch={self.epoch}, "
            f"shuffle={self.shuffle}, start_step={self.start_step})"
        )


def make_loader(
    dataset: Dataset[Sample],
    *,
    batch_size: int,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    start_step: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A loader of the batches of one epoch; they are the same bit for bit whatever the number of workers.

    Args:
        dataset: takes a `Draw` as position, as `VOCDataset` does, and has a length.
        batch_size: samples a batch.
        seed: seed of the run.
        epoch: number of the epoch.
        shuffle: whether the order is random; false for evaluation.
        start_step: number of batches to leave out at the beginning.
        workers: processes that decode; 0 decodes in this one.
        pin_memory: whether batches lie where a GPU copies from fastest.

    Raises:
        DataError: naming the argument that is out of range.

    Example:
        >>> sample = Sample(torch.ones(3, 2, 2), torch.ones(1), torch.ones(1, dtype=torch.bool), index=0)
        >>> class Three(Dataset):
        ...     def __len__(self): return 3
        ...     def __getitem__(self, draw): return sample._replace(index=draw.index)
        >>> [batch.index.tolist() for batch in make_loader(Three(), batch_size=2)]
        [[0, 1], [2]]
    """
    if workers < 0:
        raise DataError(f"workers: expected a number of at least 0, got {workers}")
    sampler = EpochSampler(len(dataset), batch_size, seed, epoch, shuffle, start_step)  # type: ignore[arg-type]
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        # Left to itself, a loader takes the workers' seed from the global generator and so moves everybody else's.
        generator=torch.Generator().manual_seed(derive_seed(seed, epoch)),
    )
