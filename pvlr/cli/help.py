"""Help of the commands: a screen of what people set, each section by its name, everything by ``all``."""

import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser import parse

from pvlr.cli.options import REQUIRED, Option, options_of, plain

__all__ = ["Usage", "help_text", "topics"]

WIDEST = 100
ALL = "all"
NAMES: dict[Any, str] = {
    str: "TEXT",
    int: "N",
    float: "X",
    bool: "true|false",
    tuple: "LIST",
    list: "LIST",
    dict: "MAP",
}
CONFIG = Option(
    "config", Literal["FILE"], None, "Configuration file in YAML, or a recipe's name (pvlr recipes); may be repeated."
)
PRINT_CONFIG = Option("print_config", None, None, "Print the whole configuration as YAML and exit.")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the help of a command says beside its options.

    Attributes:
        name: The command as it is typed, such as ``pvlr train voc``.
        words: Those of its name that stand among the arguments of the process, such as ``train`` and ``voc``.
        examples: Arguments of example command lines.
        common: Names of the options that the short help shows; empty for all.
        positional: Arguments that are given without an option's name, with their name in the help. A list takes one or
            more, a text at most one.
    """

    name: str
    words: Sequence[str] = ()
    examples: Sequence[str] = ()
    common: Sequence[str] = ()
    positional: tuple[str, str] | None = None


def topics(function: Callable[..., Any]) -> list[str]:
    """Return what ``--help`` takes after it: the sections of a command, and ``all``; empty if it has no sections."""
    sections = [option.name for option in options_of(function) if option.is_section and "." not in option.name]
    return [*sections, ALL] if sections else []


def help_text(function: Callable[..., Any], usage: Usage, topic: str | None = None) -> str:
    """Return the help of a command, or of one of its sections.

    Args:
        function: Function of the command.
        usage: Name and examples of the command, and the common options.
        topic: A section, or ``all``; None for the short help.
    """
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    every, sections = options_of(function), topics(function)
    if topic is not None and topic != ALL:
        (section,) = (option for option in every if option.name == topic)
        inside = [option for option in every if option.name.startswith(f"{topic}.") and not option.is_section]
        return "\n".join([f"{topic}: {section.help}", "", *_whole(inside, width)])
    lines = _head(function, usage, bool(sections), width)
    if topic == ALL or not sections:
        leaves = [option for option in every if not option.is_section]
        if usage.positional is not None:
            leaves = [option for option in leaves if option.name != usage.positional[0]]
        lines += ["options:", *_whole([*leaves, CONFIG, PRINT_CONFIG], width)]
        return "\n".join(lines)
    named = {option.name: option for option in (*every, CONFIG)}
    common = [named[name] for name in ("config", *usage.common) if name in named]
    wide = max(len(option.name) for option in common) + 4
    lines += ["common options:", *(_short(option, wide, width) for option in common), ""]
    lines += ["sections, each shown by --help SECTION, everything by --help all:"]
    for name in sections[:-1]:
        lines.append(_row(name, named[name].help, wide, width))
    return "\n".join(lines)


def _head(function: Callable[..., Any], usage: Usage, has_sections: bool, width: int) -> list[str]:
    told = parse(function.__doc__ or "")
    named, about = usage.positional, []
    words = [usage.name, "[--SECTION.OPTION VALUE ...]" if has_sections else "[--OPTION VALUE ...]"]
    if named is not None:
        option = next(option for option in options_of(function) if option.name == named[0])
        words.append(f"{named[1]} ..." if option.default is REQUIRED else f"[{named[1]}]")
        about = [_filled(f"  {named[1]:<12}{option.help}", width, 14), ""]
    examples = [f"  {usage.name} {each}" for each in usage.examples]
    return [
        f"usage: {' '.join(words)}",
        "",
        textwrap.fill(plain(told.short_description or ""), width),
        "",
        *(["examples:", *examples, ""] if examples else []),
        *about,
    ]


def _short(option: Option, wide: int, width: int) -> str:
    first = option.help.split(". ")[0].split("; ")[0].rstrip(".")
    default = "" if option.name == "config" else f" ({_default(option)})"
    room = width - wide - 2 - len(default)
    return f"  {f'--{option.name}':<{wide - 2}}  {textwrap.shorten(first, room, placeholder='…')}{default}"


def _row(name: str, text: str, wide: int, width: int) -> str:
    return f"  {name:<{wide - 2}}  {textwrap.shorten(text.rstrip('.'), width - wide - 2, placeholder='…')}"


def _whole(options: Sequence[Option], width: int) -> list[str]:
    """Return options with their whole descriptions, in two columns."""
    heads = [f"  --{option.name} {_kind(option)}".rstrip() for option in options]
    left = min(max(map(len, heads)), 34) + 2
    lines = []
    for head, option in zip(heads, options, strict=True):
        has_default = option.default is not None and option.name not in (CONFIG.name, PRINT_CONFIG.name)
        text = f"{option.help.rstrip('.')} ({_default(option)})" if has_default else option.help.rstrip(".")
        if len(head) > left - 2:
            lines.append(head)
            head = ""
        lines.append(_filled(f"{head:<{left}}{text}", width, left))
    return lines


def _filled(text: str, width: int, indent: int) -> str:
    return textwrap.fill(text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)


def _default(option: Option) -> str:
    value = option.default
    if value is REQUIRED:
        return "required"
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    return f"default: {list(value) if isinstance(value, tuple) else value if value != '' else repr(value)}"


def _kind(option: Option) -> str:
    """Return the value that an option takes: choices, or a word for it; nothing for one that is off by default."""
    return "" if option.kind is bool and option.default is False else _named(option.kind)


def _named(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return "|".join(map(str, get_args(kind)))
    if origin in (Union, UnionType):
        return "|".join(_named(each) for each in get_args(kind) if each is not NoneType)
    return NAMES.get(origin or kind, "")
