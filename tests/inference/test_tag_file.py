"""Files of tags: their content, and their fate when a run is cut off, or another one takes over."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pvlr.core import LabelSet
from pvlr.data.readers.table import read_table
from pvlr.inference.tag_file import TagFile, TagFileError
from pvlr.inference.tagging import Unreadable
from pvlr.inference.tags import Tag

ABOUT: dict[str, Any] = {"labels": ["cat", "traffic light"], "weights": "0" * 8}
TAGS = [Tag("traffic light", 0.87654), Tag("cat", 0.5)]
KINDS = ("jsonl", "csv")


def rows(path: Path) -> list[str]:
    if path.suffix == ".jsonl":
        return [json.loads(line)["file"] for line in path.read_text().splitlines()]
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [row["file"] for row in csv.DictReader(file)]


def test_a_line_of_json_is_a_picture(tmp_path: Path) -> None:
    odd = os.fsdecode(b'a "quoted", \xff;\n.jpg')
    with TagFile(tmp_path / "tags.jsonl", ABOUT) as file:
        file.write(odd, TAGS)
        file.write("b.jpg", [])
    first, second = map(json.loads, (tmp_path / "tags.jsonl").read_text().splitlines())
    assert first == {
        "file": odd,
        "tags": [{"name": "traffic light", "probability": 0.8765}, {"name": "cat", "probability": 0.5}],
    }
    assert second == {"file": "b.jpg", "tags": []}


def test_csv_is_what_the_reader_of_tables_takes(tmp_path: Path) -> None:
    names = ['a "quoted", one.png', "b.png"]
    with TagFile(tmp_path / "tags.csv", ABOUT) as file:
        for name, tags in zip(names, (TAGS, []), strict=True):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
            file.write(name, tags)
    assert (tmp_path / "tags.csv").read_text().splitlines()[
        1
    ] == '"a ""quoted"", one.png",traffic light;cat,0.8765;0.5000'
    found = read_table(tmp_path, tmp_path / "tags.csv", labels=LabelSet(tuple(ABOUT["labels"])))
    assert found.target.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere_a_file_goes_on_to_the_same_rows(kind: str, tmp_path: Path) -> None:
    names = ["a,b.jpg", os.fsdecode(b"\xffodd.jpg"), "c.jpg"]
    path = tmp_path / f"tags.{kind}"
    with TagFile(path, ABOUT) as file:
        for name in names:
            file.write(name, TAGS)
    whole = path.read_bytes()
    assert rows(path) == names
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with TagFile(path, ABOUT) as file:
            for name in names:
                if name not in file.done:
                    file.write(name, TAGS)
        assert path.read_bytes() == whole, length


@pytest.mark.parametrize("kind", KINDS)
def test_damage_in_the_middle_is_refused_and_nothing_cut_off(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"tags.{kind}"
    with TagFile(path, ABOUT) as file:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            file.write(name, TAGS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-2] = b"{nonsense\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(
        TagFileError, match=rf"tags\.{kind}, line {len(lines) - 1}: expected tags, found something else"
    ):
        TagFile(path, ABOUT)
    assert path.read_bytes() == b"".join(lines)


def test_tags_of_another_model_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    with TagFile(path, ABOUT) as file:
        file.write("a.jpg", TAGS)
    before = path.read_bytes()
    with pytest.raises(TagFileError, match=r"found others \(weights differ\); name another file"):
        TagFile(path, {**ABOUT, "weights": "1" * 8})
    with pytest.raises(TagFileError, match=r"found others \(kind differ\)"):
        TagFile(path, ABOUT, kind="csv")
    (tmp_path / "tags.jsonl.about.json").unlink()
    with pytest.raises(TagFileError, match=r"expected a new file, or one with tags\.jsonl\.about\.json beside it"):
        TagFile(path, ABOUT)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "about", "message"),
    [
        ("tags.txt", ABOUT, r"tags\.txt: expected a file that ends in \.jsonl or \.csv"),
        ("tags.csv", {"labels": ["a;b"]}, "expected labels without ';', which separates them in CSV"),
        ("no/tags.csv", ABOUT, "expected a file in a folder that is there"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, about: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TagFileError, match=message):
        TagFile(tmp_path / name, about)
    assert list(tmp_path.iterdir()) == []


def test_bad_pictures_are_listed_once_and_struck_off_when_mended(tmp_path: Path) -> None:
    path, listed = tmp_path / "tags.csv", tmp_path / "tags.csv.refused.jsonl"
    for _ in range(2):
        with TagFile(path, ABOUT) as file:
            for name in ("a.jpg", "b.jpg"):
                file.refuse(Unreadable(name, f"{name}: expected a picture"))
    assert [json.loads(line)["file"] for line in listed.read_text().splitlines()] == ["a.jpg", "b.jpg"]
    with TagFile(path, ABOUT) as file:
        file.write("a.jpg", TAGS)
        file.write("two\nlines.jpg", TAGS)
    assert [json.loads(line)["file"] for line in listed.read_text().splitlines()] == ["b.jpg", "two\nlines.jpg"]
    assert rows(path) == ["a.jpg"]


def test_a_list_of_bad_pictures_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "tags.jsonl"
    with TagFile(path, ABOUT) as file:
        for name in ("a.jpg", "b.jpg"):
            file.refuse(Unreadable(name, "broken"))
    whole = file.refused_path.read_bytes()
    file.refused_path.write_bytes(whole[:-20])
    with TagFile(path, ABOUT) as file:
        file.refuse(Unreadable("b.jpg", "broken"))
    assert file.refused_path.read_bytes() == whole
