"""Options of a command line, as a function's annotations and docstrings describe them."""

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import Docstring, parse

__all__ = ["REQUIRED", "Option", "expected", "nearest", "normalised", "options_of", "plain", "specialised"]

REQUIRED = inspect.Parameter.empty
"""Default of an option that has none."""
WORDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a map",
    NoneType: "null",
    Any: "any value",
}
"""What is expected of the types of options, for messages."""
TRUTHS = ("true", "false", "yes", "no")
FOR_PYTHON = ("trackers",)
"""Arguments that hold objects, which a command line cannot give."""


@dataclass(frozen=True)
class Option:
    """An option of a command line.

    Attributes:
        name: Its name without dashes, such as ``loop.epochs``.
        kind: Annotated type.
        default: Default value; ``REQUIRED`` if it has none.
        help: Description, of the docstring.
    """

    name: str
    kind: Any
    default: Any
    help: str

    @property
    def is_section(self) -> bool:
        """True for a dataclass, whose fields are options of their own."""
        return dataclasses.is_dataclass(self.kind)


def specialised(function: Callable[..., Any], types: Mapping[str, type]) -> Callable[..., Any]:
    """Return the function with some of its annotations replaced, and without arguments that only Python can give."""

    @functools.wraps(function)
    def call(**arguments: Any) -> Any:
        return function(**arguments)

    hints = {**inspect.get_annotations(function, eval_str=True), **types}
    signature = inspect.signature(function)
    hints = {name: kind for name, kind in hints.items() if name not in FOR_PYTHON}
    parameters = [p.replace(annotation=hints[name]) for name, p in signature.parameters.items() if name in hints]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = hints
    return call


def options_of(function: Callable[..., Any]) -> list[Option]:
    """Return the options of a function: its arguments, and the fields of those that are dataclasses, in their order.

    Args:
        function: A function of annotated arguments with a docstring in Google's style.

    Example:
        >>> def hello(*, name: str, times: int = 1) -> None:
        ...     '''Greet somebody.
        ...
        ...     Args:
        ...         name: The name.
        ...         times: How often.
        ...     '''
        >>> [(option.name, option.help) for option in options_of(hello)]
        [('name', 'The name.'), ('times', 'How often.')]
    """
    hints, told = inspect.get_annotations(function, eval_str=True), _told(parse(function.__doc__ or ""))
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        option = Option(name, hints[name], parameter.default, told.get(name, ""))
        found += [option, *_fields(option)]
    return found


def _fields(section: Option) -> Iterator[Option]:
    if not section.is_section:
        return
    told: dict[str, str] = {}
    for kind in reversed(section.kind.__mro__[:-1]):
        told |= _told(parse(kind.__doc__ or ""))
    hints = get_type_hints(section.kind)
    for field in dataclasses.fields(section.kind):
        default: Any = field.default
        if dataclasses.is_dataclass(section.default) and not isinstance(section.default, type):
            default = getattr(section.default, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif default is dataclasses.MISSING:
            default = REQUIRED
        option = Option(f"{section.name}.{field.name}", hints[field.name], default, told.get(field.name, ""))
        yield option
        yield from _fields(option)


def _told(docstring: Docstring) -> dict[str, str]:
    return {param.arg_name: plain(param.description or "") for param in docstring.params}


def plain(text: str) -> str:
    """Return a text of a docstring without its markup, in one line.

    Example:
        >>> plain("Either ``a`` or\\n    :class:`~pvlr.core.B`.")
        'Either a or B.'
    """
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?([^`]*)`", r"\1", " ".join(text.split()))
    return text.replace("`", "")


def nearest(word: str, known: Sequence[str], what: str) -> str:
    """Return the end of a sentence about an unknown name, with the most similar one that is known, if any is.

    Example:
        >>> nearest("--loop.epoch", ["--loop.epochs", "--loop.seed"], "option")
        '; the nearest option is --loop.epochs'
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f"; the nearest {what} is {near[0]}" if near else ""


def expected(kind: Any) -> str:
    """Return what an option of a type takes, for a message.

    Example:
        >>> expected(float | Literal["single_positive"] | None)
        'a number, single_positive or null'
    """
    words = list(dict.fromkeys(_expected(kind)))
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _expected(kind: Any) -> Iterator[str]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        yield from map(str, parts)
    elif origin in (Union, UnionType):
        yield from (word for part in parts for word in _expected(part))
    elif origin in (tuple, list):
        number = "" if Ellipsis in parts or origin is list else f" of {len(parts)}"
        yield f"a list{number}"
    elif origin is dict:
        yield f"a map to {expected(parts[1])}"
    else:
        yield WORDS.get(origin or kind, "a value of another type")


def normalised(args: Sequence[str], options: Sequence[Option], *, has_positional: bool = False) -> list[str]:
    """Return the words of a command line with one spelling of each option's name, their values untouched.

    Names may be written with ``-`` in place of ``_``, and an option that is true or false stands for true by itself.

    Args:
        args: The words.
        options: The options that there are; other words stay.
        has_positional: Whether a word behind an option that is true or false may be no value of it.

    Example:
        >>> options = [Option("batch_size", int, 1, ""), Option("xmp", bool, False, "")]
        >>> normalised(["--batch-size", "2-3", "--xmp", "a-b.jpg"], options, has_positional=True)
        ['--batch_size', '2-3', '--xmp=true', 'a-b.jpg']
    """
    known = {option.name: option for option in options}
    known |= {name: Option(name, str, None, "") for name in ("print_config", "config", "help")}
    words = list(args)
    end = words.index("--") if "--" in words else len(words)
    for place, word in enumerate(words[:end]):
        name, equals, value = word.partition("=")
        option = known.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if option is None:
            continue
        following = words[place + 1].lower() if place + 1 < end else "-"
        is_alone = following.startswith("-") or (has_positional and following not in TRUTHS)
        if option.kind is bool and not equals and is_alone:
            equals, value = "=", "true"
        words[place] = f"--{option.name}{equals}{value}"
    return words
