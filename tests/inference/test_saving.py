"""A model as a folder and back: nothing lost, nothing foreign taken, nothing executed."""

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import pinned
from helpers.model_toys import LABELS as TOY_LABELS
from helpers.model_toys import ToyImage, ToyText
from helpers.tower_models import name_of, register, write_folder
from safetensors.torch import load_file, save

from pvlr.core import PVLR, LabelSet, PretrainedError, PVLRConfig, TowerSpec, build_towers, load_towers
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.inference.card import ModelCard
from pvlr.inference.decision import Decision
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.saving import Saved, _digest_of, save_pretrained

NAMES = ("cat", "traffic light", "cow")
Told = dict[str, Any]


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    write_folder(folder, "vit")
    return folder


@torch.no_grad()
def made(tower: Path, *, train: Any = "frozen", image_size: int | None = None, **config: Any) -> Recognizer:
    """A model no trained value of which is where it starts, with a decision and a card."""
    spec = TowerSpec(name=f"local-dir:{tower}", train=train, image_size=image_size)
    model = PVLR.from_towers(PVLRConfig(heads=4, **config), LabelSet(NAMES), build_towers(spec)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.set_known_positives(torch.tensor([1.0, 20.0, 3.0]))
    thresholds = {"cat": 0.25, "cow": 0.75, "traffic light": 0.5}
    decision = Decision(temperature=1.5, thresholds=thresholds, rule="highest F1", fitted_on="9 pictures")
    card = ModelCard(data=("train: 9 images",), metrics={"mAP": 0.5}, command="python train.py --x 1")
    return Recognizer(model, decision=decision, card=card)


@pytest.fixture(scope="module")
def saved(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made(tower).save_pretrained(folder, include_towers=True)
    return folder


def images_for(recognizer: Recognizer) -> torch.Tensor:
    size = recognizer.model.image.image_size
    return torch.randn(2, 3, size, size)


def logits_of(recognizer: Recognizer, images: torch.Tensor) -> torch.Tensor:
    return recognizer.model(images).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"train": 1, "image_size": 48}, {"fusion": "knowledge", "direction": "patches"}]
)
def test_what_is_saved_is_what_is_read(changes: dict[str, Any], included: bool, tower: Path, tmp_path: Path) -> None:
    recognizer = made(tower, **changes)
    recognizer.save_pretrained(tmp_path / "new" / "folder", include_towers=included)
    found = Recognizer.from_pretrained(tmp_path / "new" / "folder")
    images = images_for(recognizer)
    assert torch.equal(logits_of(found, images), logits_of(recognizer, images))
    assert (found.decision, found.card, found.model.config, found.labels) == (
        recognizer.decision, recognizer.card, recognizer.model.config, recognizer.labels,
    )  # fmt: skip
    assert not found.model.training
    assert (tmp_path / "new" / "folder" / "towers").exists() == included
    # Read and saved once more, it is the same file.
    found.save_pretrained(tmp_path / "again")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "new/folder", tmp_path / "again")]
    assert weights[0] == weights[1]


def test_included_towers_need_nothing_else(tower: Path, tmp_path: Path) -> None:
    here = tmp_path / "tower"
    shutil.copytree(tower, here)
    recognizer = made(here)
    recognizer.save_pretrained(tmp_path / "with", include_towers=True)
    recognizer.save_pretrained(tmp_path / "without")
    images = images_for(recognizer)
    expected = logits_of(recognizer, images)
    shutil.rmtree(here)
    shutil.move(tmp_path / "with", tmp_path / "moved")
    assert torch.equal(logits_of(Recognizer.from_pretrained(tmp_path / "moved"), images), expected)
    with pytest.raises(PretrainedError, match=r"expected the model's towers at .*, found nothing there; say where"):
        Recognizer.from_pretrained(tmp_path / "without")


