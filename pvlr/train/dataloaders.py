"""Data loaders of the splits: batches in a seeded order, and errors for pictures that cannot be read."""

import copy
import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pvlr.core.protocols import Regions
from pvlr.data.batch import Batch, DataError, Sample, collate
from pvlr.data.features import CachedFeatures
from pvlr.data.sampling import Draw, EpochSampler, Share, derive_seed
from pvlr.data.transforms import ImageTransform, TransformConfig
from pvlr.train.config import LoopConfig
from pvlr.train.data_config import DataConfig, Splits
from pvlr.train.distributed import World

__all__ = ["Dataloaders", "SplitDataloaders", "load_batches", "transform_config"]


LOOK_EVERY = 5.0  # Seconds between checks that the training process is alive.


class Unreadable(NamedTuple):
    """Result of a worker in place of a sample that it could not read."""

    reason: str


class _Guarded(Dataset[Sample | Unreadable]):
    """A data set that returns errors as values: an exception of a worker would print a long traceback."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __getitem__(self, position: Draw) -> Sample | Unreadable:
        try:
            return self.dataset[position]
        except DataError as err:
            return Unreadable(str(err))


def _collate(samples: Sequence[Sample | Unreadable]) -> Batch | Unreadable:
    good = []
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
        good.append(sample)
    return collate(good)


def _start_worker(number: int) -> None:
    # Ctrl-C is sent to every process of the terminal, and a batch system's SIGTERM to every process of the job. The
    # training process finishes its step and saves, for which the workers have to stay alive; it then terminates them by
    # SIGTERM, for which they must not inherit its handler.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    if trainer is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_with, args=(trainer,), daemon=True).start()
        return
    # Where the sender of a signal is not available (macOS), a worker leaves the process group of the job.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _exit_with(trainer: BaseProcess) -> None:
    """Exit at a SIGTERM of the training process, ignoring those of other senders, or once that process has ended.

    torch detects the latter only if workers are its direct children, which not every start method makes them.
    """
    while True:
        found = signal.sigtimedwait({signal.SIGTERM}, LOOK_EVERY)
        if (found is not None and found.si_pid == trainer.pid) or not trainer.is_alive():
            os._exit(0)


@contextmanager
def _terminate_held() -> Iterator[None]:
    """Block SIGTERM: workers started meanwhile inherit the mask, so that none is killed before it checks the sender."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Plan(Sampler[list[Draw]]):
    """Batch sampler whose inner sampler is replaced at each pass, while the loader's workers persist."""

    sampler: EpochSampler

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class _Reader:
    """Loader of a data set whose workers persist from the first batch on; for one pass at a time."""

    def __init__(self, dataset: Dataset[Sample], *, workers: int, pin_memory: bool) -> None:
        self._plan = _Plan()
        # By default, a loader draws from the global generator.
        self._generator = torch.Generator()
        self._loader: DataLoader[Batch | Unreadable] = DataLoader(
            _Guarded(dataset),  # type: ignore[arg-type]
            batch_sampler=self._plan,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            worker_init_fn=_start_worker,
            generator=self._generator,
            persistent_workers=workers > 0,
        )

    def read(self, sampler: EpochSampler) -> Iterator[Batch]:
        """Yield the batches of a sampler; the rest of an earlier pass is dropped."""
        self._plan.sampler = sampler
        self._generator.manual_seed(derive_seed(sampler.seed, sampler.epoch))
        with _terminate_held():
            batches = iter(self._loader)
        for batch in batches:
            if isinstance(batch, Unreadable):
                raise DataError(batch.reason)
            yield batch


