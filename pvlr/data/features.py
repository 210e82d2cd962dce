"""Features of a frozen image tower, computed once and stored in memory-mapped files."""

import errno
import hashlib
import io
import json
import math
import os
import sqlite3
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import ReadWriteLock, Timeout
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pvlr.core.protocols import ImageFeatures, Regions, join_regions
from pvlr.core.shapes import expect
from pvlr.data.archives import Member
from pvlr.data.batch import DataError, Sample
from pvlr.data.dataset import LabelledImages, Source
from pvlr.data.sampling import Draw

__all__ = ["CachedFeatures", "FeatureDtype", "FeatureStore", "state_of_pictures"]

FILES = ("patches", "pooled", "source", "own")
"""Names of the files, without extension: the fields of a tower's output."""
META, PROGRESS, PARTIAL = "features.json", "progress.json", ".partial"
LOCKS, LOCK = "locks", "features.db"
FeatureDtype = Literal["float16", "float32"]
DTYPES = {"float16": np.float16, "float32": np.float32}
LOOKED_AT = 64
"""Number of pictures without a file of their own whose content is hashed to recognise a set of them."""


def state_of_pictures(paths: Sequence[Source]) -> str:
    """Return a digest that changes when pictures do: of each file's size and time, not of its location.

    Of pictures that are neither files nor in archives, it is of the content of 64 of them, evenly spaced.

    Example:
        >>> state_of_pictures([lambda: b"one"]) == state_of_pictures([lambda: b"two"])
        False
    """
    digest = hashlib.sha256()
    others = [source for source in paths if not isinstance(source, Path | Member)]
    for source in paths:
        if isinstance(source, Path | Member):
            inside = (source.offset, source.size) if isinstance(source, Member) else ()
            digest.update(
                repr((*inside, *_size_and_time(source if isinstance(source, Path) else source.archive))).encode()
            )
    for number in range(min(LOOKED_AT, len(others))):
        picture = others[number * len(others) // min(LOOKED_AT, len(others))]()
        if isinstance(picture, str | os.PathLike):
            digest.update(repr(_size_and_time(Path(picture))).encode())
        elif isinstance(picture, Image.Image):
            digest.update(repr((picture.mode, picture.size)).encode())
            digest.update(picture.tobytes())
        else:
            file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
            place = file.tell()
            digest.update(hashlib.sha256(file.read()).digest())
            file.seek(place)
    return digest.hexdigest()


def _size_and_time(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:  # Reading it raises the error.
        return ()
    return found.st_size, found.st_mtime_ns


class FeatureStore:
    """Patch vectors ``rows n d`` and pooled vectors ``rows d`` in a folder, written in order, read in any order.

    The folder stores the ``key`` of its features. Rows written before an interruption stay: a store opened with the
    same key continues after the last row that was synced to disk, one opened with another key starts over. While a
    store is incomplete, no other may be open in the folder; complete ones allow any number of readers, also in
    read-only folders.

    Args:
        folder: Folder of the store, created if absent. Nothing else may be in it.
        key: JSON values that the features depend on: the tower's weights, the preprocessing, the pictures.
        rows: Number of pictures, times views.
        patches: Vectors per picture, ``n``.
        dim: Width of a vector, ``d``.
        source: Width ``k`` of the vectors that the pooled ones were computed from; 0: not stored.
        own: Width ``w`` of the patches' own features; 0: not stored.
        dtype: Type of the stored vectors.

    Attributes:
        done: Number of rows written.
        renewed: Whether features of another key were removed.

    Raises:
        DataError: if the folder holds other files, cannot be written, or is in use for other features.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = FeatureStore(Path(folder, "train"), key={"tower": "x"}, rows=2, patches=4, dim=3)
        ...     store.append(torch.ones(2, 4, 3), torch.zeros(2, 3))
        ...     store.save()
        ...     again = FeatureStore(Path(folder, "train"), key={"tower": "x"}, rows=2, patches=4, dim=3)
        ...     again.done, again.read(1)[0].shape
        (2, torch.Size([4, 3]))
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: Mapping[str, Any],
        rows: int,
        patches: int,
        dim: int,
        source: int = 0,
        own: int = 0,
        dtype: FeatureDtype = "float16",
    ) -> None:
        if dtype not in DTYPES:
            raise DataError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
        self.folder, self.rows, self.dtype = folder, rows, dtype
        self.shapes = {"patches": (patches, dim), "pooled": (dim,), "source": (source,), "own": (patches, own)}
        self._maps: dict[str, np.memmap[Any, Any]] | None = None
        fields = {"key": dict(key), "rows": rows, "patches": patches, "dim": dim, "source": source, "dtype": dtype}
        self._meta = meta = json.loads(json.dumps(fields if own == 0 else {**fields, "own": own}))
        self.renewed, self._lock = False, None
        try:
            self._lock = self._locked()
            if self._holds(meta) and self._progress() == rows:
                self.done = rows
                return
            self._lock_alone("features of another tower, preprocessing or pictures, or not all of them yet")
            self.renewed = self._claim(meta)
            self.done = self._progress()
            for name in self.files:
                # Bytes after the last saved row may be part of a row.
                with (folder / f"{name}.bin").open("ab") as file:
                    file.truncate(self.done * self._row_bytes(name))
            self._share()
        except (OSError, sqlite3.Error) as err:
            reason = getattr(err, "strerror", None) or err
            raise DataError(f"{folder}: expected a folder for features, but {reason}") from None

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files, without extension."""
        return tuple(name for name in FILES if self.shapes[name][-1])

    @property
    def bytes_needed(self) -> int:
        """The size of the whole store on disk, in bytes."""
        return self.rows * sum(map(self._row_bytes, self.files))

    @property
    def complete(self) -> bool:
        """True if every row is written."""
        return self.done == self.rows

    def append(
        self,
        patches: Float[Tensor, "b n d"],
        pooled: Float[Tensor, "b d"],
        source: Float[Tensor, "b k"] | None = None,
        own: Float[Tensor, "b n w"] | None = None,
    ) -> None:
        """Write the next rows, which become permanent with :meth:`save`.

        Raises:
            ShapeError: if the vectors are of another size.
            DataError: if the disk is full; all rows saved so far stay valid.
            ValueError: if a vector does not fit the store's type, or there are too many rows.
        """
        n, dim = self.shapes["patches"]
        rows = expect("patches", patches, "b n d", dtype="float", n=n, d=dim)["b"]
        expect("pooled", pooled, "b d", dtype="float", b=rows, d=dim)
        given = [patches, pooled]
        if "source" in self.files:
            expect("source", source, "b k", dtype="float", b=rows, k=self.shapes["source"][0])  # type: ignore[arg-type]
            given.append(source)  # type: ignore[arg-type]
        if "own" in self.files:
            expect("own", own, "b n w", dtype="float", b=rows, n=n, w=self.shapes["own"][1])  # type: ignore[arg-type]
            given.append(own)  # type: ignore[arg-type]
        if self.done + rows > self.rows:
            raise ValueError(f"patches: expected at most {self.rows - self.done} more rows, got {rows}")
        for name, vectors in zip(self.files, given, strict=True):
            with np.errstate(over="ignore"):  # Refused below.
                content = vectors.detach().float().cpu().numpy().astype(DTYPES[self.dtype])
            if not np.isfinite(content).all():
                raise ValueError(f"{name}: expected finite vectors that {self.dtype} can hold, got others")
            try:
                with (self.folder / f"{name}.bin").open("r+b") as file:
                    file.seek(self.done * self._row_bytes(name))
                    file.write(content.tobytes())
            except OSError as err:
                raise self._full(err) from None
        self.done += rows

    def save(self) -> None:
        """Sync the written rows to disk and store their number.

        Raises:
            DataError: if the disk is full; all rows saved before stay valid.
        """
        try:
            for name in self.files:
                with (self.folder / f"{name}.bin").open("r+b") as file:
                    os.fsync(file.fileno())
            _write(self.folder / PROGRESS, {"done": self.done})
        except OSError as err:
            raise self._full(err) from None
        self._share()

    def close(self) -> None:
        """Release the folder, also for other features; :meth:`read` must not be called afterwards."""
        self._maps = None
        if self._lock is not None:
            self._unlock()
            self._lock = None

    def read(self, row: int) -> tuple[Tensor, ...]:
        """Return patch vectors ``n d``, pooled vector ``d`` and, if stored, source vector ``k``, own features ``n w``.

        They are float32, in the order of :attr:`files`.

        Raises:
            IndexError: if the row is not written.
        """
        if not 0 <= row < self.done:
            raise IndexError(f"row: expected a number from 0 to {self.done - 1}, got {row}")
        if self._maps is None:
            self._maps = {
                name: np.memmap(
                    self.folder / f"{name}.bin", DTYPES[self.dtype], "r", shape=(self.done, *self.shapes[name])
                )
                for name in self.files
            }
        # torch widens float16 many times faster than numpy, which does so number by number.
        return tuple(torch.from_numpy(np.array(self._maps[name][row])).to(torch.float32) for name in self.files)

    def _locked(self) -> ReadWriteLock | None:
        """Return the folder's lock, shared with readers; None if the folder is read-only."""
        place = self.folder / LOCKS / LOCK
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # The system's own error tells a read-only folder from others.
            os.close(os.open(place, os.O_RDWR | os.O_CREAT, 0o666))
        except PermissionError:
            return None
        except OSError as err:
            if err.errno != errno.EROFS:
                raise
            return None
        lock = ReadWriteLock(place, is_singleton=False)
        self._unlock = weakref.finalize(self, lock.close)
        self._read_along(lock)
        return lock

    def _read_along(self, lock: ReadWriteLock) -> None:
        """Hold the lock as one of any number of readers."""
        try:
            lock.acquire_read(blocking=False)
        except Timeout:
            self._unlock()
            raise DataError(
                f"{self.folder}: expected a folder of features that nobody writes, another run is filling it; start "
                "again when it has, or choose another folder"
            ) from None

    def _lock_alone(self, found: str) -> None:
        if self._lock is None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._lock.release()
        try:
            self._lock.acquire_write(blocking=False)
        except Timeout:
            self.close()
            raise DataError(
                f"{self.folder}: expected a folder that no other run uses, since it holds {found}; choose another one"
            ) from None

    def _share(self) -> None:
        """Share the lock with readers if the store is complete."""
        if self.complete and self._lock is not None:
            self._lock.release(force=True)
            self._read_along(self._lock)
            if not self._holds(self._meta):  # Replaced between the two calls.
                self.close()
                raise DataError(f"{self.folder}: expected these features to stay, another run has replaced them")

    def _holds(self, meta: dict[str, Any]) -> bool:
        """Return True if the folder's features have this key."""
        try:
            return bool(json.loads((self.folder / META).read_text(encoding="utf-8")) == meta)
        except (FileNotFoundError, ValueError):
            return False

    def _claim(self, meta: dict[str, Any]) -> bool:
        path = self.folder / META
        renewed = path.is_file()
        if self._holds(meta):
            return False
        # Files that a killed run may have left; the key is replaced last, so that another kill leaves the old one.
        own = [PROGRESS, *(f"{name}.bin" for name in FILES), f"{PROGRESS}{PARTIAL}", f"{META}{PARTIAL}"]
        others = sorted({entry.name for entry in self.folder.iterdir()} - {META, LOCKS, *own})
        if others:
            raise DataError(f"{self.folder}: expected a folder for features alone, found {others[0]!r} in it")
        for name in own:
            (self.folder / name).unlink(missing_ok=True)
        _write(path, meta)
        return renewed

    def _progress(self) -> int:
        try:
            done = int(json.loads((self.folder / PROGRESS).read_text(encoding="utf-8"))["done"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        sizes = [self.folder / f"{name}.bin" for name in self.files]
        there = [
            path.stat().st_size // self._row_bytes(name) if path.is_file() else 0
            for name, path in zip(self.files, sizes, strict=True)
        ]
        return max(0, min(done, self.rows, *there))

    def _row_bytes(self, name: str) -> int:
        return math.prod(self.shapes[name]) * np.dtype(DTYPES[self.dtype]).itemsize

    def _full(self, err: OSError) -> DataError:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            return DataError(
                f"{self.folder}: expected {self.bytes_needed / 1e9:.1f} GB for features, but the disk is full after "
                f"{self.done:,} of {self.rows:,}; they stay, and the same command goes on when there is room"
            )
        return DataError(f"{self.folder}: expected to write features, but {err.strerror or err}")

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps the files for itself; the lock stays with the original.
        return {**self.__dict__, "_maps": None, "_lock": None, "_unlock": None}


class CachedFeatures(Dataset[Sample]):
    """Data set of cached features: samples hold patch vectors of pictures in place of pixels.

    Args:
        data: The pictures.
        store: The features of all pictures, view by view: row ``view * len(data) + index``.
        shown: Number of views in use: a draw's seed selects one of them. 1: the first only.
        regions: Vectors that samples hold, see :func:`~pvlr.core.protocols.join_regions`.
        rows: The pictures in use, in this order; None: all.

    Raises:
        DataError: if the store does not hold all their features.
    """

    def __init__(
        self,
        data: LabelledImages,
        store: FeatureStore,
        *,
        shown: int = 1,
        regions: Regions = "patches",
        rows: Sequence[int] | None = None,
    ) -> None:
        if not store.complete or store.rows % len(data) or store.rows < shown * len(data):
            raise DataError(
                f"{store.folder}: expected the features of {shown * len(data):,} pictures, found {store.done:,}"
            )
        self.data, self.store, self.shown, self.regions = data, store, shown, regions
        self.rows = range(len(data)) if rows is None else tuple(rows)

    def with_regions(self, regions: Regions, *, shown: int | None = None) -> "CachedFeatures":
        """Return the same pictures with other vectors and, if given, another number of views."""
        shown = self.shown if shown is None else shown
        return CachedFeatures(self.data, self.store, shown=shown, regions=regions, rows=self.rows)

    def select(self, rows: Sequence[int]) -> "CachedFeatures":
        """Return some of the pictures, in this order."""
        chosen = [self.rows[row] for row in rows]
        return CachedFeatures(self.data, self.store, shown=self.shown, regions=self.regions, rows=chosen)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int | Draw) -> Sample:
        """Return a sample by its index (its first view), or by a `Draw`, whose seed selects the view."""
        index, seed = position if isinstance(position, Draw) else (position, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected a number from 0 to {len(self) - 1}, got {index}")
        index = self.rows[index]
        stored = self.store.read(seed % self.shown * len(self.data) + index)
        features = {name: part[None] for name, part in zip(self.store.files, stored, strict=True)}
        vectors = join_regions(ImageFeatures(**features), self.regions)[0]
        return Sample(vectors, self.data.target[index], self.data.known[index], index)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file, whole or not at all."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
