"""Samples, batches of them, and the errors raised while data is read."""

import errno
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["Batch", "DataError", "MachineError", "Sample", "collate", "refusal"]

MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE})
"""Error numbers that have their cause in the machine, not in the file."""


class DataError(ValueError):
    """Error of a file, folder or setting that cannot be read: one sentence that names it and what was found.

    Names and paths are untrusted: characters that are not printable are escaped as by Python's ``repr``.

    Args:
        lines: The sentence; each further argument becomes a line of its own.

    Example:
        >>> print(DataError("a\\x1b[31m\\n.jpg: expected a picture, found none", "Is it elsewhere?"))
        a\\x1b[31m\\n.jpg: expected a picture, found none
        Is it elsewhere?
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in self.args)


class MachineError(DataError):
    """Error of the machine, not of the file: memory or file handles ran out, or a disk failed."""


def refusal(err: Exception) -> type[DataError]:
    """The class for an error raised while a file was read: `MachineError` if the file is not its cause."""
    machine = isinstance(err, MemoryError) or (isinstance(err, OSError) and err.errno in MACHINE)
    return MachineError if machine else DataError


class Sample(NamedTuple):
    """One picture and its labels, known or unknown.

    Args:
        image: pixels returned by the transform, or patch vectors of a frozen tower.
        target: 1 for a label that is present, 0 for one that is not.
        known: whether the label is known; where it is false, `target` holds 0.
        index: position in the data set.
    """

    image: Float[Tensor, "3 s s"] | Float[Tensor, "n d"]
    target: Float[Tensor, " c"]
    known: Bool[Tensor, " c"]
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed here


class Batch(NamedTuple):
    """Samples stacked along a leading axis `b`; see `Sample` for the fields.

    Example:
        >>> sample = Sample(torch.zeros(3, 4, 4), torch.tensor([0.0, 1.0]), torch.tensor([True, True]), index=7)
        >>> batch = collate([sample, sample])
        >>> batch.image.shape, batch.index.tolist()
        (torch.Size([2, 3, 4, 4]), [7, 7])
    """

    image: Float[Tensor, "b 3 s s"] | Float[Tensor, "b n d"]
    target: Float[Tensor, "b c"]
    known: Bool[Tensor, "b c"]
    index: Int64[Tensor, " b"]  # type: ignore[assignment]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """Move the batch to a device; `index` stays on the host, where messages use it."""
        image, target, known = (x.to(device, non_blocking=non_blocking) for x in self[:3])
        return Batch(image, target, known, self.index)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples in the order given.

    Raises:
        DataError: if there is no sample, or the samples differ in the shape of image or target.

    Example:
        >>> collate([Sample(torch.ones(3, 2, 2), torch.ones(1), torch.ones(1, dtype=torch.bool), index=0)]).known
        tensor([[True]])
    """
    if not samples:
        raise DataError("samples: expected at least one to make a batch of, got none")
    first = samples[0]
    for sample in samples:
        for name in ("image", "target", "known"):
            expected, found = tuple(getattr(first, name).shape), tuple(getattr(sample, name).shape)
            if expected != found:
                raise DataError(
                    f"sample {sample.index}: expected {name} of shape {expected} like sample {first.index}, got {found}"
                )
    # In a worker, torch's own function stacks directly into shared memory, which saves a copy.
    return Batch(
        default_collate([sample.image for sample in samples]),
        default_collate([sample.target for sample in samples]),
        default_collate([sample.known for sample in samples]),
        torch.tensor([sample.index for sample in samples], dtype=torch.int64),
    )