class Dataloaders:
    """Loader of the splits of a data set, whose batches are functions of (seed, epoch).

    Args:
        train: Training split, with a length and indexed by :class:`~pvlr.data.sampling.Draw`.
        plain: The same pictures without augmentation.
        test: Test split.
        validation: Validation split; None: there is none.
        loop: Batch sizes and seed.
        workers: Number of worker processes.
        pin_memory: Whether batches are in pinned memory.
        world: The ranks that share the batches; None: this process alone.
    """

    def __init__(
        self,
        train: Dataset[Sample],
        plain: Dataset[Sample],
        test: Dataset[Sample],
        validation: Dataset[Sample] | None = None,
        *,
        loop: LoopConfig,
        workers: int = 0,
        pin_memory: bool = False,
        world: World | None = None,
    ) -> None:
        self._train, self._plain, self._test, self._validation = train, plain, test, validation
        self._loop, self._workers, self._pin = loop, workers, pin_memory
        self._world = World() if world is None else world
        self._readers: dict[int, _Reader] = {}

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches of one pass over the training split; the last may be smaller."""
        return len(EpochSampler(_size(self._train), self._loop.batch_size))

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return augmented, shuffled batches of an epoch from batch ``start`` on: this rank's share of each.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        sampler = EpochSampler(
            _size(self._train),
            self._loop.batch_size,
            self._loop.seed,
            epoch,
            shuffle=True,
            start_step=start,
            share=Share(self._world.rank, self._world.size),
        )
        return self._read(self._train, sampler)

    def plain_training(self, *, shuffle: bool = False, shared: bool = False) -> Iterator[Batch]:
        """Return the batches of the training split without augmentation.

        Args:
            shuffle: Return them in a random order.
            shared: See :meth:`testing`.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        loop, share = self._loop, self._share(shared)
        sampler = EpochSampler(_size(self._plain), loop.eval_batch_size, loop.seed, shuffle=shuffle, share=share)
        return load_batches(self._plain, sampler, workers=self._workers, pin_memory=self._pin)

    def testing(self, *, shared: bool = False) -> Iterator[Batch]:
        """Return the batches of the test split, in order, each picture once.

        Args:
            shared: Return only this rank's batches, of those that a single process would have.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        return self._in_order(self._test, shared)

    def evaluating(self, *, shared: bool = False) -> Iterator[Batch]:
        """Return the batches evaluated during training: the validation split, or the test split if there is none.

        Args:
            shared: See :meth:`testing`.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        return self._in_order(self._test if self._validation is None else self._validation, shared)

    def _in_order(self, dataset: Dataset[Sample], shared: bool) -> Iterator[Batch]:
        sampler = EpochSampler(_size(dataset), self._loop.eval_batch_size, share=self._share(shared))
        return self._read(dataset, sampler)

    def _share(self, shared: bool) -> Share:
        return Share(self._world.rank, self._world.size, whole=True) if shared else Share()

    def _read(self, dataset: Dataset[Sample], sampler: EpochSampler) -> Iterator[Batch]:
        """Return the batches of a sampler, read by persistent workers, which start once and not at every epoch."""
        if id(dataset) not in self._readers:
            self._readers[id(dataset)] = _Reader(dataset, workers=self._workers, pin_memory=self._pin)
        return self._readers[id(dataset)].read(sampler)


def load_batches(
    dataset: Dataset[Sample], sampler: EpochSampler, *, workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """Return the batches of a sampler, in its order, read by ``workers`` processes.

    Raises:
        DataError: naming the picture that cannot be read.
    """
    return _Reader(dataset, workers=workers, pin_memory=pin_memory).read(sampler)


class SplitDataloaders(Dataloaders):
    """Loader of the splits of a data set with the configured augmentation.

    Args:
        splits: The training split, the test split and, optionally, the validation split.
        data: Augmentation and number of workers.
        loop: Batch sizes and seed.
        transform: Size, mean, standard deviation and interpolation of the tower; the augmentation is ``data``'s.
        pin_memory: Whether batches are in pinned memory.
        world: The ranks that share the batches; None: this process alone.

    Attributes:
        labels: The labels of all splits.
        summaries: One line on each split.
        digest: sha256 over the names of the labels, and over the splits' picture names and labels.
    """

    def __init__(
        self,
        splits: Splits,
        data: DataConfig,
        *,
        loop: LoopConfig,
        transform: TransformConfig,
        pin_memory: bool = False,
        world: World | None = None,
    ) -> None:
        augmented, plain = ImageTransform(transform, train=True), ImageTransform(transform)
        super().__init__(
            splits.train.with_transform(augmented),
            *(part.with_transform(plain) for part in splits if part is not None),
            loop=loop,
            workers=data.workers,
            pin_memory=pin_memory,
            world=world,
        )
        parts = [part for part in splits if part is not None]
        self.labels = splits.train.labels
        # Parts of one table have one name.
        roles = [role for role, part in splits._asdict().items() if part is not None]
        alike = len({part.name for part in parts}) < len(parts)
        self.summaries = tuple(
            f"{role}: {part.summary()}" if alike else part.summary() for role, part in zip(roles, parts, strict=True)
        )
        self.digest = hashlib.sha256(" ".join(part.digest() for part in parts).encode()).hexdigest()

    def from_features(
        self,
        train: CachedFeatures,
        test: CachedFeatures,
        validation: CachedFeatures | None = None,
        *,
        regions: Regions = "patches",
    ) -> "SplitDataloaders":
        """Return a loader of the cached features of the same splits, which are read in the training process."""
        other = copy.copy(self)
        other._train, other._test = train.with_regions(regions), test.with_regions(regions)
        other._plain = train.with_regions(regions, shown=1)
        other._validation = None if validation is None else validation.with_regions(regions)
        other._workers, other._readers = 0, {}
        return other


def transform_config(preprocess: dict[str, object], data: DataConfig | None = None) -> TransformConfig:
    """Return the tower's preprocessing, with a configuration's augmentation (None: without any).

    Args:
        preprocess: ``mean``, ``std``, ``size`` and ``interpolation``, as a tower provides them.
        data: For ``crop``, ``flip``, ``rand_augment`` and ``cutout``.
    """
    return TransformConfig(
        size=int(str(preprocess["size"])),
        mean=tuple(preprocess["mean"]),  # type: ignore[arg-type]
        std=tuple(preprocess["std"]),  # type: ignore[arg-type]
        interpolation=str(preprocess["interpolation"]),
        crop=1.0 if data is None else data.crop,
        flip=data is not None and data.flip,
        rand_augment=data is not None and data.rand_augment,
        cutout=0.0 if data is None else data.cutout,
    )


def _size(dataset: Dataset[Sample]) -> int:
    return len(dataset)  # type: ignore[arg-type]
