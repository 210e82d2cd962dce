"""Checkpoints that are whole or absent, checked before they are trusted, with a predecessor to fall back on."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pvlr.core.files import write_atomically

__all__ = ["CheckpointError", "Checkpoints"]

LOG = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


class Checkpoints:
    """The checkpoints of one run: ``step-<number>.pt`` and, beside each, its sha256.

    Args:
        folder: Where they are; made when the first is saved.
        keep: How many of the newest sound ones are kept, at least 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(Path(folder))
        ...     _ = checkpoints.save({"weight": torch.ones(1)}, step=3)
        ...     path, state = checkpoints.load()
        >>> path.name, state
        ('step-00000003.pt', {'weight': tensor([1.])})
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep

    def paths(self) -> list[Path]:
        """Checkpoints that are there, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, state: Mapping[str, Any], *, step: int) -> Path:
        """Save a state of tensors and plain values; older checkpoints go only once the new one is in place.

        A damaged file is nothing to fall back on: it goes with the older ones, and counts for none that is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        if path.exists() and _defect(path) is None:
            return path  # The same step of the same run: the same state.

        def beside(digest: str) -> None:
            write_atomically(_digest_path(path), f"{digest}  {path.name}\n".encode())

        write_atomically(path, lambda file: torch.save(dict(state), file), before=beside)
        sound = 0
        for found in reversed(self.paths()):
            if found == path or (sound < self.keep and _defect(found) is None):
                sound += 1
            elif sound >= self.keep:
                found.unlink()
                _digest_path(found).unlink(missing_ok=True)
        return path

    def load(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is sound, on the CPU; None where there is none at all.

        A damaged one is passed over, with a warning that names it and the one that is used. Only tensors and plain
        values are read, never code.

        Raises:
            CheckpointError: where there are checkpoints, and all are damaged.
        """
        damaged: list[str] = []
        for path in reversed(self.paths()):
            defect = _defect(path)
            if defect is None:
                try:
                    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                except Exception as err:
                    defect = (str(err).splitlines() or [type(err).__name__])[0]
                else:
                    if damaged:
                        LOG.warning("damaged checkpoint %s; going on from %s", "; ".join(damaged), path)
                    return path, state
            damaged.append(f"{path} ({defect})")
        if damaged:
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged: {'; '.join(damaged)}")
        return None


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _defect(path: Path) -> str | None:
    beside = _digest_path(path)
    if not beside.is_file():
        return f"{beside.name} is missing"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if beside.read_text(errors="replace").split()[:1] == [digest] else "its sha256 is another"
