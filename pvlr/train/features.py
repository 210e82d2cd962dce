"""Fill a store of features: run the frozen image tower over a split once, view by view."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from pvlr.core.protocols import ImageTower
from pvlr.core.towers import Towers
from pvlr.data.batch import Batch
from pvlr.data.dataset import LabelledImages
from pvlr.data.features import CachedFeatures, FeatureStore, state_of_pictures
from pvlr.data.sampling import EpochSampler
from pvlr.data.transforms import ImageTransform, TransformConfig
from pvlr.train.config import LoopConfig, TowerConfig
from pvlr.train.data_config import Splits
from pvlr.train.evaluate import autocast
from pvlr.train.feed import load_batches
from pvlr.train.monitor import say

__all__ = ["cache_features", "cache_splits"]

SAVE_EVERY = 1000


@torch.no_grad()
def cache_features(
    data: LabelledImages,
    tower: ImageTower,
    folder: Path,
    *,
    fingerprint: str,
    transform: TransformConfig,
    views: int = 1,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | None = None,
    precision: str = "float32",
    watch: Callable[[Iterator[Batch]], Iterator[Batch]] = lambda batches: batches,
) -> CachedFeatures:
    """What a frozen tower sees in every picture of a split: read from a folder, or computed into it.

    An interrupted call leaves what it has computed, and the next one goes on there. Features of another tower, another
    preprocessing or other pictures are removed and computed anew, with a message.

    Args:
        data: The split; its own transform is not used.
        tower: In evaluation mode, on ``device``.
        folder: Of this split's features.
        fingerprint: Of the tower's weights.
        transform: How pictures are shown.
        views: Views of each picture: the first as in evaluation, the others augmented; functions of (seed, view,
            index).
        dtype: In which the vectors are kept.
        batch_size: Pictures that the tower sees at once.
        workers: Processes that read pictures.
        seed: Of the augmented views.
        device: Where the tower is; None: the CPU.
        precision: ``"float32"`` or ``"bf16"``, of the tower.
        watch: Sees the batches go by, for a progress bar or a request to stop.

    Raises:
        DataError: naming the picture that cannot be read, or where the disk is full, or another run uses the folder.
    """
    place = torch.device("cpu") if device is None else device
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
    shape["source"] = getattr(tower, "source_dim", 0)
    store = FeatureStore(folder, key=key, **shape, dtype=dtype)
    if store.renewed:
        say(f"features in {folder} were of another tower, preprocessing or pictures: computed anew")
    if not store.complete:
        need, there = store.bytes_needed / 1e9, f", {store.done:,} are there" if store.done else ""
        say(f"computing the features of {store.rows:,} pictures into {folder}: {need:.2f} GB{there}")
    unsaved = 0
    while not store.complete:
        view, within = divmod(store.done, len(data))
        start, ahead = divmod(within, batch_size)
        pictures = data.with_transform(ImageTransform(transform, train=view > 0))
        sampler = EpochSampler(len(data), batch_size, seed, view, start_step=start)
        try:
            for batch in watch(load_batches(pictures, sampler, workers=workers)):
                with autocast(place, precision):
                    features = tower(batch.image.to(place))
                store.append(*(part[ahead:] for part in features if part is not None))
                unsaved, ahead = unsaved + len(features.patches) - ahead, 0
                if unsaved >= SAVE_EVERY:
                    store.save()
                    unsaved = 0
        except BaseException:
            store.save()
            store.close()  # The next call may come while this one is still remembered.
            raise
        store.save()
    return CachedFeatures(data, store, shown=views)


def cache_splits(
    splits: Splits,
    towers: Towers,
    folder: Path,
    *,
    tower: TowerConfig,
    loop: LoopConfig,
    transform: TransformConfig,
    workers: int,
    device: torch.device,
    watch: Callable[[Iterator[Batch]], Iterator[Batch]],
) -> list[CachedFeatures]:
    """What the frozen tower sees in all parts of a data set, from the disk as far as it is there.

    Args:
        splits: The parts.
        towers: The towers, on ``device``.
        folder: Of the run; the features lie in it, unless ``tower`` names another place.
        tower: How they are kept.
        loop: Batch size, seed and precision.
        transform: How pictures are shown.
        workers: Processes that read pictures.
        device: Where the towers are.
        watch: As for :func:`cache_features`.

    Raises:
        DataError: naming the picture that cannot be read, or where the disk is full.
    """
    place = folder / "features" if tower.feature_folder is None else Path(tower.feature_folder)
    return [
        cache_features(
            part,
            towers.image,
            place / name,
            fingerprint=towers.fingerprint,
            transform=transform,
            views=tower.feature_views if name == "train" else 1,
            dtype=tower.feature_dtype,
            batch_size=loop.eval_batch_size,
            workers=workers,
            seed=loop.seed,
            device=device,
            precision=loop.precision,
            watch=watch,
        )
        for name, part in splits._asdict().items()
        if part is not None
    ]
