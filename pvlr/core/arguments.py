"""Checks of plain arguments (booleans, numbers and choices) that several blocks share: one error message per check."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

__all__ = [
    "ConfigError",
    "require_bool",
    "require_choice",
    "require_choices",
    "require_heads",
    "require_int",
    "require_number",
]


class ConfigError(ValueError):
    """Error for a configuration field that is out of range or does not fit the others."""


def require_bool(name: str, value: object) -> None:
    """Require True or False: a text such as ``"false"`` would count as True.

    Raises:
        ValueError: naming the argument and the value.

    Example:
        >>> require_bool("maps", "false")
        Traceback (most recent call last):
            ...
        ValueError: maps: expected True or False, got 'false'
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Require a ``value`` that is one of ``choices``.

    Raises:
        ValueError: naming the argument, the choices and the value.

    Example:
        >>> require_choice("mode", "gate", ("gate", "sum"))
        >>> require_choice("mode", "gates", ("gate", "sum"))
        Traceback (most recent call last):
            ...
        ValueError: mode: expected one of 'gate', 'sum', got 'gates'
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def require_int(name: str, value: object, *, least: int) -> None:
    """Require a whole number of at least ``least``.

    Raises:
        ValueError: naming the argument, the bound and the value.

    Example:
        >>> require_int("layers", 0, least=1)
        Traceback (most recent call last):
            ...
        ValueError: layers: expected a whole number of at least 1, got 0
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def require_choices(config: Any) -> None:
    """Require of each field of a dataclass that is annotated as ``Literal`` (or None) one of its choices.

    Raises:
        ValueError: naming the field.
    """
    for field in fields(config):
        value, kind = getattr(config, field.name), field.type
        if get_args(kind)[1:] == (type(None),):
            kind = None if value is None else get_args(kind)[0]
        if get_origin(kind) is Literal:
            require_choice(field.name, value, get_args(kind))


def require_number(
    name: str, value: object, *, above: float = -math.inf, least: float = -math.inf, below: float = math.inf
) -> None:
    """Require a finite number with ``above < value``, ``least <= value`` and ``value < below``.

    Raises:
        ValueError: naming the argument, the range and the value.

    Example:
        >>> require_number("temperature", 0.0, above=0.0)
        Traceback (most recent call last):
            ...
        ValueError: temperature: expected a finite number > 0, got 0.0
    """
    # Only comparisons (NaN fails them all), because torch.compile can trace them with symbolic numbers.
    number = isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if not number or not (above < value and least <= value < below):  # type: ignore[operator]
        bounds = [(">", above), (">=", least), ("<", below)]
        required = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{name}: expected a finite number {required}".rstrip() + f", got {value!r}")


def require_heads(dim: int, heads: int, *, name: str = "dim") -> None:
    """Require a width that splits evenly over the heads.

    Raises:
        ValueError: naming the width, ``heads`` and both values.

    Example:
        >>> require_heads(10, 4)
        Traceback (most recent call last):
            ...
        ValueError: dim: expected a multiple of heads=4, got 10
    """
    require_int(name, dim, least=1)
    require_int("heads", heads, least=1)
    if dim % heads:
        raise ValueError(f"{name}: expected a multiple of heads={heads}, got {dim}")
