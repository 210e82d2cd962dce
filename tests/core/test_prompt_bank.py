import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import seeds
from helpers.toy_text import LABELS, ToyTower
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.prompts import PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.shapes import ShapeError

# --- PromptBank


def test_sentences_are_templates_then_descriptions() -> None:
    bank = PromptBank(LABELS, templates=("a photo of a {}.", "{} outdoors"))
    assert bank.fixed() == (
        ("a photo of a cat.", "cat outdoors"),
        ("a photo of a traffic light.", "traffic light outdoors"),
        ("a photo of a cow.", "cow outdoors", "It moos.", "It eats grass."),
    )
    assert PromptBank(LABELS, descriptions={}).fixed()[2] == ("a photo of a cow.",)
    assert PromptBank(LABELS, descriptions={"cat": ("It purrs.",)}).fixed()[0] == ("a photo of a cat.", "It purrs.")
    only = {name: (f"About {name}.",) for name in LABELS}
    assert PromptBank(LABELS, templates=(), descriptions=only).fixed()[0] == ("About cat.",)


def test_learnable_prompts_put_words_or_nothing_before_the_name() -> None:
    assert PromptBank(LABELS).context_sentences()[1] == "a photo of a traffic light."
    bank = PromptBank(LABELS, context_words=None, context_tokens=3, suffix=" now")
    assert bank.context_sentences()[0] == "cat now"


def test_braces_in_a_name_are_letters() -> None:
    assert PromptBank(LabelSet(("a{}b", "{x}"))).fixed() == (("a photo of a a{}b.",), ("a photo of a {x}.",))


def test_a_bank_pickles_and_equals_its_copy() -> None:
    bank = PromptBank(LABELS, templates=("{}",))
    assert pickle.loads(pickle.dumps(bank)) == bank  # noqa: S301


BANKS = [
    ({"templates": ("a photo.",)}, ValueError, "templates: expected exactly one {} for the label, got 'a photo.'"),
    ({"templates": ("{} {}",)}, ValueError, "templates: expected exactly one {} for the label, got '{} {}'"),
    ({"templates": ("a {c}.",)}, ValueError, "templates: expected exactly one {} for the label, got 'a {c}.'"),
    ({"templates": ("{} {",)}, ValueError, "templates: expected exactly one {} for the label, got '{} {'"),
    ({"templates": ("} {}",)}, ValueError, "templates: expected exactly one {} for the label, got '} {}'"),
    ({"templates": ("{{}}",)}, ValueError, "templates: expected exactly one {} for the label, got '{{}}'"),
    ({"templates": ("{}", 3)}, ValueError, "templates: expected texts, got 3"),
    (
        {"templates": ()},
        ValueError,
        "templates: expected a template or a description for every label, 'cat' has none",
    ),
    (
        {"descriptions": {"cta": ("x",)}},
        LabelError,
        "descriptions: unknown label 'cta', the nearest known one is 'cat'",
    ),
    (
        {"descriptions": {"cat": "x"}},
        LabelError,
        "descriptions of 'cat': expected a sequence of sentences, got a str",
    ),
    ({"context_tokens": 0}, ValueError, "context_tokens: expected a whole number of at least 1, got 0"),
    (
        {"context_words": " "},
        ValueError,
        "context_words: expected words, or None to start from none, got an empty text",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "kind", "message"), BANKS)
