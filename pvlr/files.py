"""Atomic writing of files: a file is complete or absent."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["remove_leftovers", "write_atomically"]

PARTIAL = ".partial"


def write_atomically(
    path: Path, content: bytes | Callable[[IO[bytes]], object], *, before: Callable[[str], None] | None = None
) -> str:
    """Write a file atomically: at any moment, even at a power failure, ``path`` is the complete old or new file.

    Args:
        path: The file; its folder exists.
        content: Bytes, or a function that writes them to a binary file.
        before: Called with the sha256 once all is on the disk, before the file is renamed to ``path``.

    Returns:
        sha256 of the file, 64 hexadecimal digits.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digest = write_atomically(Path(folder, "a.txt"), b"whole")
        ...     Path(folder, "a.txt").read_text(), os.listdir(folder), digest[:8]
        ('whole', ['a.txt'], '5d5766cf')
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=PARTIAL, dir=path.parent)
    except OSError as err:  # Of the file that was asked for, and not of the partial one.
        raise type(err)(err.errno, err.strerror, str(path)) from None
    partial = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        partial.chmod(0o644)
        if before is not None:
            before(digest)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Elsewhere folders cannot be opened; the system writes their entries by itself.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return digest


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder the partial files of :func:`write_atomically` calls whose process was killed."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
