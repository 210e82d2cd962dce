"""The labels of a task: ordered, unique names, their readable texts and their descriptions."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast
from unicodedata import category

__all__ = ["LabelError", "LabelSet"]


class LabelError(ValueError):
    """Error for a label that is malformed, repeated or not in the set."""


@dataclass(frozen=True, repr=False)
class LabelSet:
    """Ordered, unique label names; position ``i`` is column ``i`` of every target and score.

    The name is the key that annotation files use (``diningtable``); the readable text is used in prompts
    (``dining table``).

    Args:
        names: Unique, non-empty names without control characters or white space around them; at least one.
        readable: Name to such a text for prompts; the text of a name left out is the name with underscores as spaces.
        descriptions: Name to sentences about the label; any name may be left out.

    Raises:
        LabelError: naming the label and what is wrong with it.

    Example:
        >>> labels = LabelSet(("traffic_light", "tvmonitor"), readable={"tvmonitor": "tv monitor"})
        >>> labels.texts
        ('traffic light', 'tv monitor')
        >>> labels.index("tvmonitor")
        1
        >>> labels.index("traficlight")
        Traceback (most recent call last):
            ...
        pvlr.core.labels.LabelError: unknown label 'traficlight', the nearest known one is 'traffic_light'
    """

    names: tuple[str, ...]
    readable: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given: object = self.names
        if isinstance(given, str):
            raise LabelError(f"names: expected a sequence of names, got the single text {given!r}")
        names = tuple(self.names)
        for name in names:
            _require_line("names", name)
        positions = {name: index for index, name in enumerate(names)}
        if not names:
            raise LabelError("names: expected at least one label, got none")
        if len(positions) != len(names):
            twice = next(name for index, name in enumerate(names) if positions[name] != index)
            raise LabelError(f"names: expected unique labels, got {twice!r} more than once")
        # Immutable at every level: the set is a key of caches.
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "_positions", positions)

        readable: dict[str, str] = dict(self.readable)
        described: dict[str, object] = dict(self.descriptions)
        for argument, mapping in (("readable", readable), ("descriptions", described)):
            for name in mapping:
                if name not in positions:
                    raise LabelError(f"{argument}: {self._unknown(name)}")
        for name, text in readable.items():
            _require_line(f"readable of {name!r}", text)
        for name, sentences in described.items():
            if not isinstance(sentences, tuple | list):
                found = type(sentences).__name__
                raise LabelError(f"descriptions of {name!r}: expected a sequence of sentences, got a {found}")
            for sentence in sentences:
                _require_text(f"descriptions of {name!r}", sentence)
        texts = {name: readable.get(name, _read(name)) for name in names}
        object.__setattr__(self, "readable", MappingProxyType(texts))
        descriptions = {name: tuple(self.descriptions[name]) for name in names if described.get(name)}
        object.__setattr__(self, "descriptions", MappingProxyType(descriptions))

    @classmethod
    def of(cls, labels: "LabelSet | Sequence[str]") -> "LabelSet":
        """Return the labels as a set, given a set or names.

        Raises:
            LabelError: where they are not names, or a single text.

        Example:
            >>> LabelSet.of(["cat", "dog"])
            LabelSet(names=('cat', 'dog'))
        """
        if isinstance(labels, LabelSet):
            return labels
        # A single text is not split into letters here: the constructor raises an error.
        return cls(cast(tuple[str, ...], labels) if isinstance(labels, str) else tuple(labels))

    @property
    def texts(self) -> tuple[str, ...]:
        """Readable texts, in order."""
        return tuple(self.readable[name] for name in self.names)

    def index(self, name: str) -> int:
        """Return the position of a label.

        Raises:
            LabelError: naming the unknown label and the nearest known one.
        """
        positions: dict[str, int] = self.__dict__["_positions"]
        if name not in positions:
            raise LabelError(self._unknown(name))
        return positions[name]

    def select(self, names: Iterable[str]) -> "LabelSet":
        """Return the labels of these names, in the order given, with their texts and descriptions.

        Raises:
            LabelError: naming a label that is unknown or given twice.

        Example:
            >>> LabelSet(("cat", "dog", "cow")).select(["cow", "cat"])
            LabelSet(names=('cow', 'cat'))
        """
        chosen = tuple(names)
        for name in chosen:
            self.index(name)
        return LabelSet(
            chosen,
            {name: self.readable[name] for name in chosen},
            {name: self.descriptions[name] for name in chosen if name in self.descriptions},
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain lists, dictionaries and texts, from which :meth:`from_json` makes an equal set.

        Example:
            >>> LabelSet(("cat",)).to_json()
            {'names': ['cat'], 'readable': {'cat': 'cat'}, 'descriptions': {}}
        """
        descriptions = {name: list(sentences) for name, sentences in self.descriptions.items()}
        return {"names": list(self.names), "readable": dict(self.readable), "descriptions": descriptions}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "LabelSet":
        """Return the set that :meth:`to_json` wrote; ``readable`` and ``descriptions`` may be left out.

        Raises:
            LabelError: naming a field that is missing, unknown or of the wrong kind.
        """
        if not isinstance(data, Mapping):
            raise LabelError(f"labels: expected an object with the field 'names', got {type(data).__name__}")
        kinds: dict[str, type] = {"names": list, "readable": dict, "descriptions": dict}
        for key, value in data.items():
            if key not in kinds:
                raise LabelError(f"labels: expected the fields {', '.join(map(repr, kinds))}, got {key!r}")
            if not isinstance(value, kinds[key]):
                raise LabelError(f"labels: expected {key!r} to be a {kinds[key].__name__}, got {type(value).__name__}")
        if "names" not in data:
            raise LabelError("labels: the field 'names' is missing")
        descriptions = data.get("descriptions", {})
        for name, sentences in descriptions.items():
            if not isinstance(sentences, list):
                found = type(sentences).__name__
                raise LabelError(f"labels: expected a list of sentences as the description of {name!r}, got {found}")
        return cls(
            tuple(data["names"]),
            data.get("readable", {}),
            {name: tuple(sentences) for name, sentences in descriptions.items()},
        )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__["_positions"]

    def __hash__(self) -> int:
        return hash((self.names, self.texts, tuple(self.descriptions.items())))

    def __repr__(self) -> str:
        fields = [f"names={self.names!r}"]
        readable = {name: text for name, text in self.readable.items() if text != _read(name)}
        if readable:
            fields.append(f"readable={readable!r}")
        if self.descriptions:
            fields.append(f"descriptions={dict(self.descriptions)!r}")
        return f"LabelSet({', '.join(fields)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Read-only mappings do not pickle; the JSON form does, and is checked again when it is read.
        return LabelSet.from_json, (self.to_json(),)

    def _unknown(self, name: object) -> str:
        nearest = difflib.get_close_matches(str(name), self.names, n=1, cutoff=0.0)[0]
        return f"unknown label {name!r}, the nearest known one is {nearest!r}"


def _read(name: str) -> str:
    return " ".join(name.replace("_", " ").split()) or name


def _require_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text or text != text.strip():
        raise LabelError(f"{name}: expected a non-empty text without white space around it, got {text!r}")


def _require_line(name: str, text: str) -> None:
    _require_text(name, text)
    # The text is shown in tables, pages and terminals, which would interpret control characters.
    if any(category(letter) == "Cc" for letter in text):
        raise LabelError(f"{name}: expected a text without control characters, got {text!r}")
