"""Tar archives: their files, located once and then read by offset, or unpacked."""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pvlr.data.batch import DataError, refusal
from pvlr.data.readers.entries import inside, require_no_other, shown

__all__ = ["MAX_FILES", "MAX_HEADER_BYTES", "Member", "members", "unpack"]

MAX_FILES = 1_000_000
"""Largest number of files in an archive."""
MAX_HEADER_BYTES = 8_192
"""Largest header of a file in an archive (name, owner, times); parsing some takes quadratic time."""


@dataclass(frozen=True)
class Member:
    """A file inside an uncompressed archive; calling it returns its bytes.

    The archive is opened for each call, so members are picklable and can be read by any number of processes.

    Args:
        archive: The archive.
        name: Name of the file in it, for messages.
        offset: Position of its first byte.
        size: Number of its bytes.

    Raises:
        DataError: when called, naming the archive, if it cannot be read or has become shorter.
    """

    archive: Path
    name: str
    offset: int
    size: int

    def __call__(self) -> bytes:
        """Return the file's bytes."""
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as err:
            raise refusal(err)(f"{self.archive}: expected {self.name} in it, but {err.strerror or err}") from None
        if len(content) != self.size:
            raise DataError(f"{self.archive}: expected {self.size:,} bytes of {self.name}, found {len(content):,}")
        return content


def members(path: Path) -> Iterator[Member]:
    """Yield the files of an uncompressed tar archive, in its order; folders are skipped.

    Unpacked files take no more space than the archive: links, devices, sparse and overlapping files are refused, as are
    names that leave the archive, and archives that are compressed, damaged or incomplete.

    Raises:
        DataError: naming the archive, the file in it and the defect.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "1.txt").write_text("one")
        ...     with tarfile.open(f"{folder}/x.tar", "w") as archive:
        ...         archive.add(f"{folder}/1.txt", arcname="a/1.txt")
        ...     [(member.name, member()) for member in members(Path(folder, "x.tar"))]
        3
        [('a/1.txt', b'one')]
    """
    require_no_other(path, "a tar archive")
    try:
        with _Headers(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            end = count = 0
            for item in archive:
                place = f"{path}: {shown(item.name)}"
                # Damaged numbers must not move the reader backwards.
                if item.size < 0 or item.offset < end or item.offset_data + max(item.size, 0) > size:
                    raise DataError(f"{place}: expected a file inside the archive, found one that ends elsewhere")
                if item.isdir():
                    end = item.offset_data
                    continue
                if not item.isreg() or item.issparse():
                    raise DataError(f"{place}: expected files and folders, found a link, device or other")
                count += 1
                if count > MAX_FILES:
                    raise DataError(f"{path}: expected at most {MAX_FILES:,} files in an archive, found more")
                end = item.offset_data + -(-item.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                name, _ = inside(Path(), item.name, str(path))
                yield Member(path, name, item.offset_data, item.size)
            _require_end(path, file, end)
    except (tarfile.TarError, EOFError) as err:
        raise DataError(f"{path}: expected a tar archive that is not compressed, but {err}") from None
    except OSError as err:
        raise refusal(err)(f"{path}: expected a tar archive, but {err.strerror or err}") from None
    except (ValueError, OverflowError, RecursionError) as err:
        if isinstance(err, DataError):
            raise
        # Damaged headers, which tarfile parses unchecked and repeats in full.
        raise DataError(f"{path}: expected a tar archive that is not compressed, but {str(err)[:200]}") from None


def _require_end(path: Path, file: BinaryIO, end: int) -> None:
    """Require the archive's end mark after the last file, and nothing else; tarfile accepts files without it."""
    file.seek(end)
    rest = file.read(tarfile.BLOCKSIZE)
    if len(rest) < tarfile.BLOCKSIZE:
        raise DataError(f"{path}: expected the end mark of an archive, found the end of the file: it is incomplete")
    while rest:
        if rest.strip(b"\0"):
            raise DataError(f"{path}: expected nothing after byte {end:,}, found a damaged header or another archive")
        rest = file.read(MAX_HEADER_BYTES)


def unpack(path: Path, folder: Path) -> None:
    """Write the files of an archive below a folder, by the rules of :func:`members`; modes and owners are ignored.

    Args:
        path: A tar archive that is not compressed.
        folder: Target folder, created if absent. Links in it are followed: it must be trusted.

    Raises:
        DataError: naming the archive, the file in it and the defect; files written before it stay.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     _ = (folder / "1.txt").write_text("one")
        ...     with tarfile.open(folder / "x.tar", "w") as archive:
        ...         archive.add(folder / "1.txt", arcname="a/1.txt")
        ...     unpack(folder / "x.tar", folder)
        ...     (folder / "a" / "1.txt").read_text()
        'one'
    """
    seen: set[str] = set()
    for member in members(path):
        if member.name in seen:
            raise DataError(f"{path}: {member.name}: expected every file once, found it again")
        seen.add(member.name)
        target = folder / member.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(member())


class _Headers(io.BufferedReader):
    """Reader of an archive's headers; a larger one is damaged, or made to fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_HEADER_BYTES:
            raise DataError(f"{self.name}: expected headers of at most {MAX_HEADER_BYTES:,} bytes, found {size:,}")
        return super().read(size)
