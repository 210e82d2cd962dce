"""Where to compute: a device by its name, refused before anything is put on it."""

import torch

from pvlr.train.config import ConfigError

__all__ = ["find_device"]


def find_device(name: str, *, field: str = "device") -> torch.device:
    """The device of a name.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:<number>``.
        field: What the name was given as, for the message.

    Raises:
        ConfigError: where this is no such name, or the machine has no such device.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{field}: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got {name!r}")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= there:
        raise ConfigError(f"{field}: expected a device of this machine, {name!r} is not there")
    return device
