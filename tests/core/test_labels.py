import copy
import json
import pickle
import string

import pytest
from helpers.messages import pinned
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.labels import LabelError, LabelSet

words = st.text(string.ascii_letters + "_ éß車", min_size=1, max_size=8).filter(lambda text: text == text.strip())


@st.composite
def arguments(draw: st.DrawFn) -> tuple:
    """A label set's arguments, not the set: the run-time type checks draw at random, which strategies must not."""
    names = tuple(draw(st.lists(words, min_size=1, max_size=6, unique=True)))
    readable = draw(st.dictionaries(st.sampled_from(names), words))
    descriptions = draw(st.dictionaries(st.sampled_from(names), st.lists(words, max_size=2).map(tuple)))
    return names, readable, descriptions


@given(arguments())
def test_json_pickle_copy_and_repr_are_round_trips(drawn: tuple) -> None:
    labels = LabelSet(*drawn)
    there_and_back = [
        LabelSet.from_json(json.loads(json.dumps(labels.to_json()))),
        pickle.loads(pickle.dumps(labels)),  # noqa: S301
        copy.deepcopy(labels),
        eval(repr(labels), {"LabelSet": LabelSet}),  # noqa: S307
    ]
    for other in there_and_back:
        assert other == labels
        assert hash(other) == hash(labels)
        assert (other.names, other.texts, dict(other.descriptions)) == (
            labels.names,
            labels.texts,
            dict(labels.descriptions),
        )


@given(arguments(), st.randoms(use_true_random=False))
def test_index_iteration_and_selection_agree(drawn: tuple, random: object) -> None:
    labels = LabelSet(*drawn)
    assert [labels.index(name) for name in labels] == list(range(len(labels)))
    assert all(name in labels for name in labels.names)
    assert "not in it at all" not in labels
    shuffled = list(labels.names)
    random.shuffle(shuffled)
    chosen = labels.select(shuffled)
    assert chosen.names == tuple(shuffled)
    assert chosen.texts == tuple(labels.readable[name] for name in shuffled)
    assert chosen.descriptions == {n: labels.descriptions[n] for n in shuffled if n in labels.descriptions}
    assert chosen.select(labels.names) == labels


def test_readable_texts_default_to_names_with_spaces_for_underscores() -> None:
    labels = LabelSet(("traffic_light", "tvmonitor", "_"), {"tvmonitor": "tv monitor"})
    assert labels.texts == ("traffic light", "tv monitor", "_")


def test_sets_that_differ_in_anything_are_not_equal() -> None:
    sets = [
        LabelSet(("a", "b")),
        LabelSet(("b", "a")),
        LabelSet(("a", "b"), {"a": "c"}),
        LabelSet(("a", "b"), descriptions={"a": ("x",)}),
    ]
    assert len(set(sets)) == 4


def test_nothing_in_it_can_be_changed() -> None:
    readable = {"a": "b"}
    labels = LabelSet(("a",), readable, {"a": ("x",)})
    readable["a"] = "changed"
    assert labels.texts == ("b",)
    with pytest.raises(TypeError):
        labels.readable["a"] = "c"  # type: ignore[index]
    with pytest.raises(TypeError):
        labels.descriptions["a"] = ()  # type: ignore[index]
    with pytest.raises(AttributeError):
        labels.names = ()  # type: ignore[misc]


REFUSED = [
    (lambda: LabelSet(()), "names: expected at least one label, got none"),
    (lambda: LabelSet("cat"), "names: expected a sequence of names, got the single text 'cat'"),
    (lambda: LabelSet(("a", "b", "a")), "names: expected unique labels, got 'a' more than once"),
    (lambda: LabelSet(("a", "")), "names: expected a non-empty text without white space around it, got ''"),
    (lambda: LabelSet(("a ",)), "names: expected a non-empty text without white space around it, got 'a '"),
    (lambda: LabelSet(("a\x1b[2Jb",)), "names: expected a text without control characters, got 'a\\x1b[2Jb'"),
    (lambda: LabelSet(("a\nb",)), "names: expected a text without control characters, got 'a\\nb'"),
    (lambda: LabelSet(("a\x9bb",)), "names: expected a text without control characters, got 'a\\x9bb'"),
    (
        lambda: LabelSet(("cat",), {"cat": "a\tcat"}),
        "readable of 'cat': expected a text without control characters, got 'a\\tcat'",
    ),
    (lambda: LabelSet((3,)), "names: expected a non-empty text without white space around it, got 3"),
    (
        lambda: LabelSet(("cat", "dog"), {"dgo": "x"}),
        "readable: unknown label 'dgo', the nearest known one is 'dog'",
    ),
    (
        lambda: LabelSet(("cat",), {"cat": " "}),
        "readable of 'cat': expected a non-empty text without white space around it, got ' '",
    ),
    (
        lambda: LabelSet(("cat",), descriptions={"cta": ("x",)}),
        "descriptions: unknown label 'cta', the nearest known one is 'cat'",
    ),
    (
        lambda: LabelSet(("cat",), descriptions={"cat": "a pet"}),
        "descriptions of 'cat': expected a sequence of sentences, got a str",
    ),
    (
        lambda: LabelSet(("cat",), descriptions={"cat": ("",)}),
        "descriptions of 'cat': expected a non-empty text without white space around it, got ''",
    ),
    (lambda: LabelSet(("cat", "dog")).index("dgo"), "unknown label 'dgo', the nearest known one is 'dog'"),
    (lambda: LabelSet(("cat", "dog")).select(["x"]), "unknown label 'x', the nearest known one is "),
    (
        lambda: LabelSet(("cat", "dog")).select(["cat", "cat"]),
        "names: expected unique labels, got 'cat' more than once",
    ),
    (lambda: LabelSet.from_json({}), "labels: the field 'names' is missing"),
    (lambda: LabelSet.from_json([]), "labels: expected an object with the field 'names', got list"),
    (lambda: LabelSet.from_json({"names": "cat"}), "labels: expected 'names' to be a list, got str"),
    (
        lambda: LabelSet.from_json({"names": ["cat"], "colour": 1}),
        "labels: expected the fields 'names', 'readable', 'descriptions', got 'colour'",
    ),
    (
        lambda: LabelSet.from_json({"names": ["cat"], "descriptions": {"cat": "x"}}),
        "labels: expected a list of sentences as the description of 'cat', got str",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_refusals_name_the_label(make: object, message: str) -> None:
    with pytest.raises(LabelError, match=f"^{pinned(message)}"):
        make()
