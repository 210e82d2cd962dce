"""Errors of towers, checks of their files, and texts of foreign files in messages."""

import json
import reprlib
from pathlib import Path
from typing import Any

__all__ = ["MOST_CONFIG", "TowerError", "read_json", "reason", "require_size", "require_three", "shown"]

MOST_CONFIG = 4  # MiB; those of transformers' tokenizers, the largest, may list all special tokens

_short = reprlib.Repr()
_short.maxstring = 80


class TowerError(ValueError):
    """Error for a tower that cannot be found, fetched, read or adapted."""


def read_json(path: Path, what: str, most: int = MOST_CONFIG) -> Any:
    """Read the value of a JSON file.

    Args:
        path: The file.
        what: The expected content, for messages.
        most: Maximum size in MiB; a larger file is not read.

    Raises:
        TowerError: naming the file, where it is absent, too large or not JSON.

    Example:
        >>> read_json(Path("nowhere", "config.json"), "the tower's configuration")
        Traceback (most recent call last):
            ...
        pvlr.core.towers.errors.TowerError: nowhere/config.json: expected the tower's configuration, found no such file
    """
    if not path.is_file():  # Reading a pipe would block.
        raise TowerError(f"{path}: expected {what}, found no such file")
    require_size(path, most)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise TowerError(f"{path}: expected {what} as JSON, got {reason(err)}") from None


def require_size(path: Path, most: int) -> None:
    """Require a file of at most ``most`` MiB before it is read."""
    size = path.stat().st_size / 2**20
    if size > most:
        raise TowerError(f"{path}: expected a file of at most {most} MiB, got {size:,.1f} MiB")


def require_three(path: Path, entry: str, values: object, *, zero: bool) -> None:
    """Require one number per colour, on the scale from 0 to 1.

    Args:
        path: The file.
        entry: Name of the entry in it.
        values: Value of the entry.
        zero: Whether 0 is allowed.

    Raises:
        TowerError: naming file and entry.
    """
    numbers = values if isinstance(values, list) else []
    fit = [type(x) in (int, float) and 0 <= x <= 1 and (zero or x > 0) for x in numbers]
    if len(fit) != 3 or not all(fit):
        kind = "in [0, 1]" if zero else "above 0, at most 1"
        raise TowerError(f"{path}: expected {entry} to be three numbers {kind}, got {shown(values)}")


def shown(value: object) -> str:
    """Return a value of a foreign file for a message: at most about 80 characters, without control characters.

    Example:
        >>> shown("a\\nb"), len(shown("x" * 999))
        ("'a\\\\nb'", 80)
    """
    return _short.repr(value)


def reason(err: BaseException) -> str:
    """Return the message of an error in one line of at most 240 characters, without control characters.

    Example:
        >>> reason(ValueError("no such\\n  colour"))
        'no such colour'
    """
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(err).__name__
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= 240 else f"{text[:239]}…"
