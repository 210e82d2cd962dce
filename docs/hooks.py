"""Parts of the pages that are made from the code: options, modules, docstrings."""

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import griffe
from docstring_parser import parse
from mkdocs.exceptions import PluginError

import pvlr
from pvlr.train import data_config, train

PACKAGE = Path(pvlr.__file__).parent
OPTIONS = "<!-- options -->"
MODULES = re.compile(r"<!-- modules of (pvlr\.\w+) -->")
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`(~?)([\w.]+)`")
ELSEWHERE = re.compile(r"<(?:script|img|link rel=\"(?:stylesheet|preconnect|icon)\")[^>]*(?:src|href)=\"(?:https?:)?//")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in the place of a marker what it stands for."""
    markdown = MODULES.sub(lambda marker: "\n\n".join(f"::: {name}" for name in modules(marker[1])), markdown)
    return markdown.replace(OPTIONS, options()) if OPTIONS in markdown else markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch anything from elsewhere."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri}: expected a page that works offline, found {found[0]!r}")
    return output


def modules(package: str) -> list[str]:
    """Return all modules of a package with public names."""
    folder = PACKAGE / package.split(".")[1]
    found = [path for path in folder.rglob("[a-z]*.py") if "__all__" in path.read_text()]
    names = (path.relative_to(folder).with_suffix("").parts for path in found)
    return [".".join((package, *parts)) for parts in sorted(names, key=lambda parts: (len(parts), parts))]


def options() -> str:
    """Every option of the training scripts: a table per section, from the dataclasses and their docstrings."""
    sections = inspect.get_annotations(train, eval_str=True)
    parts = [
        section(name, kind, f"`{kind.__name__}`")
        for name, kind in sections.items()
        if name != "data" and dataclasses.is_dataclass(kind)
    ]
    kinds = {kind.__name__: kind for kind in vars(data_config).values() if is_data_config(kind)}
    base = kinds.pop("DataConfig")
    shared = {field.name for field in dataclasses.fields(base)}
    data = [section("data", base, "all data sets (`DataConfig`)")]
    data += [section("data", kind, f"`{kind.__name__}`", without=shared) for kind in kinds.values()]
    return "\n\n".join(data + parts)


def is_data_config(kind: object) -> bool:
    """Return whether a value is a kind of data set."""
    return isinstance(kind, type) and issubclass(kind, data_config.DataConfig)


def section(name: str, kind: type, title: str, without: typing.Collection[str] = ()) -> str:
    """The table of one dataclass; of what it inherits (``without``) only the defaults that are its own."""
    told = described(kind)
    fields = [field for field in dataclasses.fields(kind) if field.name not in without]
    hints = typing.get_type_hints(kind)
    rows = [f"## `{name}`: {title}", "", parse(inspect.getdoc(kind) or "").short_description or "", ""]
    if others := [field for field in dataclasses.fields(kind) if field.name in without and field.name in vars(kind)]:
        rows += ["Its own defaults: " + ", ".join(f"`{f.name}` `{spelled(f.default)}`" for f in others) + ".", ""]
    rows += ["| option | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        if not told.get(field.name):
            raise PluginError(f"{kind.__qualname__}.{field.name}: expected a line in the class's docstring, found none")
        option = f"--{name}.{field.name}"
        if not dataclasses.is_dataclass(hint := hints[field.name]):
            rows.append(row(option, typed(hint), spelled(field.default), told[field.name]))
            continue
        rows.append(row(option, "section", "", told[field.name]))
        inner, kinds = described(hint), typing.get_type_hints(hint)
        for part in dataclasses.fields(hint):  # type: ignore[arg-type]
            default, meaning = spelled(part.default), inner[part.name]
            rows.append(row(f"{option}.{part.name}", typed(kinds[part.name]), default, meaning))
    return "\n".join(rows)


def described(kind: Any) -> dict[str, str]:
    """What docstrings say about each field, that of the class before those of its bases."""
    return {
        parameter.arg_name: parameter.description or ""
        for base in reversed(kind.__mro__)
        for parameter in parse(vars(base).get("__doc__") or "").params
    }


def row(option: str, kind: str, default: str, meaning: str) -> str:
    """A line of a table."""
    meaning = " ".join(meaning.replace("``", "`").split()).replace("|", "\\|")
    return f"| `{option}` | {kind} | {f'`{default}`' if default else ''} | {meaning} |"


def typed(hint: Any) -> str:
    """A type as a user of the command line thinks of it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else typed(part) for part in arguments)
    if origin in (tuple, list):
        return f"list of {typed(arguments[0])}"
    if origin is dict:
        return f"{typed(arguments[0])} to {typed(arguments[1])}"
    return {str: "text", int: "integer", float: "number", bool: "true or false"}.get(
        hint, getattr(hint, "__name__", "")
    )


def spelled(default: Any) -> str:
    """A default as YAML spells it."""
    if isinstance(default, tuple):
        return f"[{', '.join(spelled(one) for one in default)}]"
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return "" if default is dataclasses.MISSING else str(default)


class Docstrings(griffe.Extension):
    """Docstrings as the pages need them: roles become links, every ``Example:`` a section of code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the text of one docstring."""
        if obj.docstring is None:
            return
        text = ROLE.sub(lambda role: f"[`{_last(role[2]) if role[1] else role[2]}`][{role[2]}]", obj.docstring.value)
        text = re.sub(r"^(\s*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
        obj.docstring.value = re.sub(r"::(\n\n {4})", r":\1", text)


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
