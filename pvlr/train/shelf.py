"""Tensors put into files while they are not needed, so that a report on very many labels fits into memory."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

__all__ = ["kept_in"]


def kept_in(folder: str | os.PathLike[str]) -> Callable[[Tensor], Callable[[], Tensor]]:
    """What :class:`~pvlr.core.report.ReportAccumulator` takes as ``keep``: a file for each tensor.

    A file is mapped when its tensor is asked for, and only what is read of it takes memory, until the tensor is gone.
    Nothing is deleted: give it a temporary folder.

    Args:
        folder: An existing folder with room for 5 bytes per label of an image; processes may share it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     back = kept_in(name)(torch.tensor([[1.0, 2.0]]))
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
