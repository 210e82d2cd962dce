import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers.voc import read_voc
from pvlr.data.scenes import dataset as scenes
from pvlr.data.scenes.dataset import SCENE_LABELS, SPLITS, ScenesConfig, draw_scene, make_scene, write_scenes

SMALL = ScenesConfig(seed=3, train=60, val=20, test=40)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    assert write_scenes(path, SMALL) == path / "VOCdevkit" / "VOC2007"
    return path


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "VOCdevkit" / "VOC2007"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_configuration_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    # In another process: nothing may hang on the order of a set or on a global generator.
    call = (
        "import sys; from pvlr.data.scenes.dataset import *; "
        f"write_scenes(sys.argv[1], ScenesConfig(seed={SMALL.seed}, train={SMALL.train}, val={SMALL.val}, "
        f"test={SMALL.test}))"
    )
    subprocess.run([sys.executable, "-c", call, str(tmp_path)], check=True)
    assert contents(tmp_path / "VOCdevkit" / "VOC2007") == contents(folder)


def test_seeds_splits_and_positions_differ() -> None:
    drawn = {
        (seed, split, index): draw_scene(make_scene(seed, split, index))[0].tobytes()
        for seed in (0, 1)
        for split in SPLITS
        for index in (0, 1)
    }
    assert len(set(drawn.values())) == len(drawn)


def test_pictures_do_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path, replace(SMALL, train=2, val=1, test=1))
    assert (other / "JPEGImages/000002.jpg").read_bytes() == (folder / "JPEGImages/000002.jpg").read_bytes()
    first_of_test = SMALL.train + SMALL.val + 1
    assert (other / "JPEGImages/000004.jpg").read_bytes() == (
        folder / f"JPEGImages/{first_of_test:06d}.jpg"
    ).read_bytes()


def test_the_layout_is_pascals(folder: Path) -> None:
    lists = {path.name for path in (folder / "ImageSets" / "Main").iterdir()}
    splits = ("train", "val", "trainval", "test")
    assert lists == {f"{s}.txt" for s in splits} | {f"{name}_{s}.txt" for name in SCENE_LABELS for s in splits}
    identifiers = {s: (folder / f"ImageSets/Main/{s}.txt").read_text().split() for s in splits}
    assert [len(identifiers[s]) for s in splits] == [60, 20, 80, 40]
    assert identifiers["trainval"] == identifiers["train"] + identifiers["val"]
    everything = identifiers["trainval"] + identifiers["test"]
    assert len(set(everything)) == 120
    for part, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        assert {path.name for path in (folder / part).iterdir()} == {f"{name}.{ending}" for name in everything}
    assert LabelSet.from_json(json.loads((folder / "labels.json").read_text())) == SCENE_LABELS


