"""What is refused of a tower, and how a foreign file's words are repeated."""

import json
import reprlib
from pathlib import Path
from typing import Any

__all__ = ["MOST_CONFIG", "TowerError", "read_json", "reason", "require_size", "require_three", "shown"]

MOST_CONFIG = 4  # MiB; those of transformers' tokenizers, the largest, may list all special tokens

_short = reprlib.Repr()
_short.maxstring = 80


class TowerError(ValueError):
    """A tower that cannot be found, fetched, read or adapted."""


def read_json(path: Path, what: str, most: int = MOST_CONFIG) -> Any:
    """The value of a JSON file.

    Args:
        path: The file.
        what: It should be, for messages.
        most: MiB it may have; a larger one is not read.

    Raises:
        TowerError: naming the file, where it is absent, too large or no JSON.

    Example:
        >>> read_json(Path("nowhere", "config.json"), "the tower's configuration")
        Traceback (most recent call last):
            ...
        pvlr.core.towers.errors.TowerError: nowhere/config.json: expected the tower's configuration, found no such file
    """
    if not path.is_file():  # A pipe would be waited for.
        raise TowerError(f"{path}: expected {what}, found no such file")
    require_size(path, most)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise TowerError(f"{path}: expected {what} as JSON, got {reason(err)}") from None


def require_size(path: Path, most: int) -> None:
    """Refuse a file of more than ``most`` MiB before it is read."""
    size = path.stat().st_size / 2**20
    if size > most:
        raise TowerError(f"{path}: expected a file of at most {most} MiB, got {size:,.1f} MiB")


def require_three(path: Path, entry: str, values: object, *, zero: bool) -> None:
    """Refuse what is no number per colour, on the scale from 0 to 1.

    Args:
        path: The file that says so.
        entry: In it.
        values: What it says.
        zero: Whether 0 is one.

    Raises:
        TowerError: naming file and entry.
    """
    numbers = values if isinstance(values, list) else []
    fit = [type(x) in (int, float) and 0 <= x <= 1 and (zero or x > 0) for x in numbers]
    if len(fit) != 3 or not all(fit):
        kind = "in [0, 1]" if zero else "above 0, at most 1"
        raise TowerError(f"{path}: expected {entry} to be three numbers {kind}, got {shown(values)}")


def shown(value: object) -> str:
    """A value of a foreign file for a message: cut to about 80 characters, none of which acts on the terminal.

    Example:
        >>> shown("a\\nb"), len(shown("x" * 999))
        ("'a\\\\nb'", 80)
    """
    return _short.repr(value)


def reason(err: BaseException) -> str:
    """What an error says, in one line of at most 240 characters, none of which acts on the terminal.

    Example:
        >>> reason(ValueError("no such\\n  colour"))
        'no such colour'
    """
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if lines else type(err).__name__
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= 240 else f"{text[:239]}…"
