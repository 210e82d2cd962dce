"""Every public name of the package says what it is; what has shapes says which, and shows itself at work."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pvlr
import pvlr.core


def public(package: str) -> Iterator[tuple[str, Any]]:
    """Each public function and class, by the module that defines it."""
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", thing


ALL = dict(public("pvlr"))
# What `pvlr.core` offers under its own name: what users build with.
CORE = {name: thing for name, thing in ALL.items() if getattr(pvlr.core, name.split(".")[-1], None) is thing}


def undocumented(things: dict[str, Any]) -> list[str]:
    return [name for name, thing in things.items() if not own_doc(thing)]


def own_doc(thing: Any) -> str:
    """Docstring of its own: not the inherited one, nor that of `NamedTuple` and dataclasses where none was written."""
    doc = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    return "" if doc is None or doc.startswith(f"{thing.__name__}(") else doc


def undescribed(things: dict[str, Any]) -> list[str]:
    """Parameters of functions and constructors of which the docstring says nothing."""
    missing = []
    for name, thing in things.items():
        call = thing.__init__ if inspect.isclass(thing) else thing
        if inspect.isclass(thing) and ("__init__" not in vars(thing) or issubclass(thing, tuple | BaseException)):
            continue
        doc = own_doc(thing) + (call.__doc__ or "" if inspect.isclass(thing) else "")
        parameters = [p for p in inspect.signature(call).parameters.values() if p.name != "self"]
        missing += [f"{name}: {p.name}" for p in parameters if len(parameters) > 2 and f"{p.name}:" not in doc]
    return missing


def without_example(things: dict[str, Any]) -> list[str]:
    """Functions and classes that are called with tensors or numbers, and show no call."""
    return [name for name, thing in things.items() if shows(thing) and ">>>" not in own_doc(thing)]


def shows(thing: Any) -> bool:
    """Records and protocols are not called: they show nothing at work."""
    if not inspect.isclass(thing):
        return True
    record = dataclasses.is_dataclass(thing) or issubclass(thing, tuple | BaseException)
    return not (record or getattr(thing, "_is_protocol", False))


def test_every_public_name_is_documented() -> None:
    assert len(ALL) > 100
    assert undocumented(ALL) == []


def test_every_parameter_of_the_core_is_described() -> None:
    assert undescribed(CORE) == []


def test_every_function_and_block_of_the_core_shows_itself_at_work() -> None:
    assert without_example(CORE) == []


def test_what_the_core_offers_is_looked_at() -> None:
    offered = {name.rsplit(".", 1)[1] for name in CORE}
    assert [name for name in pvlr.core.__all__ if name not in offered and callable(getattr(pvlr.core, name))] == []


def nothing_said(x: int, y: int, z: int) -> None:
    pass


def little_said(x: int, y: int, z: int) -> None:
    """Something."""


@pytest.mark.parametrize(
    ("check", "thing"), [(undocumented, nothing_said), (undescribed, little_said), (without_example, little_said)]
)
def test_those_tests_can_fail(check: Callable[[dict[str, Any]], list[str]], thing: Any) -> None:
    assert check({"it": thing}) != []
