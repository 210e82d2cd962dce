"""Storage of tensors in files while they are not needed, so that a report on very many labels fits into memory."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

__all__ = ["spill_to"]


def spill_to(folder: str | os.PathLike[str]) -> Callable[[Tensor], Callable[[], Tensor]]:
    """Return the ``keep`` argument of :class:`~pvlr.core.metrics.report.ReportAccumulator`: it stores tensors in files.

    A file is memory-mapped when its tensor is loaded, so that only the parts that are read take memory, until the
    tensor is freed. No file is deleted: use a temporary folder.

    Args:
        folder: An existing folder with 5 free bytes per label of an image; processes may share it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     back = spill_to(name)(torch.tensor([[1.0, 2.0]]))
        ...     back(), [path.stat().st_size for path in Path(name).iterdir()]
        (tensor([[1., 2.]]), [8])
    """
    return partial(_put, Path(folder))


def _put(folder: Path, tensor: Tensor) -> Callable[[], Tensor]:
    path = folder / f"{uuid4().hex}.bin"
    tensor.cpu().contiguous().numpy().tofile(path)
    return partial(_get, path, tuple(tensor.shape), tensor.dtype)


def _get(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = torch.Size(shape).numel()
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_file(str(path), shared=False, size=size, dtype=dtype).view(shape)