@pytest.mark.parametrize("kind", ["vit", "vit_avg", "resnet", "siglip"])
@pytest.mark.parametrize("changed", ["as drawn", "resized", "by hand"])
def test_included_towers_are_the_model_s_own(kind: str, changed: str, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    register(tmp_path / "configs")
    size = {"vit": 48, "vit_avg": 16, "resnet": 64, "siglip": 96}[kind] if changed == "resized" else None
    towers = load_towers(name_of(kind), image_size=size)  # Of random weights: no name tells which.
    recognizer = Recognizer(PVLR.from_towers(PVLRConfig(heads=4), LabelSet(NAMES), towers).eval())
    if changed == "by hand":
        with torch.no_grad():
            for parameter in recognizer.model.image.parameters():
                parameter.mul_(1.01)
    with pytest.raises(
        PretrainedError, match="has random weights that no name tells; save it with include_towers=True"
    ):
        recognizer.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "model.json").exists()
    recognizer.save_pretrained(tmp_path / "saved", include_towers=True)
    images = images_for(recognizer)
    loaded = Recognizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(loaded, images), logits_of(recognizer, images))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(Recognizer.from_pretrained(tmp_path / "again"), images), logits_of(recognizer, images))


@pytest.mark.parametrize("half", ["image", "text"])
def test_frozen_towers_that_were_changed_are_not_saved_by_their_name(half: str, tower: Path, tmp_path: Path) -> None:
    recognizer = made(tower)
    with torch.no_grad():
        next(getattr(recognizer.model, half).parameters()).mul_(1.05)
    with pytest.raises(
        PretrainedError, match=r"^model: expected the frozen towers of 'local-dir:.*as they were loaded"
    ):
        recognizer.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "model.json").exists()
    recognizer.save_pretrained(tmp_path / "saved", include_towers=True)
    images = images_for(recognizer)
    if half == "image":
        assert torch.equal(
            logits_of(Recognizer.from_pretrained(tmp_path / "saved"), images), logits_of(recognizer, images)
        )


def test_frozen_towers_are_known_by_their_hash(tower: Path, tmp_path: Path) -> None:
    here = tmp_path / "tower"
    shutil.copytree(tower, here)
    made(here).save_pretrained(tmp_path / "saved")
    assert not any(name.startswith(("image.", "text.")) for name in load_file(tmp_path / "saved/model.safetensors"))
    write_folder(here, "vit", seed=7)
    with pytest.raises(PretrainedError, match="the model was trained on other weights of the tower 'local-dir:"):
        Recognizer.from_pretrained(tmp_path / "saved")


def test_files_of_texts_come_along(tower: Path, tmp_path: Path) -> None:
    texts, vectors = tmp_path / "texts.json", tmp_path / "vectors.npz"
    texts.write_text(json.dumps({"cow": ["it moos."]}))
    np.savez(vectors, names=np.array(NAMES), vectors=np.random.default_rng(0).normal(size=(3, 5)))
    recognizers = made(tower, descriptions=str(texts)), made(tower, knowledge=str(vectors))
    for number, recognizer in enumerate(recognizers):
        recognizer.save_pretrained(tmp_path / str(number))
        told = (tmp_path / str(number) / "model.json").read_text()
        assert str(tmp_path) not in told.replace(str(tower), "")  # The paths of a machine are nobody else's business.
    texts.unlink(), vectors.unlink()
    for number, recognizer in enumerate(recognizers):
        found = Recognizer.from_pretrained(tmp_path / str(number))
        assert torch.equal(found.model.knowledge_vectors, recognizer.model.knowledge_vectors)


def test_a_readme_of_somebody_else_stays(tower: Path, tmp_path: Path) -> None:
    recognizer = made(tower)
    recognizer.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for part in (
        "library_name: pvlr",
        "train: 9 images",
        "| mAP | 0.5000 |",
        "python train.py --x 1",
        "temperature 1.500",
    ):
        assert part in card
    (tmp_path / "README.md").write_text("# My project\n")
    recognizer.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My project\n"


