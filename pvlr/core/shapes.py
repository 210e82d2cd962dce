"""Axis letters used by every signature in the package, and the check of arguments against them.

b images · c labels · n image patches · d joint width · h heads · e head width ·
t prompt tokens · m context tokens · w text-tower width · k knowledge width
"""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import EinopsError, parse_shape
from torch import Tensor, nn

__all__ = ["ShapeError", "expect", "expect_broadcast"]

AUTOCAST = (torch.float16, torch.bfloat16, torch.float32)

# einops caches the tensor types it is called with. A first call inside a traced graph would be a side effect of that
# graph, and cause all others to be traced again.
for _known in (torch.zeros(1), nn.Parameter(torch.zeros(1))):
    parse_shape(_known, "_")


class ShapeError(ValueError):
    """Error for a tensor whose axes, dtype or device differ from those its argument requires."""


def expect(
    name: str,
    tensor: Tensor,
    pattern: str,
    *,
    dtype: Literal["float", "int", "bool"] | None = None,
    device: torch.device | None = None,
    like: Tensor | None = None,
    **sizes: int,
) -> dict[str, int]:
    """Check ``tensor`` against an einops ``pattern`` and return the sizes of its named axes.

    About 7 µs a call; it traces through ``torch.compile(fullgraph=True)`` and ``torch.export``.

    Args:
        name: Name of the argument, for the message.
        tensor: The tensor to check.
        pattern: Axes in einops' notation: names, ``_`` for any size, ``1``, one ``...`` for any number of axes.
        dtype: Required kind of numbers (of any width): ``"float"``, ``"int"`` (signed or not) or ``"bool"``.
        device: Device the tensor has to be on.
        like: A tensor it has to be compatible with, such as a weight: on the same device, and of the same floating
            dtype (under autocast both may be of any that autocast casts, which float64 is not).
        **sizes: Required sizes, by axis name.

    Returns:
        Axis name to size, in the order of the pattern, without the axes of ``...``.

    Raises:
        ShapeError: naming the argument, what was expected and what was found.

    Example:
        >>> expect("labels", torch.zeros(20, 512), "c d", d=512)
        {'c': 20, 'd': 512}
        >>> expect("labels", torch.zeros(20, 256), "c d", d=512)
        Traceback (most recent call last):
            ...
        pvlr.core.shapes.ShapeError: labels: expected axes 'c d' with d=512, got shape (20, 256)
    """
    if not isinstance(tensor, Tensor):
        raise ShapeError(f"{name}: expected a tensor with axes '{pattern}', got {type(tensor).__name__}")
    try:
        axes: dict[str, int] = parse_shape(tensor, pattern)
    except (EinopsError, RuntimeError):
        # One message and no chain: that of einops does not name the argument, nor always the shape.
        raise ShapeError(f"{name}: expected axes '{pattern}', got shape {tuple(tensor.shape)}") from None
    for axis, size in sizes.items():
        if axis not in axes:
            raise ShapeError(f"{name}: a size was asked for axis '{axis}', which is not in the pattern '{pattern}'")
        if axes[axis] != size:
            raise ShapeError(f"{name}: expected axes '{pattern}' with {axis}={size}, got shape {tuple(tensor.shape)}")
    if dtype is not None and _kind(tensor) != dtype:
        raise ShapeError(f"{name}: expected a tensor of dtype {dtype}, got {tensor.dtype}")
    if device is not None and tensor.device != device:
        raise ShapeError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")
    if like is not None:
        if tensor.device != like.device:
            raise ShapeError(f"{name}: expected a tensor on {like.device}, got one on {tensor.device}")
        # Nothing is cast on the meta device, where querying autocast raises an error.
        autocast = not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)
        mixed = autocast and tensor.dtype in AUTOCAST and like.dtype in AUTOCAST
        if tensor.dtype != like.dtype and not mixed:
            raise ShapeError(f"{name}: expected a tensor of dtype {like.dtype}, got {tensor.dtype}")
    return axes


def expect_broadcast(names: str, what: str, *shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape to which all ``shapes`` broadcast.

    Raises:
        ShapeError: naming the arguments, ``what`` of them was expected to broadcast, and the shapes.

    Example:
        >>> expect_broadcast("a, b", "axes", (3, 1), (4,))
        (3, 4)
    """
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        found = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ShapeError(f"{names}: expected {what} that broadcast, got {found}") from None


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    if tensor.is_floating_point():
        return "float"
    return "complex" if tensor.is_complex() else "int"
