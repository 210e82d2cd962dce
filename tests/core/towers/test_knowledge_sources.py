"""Sources of knowledge about labels: the text tower, any sentence encoder, sentence-transformers, a file."""

import copy
import json
import pickle
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import pinned
from helpers.model_toys import DIM, HEADS, LABELS, ToyImage, ToyText, build, moved, patches_for
from helpers.strategies import Draw, backward, missing_gradients
from torch import Tensor, nn
from torch.testing import assert_close

from pvlr.core import PVLR, KnowledgePrompter, LabelError, LabelSet, PromptBank, PVLRConfig, asymmetric_loss
from pvlr.core.models.state import load_trained_state, trained_state
from pvlr.core.prompts import encode_knowledge, load_label_vectors
from pvlr.core.towers.text.sentence_encoders import SentenceEncoderError, load_sentence_transformer

EXACT = {"rtol": 1e-9, "atol": 1e-9}
WIDTH = 7


def letters(sentences: Sequence[str]) -> Tensor:
    """A sentence encoder of one line: how often some letters occur."""
    return torch.tensor([[1.0 + sentence.count(letter) for letter in "abcdeot"] for sentence in sentences])


class Encoder(nn.Module):
    """A sentence encoder that is a module, with parameters that are none of the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, sentences: list[str]) -> Tensor:
        return self.layer(letters(sentences))


def encoded(encoder: Any = letters, labels: LabelSet = LABELS, **chosen: Any) -> PVLR:
    config = PVLRConfig(heads=HEADS, knowledge="encoder", **chosen)
    model = PVLR(config, labels, ToyText().double(), ToyImage(), logit_scale=7.0, encoder=encoder)
    return model.double().eval()


def learned(model: PVLR, patches: Tensor) -> Tensor:
    """Scores to which the encoder's vectors contribute; the base is the text tower's."""
    return model.comparison.scores(patches, model.label_rows())[1]


def stub(monkeypatch: pytest.MonkeyPatch, fails: Exception | None = None) -> list[tuple[str, str | None]]:
    """Put a stand-in for the package sentence-transformers in place; returns what is asked of it."""
    asked: list[tuple[str, str | None]] = []

    class SentenceTransformer(nn.Module):
        def __init__(self, model_name_or_path: str, *, device: str | None = None) -> None:
            super().__init__()
            asked.append((model_name_or_path, device))
            if fails is not None:
                raise fails
            self.layer = nn.Linear(2, 2)  # Draws random numbers, as a real one does.

        @torch.inference_mode()
        def encode(
            self, inputs: list[str], show_progress_bar: bool | None = None, convert_to_tensor: bool = False
        ) -> Any:
            return letters(inputs) if convert_to_tensor else letters(inputs).numpy()

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return asked


# --- a function


def test_the_prompter_takes_vectors_from_each_source(tmp_path: Path) -> None:
    bank, text = PromptBank(LABELS), ToyText()
    of_letters = encode_knowledge(bank, letters)
    np.savez(tmp_path / "vectors.npz", names=np.array(LABELS.names), vectors=of_letters.numpy())
    for vectors in (of_letters, load_label_vectors(tmp_path / "vectors.npz", LABELS)):
        assert_close(vectors, of_letters, **EXACT)
        assert KnowledgePrompter(dim=DIM, heads=HEADS, source_dim=WIDTH)(vectors)[0].shape == (5, DIM)
    assert KnowledgePrompter(dim=DIM, heads=HEADS)(encode_knowledge(bank, text.encode))[0].shape == (5, DIM)


def test_a_function_encodes_the_fixed_prompts() -> None:
    asked: list[str] = []

    def encoder(sentences: list[str]) -> Tensor:
        asked.extend(sentences)
        return letters(sentences)

    model = encoded(encoder, templates=("{} here", "two {}"))
    bank = PromptBank(LABELS, templates=("{} here", "two {}"))
    sentences = [sentence for group in bank.fixed() for sentence in group]
    assert asked == sentences
    assert_close(model.knowledge_vectors, encode_knowledge(bank, letters).double(), **EXACT)
    assert model.knowledge.projection.weight.shape == (DIM, WIDTH)
    # What the towers know by themselves is the text tower's.
    assert model.text.encoded == 1
    assert_close(model.base_vectors, encode_knowledge(bank, model.text.encode).double(), **EXACT)


def test_it_is_the_same_as_a_file_of_what_the_function_makes(tmp_path: Path) -> None:
    by_function = moved(encoded(), 0)
    np.savez(
        tmp_path / "vectors.npz", names=np.array(LABELS.names), vectors=encode_knowledge(PromptBank(LABELS), letters)
    )
    by_file = build({"heads": HEADS, "knowledge": "file"}, file=tmp_path / "vectors.npz", seed=None)
    load_trained_state(by_file, trained_state(by_function))
    patches = patches_for(Draw(0))
    wanted = by_function.forward_features(patches).logits
    assert_close(by_file.forward_features(patches).logits, wanted, **EXACT)


def test_an_encoder_is_no_part_of_the_model() -> None:
    encoder = Encoder()
    model = moved(encoded(encoder), 0).train()
    before = copy.deepcopy(encoder.state_dict())
    assert model.state_dict().keys() == encoded(letters).state_dict().keys()
    model.mixture.drop = 0.0
    assert encoder not in set(model.modules())
    backward(model.forward_features(patches_for(Draw(0), 3, 6)).logits)
    assert missing_gradients(model) == []
    assert all(parameter.grad is None for parameter in encoder.parameters())
    model.float()
    encoder.train()
    model.eval()
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_copies_and_other_labels_use_the_same_function() -> None:
    encoder, others = Encoder(), LabelSet(("zebra", "fire_truck"))
    model, patches = moved(encoded(encoder), 0), patches_for(Draw(1))
    fresh = encoded(encoder, others)
    own = {n: v for n, v in trained_state(fresh).items() if n == "known_positives" or n.startswith("residual.")}
    load_trained_state(fresh, trained_state(model) | own)
    wanted = learned(fresh, patches)
    copied = copy.deepcopy(model)
    for other in (model, copied, copy.copy(model), model.with_labels(LabelSet(("cow",)))):
        assert torch.equal(learned(other.with_labels(others), patches), wanted)
    with torch.no_grad():
        encoder.layer.bias.add_(1.0)  # A copy does not hold a copy of the encoder.
    vectors = [one.with_labels(others).knowledge_vectors for one in (model, copied)]
    assert torch.equal(*vectors)
    assert not torch.equal(vectors[0], fresh.knowledge_vectors)


def test_a_model_with_a_function_of_a_module_goes_through_pickle() -> None:
    model, patches = moved(encoded(letters), 0), patches_for(Draw(0))
    other = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert torch.equal(other.forward_features(patches).logits, model.forward_features(patches).logits)
    assert other.with_labels(LabelSet(("zebra",))).knowledge_vectors.shape == (1, WIDTH)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("knowledge", "encoder", "message"),
    [
        ("encoder", None, "expected a function from sentences to vectors with knowledge='encoder', got None"),
        ("encoder", 3, "expected a function from sentences to vectors with knowledge='encoder', got 3"),
        (
            "text_tower",
            letters,
            "expected none with knowledge='text_tower', which does not use it; set knowledge='encoder'",
        ),
        (
            "told.npz",
            letters,
            "expected none with knowledge='told.npz', which does not use it; set knowledge='encoder'",
        ),
    ],
)
def test_an_encoder_that_is_missing_or_not_asked_for_is_refused(knowledge: str, encoder: Any, message: str) -> None:
    with pytest.raises(SentenceEncoderError, match=f"^encoder: {pinned(message)}$"):
        PVLR(PVLRConfig(heads=HEADS, knowledge=knowledge), LABELS, ToyText(), ToyImage(), encoder=encoder)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda sentences: letters(sentences).numpy(), "expected a tensor with axes 's k', got ndarray"),
        (lambda sentences: letters(sentences)[:-1], "expected axes 's k' with s=6, got shape (5, 7)"),
        (lambda sentences: letters(sentences)[0], "expected axes 's k', got shape (7,)"),
        (lambda sentences: letters(sentences) * 0, "expected a finite vector other than zero for every sentence, "),
        (lambda sentences: letters(sentences) / 0, "expected a finite vector other than zero for every sentence, "),
    ],
)
def test_what_an_encoder_returns_is_checked(encoder: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^encode: {pinned(message)}"):
        encoded(encoder, templates=("{}",), labels=LabelSet(tuple("abcdef")))


# --- sentence-transformers


def test_sentence_transformers_come_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stub(monkeypatch)
    model = build({"heads": HEADS, "knowledge": "sentence-transformers:small/model"})
    assert asked == [("small/model", "cpu")]
    assert_close(model.knowledge_vectors, encoded().knowledge_vectors, **EXACT)
    other = copy.deepcopy(model).with_labels(LabelSet(("zebra",)))
    assert_close(other.knowledge_vectors, encoded(labels=LabelSet(("zebra",))).knowledge_vectors, **EXACT)
    model.mixture.drop = 0.0
    backward(model.train().forward_features(patches_for(Draw(0), 3, 6)).logits)
    assert missing_gradients(model) == []
    with torch.no_grad():  # The label side is kept: an inference tensor among its sources would prevent it.
        assert model.eval()._label_side() is model._label_side()


def test_loading_one_leaves_the_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch)
    state = torch.get_rng_state()
    load_sentence_transformer("small")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("missing", ["sentence_transformers", "transformers"])
def test_the_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    if missing != "sentence_transformers":
        monkeypatch.delitem(sys.modules, "sentence_transformers")
        monkeypatch.setattr("builtins.__import__", failing_import(missing))
    message = (
        f"knowledge: 'sentence-transformers:small' needs the package {missing}, which is not installed "
        "(pip install 'pvlr[sentence]')"
    )
    with pytest.raises(SentenceEncoderError, match=f"^{pinned(message)}$"):
        build({"heads": HEADS, "knowledge": "sentence-transformers:small"})


def failing_import(missing: str) -> Any:
    """An import statement under which the package is there, but one that it needs is not."""
    real = __import__

    def fake(name: str, *rest: Any, **more: Any) -> Any:
        if name == "sentence_transformers":
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest, **more)

    return fake


def test_a_model_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, fails=OSError("no such model\n  on the hub"))
    message = "knowledge: could not load 'sentence-transformers:none': no such model on the hub"
    with pytest.raises(SentenceEncoderError, match=f"^{pinned(message)}$"):
        build({"heads": HEADS, "knowledge": "sentence-transformers:none"})


def test_a_name_is_asked_for() -> None:
    message = "knowledge: expected a model's name after 'sentence-transformers:', got none"
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        PVLRConfig(knowledge="sentence-transformers:")


# --- real label vectors

SAME = ("bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse", "person", "sheep")
VOC = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "train": "train",
    "tvmonitor": "tv",
    **{name: name for name in SAME},
}
"""Pascal VOC's labels, and what COCO calls them."""


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> Path:
    """Published CLIP vectors of COCO's 80 names, as a file of label vectors; what VOC calls otherwise is added."""
    vectors = np.load(shared / "data" / "embeddings" / "detic_coco80_clip_vitb32_a_cname.npy", allow_pickle=False)
    categories = json.loads((shared / "data" / "labels" / "categories.json").read_text())
    rows = {category["name"]: vector for category, vector in zip(categories, vectors, strict=True)}
    rows |= {name: rows[coco] for name, coco in VOC.items()}
    path = tmp_path / "clip.npz"
    np.savez(path, names=np.array(list(rows)), vectors=np.stack(list(rows.values())))
    return path


