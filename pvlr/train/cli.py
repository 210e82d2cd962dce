"""Command line programs from functions with typed arguments: options, a configuration file, one-line errors."""

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

from pvlr.train.distributed import EndedElsewhere, ProcessLost, barrier, destroy_process_group, reports_failure
from pvlr.train.stop import Interrupted

__all__ = ["command", "is_refusal"]


def command(function: Callable[..., Any], args: Sequence[str] | None = None, **types: type) -> int:
    """Run a function as a command line program.

    Its dataclass arguments become dotted options (``--loop.epochs 2``), ``--config FILE`` reads them from YAML,
    ``--print_config`` writes such a file and ``--help`` describes each option.

    Args:
        function: The function; its docstring and those of its arguments' classes are the help.
        args: Arguments of the command line; None: those of this process.
        **types: By name of a function argument, the class that replaces its annotation.

    Returns:
        The exit code: 0; 2 for an error in the configuration or the data, printed in one line on stderr; 130 or 143
        if SIGINT or SIGTERM stopped it; 1 if another rank of the run was lost. If several ranks end with a message,
        the first of them prints it.
    """
    from jsonargparse import auto_cli

    try:
        _check_sections(function, sys.argv[1:] if args is None else args)
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
        barrier()
        return 2
    except ProcessLost as err:
        return _end(f"error: {err}", 1)
    except ArgumentError as err:
        message = _naming_files(" ".join(str(err).split()), sys.argv[1:] if args is None else args)
        return _refuse(message + _nearest(str(err), _specialised(function, types)))
    except OSError as err:
        return _refuse(str(err))
    except ValueError as err:
        # An error raised by this package is for the user. Any other is a bug, whose traceback is needed.
        if not is_refusal(err):
            reports_failure()
            barrier()
            raise
        return _refuse(str(err))
    except Exception:
        reports_failure()  # By its traceback.
        barrier()
        raise
    destroy_process_group()
    return 0


def _specialised(function: Callable[..., Any], types: Mapping[str, type]) -> Callable[..., Any]:
    """Return the function with some of its annotations replaced."""

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
    """Return a hint at the most similar option, if the message is of an unknown option or key of a file."""
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


def _check_sections(function: Callable[..., Any], args: Sequence[str]) -> None:
    """Raise an error if a section of a configuration file is no mapping; all else is checked by the parser."""
    import yaml

    sections = {name for name, kind in get_type_hints(function).items() if dataclasses.is_dataclass(kind)}
    for path in _config_files(args):
        try:
            content = yaml.safe_load(Path(path).read_bytes().decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}: expected a configuration as YAML in UTF-8, found other bytes") from None
        except (OSError, yaml.YAMLError):
            continue
        for name, value in content.items() if isinstance(content, dict) else ():
            if name in sections and not isinstance(value, dict):
                found = "nothing" if value is None else repr(value)[:80]
                raise ValueError(f"{path}: {name}: expected a section of fields and their values, found {found}")


def _naming_files(message: str, args: Sequence[str]) -> str:
    """Return the message with the names of the configuration files, which the YAML reader does not have."""
    files = _config_files(args)
    return message.replace('"<unicode string>"', " or ".join(files)) if files else message


def _refuse(message: str) -> int:
    return _end(f"error: {message}", 2)


def _end(message: str, code: int) -> int:
    if reports_failure():
        print(message, file=sys.stderr, flush=True)
    barrier()
    return code


def _again(function: Callable[..., Any], args: Sequence[str] | None) -> str:
    words = sys.argv if args is None else [sys.argv[0], *args]
    several = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["python"] if several == "1" else ["torchrun", "--nproc-per-node", several]
    # Overrides an earlier value: resume if there is a checkpoint, which an early signal may have prevented.
    more = ["--run.resume=auto"] if "run" in inspect.signature(function).parameters else []
    return shlex.join([*start, *words, *more])


def is_refusal(err: BaseException) -> bool:
    """Return True if this package itself raised the error, whose text is then for the user; others are bugs."""
    traceback = err.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "pvlr"
