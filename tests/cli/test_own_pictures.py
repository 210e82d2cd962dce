"""Training of a tagger on somebody's folder of pictures, for each kind of data set, by the scripts."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training_toys import LABELS, tiny_options, write_voc

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAIN, TEST = 8, 4


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    """A folder of pictures, and their labels by file name; the first eight are for training."""
    voc = write_voc(tmp_path / "voc", train=TRAIN, test=TEST)
    (tmp_path / "mine").mkdir()
    labels = {}
    for path in sorted((voc / "JPEGImages").iterdir()):
        number = int(path.stem)
        shutil.copyfile(path, tmp_path / "mine" / path.name)
        labels[path.name] = [LABELS[colour] for colour in sorted({number % 3, number // 3 % 3})]
    return tmp_path / "mine", labels


def run(script: str, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(EXAMPLES / script), *options], capture_output=True, text=True, timeout=400
    )


def trained(script: str, options: list[str], folder: Path, tower: Path) -> str:
    """Train by a script; return its output."""
    common = [option for option in tiny_options(folder, tower, folder / "run") if not option.startswith("--data.root")]
    done = run(script, *common, *options)
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "model.safetensors").is_file()
    return done.stdout


def write_table(path: Path, labels: dict[str, list[str]], split: bool) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "labels", *(["split"] if split else [])])
        for number, (name, present) in enumerate(labels.items()):
            writer.writerow([name, ";".join(present), *([("train", "test")[number >= TRAIN]] if split else [])])


def test_own_pictures_with_a_table_become_a_tagger(
    pictures: tuple[Path, dict[str, list[str]]], tower: Path, tmp_path: Path
) -> None:
    folder, labels = pictures
    write_table(tmp_path / "labels.csv", labels, split=True)
    options = [f"--data.images={folder}", f"--data.table={tmp_path / 'labels.csv'}"]
    said = trained("train_table.py", options, tmp_path, tower)
    assert "labels train: 8 images, 3 labels" in said
    assert "labels test: 4 images, 3 labels" in said
    tagged = run("predict.py", "--run", str(tmp_path / "run"), str(folder / "000001.jpg"), "--top", "1")
    assert tagged.returncode == 0, tagged.stderr
    assert tagged.stdout.startswith(f"{folder / '000001.jpg'}: ")
    assert tagged.stdout.split(": ")[1].split()[0] in LABELS


def test_bad_pictures_are_left_out_and_listed_if_asked_and_a_fifth_is_set_aside(
    pictures: tuple[Path, dict[str, list[str]]], tower: Path, tmp_path: Path
) -> None:
    folder, labels = pictures
    write_table(tmp_path / "labels.csv", labels, split=False)
    (folder / "000002.jpg").write_bytes(b"no picture")
    options = [f"--data.images={folder}", f"--data.table={tmp_path / 'labels.csv'}", "--data.test_share=0.3"]
    common = [option for option in tiny_options(folder, tower, tmp_path / "run") if "data.root" not in option]
    refused = run("train_table.py", *common, *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"error: {folder / '000002.jpg'}: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), "
        "found something else\n"
    )
    said = trained("train_table.py", [*options, "--data.on_bad_image=drop"], tmp_path, tower)
    assert "1 refused" in said
    (line,) = (tmp_path / "run" / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["picture"] == "000002.jpg"


def test_folders_named_after_labels_become_a_tagger(
    pictures: tuple[Path, dict[str, list[str]]], tower: Path, tmp_path: Path
) -> None:
    folder, labels = pictures
    for number, (name, present) in enumerate(labels.items()):
        for label in present:
            place = tmp_path / "tree" / ("train" if number < TRAIN else "test") / label
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, place / name)
    said = trained("train_table.py", [f"--data.images={tmp_path / 'tree'}"], tmp_path, tower)
    assert "train: 8 images, 3 labels" in said


def test_coco_and_its_hidden_labels(pictures: tuple[Path, dict[str, list[str]]], tower: Path, tmp_path: Path) -> None:
    folder, labels = pictures
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    names = list(labels)
    for split, part in (("train2014", names[:TRAIN]), ("val2014", names[TRAIN:])):
        (root / split).mkdir()
        for name in part:
            shutil.copyfile(folder / name, root / split / name)
        content = {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(part)],
            "categories": [{"id": number, "name": label} for number, label in enumerate(LABELS)],
            "annotations": [
                {"image_id": number, "category_id": LABELS.index(label), "bbox": [0, 0, 9, 9]}
                for number, name in enumerate(part)
                for label in labels[name]
            ],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    options = [f"--data.root={root}", "--data.keep_labels=single_positive"]
    said = trained("train_coco.py", options, tmp_path, tower)
    assert "16 unknown labels (0 without a label left out, one positive label per image known)" in said
    assert "instances_val2014: 4 images, 3 labels" in said
