"""Command line programs from functions with typed arguments: options, a configuration file, one-line errors."""

import dataclasses
import inspect
import re
import shlex
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from pvlr.cli.help import Usage, help_text, topics
from pvlr.cli.options import REQUIRED, Option, expected, nearest, normalised, options_of, specialised
from pvlr.cli.recipes import find_config
from pvlr.console import is_rank_zero, is_refusal, output_is_closed, started_as

__all__ = ["Usage", "command"]

MISSING = "the following arguments are required: "


def command(
    function: Callable[..., Any], args: Sequence[str] | None = None, *, usage: Usage | None = None, **types: type
) -> int:
    """Run a function as a command line program.

    Its dataclass arguments become dotted options (``--loop.epochs 2``), ``--config FILE`` reads them from YAML (or from
    a recipe, by its name), ``--print_config`` writes such a file, and ``--help`` describes each option. ``-`` and ``_``
    are the same in the name of an option.

    Args:
        function: The function; its docstring and those of its arguments' classes are the help. If it returns a number,
            that is the exit code.
        args: Arguments of the command line; None: those of this process.
        usage: Name, examples and positional argument of the program; None: named as the script that is running.
        **types: By name of a function argument, the class that replaces its annotation.

    Returns:
        The exit code: 0; 2 for an error in the configuration or the data, printed in one line on stderr; 130 or 143
        if SIGINT or SIGTERM stopped it; 1 if another rank of the run was lost. If several ranks end with a message,
        the first of them prints it.

    Raises:
        BrokenPipeError: if nobody reads the program's output any more.
    """
    words = sys.argv[1:] if args is None else list(args)
    usage = usage or Usage(name=Path(sys.argv[0]).name)
    try:
        code = _run(specialised(function, types), words, usage)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except (ArgumentError, OSError) as err:
        if isinstance(err, BrokenPipeError) and output_is_closed():
            raise
        return _end(f"error: {err}", 2)
    except Exception as err:
        if (code_of_stop := _stopped(err, function, usage, words)) is not None:
            return code_of_stop
        # An error raised by this package is for the user. Any other is a bug, whose traceback is needed.
        if isinstance(err, ValueError) and is_refusal(err):
            return _end(f"error: {err}", 2)
        _reports_failure()
        _barrier()
        raise
    if "pvlr.train" in sys.modules:
        from pvlr.train.distributed import destroy_process_group

        destroy_process_group()
    return code


def _run(function: Callable[..., Any], words: Sequence[str], usage: Usage) -> int:
    options = options_of(function)
    args = normalised(words, options, has_positional=usage.positional is not None)
    for place, word in enumerate(args[: _end_of_options(args)]):
        if word in ("-h", "--help"):
            print(help_text(function, usage, _topic(function, args[place + 1 :])))
            return 0
    args = _with_files(args)
    _check_sections(function, args)
    parser = _parser(function, usage)
    try:
        given = parser.instantiate(parser.parse_args(args))
    except ArgumentError as err:
        raise ArgumentError(None, _explained(err, args, options, usage)) from None
    given.pop("config")
    done = function(**given)
    return done if type(done) is int else 0


def _parser(function: Callable[..., Any], usage: Usage) -> Any:
    from jsonargparse import ArgumentParser

    named = usage.positional
    parser = ArgumentParser(prog=usage.name, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(
        function, as_group=False, skip={named[0]} if named is not None else None, sub_configs=True
    )
    if named is not None:
        default = inspect.signature(function).parameters[named[0]].default
        more: dict[str, Any] = {"nargs": "+"} if default is REQUIRED else {"nargs": "?", "default": default}
        parser.add_argument(named[0], type=str, metavar=named[1], **more)
    return parser


def _end_of_options(args: Sequence[str]) -> int:
    return args.index("--") if "--" in args else len(args)


def _topic(function: Callable[..., Any], following: Sequence[str]) -> str | None:
    """Return the section that ``--help`` is asked for."""
    known, word = topics(function), following[0] if following else ""
    if not known or not word or word.startswith("-"):
        return None
    if word not in known:
        raise ArgumentError(
            None, f"--help: expected one of {', '.join(known)}, got {word}{nearest(word, known, 'one')}"
        )
    return word


def _with_files(args: Sequence[str]) -> list[str]:
    """Return the words with the path of each configuration file in place of a recipe's name."""
    words = list(args)
    for place, word in enumerate(words[: _end_of_options(words)]):
        if word.startswith("--config="):
            words[place] = f"--config={find_config(word.removeprefix('--config='))}"
        elif word == "--config" and place + 1 < len(words):
            words[place + 1] = str(find_config(words[place + 1]))
    return words


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


def _explained(err: ArgumentError, args: Sequence[str], options: Sequence[Option], usage: Usage) -> str:
    """Return the parser's message in one line: with the option, what was expected, and the nearest option."""

    def called(name: str) -> str:
        return usage.positional[1] if usage.positional is not None and name == usage.positional[0] else f"--{name}"

    message, files = " ".join(str(err).split()), _config_files(args)
    if files:
        message = message.replace('"<unicode string>"', " or ".join(files))
    unknown = re.search(r"unrecognized arguments: (--[^\s=]+)|Group '(.*)' does not accept option '(.*)'", message)
    if unknown is not None:
        given = unknown[1] or f"--{unknown[2]}.{unknown[3]}"
        return message + nearest(given, [f"--{option.name}" for option in options], "option")
    if (alone := re.fullmatch(r"argument (--\S+): expected one argument", message)) is not None:
        return f"{alone[1]}: expected a value, found none"
    if message.startswith(MISSING):
        return f"expected {', '.join(map(called, message.removeprefix(MISSING).split(', ')))}, found none"
    named = re.match(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)$', message)
    option = next((option for option in options if named is not None and option.name == named[1]), None)
    if named is None or option is None or option.is_section:
        return message
    is_typed = any(word.partition("=")[0] == f"--{option.name}" for word in args)
    place = f"--{option.name}" if is_typed or not files else f"{' or '.join(files)}: {option.name}"
    return f"{place}: expected {expected(option.kind)}, got {named[2]}"


def _stopped(err: Exception, function: Callable[..., Any], usage: Usage, words: Sequence[str]) -> int | None:
    """Return the exit code for an error that is not this process's own: a signal, or another rank's end."""
    if "pvlr.train" not in sys.modules:
        return None
    from pvlr.train.distributed import EndedElsewhere, ProcessLost
    from pvlr.train.stop import Interrupted

    if isinstance(err, Interrupted):
        # Overrides an earlier value: resume if there is a checkpoint, which an early signal may have prevented.
        resume = "--run.resume=auto"
        more = [resume] if "run" in inspect.signature(function).parameters and words[-1:] != [resume] else []
        again = shlex.join([*started_as(), *usage.words, *words, *more])
        return _end(f"interrupted {err}\ngo on with: {again}", 128 + err.signal_number)
    if isinstance(err, EndedElsewhere):
        _barrier()
        return 2
    return _end(f"error: {err}", 1) if isinstance(err, ProcessLost) else None


def _end(message: str, code: int) -> int:
    if _reports_failure():
        print(message, file=sys.stderr, flush=True)
    _barrier()
    return code


def _reports_failure() -> bool:
    """Return True on the rank that reports how the run ended."""
    if "pvlr.train" not in sys.modules:
        return is_rank_zero()
    from pvlr.train.distributed import reports_failure

    return reports_failure()


def _barrier() -> None:
    if "pvlr.train" in sys.modules:
        from pvlr.train.distributed import barrier

        barrier()
