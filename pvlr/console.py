"""Console output of commands: lines flushed at once and printed by rank 0 alone, commands to go on with, refusals."""

import os
import select
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = [
    "CLOSED_OUTPUT",
    "is_rank_zero",
    "is_refusal",
    "output_is_closed",
    "pvlr_command",
    "say",
    "started_as",
    "until_output_closes",
]

CLOSED_OUTPUT = 141
"""Exit code of a program whose output nobody reads any more: that of a shell for SIGPIPE."""


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


def output_is_closed() -> bool:
    """Return whether the program that read this one's output has ended, as ``head`` does."""
    try:
        sys.stdout.flush()
        watch = select.poll()
        watch.register(sys.stdout.fileno(), 0)
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # No poll on Windows; an output that is not a file.
        return False
    # A failed write drops what it could not write, so that nothing is left to fail again.
    return any(event & select.POLLERR for _, event in watch.poll(0))


def until_output_closes(work: Callable[[], int]) -> int:
    """Return the exit code of a program, which ends without a message when nobody reads its output any more.

    Example:
        >>> until_output_closes(lambda: 0)
        0
    """
    try:
        code = work()
        closed = output_is_closed()
    except BrokenPipeError:
        if not (closed := output_is_closed()):  # The pipe was another one.
            raise
    if closed:  # What is left would be written again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return CLOSED_OUTPUT if closed else code


def is_refusal(err: BaseException) -> bool:
    """Return True if this package itself raised the error, whose text is then for the user; others are bugs."""
    traceback = err.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "pvlr"


def started_as() -> list[str]:
    """Return the words of a shell that start this program again, without its arguments.

    They are ``pvlr``, or ``python`` and a script; behind ``torchrun``, with the same number of processes, if that has
    started several.
    """
    program, several = Path(sys.argv[0]), os.environ.get("LOCAL_WORLD_SIZE", "1")
    is_ours = program.stem == "pvlr" or program.parts[-2:] == ("pvlr", "__main__.py")
    if several != "1":
        return ["torchrun", "--nproc-per-node", several, *(["-m", "pvlr"] if is_ours else [sys.argv[0]])]
    return pvlr_command() if is_ours else ["python", sys.argv[0]]


def pvlr_command(name: str = "pvlr", module: str = "pvlr") -> list[str]:
    """Return the words that start a command of this Python from a shell, wherever it is installed.

    Args:
        name: The command.
        module: The module that is run in its place where it has no script.
    """
    beside = Path(sys.executable).parent
    script = next((path for path in (beside / name, beside / f"{name}.exe") if path.is_file()), None)
    if script is None:
        return [sys.executable, "-m", module]
    if (found := shutil.which(name)) is not None and Path(found).parent == beside:
        return [name]
    return [str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)]