def test_a_model_without_known_towers_is_not_saved(tmp_path: Path) -> None:
    model = PVLR(PVLRConfig(heads=2), TOY_LABELS, ToyText(), ToyImage())
    with pytest.raises(PretrainedError, match=r"^model: expected one that was made by from_towers"):
        save_pretrained(Saved(model, Decision(), ModelCard()), tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --------------------------------------------------------------------------------------------------------- refusals


def rewritten(folder: Path, change: Callable[[Told], object]) -> None:
    """Change the description, with the digest of the changed one."""
    told = json.loads((folder / "model.json").read_text())
    change(told)
    told["sha256"] = _digest_of(told)
    (folder / "model.json").write_text(json.dumps(told))


def replaced(folder: Path, name: str, content: bytes) -> None:
    """Put another file in a file's place, with the digest that it has."""
    (folder / name).write_bytes(content)
    rewritten(folder, lambda told: told["files"].update({name: hashlib.sha256(content).hexdigest()}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def weights_of(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    return save(weights)


HEADER = (1 << 40).to_bytes(8, "little")


def edited(change: Callable[[Told], object]) -> Callable[[Path], object]:
    return lambda folder: rewritten(folder, change)


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no description": (lambda f: (f / "model.json").unlink(), r"model\.json: expected a trained model in this folder"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        r"model\.safetensors: expected a file of the trained model, found no such file",
    ),
    "a bit of the weights": (lambda f: flip(f / "model.safetensors"), r"checksum mismatch"),
    "a bit of the towers": (
        lambda f: flip(f / "towers/open_clip_model.safetensors"),
        r"open_clip_model\.safetensors: checksum mismatch: expected [0-9a-f]{64}, got",
    ),
    "half of the weights": (
        lambda f: os.truncate(f / "model.safetensors", 100),
        r"model\.safetensors: checksum mismatch: expected [0-9a-f]{64}, got",
    ),
    "half of the description": (
        lambda f: os.truncate(f / "model.json", 300),
        r"model\.json: expected the description of a model, but",
    ),
    "an edited description": (
        lambda f: (f / "model.json").write_text((f / "model.json").read_text().replace('"cow"', '"bull"')),
        r"model\.json: checksum mismatch: expected [0-9a-f]{64}, got",
    ),
    "a description of another kind": (
        lambda f: (f / "model.json").write_text('{"architectures": ["BertModel"]}'),
        "found another content",
    ),
    "an older format": (edited(lambda t: t.update(format=1)), "expected a model of format 5, found format 1"),
    "the format before": (edited(lambda t: t.update(format=4)), "expected a model of format 5, found format 4"),
    "a later format": (edited(lambda t: t.update(format=6)), "expected a model of format 5, found format 6"),
    "a field too many": (edited(lambda t: t.update(hook="os.system")), "they differ in 'hook'"),
    "a field too few": (edited(lambda t: t.pop("decision")), "they differ in 'decision'"),
    "an unknown switch": (edited(lambda t: t["config"].update(beam=3)), "they differ in 'beam'"),
    "a switch out of range": (edited(lambda t: t["config"].update(direction="all")), "direction: expected one of"),
    "an unknown kind": (edited(lambda t: t.update(kind="oracle")), "kind: expected 'pvlr' or 'baseline', got 'oracle'"),
    "another kind's fields": (
        edited(lambda t: t.update(kind="baseline")),
        "expected the fields of BaselineConfig and no",
    ),
    "another tower's field": (edited(lambda t: t["tower"].update(code="x")), "tower: expected the fields"),
    "nothing it was trained on": (edited(lambda t: t["trained"].update(names=[])), "expected at least one label"),
    "trained on other labels": (
        edited(lambda t: t["trained"]["names"].append("bull")),
        r"weights: expected '.*' of shape \(4.*\), got \(3",
    ),
    "no labels": (edited(lambda t: t["labels"].update(names=[])), "expected at least one label"),
    "a threshold beyond 1": (
        edited(lambda t: t["decision"]["thresholds"].update(cat=2)),
        r"threshold of 'cat': expected a probability in \[0, 1\], got 2",
    ),
    "a temperature that is none": (
        edited(lambda t: t["decision"].update(temperature=float("nan"))),
        "temperature: expected a finite number > 0, got nan",
    ),
    "a card of another kind": (edited(lambda t: t["card"].update(data=3)), r"card\.data: expected texts"),
    "another preprocessing": (
        edited(lambda t: t["preprocess"].update(size=64)),
        "preprocess: expected",
    ),
    "a file outside": (
        edited(lambda t: t["files"].update({"../../secret": "0" * 64})),
        r"files: expected some of model\.safetensors",
    ),
    "towers that are not listed": (
        edited(lambda t: t["files"].pop("towers/open_clip_config.json")),
        "files: expected .*open_clip_config",
    ),
    "a word for a truth": (edited(lambda t: t.update(included="no")), "included: expected true or false"),
    "a pickle for weights": (
        lambda f: replaced(f, "model.safetensors", pickle.dumps(Harmful())),
        r"model\.safetensors holds no safetensors: ",
    ),
    "a header of a terabyte": (
        lambda f: replaced(f, "model.safetensors", HEADER + b"{}"),
        r"model\.safetensors holds no safetensors: .*header too large",
    ),
    "a weight too few": (
        lambda f: replaced(f, "model.safetensors", weights_of(f, lambda w: w.pop("head.bias"))),
        "weights: expected 'head.bias', which is missing",
    ),
    "a weight too many": (
        lambda f: replaced(f, "model.safetensors", weights_of(f, lambda w: w.update(more=torch.ones(1)))),
        "weights: 'more' belongs to no part of this model",
    ),
    "a weight of another shape": (
        lambda f: replaced(f, "model.safetensors", weights_of(f, lambda w: w.update({"head.bias": torch.ones(2)}))),
        r"weights: expected 'head.bias' of shape \(\), got \(2,\)",
    ),
    "towers whose weights are another's": (
        lambda f: replaced(
            f,
            "towers/open_clip_model.safetensors",
            save({k: v + 1 for k, v in load_file(f / "towers/open_clip_model.safetensors").items()}),
        ),
        "the model was trained on other weights of the tower",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("harm", HARMS)
def test_damaged_foreign_and_hostile_folders_are_refused_in_one_sentence(
    harm: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    monkeypatch.chdir(tmp_path)
    action, message = HARMS[harm]
    action(folder)
    with pytest.raises(PretrainedError, match=message) as caught:
        Recognizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_objects_in_label_vectors_are_not_read(tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, folder = tmp_path / "vectors.npz", tmp_path / "model"
    np.savez(vectors, names=np.array(NAMES), vectors=np.ones((3, 5)))
    made(tower, knowledge=str(vectors)).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    np.savez(vectors, names=np.array([Harmful()]), vectors=np.ones((1, 5)))
    replaced(folder, "knowledge.npz", vectors.read_bytes())
    with pytest.raises(PretrainedError, match=r"knowledge\.npz: expected a readable \.npz file of label vectors"):
        Recognizer.from_pretrained(folder)
    assert not (tmp_path / "harm").exists()


def test_a_tokenizer_s_own_code_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: object, **kwargs: Any) -> object:
            asked.append(kwargs)
            raise OSError("no tokenizer here")

    monkeypatch.setitem(sys.modules, "transformers", type(sys)("transformers"))
    monkeypatch.setattr(sys.modules["transformers"], "AutoTokenizer", AutoTokenizer, raising=False)
    monkeypatch.setattr("pvlr.core.towers.files.hf_files.find_spec", lambda name: object())
    write_folder(tmp_path, "vit")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "x/y"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer here"):
        build_towers(TowerSpec(name=f"local-dir:{tmp_path}"))
    assert [(kwargs["trust_remote_code"], kwargs["local_files_only"]) for kwargs in asked] == [(False, True)]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "nowhere/at/all: expected a folder with a trained model, found none"),
        (
            "me/mine",
            "me/mine: expected a folder with a trained model, found none; one of the Hugging Face Hub is named "
            "hf-hub:me/mine",
        ),
        ("hf-hub:mine", "mine: expected ORGANISATION/REPOSITORY"),
        ("hf-hub:../mine", "../mine: expected ORGANISATION/REPOSITORY"),
    ],
)
def test_a_folder_is_never_taken_for_a_repository(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any, **__: Any) -> None:
        pytest.fail("the network was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    with pytest.raises(PretrainedError, match=f"^{pinned(message)}$"):
        Recognizer.from_pretrained(source)


# -------------------------------------------------------------------------------------------------------- baselines


BASELINES: dict[str, dict[str, Any]] = {
    "linear_probe": {"kind": "linear_probe"},
    "linear_probe with the base": {"kind": "linear_probe", "base": True},
    "coop": {"kind": "coop", "context_tokens": 2},
    "dualcoop": {"kind": "dualcoop", "context_tokens": 2},
    "query2label": {"kind": "query2label", "decoder_layers": 1},
    "ml_decoder": {"kind": "ml_decoder", "groups": 2},
}


@torch.no_grad()
def baseline(name: str, tower: Path, *, train: Any = "frozen") -> Recognizer:
    """A baseline no trained value of which is where it starts, with a decision and a card."""
    towers = build_towers(TowerSpec(name=f"local-dir:{tower}", train=train))
    config = BaselineConfig(width=16, heads=2, hidden=16, **BASELINES[name])
    model = BaselineModel.from_towers(config, LabelSet(NAMES), towers).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.set_known_positives(torch.tensor([1.0, 20.0, 3.0]))
    decision = Decision(temperature=1.5, thresholds=dict.fromkeys(NAMES, 0.25), rule="highest F1")
    return Recognizer(model, decision=decision, card=ModelCard(data=("train: 9 images",)))


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_read_and_tags_as_it_was_saved(name: str, tower: Path, tmp_path: Path) -> None:
    recognizer = baseline(name, tower)
    recognizer.save_pretrained(tmp_path / "saved")
    found = Recognizer.from_pretrained(tmp_path / "saved")
    assert isinstance(found.model, BaselineModel)
    assert not found.model.training
    images = images_for(recognizer)
    assert torch.equal(logits_of(found, images), logits_of(recognizer, images))
    assert (found.decision, found.card, found.model.config, found.labels) == (
        recognizer.decision, recognizer.card, recognizer.model.config, recognizer.labels,
    )  # fmt: skip
    assert json.loads((tmp_path / "saved" / "model.json").read_text())["kind"] == "baseline"
    picture = torch.randint(256, (3, 40, 30), dtype=torch.uint8)
    tags = found.tag(picture, threshold=0.0)
    with torch.no_grad():
        expected = (recognizer.model(recognizer.prepare(picture).unsqueeze(0)).logits[0] / 1.5).sigmoid()
    assert {tag.name: tag.probability for tag in tags} == dict(zip(NAMES, expected.tolist(), strict=True))
    assert [tag.probability for tag in tags] == sorted(expected.tolist(), reverse=True)
    assert all(tag.attention is None for tag in tags)
    assert {tag.name for tag in found.tag(picture)} == {tag.name for tag in tags if tag.probability >= 0.25}


def test_a_baseline_takes_its_towers_along_and_what_was_trained_of_them(tower: Path, tmp_path: Path) -> None:
    here = tmp_path / "tower"
    shutil.copytree(tower, here)
    recognizer = baseline("coop", here, train=1)
    recognizer.save_pretrained(tmp_path / "saved", include_towers=True)
    shutil.rmtree(here)
    images = images_for(recognizer)
    found = Recognizer.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(found, images), logits_of(recognizer, images))


def test_a_baseline_has_other_labels_where_its_method_makes_them_of_texts(tower: Path, tmp_path: Path) -> None:
    for name in BASELINES:
        baseline(name, tower).save_pretrained(tmp_path / name)
        found = Recognizer.from_pretrained(tmp_path / name)
        if BASELINES[name]["kind"] in ("coop", "dualcoop"):
            other = found.with_labels(["zebra", "cow"])
            assert [tag.name for tag in other.tag(torch.zeros(3, 9, 9), threshold=0.0)] in (
                ["zebra", "cow"],
                ["cow", "zebra"],
            )
            other.save_pretrained(tmp_path / "other")
            again = Recognizer.from_pretrained(tmp_path / "other")
            images = images_for(other)
            assert torch.equal(logits_of(again, images), logits_of(other, images))
            assert (again.labels, again.model.trained) == (other.labels, found.labels)
        else:
            with pytest.raises(ValueError, match=r"^labels: cannot be exchanged in a model of kind"):
                found.with_labels(["zebra", "cow"])


def test_a_baseline_that_was_saved_before_decoders_chose_their_patches_reads_the_joint_ones(
    tower: Path, tmp_path: Path
) -> None:
    recognizer = baseline("ml_decoder", tower)
    recognizer.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda told: told["config"].pop("patches"))
    found = Recognizer.from_pretrained(tmp_path)
    assert found.model.config.patches == "joint"
    images = images_for(recognizer)
    assert torch.equal(logits_of(found, images), logits_of(recognizer, images))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "pvlr"}, "config: expected the fields of PVLRConfig and no others, they differ in"),
        ({"config": {"kind": "none"}}, "kind: expected a baseline, got 'none', which is PVLR"),
        ({"config": {"kind": "oracle"}}, "kind: expected one of"),
        ({"config": {"width": 24}}, r"weights: expected '.*' of shape \(.*\), got"),
    ],
)
def test_descriptions_of_a_baseline_are_checked(
    change: dict[str, Any], message: str, tower: Path, tmp_path: Path
) -> None:
    baseline("query2label", tower).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "model.json").read_text())["config"]
    rewritten(tmp_path, lambda told: told.update({**change, "config": config | change.get("config", {})}))
    with pytest.raises(PretrainedError, match=message) as caught:
        Recognizer.from_pretrained(tmp_path)
    assert str(tmp_path / "model.json") in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- labels and tags


