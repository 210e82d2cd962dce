from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers.folders import read_folders
from pvlr.data.readers.voc import VOC_LABELS, read_voc


def write(root: Path, *files: str, content: bytes = b"") -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(content)
    return root


def test_a_folder_per_label(tmp_path: Path) -> None:
    root = write(tmp_path / "train", "dog/1.jpg", "cat/b/2.PNG", "cat/1.jpg", "cow/.keep", ".git/x", ".DS_Store")
    data = read_folders(root)
    assert data.labels.names == ("cat", "cow", "dog")
    assert data.identifiers == ("1.jpg", "b/2.PNG")
    assert data.target.tolist() == [[1, 0, 1], [1, 0, 0]]
    assert data.paths == (root / "cat" / "1.jpg", root / "cat" / "b" / "2.PNG")
    assert data.summary() == "train: 2 images, 3 labels, 1.50 positives per image, 0 unknown labels"


def test_a_picture_has_one_label(tmp_path: Path) -> None:
    write(tmp_path, "dog/1.jpg", content=b"a")
    write(tmp_path, "cat/1.jpg", content=b"b")
    labels = LabelSet(("dog", "cat", "elk"))
    data = read_folders(tmp_path, several_labels=False, labels=labels, name="mine")
    assert data.labels is labels
    assert data.identifiers == ("cat/1.jpg", "dog/1.jpg")
    assert data.target.tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(DataError) as caught:
        read_folders(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'dog/1.jpg'}: expected the same picture as {tmp_path / 'cat/1.jpg'}, since it has the same name, "
        "found another (several_labels=False makes them two)"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "{root}: expected a folder, but No such file or directory"),
        ([".keep"], "{root}: expected folders named after labels, found none"),
        (["cat/.keep"], "root: expected at least one picture, found none"),
        (["cat/1.jpg", "x.jpg"], "{root}/x.jpg: expected only folders named after labels in {root}, found a file"),
        (
            ["cat/1.jxl"],
            "{root}/cat/1.jxl: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found JXL; convert it "
            "to JPEG or PNG",
        ),
        (
            ["cat/1.doc"],
            "{root}/cat/1.doc: expected a picture (.jpg, .jpeg, .jpe, .jfif, .png, .webp, .bmp, .gif, .tif, .tiff, "
            ".avif, .heic, .heif, .hif), found something else",
        ),
        (["cat /1.jpg"], "{root}: expected the name of a file or folder without white space around it, found 'cat '"),
        (["cat/a\\b.jpg"], "{root}/cat: expected a picture's path with / between folders, found 'cat/a\\\\b.jpg'"),
    ],
)
def test_trees_that_are_refused(tmp_path: Path, files: list[str], message: str) -> None:
    root = write(tmp_path / "root", *files)
    with pytest.raises(DataError) as caught:
        read_folders(root)
    assert str(caught.value) == message.replace("{root}", str(root))


def test_unknown_labels_and_links(tmp_path: Path) -> None:
    write(tmp_path / "root", "persn/1.jpg")
    with pytest.raises(DataError) as caught:
        read_folders(tmp_path / "root", labels=VOC_LABELS)
    file = tmp_path / "root" / "persn" / "1.jpg"
    assert str(caught.value) == f"{file}: unknown label 'persn', the nearest known one is 'person'"
    # Another name for a label's folder is a label; below it a link could lead around for ever.
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "root" / "persn")
    assert read_folders(tmp_path / "root").target.tolist() == [[1.0, 1.0]]
    (tmp_path / "root" / "dog").symlink_to(write(tmp_path / "else", "2.jpg"))
    with pytest.raises(DataError, match=r"dog/2\.jpg: .* inside .*root, found a link to .*else/2\.jpg"):
        read_folders(tmp_path / "root")
    (tmp_path / "root" / "dog").unlink()
    (tmp_path / "root" / "cat" / "up").symlink_to(tmp_path / "root")
    with pytest.raises(DataError, match="cat/up: expected folders and pictures, found a link to a folder"):
        read_folders(tmp_path / "root")


@given(
    sets=st.dictionaries(
        st.sampled_from([f"{folder}{number}.jpg" for folder in ("", "a/", "a/b/") for number in range(4)]),
        st.sets(st.sampled_from(["cat", "cow", "dog"]), min_size=1),
        min_size=1,
    )
)
def test_what_is_written_is_read(sets: dict[str, set[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("tree")
    labels = LabelSet(("cat", "cow", "dog"))
    for file, names in sets.items():
        write(root, *(f"{name}/{file}" for name in names), content=file.encode())
    data = read_folders(root, labels=labels)
    rows = zip(data.identifiers, data.target.tolist(), strict=True)
    assert {key: {name for name, mark in zip(labels, row, strict=True) if mark} for key, row in rows} == sets
    single = read_folders(root, labels=labels, several_labels=False)
    assert set(single.identifiers) == {f"{name}/{file}" for file, names in sets.items() for name in names}
    assert torch.equal(single.target.sum(1), torch.ones(len(single)))


def test_real_pictures(shared: Path, tmp_path: Path) -> None:
    voc = read_voc(shared / "data" / "voc-mini", split="test", difficult="C", train=False)
    for index in range(40):
        for column in voc.target[index].nonzero().flatten().tolist():
            path = voc.paths[index]
            assert isinstance(path, Path)
            write(tmp_path, f"{VOC_LABELS.names[column]}/{path.name}", content=path.read_bytes())
    data = read_folders(tmp_path, labels=VOC_LABELS)
    assert data.identifiers == tuple(f"{key}.jpg" for key in voc.identifiers[:40])
    assert torch.equal(data.target, voc.target[:40])
    assert Image.fromarray((data[3].image * 255).byte().permute(1, 2, 0).numpy()).size == (
        voc[3].image.shape[2],
        voc[3].image.shape[1],
    )
