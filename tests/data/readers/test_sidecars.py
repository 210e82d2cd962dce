from pathlib import Path

import pytest

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.readers import sidecars
from pvlr.data.readers.folders import read_folders
from pvlr.data.readers.sidecars import read_sidecars
from pvlr.data.sources import ENDINGS
from pvlr.train.config import ConfigError
from pvlr.train.data_config import TableData


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for file, text in files.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_a_label_a_line_or_several(tmp_path: Path) -> None:
    root = write(
        tmp_path / "train",
        {
            "a/1.PNG": "", "a/1.txt": "\ufeffcat\r\nred dog ; elk\n", "2.jpg": "", "2.jpg.txt": "elk", "3.webp": "",
            "3.TXT": "", ".hidden": "",
        },
    )  # fmt: skip
    data = read_sidecars(root)
    assert data.labels.names == ("cat", "elk", "red dog")
    assert data.identifiers == ("2.jpg", "3.webp", "a/1.PNG")
    assert data.target.tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 1]]
    assert data.summary() == "train: 3 images, 3 labels, 1.33 positives per image, 0 unknown labels"
    config = TableData(images=str(tmp_path), form="sidecars", table=None)
    assert config.read("train", train=True).digest() == data.digest()
    with pytest.raises(ConfigError, match=r"data\.table: expected null with form 'sidecars', got 'x\.csv'"):
        TableData(images=str(tmp_path), form="sidecars", table="x.csv")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"1.jpg": ""},
            "{root}/1.txt: expected the labels of {root}/1.jpg, found no such file (an empty one",
        ),
        ({"1.jpg": "", "1.txt": "cat", "2.txt": "cat"}, "{root}/2.txt: expected a picture beside it, found none"),
        ({"1.jpg": "", "1.png": "", "1.txt": "a"}, "{root}/1.txt: expected one picture, found 1.jpg and 1.png"),
        (
            {"1.jpg": "", "1.txt": "a", "1.jpg.txt": "b"},
            "{root}/1.txt: expected the labels of {root}/1.jpg, found also 1.jpg.txt",
        ),
        (
            {"1.jpg": "", "1.txt": "a", "1.npz": "b"},
            f"{{root}}/1.npz: expected a picture ({', '.join(ENDINGS)}) or its .txt, found something else",
        ),
        ({"1.jpg": "", "1.txt": "a;;b"}, "{root}/1.txt: line 1: expected a label between any two ';', found an empty"),
        ({"1.jpg": "", "1.txt": "a\nb\na"}, "{root}/1.txt: expected every label once, found 'a' twice"),
        (
            {"1.jpg": "", "1.txt": "a\x1b"},
            "{root}/1.txt: line 1: expected the name of a label without control characters, found 'a\\x1b'",
        ),
        ({"1.jpg": "", "1.txt": b"a\xff"}, "{root}/1.txt: line 1: expected labels in UTF-8, found other bytes; if its"),
        (
            {"1.jpg": "", "1.txt": "tall, dark", "2.jpg": "", "2.txt": "dark"},
            "{root}/1.txt: expected a label a line or ';' between labels, found 'tall, dark'; set separator to ',', or",
        ),
        ({"1.jpg": "", "1.txt": ""}, "{root}: expected at least one label, found none"),
        ({".keep": ""}, "{root}: expected at least one label, found none"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    root = write(tmp_path / "root", files)
    with pytest.raises(DataError) as caught:
        read_sidecars(root)
    assert str(caught.value).startswith(message.replace("{root}", str(root)))


def test_commas_that_belong_to_names(tmp_path: Path) -> None:
    root = write(tmp_path, {"1.jpg": "", "1.txt": "tall, dark", "2.jpg": "", "2.txt": "dark"})
    assert read_sidecars(root, separator=",").target.tolist() == [[1, 1], [1, 0]]
    assert read_sidecars(root, labels=LabelSet(("dark", "tall, dark"))).target.tolist() == [[0, 1], [1, 0]]
    write(root, {"2.txt": "dark\ntall, dark"})
    assert read_sidecars(root).labels.names == ("dark", "tall, dark"), "a line is a label"


def test_links_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "root", {"1.jpg": ""})
    write(tmp_path, {"secret": "cat"})
    (root / "1.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match=r"1\.txt: expected the labels inside .*root, found a link to .*secret"):
        read_sidecars(root)
    (root / "1.txt").unlink()
    write(root, {"1.txt": "x" * 30})
    monkeypatch.setattr(sidecars, "MAX_SIDECAR_BYTES", 20)
    with pytest.raises(DataError, match=r"1\.txt: expected labels of at most 20 bytes, found more"):
        read_sidecars(root)


@pytest.mark.parametrize("files", [{"1.jpg": "", "1.txt": ""}, {"cat/1.jpg": "", "cat/1.txt": ""}])
def test_the_reader_of_folders_names_the_form(tmp_path: Path, files: dict[str, str | bytes]) -> None:
    with pytest.raises(DataError, match=r"stand in a \.txt beside it, set form to 'sidecars'$"):
        read_folders(write(tmp_path, files))
