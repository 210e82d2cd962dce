"""What a frozen image tower sees, computed once and kept in files that are mapped into memory."""

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from pvlr.core.shapes import expect
from pvlr.data.batch import DataError, Sample
from pvlr.data.dataset import LabelledImages
from pvlr.data.sampling import Draw

__all__ = ["CachedFeatures", "FeatureStore"]

FILES = ("patches", "pooled")
META, PROGRESS, PARTIAL = "features.json", "progress.json", ".partial"
DTYPES = {"float16": np.float16, "float32": np.float32}


class FeatureStore:
    """Patch vectors ``rows n d`` and pooled vectors ``rows d`` in a folder, written in order, read at random.

    The folder says what its features are of (``key``). What was written before an interruption stays: a store opened
    with the same key goes on after the last row that is sure to be on the disk, one opened with another key begins
    anew.

    Args:
        folder: Of the store; made where it is absent. Nothing else may be in it.
        key: What the features depend on, as JSON holds it: the tower's weights, the preprocessing, the pictures.
        rows: Number of pictures, times views.
        patches: Vectors per picture, ``n``.
        dim: Width of a vector, ``d``.
        dtype: In which the vectors are kept.

    Attributes:
        done: Rows that are there.
        renewed: Whether features of another key were removed.

    Raises:
        DataError: where the folder holds something else, or cannot be written.

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
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        if dtype not in DTYPES:
            raise DataError(f"dtype: expected 'float16' or 'float32', got {dtype!r}")
        self.folder, self.rows, self.dtype = folder, rows, dtype
        self.shapes = {"patches": (patches, dim), "pooled": (dim,)}
        self._maps: dict[str, np.memmap[Any, Any]] | None = None
        meta = json.loads(json.dumps({"key": dict(key), "rows": rows, "patches": patches, "dim": dim, "dtype": dtype}))
        try:
            self.renewed = self._claim(meta)
            self.done = self._progress()
            for name in FILES:
                # What lies beyond the last row that was saved may be half a row.
                with (folder / f"{name}.bin").open("ab") as file:
                    file.truncate(self.done * self._row_bytes(name))
        except OSError as err:
            raise DataError(f"{folder}: expected a folder for features, but {err.strerror or err}") from None

    @property
    def bytes_needed(self) -> int:
        """What the whole store takes on the disk, in bytes."""
        return self.rows * sum(map(self._row_bytes, FILES))

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self.done == self.rows

    def append(self, patches: Float[Tensor, "b n d"], pooled: Float[Tensor, "b d"]) -> None:
        """Write the next rows; :meth:`save` makes them count.

        Raises:
            ShapeError: where the vectors are of another size.
            DataError: where the disk is full; all rows saved so far stay valid.
            ValueError: where a vector does not fit the type they are kept in, or there are too many rows.
        """
        n, dim = self.shapes["patches"]
        rows = expect("patches", patches, "b n d", dtype="float", n=n, d=dim)["b"]
        expect("pooled", pooled, "b d", dtype="float", b=rows, d=dim)
        if self.done + rows > self.rows:
            raise ValueError(f"patches: expected at most {self.rows - self.done} more rows, got {rows}")
        for name, vectors in zip(FILES, (patches, pooled), strict=True):
            with np.errstate(over="ignore"):  # Refused in the next lines.
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
        """Make sure that what was written is on the disk, and note how much it is.

        Raises:
            DataError: where the disk is full; all rows saved before stay valid.
        """
        try:
            for name in FILES:
                with (self.folder / f"{name}.bin").open("r+b") as file:
                    os.fsync(file.fileno())
            _write(self.folder / PROGRESS, {"done": self.done})
        except OSError as err:
            raise self._full(err) from None

    def read(self, row: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, " d"]]:
        """Patch vectors and pooled vector of a row, float32.

        Raises:
            IndexError: where the row is not there.
        """
        if not 0 <= row < self.done:
            raise IndexError(f"row: expected a number from 0 to {self.done - 1}, got {row}")
        if self._maps is None:
            self._maps = {
                name: np.memmap(
                    self.folder / f"{name}.bin", DTYPES[self.dtype], "r", shape=(self.done, *self.shapes[name])
                )
                for name in FILES
            }
        patches, pooled = (torch.from_numpy(np.array(self._maps[name][row], dtype=np.float32)) for name in FILES)
        return patches, pooled

    def _claim(self, meta: dict[str, Any]) -> bool:
        path = self.folder / META
        renewed = path.is_file()
        if renewed:
            try:
                same = json.loads(path.read_text(encoding="utf-8")) == meta
            except ValueError:
                same = False
            if same:
                return False
        self.folder.mkdir(parents=True, exist_ok=True)
        # Whatever a kill left of these is ours; what they are of goes last, so that another kill finds it.
        own = [PROGRESS, *(f"{name}.bin" for name in FILES), f"{PROGRESS}{PARTIAL}", f"{META}{PARTIAL}"]
        others = sorted({entry.name for entry in self.folder.iterdir()} - {META, *own})
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
        sizes = [self.folder / f"{name}.bin" for name in FILES]
        there = [
            path.stat().st_size // self._row_bytes(name) if path.is_file() else 0
            for name, path in zip(FILES, sizes, strict=True)
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
        # A process of its own maps the files for itself.
        return {**self.__dict__, "_maps": None}


class CachedFeatures(Dataset[Sample]):
    """Pictures by what a tower sees in them: samples hold patch vectors in the place of pixels.

    Args:
        data: The pictures.
        store: The features of all of them, view by view: row ``view * len(data) + index``.
        shown: How many of the views are shown: a draw's seed says which of them. 1: the first alone.
        regions: What samples hold: the ``patches`` (``n d``), or the ``pooled`` vector as the only one (``1 d``).

    Raises:
        DataError: where the store does not hold them all.
    """

    def __init__(
        self,
        data: LabelledImages,
        store: FeatureStore,
        *,
        shown: int = 1,
        regions: Literal["patches", "pooled"] = "patches",
    ) -> None:
        if not store.complete or store.rows % len(data) or store.rows < shown * len(data):
            raise DataError(
                f"{store.folder}: expected the features of {shown * len(data):,} pictures, found {store.done:,}"
            )
        self.data, self.store, self.shown, self.regions = data, store, shown, regions

    def with_regions(self, regions: Literal["patches", "pooled"], *, shown: int | None = None) -> "CachedFeatures":
        """The same pictures, of which other vectors (and, if asked for, views) are shown."""
        return CachedFeatures(self.data, self.store, shown=self.shown if shown is None else shown, regions=regions)

    def pooled(self) -> Float[Tensor, "n d"]:
        """The pooled vector of every picture's first view, float32."""
        return torch.stack([self.store.read(row)[1] for row in range(len(self))])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, position: int | Draw) -> Sample:
        """A sample by its index (its first view), or by a `Draw`, whose seed chooses the view."""
        index, seed = position if isinstance(position, Draw) else (position, 0)
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected a number from 0 to {len(self) - 1}, got {index}")
        patches, pooled = self.store.read(seed % self.shown * len(self) + index)
        return Sample(
            patches if self.regions == "patches" else pooled[None],
            self.data.target[index],
            self.data.known[index],
            index,
        )


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """A small file, whole or not at all."""
    partial = path.with_name(f"{path.name}{PARTIAL}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
