"""Pictures as models take them, read by whoever announces that he can: the core itself decodes none."""

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, cast

from torch import Tensor

__all__ = ["GROUP", "read_picture"]

GROUP = "pvlr.pictures"
"""Entry points of this group are functions of a picture and what its tower asks for; `pvlr.data.pictures` has one."""


def read_picture(picture: object, preprocess: Mapping[str, Any]) -> Tensor:
    """A picture as its model takes it.

    Args:
        picture: A file's path, its bytes, an image of Pillow, an array or a tensor of levels.
        preprocess: What the tower asks for: ``size``, ``mean``, ``std`` and ``interpolation``.

    Returns:
        ``3 s s``, normalised.

    Raises:
        ValueError: where nothing on this machine reads pictures, or this one cannot be read.
    """
    for point in entry_points(group=GROUP):
        try:
            read = point.load()
        except ImportError as err:
            raise ValueError(f"picture: what reads it needs the package {err.name}: pip install 'pvlr[data]'") from None
        return cast(Tensor, read(picture, preprocess))
    raise ValueError("picture: expected pvlr to be installed (pip install pvlr), which is how what reads it is found")
