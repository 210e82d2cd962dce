"""Selection of a device by its name."""

import torch

from pvlr.core.arguments import ConfigError

__all__ = ["find_device"]


def find_device(name: str, *, field: str = "device") -> torch.device:
    """Return the device of a name.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:<number>``.
        field: Name of the argument, for the message.

    Raises:
        ConfigError: if the name is invalid, or the machine has no such device.

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
