"""Checkpoints: written atomically, verified by their sha256 when loaded, with earlier ones to fall back on."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from pvlr.files import remove_leftovers, write_atomically

__all__ = ["CheckpointError", "Checkpoints"]

LOG = logging.getLogger(__name__)
FORMAT = 1
BEST_NAME = "best.json"


class CheckpointError(ValueError):
    """Error of a checkpoint that cannot be written or used."""


class Checkpoints:
    """The checkpoints of one run: files ``step-<number>.pt``, each with its sha256 in the format of ``sha256sum -c``.

    Args:
        folder: Their folder; created when the first is saved.
        keep: Number of newest undamaged ones that are kept, at least 1, in addition to the best one.

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
        """Return the existing checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, state: Mapping[str, Any], *, step: int) -> Path:
        """Save a state of tensors and plain values; older checkpoints are removed only after that.

        A damaged file is removed with the older ones, and does not count as one of those that are kept.

        Raises:
            CheckpointError: if it cannot be written; the existing ones stay.
        """
        path = self._path(step)
        if path.exists() and _defect(path) is None:
            return path  # The same step of the same run: the same state.

        def beside(digest: str) -> None:
            write_atomically(_digest_path(path), f"{digest}  {path.name}\n".encode())

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file), before=beside)
        except (OSError, RuntimeError) as err:
            # At a full disk, the error of torch hides that of the system.
            cause = err if isinstance(err, OSError) else err.__context__
            if not isinstance(cause, OSError):
                raise
            last = next((f"; {found} stays" for found in reversed(self.paths())), "")
            raise CheckpointError(f"{path}: expected to write a checkpoint, but {cause.strerror}{last}") from cause
        best = self.best()
        sound = 0
        for found in reversed(self.paths()):
            if found == path or (sound < self.keep and _defect(found) is None):
                sound += 1
            elif sound >= self.keep and (best is None or found != self._path(best[0])):
                found.unlink()
                _digest_path(found).unlink(missing_ok=True)
        return path

    def keep_best(self, state: Callable[[], Mapping[str, Any]], *, step: int, score: float) -> None:
        """Keep a state as the best one, if its score is higher than that of all earlier calls; of equals, the first.

        Args:
            state: Function that returns the state; called if its step is not saved yet.
            step: Its step.
            score: Its score, higher is better; NaN is ignored.

        Raises:
            CheckpointError: if it cannot be written.
        """
        best = self.best()
        if not (score > float("-inf") if best is None else score > best[1]):
            return
        if not self._path(step).exists():
            self.save(state(), step=step)
        write_atomically(self.folder / BEST_NAME, f"{json.dumps({'step': step, 'score': score})}\n".encode())

    def best(self) -> tuple[int, float] | None:
        """Return step and score of the best checkpoint; None if there is none, or it is damaged."""
        try:
            content = json.loads((self.folder / BEST_NAME).read_text(encoding="utf-8"))
            step, score = int(content["step"]), float(content["score"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        path = self._path(step)
        return (step, score) if path.is_file() and _defect(path) is None else None

    def remove_leftovers(self) -> None:
        """Remove the files that a killed process left partly written or partly removed."""
        remove_leftovers(self.folder)
        for path in self.folder.glob("step-*.pt.sha256"):
            if not path.with_suffix("").exists():
                path.unlink(missing_ok=True)

    def load(self, step: int | None = None) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest undamaged checkpoint (or that of a step) on the CPU; return None if there is none at all.

        A damaged one is skipped, with a warning that names it and the one that is used. Only tensors and plain values
        are loaded, never code.

        Raises:
            CheckpointError: if all existing checkpoints are damaged, or one is of another format.
        """
        damaged: list[str] = []
        for path in reversed(self.paths() if step is None else [self._path(step)]):
            defect = _defect(path)
            if defect is None:
                try:
                    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                except Exception as err:
                    defect = (str(err).splitlines() or [type(err).__name__])[0]
                else:
                    if damaged:
                        LOG.warning("damaged checkpoint %s; going on from %s", "; ".join(damaged), path)
                    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
                        raise CheckpointError(f"{path}: expected a checkpoint of format {FORMAT}, found another one")
                    return path, state
            damaged.append(f"{path} ({defect})")
        if damaged:
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged: {'; '.join(damaged)}")
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _defect(path: Path) -> str | None:
    beside = _digest_path(path)
    if not beside.is_file():
        return f"{beside.name} is missing"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = " ".join(beside.read_text(errors="replace").split()[:1])
    return None if expected == digest else f"checksum mismatch: expected {expected[:64]!r}, got {digest!r}"
