"""Folders of runs: whether a process trains in one, and how the last one ended."""

import json
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["RUN_NAME", "RunInUseError", "hold_run", "state_of_run"]

RUN_NAME = "run.json"
LOCK_NAME = "run.lock"
WAIT = 1.0
"""Seconds that a run waits for the lock: :func:`state_of_run` of another process holds it for an instant."""


class RunInUseError(ValueError):
    """Error of a folder that another process trains in, or that cannot be locked."""


def hold_run(folder: Path) -> FileLock:
    """Return the lock of a run's folder, held until it is released or this process ends, in whatever way.

    Args:
        folder: The folder, which exists.

    Raises:
        RunInUseError: if another process holds it, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     lock = hold_run(Path(name))
        ...     lock.is_locked
        ...     lock.release()
        True
    """
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=WAIT)
    except Timeout:
        raise RunInUseError(
            f"run.folder: expected a folder that no other process trains in, found one at work in {folder}; wait until "
            "it ends, or choose another folder"
        ) from None
    except OSError as err:
        raise RunInUseError(f"run.folder: expected a folder to write to, but {folder}: {err.strerror or err}") from None
    return lock


def state_of_run(folder: Path) -> str | None:
    """Return how a run stands, from its record and its lock.

    Returns:
        ``running``; ``finished``; ``stopped`` (by a signal, after saving); ``failed`` (by an error); ``lost`` if its
        process ended without a word, as by SIGKILL or a power failure; None if there is no record.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     _ = Path(name, "run.json").write_text('{"status": "running"}')
        ...     state_of_run(Path(name))  # Its lock is free: nobody runs.
        'lost'
    """
    try:
        status = str(json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return "lost" if status == "running" and not _is_held(folder / LOCK_NAME) else status


def _is_held(path: Path) -> bool:
    if not path.is_file():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (Timeout, OSError):  # Who may not write there cannot know, and believes the record.
        return True
    lock.release()
    return False
