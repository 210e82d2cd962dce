"""The command ``pvlr``: a table of commands, of which only the one that is asked for is imported."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pvlr
from pvlr.console import until_output_closes
from pvlr.memory import keep_freed_memory
from pvlr.packages import TRAIN, require_packages

__all__ = ["COMMANDS", "KINDS", "Command", "main", "script"]

KINDS = ("voc", "coco", "nuswide", "table")


class Command(NamedTuple):
    """A command of ``pvlr``.

    Attributes:
        module: Module that it is in, with its ``USAGE``, or ``USAGES`` and ``KINDS`` by kind of data.
        function: Name of its function there, whose arguments are the options.
        about: Line of the help.
        has_kinds: Whether a word behind it names the kind of data.
        kind: Kind without such a word; None if there has to be one.
    """

    module: str
    function: str
    about: str
    has_kinds: bool = False
    kind: str | None = None


COMMANDS = {
    "tag": Command("pvlr.cli.tag", "tag", "Tag pictures, with a trained model or without training."),
    "train": Command("pvlr.cli.train", "train", f"Train on data of a kind: {', '.join(KINDS)}.", has_kinds=True),
    "evaluate": Command("pvlr.cli.evaluate", "evaluate", "Metrics of a run, of towers, or of scores of any model."),
    "doubtful": Command("pvlr.cli.doubtful", "doubtful", "Annotated labels that a trained model contradicts."),
    "export": Command("pvlr.cli.export", "export", "A trained model as a program of ONNX or torch.export."),
    "study": Command("pvlr.cli.study", "study", "Compare methods and settings over several seeds.", True, "voc"),
    "demo": Command("pvlr.cli.demo", "demo", "A web page that tags a dropped picture."),
    "bulk": Command("pvlr.cli.bulk", "tag_bulk", "Tag many pictures on several processes or machines, with Ray."),
    "towers": Command("pvlr.cli.towers", "towers", "The towers that --tower and --tower.name take."),
    "recipes": Command("pvlr.cli.recipes", "recipes", "The configurations that --config takes by their name."),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command ``pvlr``.

    Args:
        args: Arguments of the command line; None: those of this process.

    Returns:
        The exit code: that of the command, or 2 for a command that there is not, or 141 if nobody reads its output any
        more.

    Example:
        >>> main(["--version"])
        pvlr 0.1.0
        0
    """
    words = sys.argv[1:] if args is None else list(args)
    return until_output_closes(lambda: _main(words))


def _main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"pvlr {pvlr.__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _refuse(f"expected one of the commands {', '.join(COMMANDS)}", words[0], tuple(COMMANDS), "command")
    return _run(words[0], list(words[1:]), f"pvlr {words[0]}", list(words[:1]))


def script(name: str, *words: str) -> int:
    """Run a command with the arguments of this process, as a script that has a name of its own.

    Args:
        name: The command.
        *words: Words behind it that the script stands for, such as a kind of data.
    """
    args = [*words, *sys.argv[1:]]
    return until_output_closes(lambda: _run(name, args, Path(sys.argv[0]).name, [], len(words)))


def _run(name: str, args: list[str], called: str, words: list[str], hidden: int = 0) -> int:
    """Run a command.

    Args:
        name: The command.
        args: The words behind it.
        called: The program's name so far.
        words: Words of that name that stand among the arguments of the process.
        hidden: Number of words of ``args`` that are no arguments of the process.
    """
    keep_freed_memory()
    entry, kind = COMMANDS[name], None
    if entry.has_kinds:
        kind = args[0] if args and not args[0].startswith("-") else entry.kind
        if kind is None and args[:1] in (["-h"], ["--help"]):
            print(_help_of_kinds(called))
            return 0
        if kind not in KINDS:
            return _refuse(f"{called}: expected a kind of data, one of {', '.join(KINDS)}", kind, KINDS, "kind")
        if args and args[0] == kind:
            args = args[1:]
            if not hidden:
                called, words = f"{called} {kind}", [*words, kind]
    try:
        require_packages(f"pvlr {name}", "train", TRAIN)
    except ModuleNotFoundError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    from pvlr.cli.command import command

    module = import_module(entry.module)
    usage = module.USAGE if kind is None else module.USAGES[kind]
    types = {} if kind is None else {"data": module.KINDS[kind]}
    return command(getattr(module, entry.function), args, usage=replace(usage, name=called, words=words), **types)


def _refuse(expected: str, got: str | None, known: Sequence[str], what: str) -> int:
    near = get_close_matches(got or "", known, n=1)
    hint = f"; the nearest {what} is {near[0]}" if near else ""
    print(f"error: {expected}, got {'none' if got is None else got}{hint}", file=sys.stderr)
    return 2


def _help() -> str:
    return "\n".join([
        "usage: pvlr COMMAND [--OPTION VALUE ...]",
        "",
        "Multi-label image recognition: train, tag, evaluate, export.",
        "",
        "examples:",
        "  pvlr tag --tower pvlr:photos --labels 'cat, sofa' PICTURE.jpg",
        "  pvlr train voc --config quickstart",
        "",
        "commands, each described by pvlr COMMAND --help:",
        *(f"  {name:<10}{entry.about}" for name, entry in COMMANDS.items()),
        "",
        "pvlr --version prints the version.",
    ])  # fmt: skip


def _help_of_kinds(called: str) -> str:
    about = {
        "voc": "Pascal VOC, or data in its layout",
        "coco": "MS-COCO, or data in its format",
        "nuswide": "NUS-WIDE",
        "table": "pictures of your own: a table, a folder per label, or sidecars",
    }
    return "\n".join([
        f"usage: {called} {'|'.join(KINDS)} [--SECTION.OPTION VALUE ...]",
        "",
        f"kinds of data, each described by {called} KIND --help:",
        *(f"  {kind:<10}{about[kind]}" for kind in KINDS),
    ])  # fmt: skip
