"""Checks that the optional dependencies of a subpackage are installed, before it is imported."""

from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["TRAIN", "require_packages"]

TRAIN = ("PIL", "torchvision", "open_clip", "safetensors", "huggingface_hub", "jsonargparse", "tensorboard", "tqdm")
"""Import names of the packages that the extra ``train`` installs."""


def require_packages(part: str, extra: str, names: Sequence[str]) -> None:
    """Raise an error if a package that ``part`` imports is not installed.

    Args:
        part: Name of the subpackage that needs them.
        extra: Extra of the distribution that installs the packages.
        names: Import names of the packages.

    Raises:
        ModuleNotFoundError: naming the part, the first package missing and the extra.

    Example:
        >>> require_packages("pvlr.train", "train", ("torch",))
        >>> require_packages("pvlr.train", "train", ("torch", "absent"))
        Traceback (most recent call last):
            ...
        ModuleNotFoundError: pvlr.train needs the package absent: pip install 'pvlr[train]'
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"{part} needs the package {name}: pip install 'pvlr[{extra}]'", name=name)
