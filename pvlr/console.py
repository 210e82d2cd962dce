"""Console output of commands: each line flushed at once, printed by rank 0 alone."""

import os

__all__ = ["is_rank_zero", "say"]


def is_rank_zero() -> bool:
    """Return whether this process has rank 0, the one that prints and writes; True without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print a line and flush it, also into a pipe; only rank 0 prints.

    Example:
        >>> say("going on from step 12")
        going on from step 12
    """
    if is_rank_zero():
        print(text, flush=True)