@pytest.mark.parametrize(
    ("name", "near", "far"),
    [("dog", "cat", "car"), ("car", "truck", "cat"), ("sheep", "cow", "fork"), ("fork", "knife", "sheep")],
)
def test_real_vectors_know_what_is_alike(real: Path, name: str, near: str, far: str) -> None:
    vectors = load_label_vectors(real, LabelSet((name, near, far)))
    assert vectors.shape == (3, 512)
    cosine = nn.functional.cosine_similarity(vectors[:1], vectors[1:])
    assert cosine[0] > cosine[1] + 0.01


def test_a_model_learns_on_real_vectors(real: Path) -> None:
    labels, draw = LabelSet(tuple(VOC)), Draw(0, torch.float32)
    config = PVLRConfig(heads=HEADS, knowledge=str(real))
    model = PVLR(config, labels, ToyText().float(), ToyImage()).train()
    assert model.knowledge_vectors.shape == (20, 512)
    patches, target = draw.normal(8, 9, DIM), draw.chance(0.3, 8, 20).float()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    before, losses = model.knowledge.projection.weight.detach().clone(), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = asymmetric_loss(model.forward_features(patches).logits, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(model.knowledge.projection.weight, before)
    assert model.with_labels(LabelSet(("zebra", "stop sign"))).knowledge_vectors.shape == (2, 512)


def test_a_label_that_real_vectors_lack_is_named(real: Path) -> None:
    config = PVLRConfig(heads=HEADS, knowledge=str(real))
    message = f"{real}: unknown label 'zeppelin', the nearest known one is "
    with pytest.raises(LabelError, match=f"^{pinned(message)}"):
        PVLR(config, LabelSet(("dog", "zeppelin")), ToyText().float(), ToyImage())
