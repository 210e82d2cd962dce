"""Caching of features: the frozen image tower is run over a split once, view by view, by all ranks of a run."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvlr.console import say
from pvlr.core.protocols import ImageTower, encode_images
from pvlr.core.towers import Towers
from pvlr.data.batch import Batch
from pvlr.data.dataset import LabelledImages
from pvlr.data.features import CachedFeatures, FeatureDtype, FeatureStore, state_of_pictures
from pvlr.data.sampling import EpochSampler, Share
from pvlr.data.transforms import ImageTransform, TransformConfig
from pvlr.train.config import LoopConfig, TowerConfig
from pvlr.train.data_config import Splits
from pvlr.train.dataloaders import load_batches
from pvlr.train.distributed import World
from pvlr.train.evaluation.predictions import autocast

__all__ = ["FeatureSettings", "cache_features", "cache_splits", "feature_folder"]

SAVE_EVERY = 1000


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Settings of the computation and storage of features.

    Args:
        views: Views of each picture: the first as in evaluation, the others augmented; functions of (seed, view,
            index).
        dtype: Data type in which the vectors are stored.
        batch_size: Pictures of one forward pass of the tower.
        workers: Number of worker processes that read pictures.
        seed: Seed of the augmented views.
        device: Device of the tower.
        precision: Precision of the tower, ``"float32"`` or ``"bf16"``.
        own: Whether to store the patches' own features too, which the tower provides.
    """

    views: int = 1
    dtype: FeatureDtype = "float16"
    batch_size: int = 64
    workers: int = 0
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "float32"
    own: bool = False

    @classmethod
    def of(
        cls, tower: TowerConfig, loop: LoopConfig, *, workers: int, device: torch.device, own: bool
    ) -> "FeatureSettings":
        """Return the settings of a run."""
        return cls(
            views=tower.feature_views,
            dtype=tower.feature_dtype,
            batch_size=loop.eval_batch_size,
            workers=workers,
            seed=loop.seed,
            device=device,
            precision=loop.precision,
            own=own,
        )


@torch.no_grad()
def cache_features(
    data: LabelledImages,
    tower: ImageTower,
    folder: Path,
    *,
    fingerprint: str,
    transform: TransformConfig,
    settings: FeatureSettings | None = None,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches,
    world: World | None = None,
) -> CachedFeatures:
    """Return the frozen tower's features of every picture of a split: read from a folder, or computed into it.

    An interrupted call keeps the features computed so far, and the next call continues there. Features of another
    tower, another preprocessing or other pictures are removed and recomputed, with a message.

    Several ranks share the batches, as in :func:`~pvlr.train.evaluation.predictions.predict_logits`, and rank 0 writes
    the features in order: the files are those of a single process, byte for byte, and any number of ranks continues
    what another number began.

    Args:
        data: The split; its own transform is not used.
        tower: The tower in evaluation mode, on the settings' device.
        folder: Folder of this split's features.
        fingerprint: Fingerprint of the tower's weights.
        transform: Preprocessing and augmentation of the pictures.
        settings: Number of views, data type, device, …; None: the defaults.
        watch: Wrapper of the iterator of batches, for a progress bar or a request to stop.
        world: The ranks that share the batches, which all call this function; None: this process alone.

    Raises:
        DataError: if a picture cannot be read, naming it, or the disk is full, or another run uses the folder.
        Interrupted: if ``watch`` raised it on a rank.
        EndedElsewhere: if the computation failed on another rank.
    """
    world = World() if world is None else world
    settings = FeatureSettings() if settings is None else settings
    views, seed, precision = settings.views, settings.seed, settings.precision
    shown = asdict(transform)
    if views == 1:  # Nothing is augmented.
        shown = {name: shown[name] for name in ("size", "mean", "std", "interpolation")}
    key = {
        "tower": fingerprint,
        "patch_features": getattr(tower, "patch_features", None),
        "image_size": tower.image_size,
        "transform": shown,
        "pictures": list(data.identifiers),
        "files": state_of_pictures(data.paths),
        "views": views,
        "seed": seed if views > 1 else None,
        "precision": precision,
    }
    shape: dict[str, Any] = {"rows": views * len(data), "patches": tower.grid**2, "dim": tower.dim}
    shape["source"], shape["own"] = getattr(tower, "source_dim", 0), getattr(tower, "own_dim", 0) if settings.own else 0
    store = world.on_rank_zero(lambda: _opened(folder, key=key, **shape, dtype=settings.dtype))
    if not store.complete:
        _fill(store, data, tower, transform, settings, watch, world)

    def found() -> CachedFeatures:
        if world.rank == 0:
            return CachedFeatures(data, store, shown=views)
        # A folder on a disk that rank 0 does not write to is filled here.
        return cache_features(
            data, tower, folder, fingerprint=fingerprint, transform=transform, settings=settings, watch=watch
        )

    return world.on_all_ranks(found)