def test_annotations_describe_their_pictures(folder: Path) -> None:
    objects = 0
    for path in sorted((folder / "Annotations").iterdir()):
        tree = ElementTree.parse(path).getroot()
        with Image.open(folder / "JPEGImages" / f"{path.stem}.jpg") as image:
            width, height = image.size
            assert image.format == "JPEG"
        assert tree.findtext("filename") == f"{path.stem}.jpg"
        assert [int(tree.findtext(f"size/{side}")) for side in ("width", "height", "depth")] == [width, height, 3]
        for item in tree.iterfind("object"):
            objects += 1
            box = {side: int(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")}
            assert 1 <= box["xmin"] <= box["xmax"] <= width
            assert 1 <= box["ymin"] <= box["ymax"] <= height
            assert item.findtext("name") in SCENE_LABELS
            assert item.findtext("difficult") in ("0", "1")
    assert objects > 120


@pytest.mark.parametrize("difficult", ["unknown", "A", "B", "C"])
@pytest.mark.parametrize("train", [True, False])
def test_lists_annotations_and_targets_agree(root: Path, folder: Path, difficult: str, train: bool) -> None:
    for split in ("train", "trainval", "test"):
        data = read_voc(root, split=split, difficult=difficult, train=train)
        assert data.labels == SCENE_LABELS
        for column, name in enumerate(SCENE_LABELS):
            lines = [line.split() for line in (folder / f"ImageSets/Main/{name}_{split}.txt").read_text().splitlines()]
            assert tuple(identifier for identifier, _ in lines) == data.identifiers
            marks = torch.tensor([int(mark) for _, mark in lines])
            hard = marks == 0
            hard_is = {"A": 1.0 if train else None, "B": 0.0 if train else None, "C": 0.0, "unknown": None}[difficult]
            assert torch.equal(data.known[:, column], ~hard if hard_is is None else torch.ones_like(hard))
            assert torch.equal(data.target[:, column], torch.where(hard, hard_is or 0.0, (marks == 1).float()))


def test_difficult_objects_companions_and_rare_labels_exist() -> None:
    counts, hard, both = np.zeros(len(SCENE_LABELS)), 0, 0
    total = 500
    for index in range(total):
        drawn = draw_scene(make_scene(7, "train", index))[1]
        labelled = [item for item in drawn if item.name in SCENE_LABELS]
        hard += sum(item.difficult for item in labelled)
        names = {item.name for item in labelled}
        present = np.array([name in names for name in SCENE_LABELS])
        counts += present
        both += bool(present[0] and present[1])
        assert all(item.truncated for item in labelled if item.difficult)
    assert 0.01 < hard / total < 0.5
    assert counts.min() > 0
    assert (counts < total * 0.05).sum() >= 2, "some labels are rare"
    assert counts.max() > total * 0.1
    assert both / total > 2 * counts[0] * counts[1] / total**2, "labels of a theme appear together"


def test_an_existing_data_set_is_reused_untouched(root: Path, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_scenes(root, SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 4}, {"train": 61}, {"val": 21}, {"test": 41}])
def test_scenes_of_another_configuration_are_refused(root: Path, folder: Path, change: dict[str, int]) -> None:
    before = contents(folder)
    with pytest.raises(DataError, match="found another data set") as caught:
        write_scenes(root, replace(SMALL, **change))
    assert str(folder) in str(caught.value)
    assert contents(folder) == before


def test_a_foreign_data_set_is_refused(tmp_path: Path) -> None:
    photograph = tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    photograph.parent.mkdir(parents=True)
    photograph.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"choose another data\.root or remove the folder"):
        write_scenes(tmp_path, SMALL)
    assert photograph.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    drawn, calls = scenes.draw_scene, []

    def interrupted(scene: scenes.Scene) -> object:
        calls.append(scene)
        if len(calls) == 3:
            raise kind("interrupted")
        return drawn(scene)

    config = replace(SMALL, train=3, val=1, test=1)
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "draw_scene", interrupted)
        with pytest.raises(kind):
            write_scenes(tmp_path, config)
    assert list((tmp_path / "VOCdevkit").iterdir()) == []
    write_scenes(tmp_path, config)
    assert len(read_voc(tmp_path, train=True)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "scenes.train: expected at least 1 picture, got 0"),
        ({"val": -1}, "scenes.val: expected at least 1 picture, got -1"),
        ({"test": 0}, "scenes.test: expected at least 1 picture, got 0"),
        ({"seed": -1}, "scenes.seed: expected a number of at least 0, got -1"),
    ],
)
def test_refusals(change: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(SMALL, **change)


def test_labels_share_attributes_but_no_attribute_gives_one_away() -> None:
    words = [name.split("_") for name in SCENE_LABELS]
    assert len(SCENE_LABELS) == 20
    for position in range(3):
        for word in {w[position] for w in words}:
            assert sum(w[position] == word for w in words) >= 2


@pytest.mark.parametrize("same", [True, False])
def test_whoever_is_slower_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool) -> None:
    mine = ScenesConfig(train=2, val=1, test=1)
    other = mine if same else replace(mine, seed=1)
    write = scenes._write_devkit

    def slow(partial: Path, config: ScenesConfig) -> None:
        write(partial, config)
        monkeypatch.setattr(scenes, "_write_devkit", write)
        write_scenes(tmp_path, other)  # Another process, meanwhile.

    monkeypatch.setattr(scenes, "_write_devkit", slow)
    if same:
        assert write_scenes(tmp_path, mine) == tmp_path / "VOCdevkit" / "VOC2007"
    else:
        with pytest.raises(DataError, match="expected no folder or the scenes of this configuration, found another"):
            write_scenes(tmp_path, mine)
    assert [path.name for path in (tmp_path / "VOCdevkit").iterdir()] == ["VOC2007"]
