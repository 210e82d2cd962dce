"""Runs whose knowledge about labels comes from a sentence encoder: what they keep, and how they are read again."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training_toys import LABELS, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.core.labels import LabelSet
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.prompts import load_label_vectors
from pvlr.core.towers import load_towers
from pvlr.inference.saving import PretrainedError
from pvlr.train import Recognizer, train
from pvlr.train.data_config import VOCData

NAME = "sentence-transformers:small"


def letters(sentences: list[str]) -> torch.Tensor:
    return torch.tensor([[1.0 + sentence.count(letter) for letter in "abdegl"] for sentence in sentences])


def words(sentences: list[str]) -> torch.Tensor:
    return torch.tensor([[1.0, len(sentence), sentence.count("r"), 2, 3, 4] for sentence in sentences])


def stub(monkeypatch: pytest.MonkeyPatch, encode: Any = letters) -> None:
    class SentenceTransformer:
        def __init__(self, name: str, device: str) -> None:
            assert (name, device) == ("small", "cpu")

        def encode(self, sentences: list[str], *, convert_to_tensor: bool, show_progress_bar: bool) -> torch.Tensor:
            assert convert_to_tensor
            return encode(sentences)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, train=8, test=4)
    return root


def test_a_run_with_sentence_transformers_goes_on_and_is_read_again(
    tower: Path, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch)
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(f"model:\n  knowledge: {NAME}\n")
    options = ["--config", str(config), *tiny_options(voc, tower, run, run__baselines="true")]
    assert command(train, [*options, "--loop.epochs=1"], data=VOCData) == 0
    assert command(train, [*options, "--run.resume=require"], data=VOCData) == 0
    kept = load_label_vectors(run / "knowledge.npz", LabelSet(LABELS))
    picture = voc / "VOCdevkit/VOC2007/JPEGImages/000000.jpg"
    found = Recognizer.from_pretrained(run)
    assert found.model.config.knowledge == NAME
    assert torch.equal(found.model.knowledge_vectors, kept)
    assert len(found.tag(picture, threshold=0.0)) == 3
    assert found.model.with_labels(LabelSet(("grey",))).knowledge_vectors.shape == (1, 6)
    # What the run keeps serves as a file of label vectors too.
    again = tiny_options(voc, tower, tmp_path / "file", model__knowledge=run / "knowledge.npz", loop__epochs=1)
    assert command(train, again, data=VOCData) == 0
    capsys.readouterr()

    stub(monkeypatch, words)
    another = f"{run}: the model was trained on other label vectors than the sentence encoder '{NAME}' makes now"
    assert command(train, [*options, "--loop.epochs=3"], data=VOCData) == 2
    assert capsys.readouterr().err == f"error: {another}\n"
    with pytest.raises(PretrainedError, match=f"^{re.escape(another)}$"):
        Recognizer.from_pretrained(run)

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    lacks = (
        f"knowledge: '{NAME}' needs the package sentence_transformers, which is not installed "
        "(pip install 'pvlr[sentence]')"
    )
    assert command(train, [*options, "--loop.epochs=3"], data=VOCData) == 2
    assert capsys.readouterr().err == f"error: {lacks}\n"
    with pytest.raises(PretrainedError, match=f"^{re.escape(str(run / 'model.json'))}: {re.escape(lacks)}$"):
        Recognizer.from_pretrained(run)


def test_a_function_is_not_for_a_configuration(
    tower: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(train, tiny_options(voc, tower, tmp_path / "run", model__knowledge="encoder"), data=VOCData) == 2
    assert capsys.readouterr().err == (
        "error: model.knowledge: 'encoder' is a function, which a configuration cannot hold; name a model "
        "('sentence-transformers:NAME') or a .npz file, or build the model in Python\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_model_with_a_function_is_read_again_with_it_and_only_with_it(tower: Path, tmp_path: Path) -> None:
    towers = load_towers(f"local-dir:{tower}")
    config = PVLRConfig(heads=4, knowledge="encoder")
    model = PVLR.from_towers(config, LabelSet(LABELS), towers, encoder=letters).eval()
    with torch.no_grad():
        model.knowledge.projection.weight.add_(0.5)
    Recognizer(model).save_pretrained(tmp_path)
    found = Recognizer.from_pretrained(tmp_path, encoder=letters).model
    patches = torch.randn(2, 4, towers.text.dim)
    assert torch.equal(found.forward_features(patches).logits, model.forward_features(patches).logits)
    assert found.with_labels(LabelSet(("grey",))).knowledge_vectors.shape == (1, 6)

    missing = (
        f"{tmp_path}: the model was trained with a sentence encoder of its user's, which no file keeps; give the same "
        "again, as from_pretrained(source, encoder=FUNCTION)"
    )
    with pytest.raises(PretrainedError, match=f"^{re.escape(missing)}$"):
        Recognizer.from_pretrained(tmp_path)
    for other in (words, lambda sentences: letters(sentences)[:, :-1]):  # Of the same width, and of another.
        with pytest.raises(
            PretrainedError, match=r"other label vectors than the sentence encoder 'encoder' makes now$"
        ):
            Recognizer.from_pretrained(tmp_path, encoder=other)
    assert np.load(tmp_path / "knowledge.npz")["names"].tolist() == list(LABELS)


def test_an_encoder_that_a_model_does_not_use_is_refused(tower: Path, tmp_path: Path) -> None:
    towers = load_towers(f"local-dir:{tower}")
    model = PVLR.from_towers(PVLRConfig(heads=4), LabelSet(LABELS), towers)
    Recognizer(model).save_pretrained(tmp_path)
    assert not (tmp_path / "knowledge.npz").exists()
    with pytest.raises(
        PretrainedError, match=r"expected no encoder, the model was trained with knowledge='text_tower'$"
    ):
        Recognizer.from_pretrained(tmp_path, encoder=letters)