def _opened(folder: Path, **content: Any) -> FeatureStore:
    """Open a store, and print what is to be computed into it."""
    store = FeatureStore(folder, **content)
    if store.renewed:
        say(f"features in {folder} were of another tower, preprocessing or pictures: computed anew")
    if not store.complete:
        megabytes, cached = store.bytes_needed / 1e6, f", {store.done:,} are there" if store.done else ""
        say(f"computing the features of {store.rows:,} pictures into {folder}: {megabytes:,.1f} MB{cached}")
    return store


def _fill(
    store: FeatureStore,
    data: LabelledImages,
    tower: ImageTower,
    transform: TransformConfig,
    settings: FeatureSettings,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]],
    world: World,
) -> None:
    """Compute the rows of a store that are missing: one batch on each rank, all of them written by rank 0, and so on.

    Args:
        store: The store of rank 0; on the other ranks, a copy of it.
        data: As for :func:`cache_features`, as are all others.
    """
    batch_size, done, unsaved = settings.batch_size, store.done, 0

    def encoded(batches: Iterator[Batch]) -> dict[str, Tensor]:
        batch = next(batches, None)
        if batch is None:  # The last batches may be fewer than the ranks.
            return {}
        with autocast(settings.device, settings.precision):
            features = encode_images(tower, batch.image.to(settings.device), threads=True)
        return {name: getattr(features, name).float().cpu() for name in store.files}

    def written(parts: list[dict[str, Tensor]], skipped: int) -> int:
        nonlocal unsaved
        before = store.done
        for part in filter(None, parts):
            store.append(**{name: vectors[skipped:] for name, vectors in part.items()})
            skipped = 0
        unsaved += store.done - before
        if unsaved >= SAVE_EVERY or store.done % len(data) == 0:
            store.save()
            unsaved = 0
        return store.done

    try:
        while done < store.rows:
            view, within = divmod(done, len(data))
            start, ahead = divmod(within, batch_size)
            pictures = data.with_transform(ImageTransform(transform, train=view > 0))
            share = Share(world.rank, world.size, whole=True)
            sampler = EpochSampler(len(data), batch_size, settings.seed, view, start_step=start, share=share)
            batches = watch(load_batches(pictures, sampler, workers=settings.workers))
            while done < (view + 1) * len(data):
                parts = world.gather(world.on_all_ranks(partial(encoded, batches)))
                first = start % world.size  # The rank that has the first batch.
                done, ahead = world.on_rank_zero(partial(written, parts[first:] + parts[:first], ahead)), 0
    except BaseException:
        if world.rank == 0:
            store.save()
        store.close()  # The next call may come before this store is garbage collected.
        raise


def feature_folder(folder: Path, split: str, *, own: bool = False) -> Path:
    """Return the folder of a split's features; those with the patches' own are apart, so that neither replaces another.

    Example:
        >>> feature_folder(Path("features"), "train", own=True).as_posix()
        'features/train-own'
    """
    return folder / (f"{split}-own" if own else split)


def cache_splits(
    splits: Splits,
    towers: Towers,
    folder: Path,
    *,
    transform: TransformConfig,
    settings: FeatureSettings,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]],
    world: World | None = None,
) -> list[CachedFeatures]:
    """Return the frozen tower's features of all splits of a data set, read from the disk as far as they are cached.

    Args:
        splits: The splits.
        towers: The towers, on the settings' device.
        folder: Parent folder of each split's folder of features.
        transform: Preprocessing and augmentation of the pictures.
        settings: Computation and storage of features; all splits but the training split have one view.
        watch: As for :func:`cache_features`.
        world: As for :func:`cache_features`.

    Raises:
        DataError: if a picture cannot be read, naming it, or the disk is full.
        Interrupted: if ``watch`` raised it on a rank.
        EndedElsewhere: if the computation failed on another rank.
    """
    return [
        cache_features(
            part,
            towers.image,
            feature_folder(folder, name, own=settings.own),
            fingerprint=towers.fingerprint,
            transform=transform,
            settings=settings if name == "train" else replace(settings, views=1),
            watch=watch,
            world=world,
        )
        for name, part in splits._asdict().items()
        if part is not None
    ]
