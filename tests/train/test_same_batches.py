"""The same batches bit for bit, whatever found the pictures, however many processes read them, wherever one begins."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.voc_tree import write_voc
from PIL import Image
from torch.utils.data import Dataset

from pvlr.core.labels import LabelSet
from pvlr.data.batch import Batch, Sample
from pvlr.data.dataset import LabelledImages, hide_labels
from pvlr.data.features import CachedFeatures, FeatureStore
from pvlr.data.readers.coco import read_coco
from pvlr.data.readers.folders import read_folders
from pvlr.data.readers.nuswide import read_nuswide
from pvlr.data.readers.rows import read_rows
from pvlr.data.readers.shards import read_shards
from pvlr.data.readers.table import read_table
from pvlr.data.readers.voc import read_voc
from pvlr.data.sampling import EpochSampler
from pvlr.data.scenes.dataset import ScenesConfig, write_scenes
from pvlr.data.transforms import ImageTransform, TransformConfig
from pvlr.train.dataloaders import load_batches

LABELS = LabelSet(("cat", "dog"))
NAMES = [f"{number}.png" for number in range(7)]
SIGNS = {name: [label for bit, label in enumerate(LABELS) if number >> bit & 1] for number, name in enumerate(NAMES)}
TRANSFORM = ImageTransform(TransformConfig(size=16, mean=(0.5,) * 3, std=(0.25,) * 3, crop=0.5), train=True)


def pictures(folder: Path) -> Path:
    (folder / "images").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, size=(20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
    return folder / "images"


def voc(folder: Path) -> LabelledImages:
    write_voc(folder)
    return read_voc(folder, train=True)


def scenes(folder: Path) -> LabelledImages:
    write_scenes(folder, ScenesConfig(train=5, val=1, test=1))
    return read_voc(folder, train=True)


def coco(folder: Path) -> LabelledImages:
    images = pictures(folder)
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
        "categories": [{"id": column, "name": name} for column, name in enumerate(LABELS)],
        "annotations": [
            {"image_id": number, "category_id": LABELS.index(label)}
            for number, name in enumerate(NAMES)
            for label in SIGNS[name]
        ],
    }
    (folder / "x.json").write_text(json.dumps(content))
    return read_coco(images, folder / "x.json", keep_unlabelled=True)


def nuswide(folder: Path) -> LabelledImages:
    pictures(folder)
    lines = [f"images/{name},\"['sky', 'water']\",train\n" for name in NAMES]
    (folder / "nus_wid_data.csv").write_text("filepath,label,split_name\n" + "".join(lines))
    return read_nuswide(folder, lists="asl")


def table(folder: Path) -> LabelledImages:
    lines = [f"{name},{';'.join(SIGNS[name])}\n" for name in NAMES]
    (folder / "x.csv").write_text("file,labels\n" + "".join(lines))
    return read_table(pictures(folder), folder / "x.csv", labels=LABELS)


def objects(folder: Path) -> LabelledImages:
    lines = [json.dumps({"file": name, "labels": SIGNS[name]}) + "\n" for name in NAMES]
    (folder / "x.jsonl").write_text("".join(lines))
    return read_table(pictures(folder), folder / "x.jsonl", labels=LABELS)


def folders(folder: Path) -> LabelledImages:
    images = pictures(folder)
    for name in NAMES:
        for label in SIGNS[name]:
            (folder / "tree" / label).mkdir(parents=True, exist_ok=True)
            (folder / "tree" / label / name).write_bytes((images / name).read_bytes())
    return read_folders(folder / "tree")


def rows(folder: Path) -> LabelledImages:
    images = pictures(folder)
    return read_rows(
        [{"image": {"bytes": (images / name).read_bytes()}, "labels": SIGNS[name]} for name in NAMES], name="mine"
    )


def shards(folder: Path) -> LabelledImages:
    images = pictures(folder)
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name in NAMES:
            said = images / name.replace("png", "json")
            said.write_text(json.dumps({"labels": SIGNS[name]}))
            archive.add(images / name, arcname=name)
            archive.add(said, arcname=said.name)
    return read_shards([folder / "x.tar"], name="mine")


def hidden(folder: Path) -> LabelledImages:
    return hide_labels(table(folder), keep=0.5, seed=3)


READERS = (voc, scenes, coco, nuswide, table, objects, folders, rows, shards, hidden)


def features(folder: Path) -> CachedFeatures:
    data = table(folder)
    store = FeatureStore(folder / "store", key={}, rows=2 * len(data), patches=3, dim=2, source=5, dtype="float32")
    store.append(*(torch.randn(2 * len(data), *shape) for shape in ((3, 2), (2,), (5,))))
    store.save()
    return CachedFeatures(data, store, shown=2).with_regions("all")


def batches(data: Dataset[Sample], n: int, workers: int, *, epoch: int = 1, start: int = 0) -> list[Batch]:
    sampler = EpochSampler(n, 2, seed=5, epoch=epoch, shuffle=True, start_step=start)
    return list(load_batches(data, sampler, workers=workers))


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")  # Of machines with fewer cores.
@pytest.mark.parametrize("reader", [*READERS, features], ids=lambda reader: reader.__name__)
def test_batches_are_the_same_with_any_number_of_workers_and_after_a_restart_at_any_step(
    reader: Callable[[Path], LabelledImages | CachedFeatures], tmp_path: Path
) -> None:
    read = reader(tmp_path)
    data = read.with_transform(TRANSFORM) if isinstance(read, LabelledImages) else read
    alone = batches(data, len(data), 0)
    assert sorted(int(index) for batch in alone for index in batch.index) == list(range(len(data)))
    assert len(alone) >= 3
    for workers in (1, 4):
        assert_same(alone, batches(data, len(data), workers))
    for start in range(1, len(alone) + 1):
        assert_same(alone[start:], batches(data, len(data), 0, start=start))
    assert_same(alone[2:], batches(data, len(data), 1, start=2))
    other = batches(data, len(data), 0, epoch=2)
    assert any(not torch.equal(one.index, two.index) for one, two in zip(alone, other, strict=True))
