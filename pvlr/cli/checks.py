"""Checks of a command's options that several commands share."""

from collections.abc import Mapping
from pathlib import Path

from pvlr.core.arguments import ConfigError, require_int

__all__ = ["require_places", "require_probability", "require_whole"]


def require_whole(least: int, **values: int | None) -> None:
    """Require whole numbers of at least ``least`` of options, by their names; None is one that is not given.

    Raises:
        ConfigError: naming the option, the bound and the value.

    Example:
        >>> require_whole(1, top=0)
        Traceback (most recent call last):
            ...
        pvlr.core.arguments.ConfigError: --top: expected a whole number of at least 1, got 0
    """
    for name, value in values.items():
        if value is not None:
            try:
                require_int(f"--{name}", value, least=least)
            except ValueError as err:
                raise ConfigError(str(err)) from None


def require_probability(name: str, value: float, least: float = 0.0) -> None:
    """Require an option between ``least`` and 1.

    Raises:
        ConfigError: naming the option and the value.
    """
    if not least <= value <= 1:
        raise ConfigError(f"--{name}: expected a probability in [0, 1], got {value:g}")


def require_places(places: Mapping[str, Path | None]) -> None:
    """Require of each file to be written a folder that is there, and that no other is written to the same place.

    Args:
        places: The file of each option, by its name; None is one that is not given.

    Raises:
        ConfigError: naming the option and the place.
    """
    taken: dict[Path, str] = {}
    for name, path in places.items():
        if path is None:
            continue
        option = f"--{name}"
        if path.is_dir() or not path.parent.is_dir():
            raise ConfigError(f"{option}: expected a file in a folder that is there, got {path}")
        if (other := taken.setdefault(path.resolve(), option)) != option:
            raise ConfigError(f"{option}: expected another file than {other}, got {path}")
