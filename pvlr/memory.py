"""The memory allocator of a process that computes with large tensors."""

import ctypes
import os

__all__ = ["keep_freed_memory"]

# Variables of glibc's malloc, the numbers that its mallopt has for them, and their values in bytes.
SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 1 << 30),
    "MALLOC_TRIM_THRESHOLD_": (-1, (1 << 31) - 1),
    "MALLOC_TOP_PAD_": (-2, 1 << 26),
}


def keep_freed_memory() -> None:
    """Have glibc keep memory that is freed, in this process and in those that it starts; elsewhere do nothing.

    By default glibc gives each large tensor back to the system, and takes memory for the next one page by page, which
    takes a convolutional tower on a CPU a quarter of its time or more (`docs/benchmarks.md`, *Images at a time on a
    CPU*). The price is that a process keeps the most memory that it ever had. Variables of the environment have
    precedence (`MALLOC_TRIM_THRESHOLD_` and its like, see ``man mallopt``).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, (parameter, size) in SETTINGS.items():
        if mallopt is not None and name not in os.environ and mallopt(parameter, size):
            os.environ[name] = str(size)