def test_banks_that_are_refused(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        PromptBank(LABELS, **options)


# --- encode_knowledge


@given(seeds(), st.integers(1, 9))
def test_knowledge_is_the_mean_of_normalised_sentences_however_they_are_batched(seed: int, batch: int) -> None:
    tower, bank = ToyTower(seed=seed), PromptBank(LABELS, templates=("a {}", "the {} here"))
    found = encode_knowledge(bank, lambda sentences: tower.encode(sentences).requires_grad_(), batch=batch)
    assert all(count <= batch for count in tower.encoded)
    assert sum(tower.encoded) == 8
    for label, sentences in enumerate(bank.fixed()):
        vectors = [reference.normalise(tower.encode([sentence])[0].tolist()) for sentence in sentences]
        wanted = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
        assert found[label].tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def encode_to(vectors: object) -> object:
    return lambda sentences: vectors


ONE = LabelSet(("cat", "dog"))
ENCODERS = [
    (encode_to(torch.ones(3, 4)), ShapeError, "encode: expected axes 's k' with s=2, got shape (3, 4)"),
    (encode_to(torch.ones(2)), ShapeError, "encode: expected axes 's k', got shape (2,)"),
    (encode_to(torch.ones(2, 4).long()), ShapeError, "encode: expected a tensor of dtype float, got torch.int64"),
    (encode_to(np.ones((2, 4))), ShapeError, "encode: expected a tensor with axes 's k', got ndarray"),
    (
        encode_to(torch.tensor([[1.0], [0.0]])),
        ValueError,
        "encode: expected a finite vector other than zero for every sentence, not so for 'a photo of a dog.'",
    ),
    (
        encode_to(torch.tensor([[float("nan")], [1.0]])),
        ValueError,
        "encode: expected a finite vector other than zero for every sentence, not so for 'a photo of a cat.'",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("encode", "kind", "message"), ENCODERS)
def test_encoders_that_are_refused(encode: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        encode_knowledge(PromptBank(ONE), encode)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_no_sentences_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match=f"^batch: expected a whole number of at least 1, got {batch}$"):
        encode_knowledge(PromptBank(ONE), encode_to(torch.ones(2, 4)), batch=batch)


def test_an_encoder_sees_at_most_256_sentences_at_once_and_each_once() -> None:
    seen: list[list[str]] = []

    def encode(sentences: list[str]) -> torch.Tensor:
        seen.append(sentences)
        return torch.ones(len(sentences), 2)

    bank = PromptBank(LabelSet(tuple(f"thing {number}" for number in range(300))))
    assert encode_knowledge(bank, encode).shape == (300, 2)
    assert [len(sentences) for sentences in seen] == [256, 44]
    assert [sentence for part in seen for sentence in part] == [group[0] for group in bank.fixed()]


@pytest.mark.usefixtures("unchecked")
def test_an_encoder_whose_width_changes_between_batches_is_refused() -> None:
    widths = iter((4, 5))
    with pytest.raises(ShapeError, match=r"^encode: expected axes 's k' with k=4, got shape \(1, 5\)$"):
        encode_knowledge(PromptBank(ONE), lambda sentences: torch.ones(1, next(widths)), batch=1)


# --- load_label_vectors


def test_vectors_are_read_in_the_order_of_the_labels(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float64).reshape(4, 3)
    np.savez(tmp_path / "v.npz", names=np.array(["cow", "dog", "traffic_light", "cat"]), vectors=vectors)
    found = load_label_vectors(tmp_path / "v.npz", LABELS)
    assert found.dtype == torch.float32
    assert_close(found, torch.from_numpy(vectors[[3, 2, 0]]).float())
    assert torch.equal(load_label_vectors(str(tmp_path / "v.npz"), LABELS), found)


NAMES = np.array(["cat", "traffic_light", "cow"])
V = np.ones((3, 2), dtype=np.float32)
FILES = [
    ({"names": NAMES}, "expected the arrays 'names' and 'vectors', got 'names'"),
    ({"other": V}, "expected the arrays 'names' and 'vectors', got neither"),
    ({"names": NAMES[:2], "vectors": V[:2]}, "unknown label 'cow', the nearest known one is '"),
    ({"names": NAMES, "vectors": V[:2]}, "expected 'vectors' to be 3 rows of floats, got float32 (2, 2)"),
    ({"names": NAMES, "vectors": V.astype(int)}, "expected 'vectors' to be 3 rows of floats, got int64 (3, 2)"),
    ({"names": NAMES, "vectors": V[:, :0]}, "expected 'vectors' to be 3 rows of floats, got float32 (3, 0)"),
    ({"names": NAMES, "vectors": V[:, 0]}, "expected 'vectors' to be 3 rows of floats, got float32 (3,)"),
    ({"names": np.arange(3), "vectors": V}, "expected 'names' to be one axis of texts, got int64 (3,)"),
    ({"names": NAMES[[0, 0, 1]], "vectors": V}, "names: expected unique labels, got 'cat' more than once"),
    ({"names": NAMES.astype(object), "vectors": V}, "expected a readable .npz file of label vectors, Object arrays"),
    ({"names": NAMES, "vectors": V * np.array([[1], [1], [np.nan]])}, "expected finite vectors, 'cow' has none"),
]


@pytest.mark.parametrize(("arrays", "message"), FILES)
def test_files_that_are_refused_are_named(tmp_path: Path, arrays: dict, message: str) -> None:
    path = tmp_path / "v.npz"
    np.savez(path, **arrays)
    # Two messages go on: with a name that is as near as another, and with numpy's own words.
    end = "" if message.endswith(("is '", "Object arrays")) else "$"
    with pytest.raises(LabelError, match=f"^{re.escape(f'{path}: {message}')}{end}"):
        load_label_vectors(path, LABELS)


def test_vectors_of_one_number_are_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", names=NAMES, vectors=V[:, :1])
    assert load_label_vectors(tmp_path / "v.npz", LABELS).shape == (3, 1)


def test_what_is_no_such_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    whole = tmp_path / "whole.npz"
    np.savez(whole, names=NAMES, vectors=V)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-40])
    np.save(tmp_path / "single.npy", V)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(NAMES))
    for name in ("text.npz", "cut.npz", "single.npy", "pickle.npz", "absent.npz"):
        message = f"^{re.escape(str(tmp_path / name))}: expected a readable .npz file of label vectors, "
        with pytest.raises(LabelError, match=message):
            load_label_vectors(tmp_path / name, LABELS)
