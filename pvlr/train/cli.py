"""From a function with typed arguments to a command: options, a configuration file, and errors of one line."""

import dataclasses
import difflib
import functools
import inspect
import os
import re
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from pvlr.train.distributed import EndedElsewhere, ProcessLost, leave_world, tells, wait_for_others
from pvlr.train.stop import Interrupted

__all__ = ["command", "is_refusal"]


def command(function: Callable[..., Any], args: Sequence[str] | None = None, **types: type) -> int:
    """Run a function as a command line program.

    Its dataclass arguments become dotted options (``--loop.epochs 2``), ``--config FILE`` reads them from YAML,
    ``--print_config`` writes such a file and ``--help`` tells about each.

    Args:
        function: The function; its docstring and those of its arguments' classes are the help.
        args: Arguments of the command line; None: those of this process.
        **types: For an argument of the function, the class that this command gives it in place of the annotated one.

    Returns:
        The exit code: 0; 2 for a mistake in the configuration or the data, told in one line on stderr; 130 or 143
        where SIGINT or SIGTERM stopped it; 1 where another process of the run was lost. Of several processes that end
        with a message, the first one tells it.
    """
    from jsonargparse import auto_cli

    try:
        _look_into_files(function, sys.argv[1:] if args is None else args)
        auto_cli(
            _specialised(function, types),
            as_positional=False,
            args=None if args is None else list(args),
            exit_on_error=False,
            allow_abbrev=False,
        )
    except Interrupted as stop:
        return _end(f"interrupted {stop}\ngo on with: {_again(function, args)}", 128 + stop.signal_number)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except EndedElsewhere:
        wait_for_others()
        return 2
    except ProcessLost as err:
        return _end(f"error: {err}", 1)
    except ArgumentError as err:
        said = _naming_files(" ".join(str(err).split()), sys.argv[1:] if args is None else args)
        return _refuse(said + _nearest(str(err), _specialised(function, types)))
    except OSError as err:
        return _refuse(str(err))
    except ValueError as err:
        # A refusal is raised by this package. Anything else is a defect, and its traceback is wanted.
        if not is_refusal(err):
            tells()
            wait_for_others()
            raise
        return _refuse(str(err))
    except Exception:
        tells()  # By its traceback.
        wait_for_others()
        raise
    leave_world()
    return 0


def _specialised(function: Callable[..., Any], types: Mapping[str, type]) -> Callable[..., Any]:
    """The same function, annotated with other types."""

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        return function(**arguments)

    hints = {**inspect.get_annotations(function, eval_str=True), **types}
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=hints[name]) for name, p in signature.parameters.items()]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = hints
    return call


def _nearest(message: str, function: Callable[..., Any]) -> str:
    """For an option or a key of a file that is not known: which is meant, perhaps."""
    if not (
        named := re.search(r"unrecognized arguments: (--[^\s=]+)|Group '(.*)' does not accept option '(.*)'", message)
    ):
        return ""
    given = named[1] or f"--{named[2]}.{named[3]}"
    near = difflib.get_close_matches(given, _options(inspect.get_annotations(function, eval_str=True), "--"), n=1)
    return f"; the nearest option is {near[0]}" if near else ""


def _options(types: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, kind in types.items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            yield from _options(get_type_hints(kind), f"{prefix}{name}.")


def _config_files(args: Sequence[str]) -> list[str]:
    words = [word for arg in args for word in arg.split("=", 1)]
    return [name for option, name in pairwise(words) if option == "--config"]


def _look_into_files(function: Callable[..., Any], args: Sequence[str]) -> None:
    """Refuse what the parser takes for a section and is none; all else is left to it."""
    import yaml

    sections = {name for name, kind in get_type_hints(function).items() if dataclasses.is_dataclass(kind)}
    for path in _config_files(args):
        try:
            told = yaml.safe_load(Path(path).read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: expected a configuration as YAML in UTF-8, found other bytes") from None
        except (OSError, yaml.YAMLError):
            continue
        for name, value in told.items() if isinstance(told, dict) else ():
            if name in sections and not isinstance(value, dict):
                found = "nothing" if value is None else repr(value)[:80]
                raise ValueError(f"{path}: {name}: expected a section of fields and their values, found {found}")


def _naming_files(message: str, args: Sequence[str]) -> str:
    """The YAML reader is given a text and does not know which file it came from."""
    files = _config_files(args)
    return message.replace('"<unicode string>"', " or ".join(files)) if files else message


def _refuse(message: str) -> int:
    return _end(f"error: {message}", 2)


def _end(message: str, code: int) -> int:
    if tells():
        print(message, file=sys.stderr, flush=True)
    wait_for_others()
    return code


def _again(function: Callable[..., Any], args: Sequence[str] | None) -> str:
    words = sys.argv if args is None else [sys.argv[0], *args]
    several = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["python"] if several == "1" else ["torchrun", "--nproc-per-node", several]
    # Whatever was given before: go on where there is a checkpoint, which an early signal has come before.
    more = ["--run.resume=auto"] if "run" in inspect.signature(function).parameters else []
    return shlex.join([*start, *words, *more])


def is_refusal(err: BaseException) -> bool:
    """Whether this package itself raised it, and its text is for the user; anything else is a defect."""
    traceback = err.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "pvlr"