@pytest.mark.usefixtures("unchecked")
def test_names_are_enough_for_other_labels(saved: Path) -> None:
    recognizer = Recognizer.from_pretrained(saved)
    other = recognizer.with_labels(["zebra", "cow", "fire truck"])
    assert other.labels == LabelSet(("zebra", "cow", "fire truck"))
    assert other.decision.for_labels(other.labels) == (0.5, 0.75, 0.5)  # The median of those that were fitted.
    assert other.card.metrics == {}
    assert recognizer.with_labels(NAMES).card == recognizer.card
    with pytest.raises(ValueError, match=r"names: expected a sequence of names, got the single text 'zebra'"):
        recognizer.with_labels("zebra")
    with pytest.raises(ValueError, match="expected at least one label"):
        recognizer.with_labels([])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("direction", ["both", "patches"])
def test_a_tag_is_its_definition(direction: str, tower: Path) -> None:
    recognizer = made(tower, direction=direction)
    image = torch.randn(3, 32, 32)
    with torch.no_grad():
        output = recognizer.model(image.unsqueeze(0), maps=True)
    expected = (output.logits[0] / 1.5).sigmoid()
    everything = recognizer.tag_batch(image.unsqueeze(0), threshold=0.0)[0]
    assert [tag.probability for tag in everything] == sorted(expected.tolist(), reverse=True)
    for tag in everything:
        column = NAMES.index(tag.name)
        assert tag.probability == expected[column].item()
        assert tag.attention is not None
        assert tag.attention.shape == (4, 4)
        assert tag.attention.sum().item() == pytest.approx(1, abs=1e-5)
        if direction == "both":
            assert torch.allclose(tag.attention.flatten(), output.label_maps[-1][0, :, column].mean(dim=0))
        else:  # Where labels do not look, the patches most like them stand for it.
            cosines = torch.cosine_similarity(output.patches[0], output.labels[0, column], dim=-1)
            assert torch.allclose(tag.attention.flatten(), (10 * cosines).softmax(0), atol=1e-6)
    own = {"cat": 0.25, "cow": 0.75, "traffic light": 0.5}
    said = {tag.name for tag in recognizer.tag_batch(image.unsqueeze(0))[0]}
    assert said == {name for name, value in zip(NAMES, expected.tolist(), strict=True) if value >= own[name]}
    with pytest.raises(ValueError, match="images: expected axes 'b rgb height width'"):
        recognizer.tag_batch(image)
