"""Attacks and their outcomes."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pvlr.core.towers import TowerError
from pvlr.data.batch import DataError

Act = Callable[[], object]


class Attack(NamedTuple):
    """A hostile, broken or unusual input.

    Attributes:
        name: What it is.
        make: Makes it in a folder, and returns what its victim does with it.
        outcome: Part of what `outcome` says: ``refused: …`` with the message, or ``read: …`` with what was seen.
    """

    name: str
    make: Callable[[Path], Act]
    outcome: str


def outcome(attack: Attack, folder: Path) -> str:
    """Return the outcome of an attack, without the folder's own path; only the project's errors are caught."""
    act = attack.make(folder)
    try:
        said = f"read: {act()}"
    except (DataError, TowerError) as err:
        said = f"refused: {err}"
    return said.replace(f"{folder}/", "")
