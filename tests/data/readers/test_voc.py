import csv
import json
import pickle
import re
import tarfile
from pathlib import Path

import pytest
import torch
from helpers.messages import pinned
from helpers.voc_tree import TRAINVAL, annotation, write_voc
from PIL import Image
from torch.utils.data import DataLoader

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError, collate
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers.voc import VOC_LABELS, obtain_voc, read_annotation, read_voc
from pvlr.data.sampling import Draw, EpochSampler, derive_seed


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "data")


def row(data: LabelledImages, index: int, *, value: bool = True) -> set[str]:
    return {name for name, known in zip(data.labels, data.known[index].tolist(), strict=True) if known is value}


def positives(data: LabelledImages, index: int) -> set[str]:
    return {name for name, target in zip(data.labels, data.target[index].tolist(), strict=True) if target == 1}


def test_labels_are_the_twenty_and_readable() -> None:
    assert len(VOC_LABELS) == 20
    assert [VOC_LABELS.readable[name] for name in ("diningtable", "pottedplant", "tvmonitor", "cat")] == [
        "dining table",
        "potted plant",
        "tv monitor",
        "cat",
    ]
    assert list(VOC_LABELS) == sorted(VOC_LABELS)


@pytest.mark.parametrize(
    ("difficult", "train", "cat"),
    [
        ("unknown", True, "unknown"),
        ("unknown", False, "unknown"),
        ("A", True, "present"),
        ("A", False, "unknown"),
        ("B", True, "absent"),
        ("B", False, "unknown"),
        ("C", True, "absent"),
        ("C", False, "absent"),
    ],
)
def test_conventions_for_difficult_objects(devkit: Path, difficult: str, train: bool, cat: str) -> None:
    data = read_voc(devkit.parent.parent, difficult=difficult, train=train)
    assert positives(data, 0) == {"dog", "person"}, "one easy object is enough"
    assert positives(data, 1) == {"sofa"} | ({"cat"} if cat == "present" else set())
    assert row(data, 1, value=False) == ({"cat"} if cat == "unknown" else set())
    assert positives(data, 2) == set()
    assert row(data, 3, value=False) == ({"diningtable"} if cat == "unknown" else set())
    assert not (data.target.bool() & ~data.known).any()


@pytest.mark.parametrize("up", [0, 1, 2])
def test_root_may_be_any_of_the_three_folders(devkit: Path, up: int) -> None:
    root = [devkit, *devkit.parents][up]
    assert read_voc(root, split="test", train=False).identifiers == ("000006", "000007")


def test_samples(devkit: Path) -> None:
    seen: list[int] = []

    def transform(image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        seen.append(generator.initial_seed())
        assert (image.mode, image.size) == ("RGB", (30, 24))
        return torch.zeros(3, 2, 2)

    data = read_voc(devkit, transform=transform, train=True)
    sample = data[1]
    assert (len(data), sample.index, sample.image.shape) == (5, 1, (3, 2, 2))
    assert torch.equal(sample.target, data.target[1])
    assert torch.equal(sample.known, data.known[1])
    assert data[Draw(1, 77)].index == 1
    assert seen == [derive_seed(0, 0, 1), 77]
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"index: expected a number from 0 to 4, got {index}"):
            data[index]
    plain = read_voc(devkit, train=True)[0].image
    assert plain.shape == (3, 24, 30)
    assert 0 <= plain.min() < plain.max() <= 1


def test_it_pickles_and_reads_in_workers(devkit: Path) -> None:
    data = pickle.loads(pickle.dumps(read_voc(devkit, train=True)))  # noqa: S301
    batches = list(DataLoader(data, batch_sampler=EpochSampler(len(data), 2), num_workers=1, collate_fn=collate))
    assert torch.equal(torch.cat([batch.target for batch in batches]), data.target)


def test_labels_given_then_the_files_then_voc(devkit: Path) -> None:
    assert read_voc(devkit, train=True).labels == VOC_LABELS
    names = ("sofa", "person", "dog", "cat", "diningtable")
    (devkit / "labels.json").write_text(json.dumps(LabelSet(names).to_json()))
    data = read_voc(devkit, train=True)
    assert data.labels.names == names
    assert positives(data, 0) == {"dog", "person"}
    assert read_voc(devkit, labels=VOC_LABELS, train=True).labels == VOC_LABELS


def test_summary(devkit: Path) -> None:
    assert read_voc(devkit, train=True).summary() == (
        "VOC2007 trainval: 5 images, 20 labels, 1.00 positives per image, 2 unknown labels (difficult: unknown)"
    )


def remove(path: Path) -> None:
    path.rename(path.with_name(path.name + ".gone"))


@pytest.mark.parametrize(
    ("damage", "named", "message"),
    [
        (
            lambda f: remove(f),
            "data",
            "expected a folder that holds VOCdevkit/VOC2007, or the folders Annotations and JPEGImages, found none",
        ),
        (lambda f: remove(f / "Annotations"), "VOC2007", "expected the folder Annotations in it, found none"),
        (lambda f: remove(f / "JPEGImages"), "VOC2007", "expected the folder JPEGImages in it, found none"),
        (
            lambda f: remove(f / "ImageSets/Main/trainval.txt"),
            "trainval.txt",
            "expected the list of the split 'trainval', found test",
        ),
        (lambda f: (f / "ImageSets/Main/trainval.txt").write_text("\n \n"), "trainval.txt", "at least one picture"),
        (
            lambda f: (f / "ImageSets/Main/trainval.txt").write_bytes(b"\xff\xfe"),
            "trainval.txt",
            "expected a list of pictures in UTF-8",
        ),
        (
            lambda f: (f / "ImageSets/Main/trainval.txt").write_text("../x\n"),
            "trainval.txt",
            "expected a picture inside its folder, found '../x'",
        ),
        (
            lambda f: (f / "ImageSets/Main/trainval.txt").write_text("000001\n000001\n"),
            "trainval.txt",
            "expected every picture once, found '000001' twice",
        ),
        (
            lambda f: remove(f / "JPEGImages/000003.jpg"),
            "000003.jpg",
            "expected the picture of '000003', found no such file",
        ),
        (
            lambda f: remove(f / "Annotations/000003.xml"),
            "000003.xml",
            "expected the annotation of '000003', found no such",
        ),
        (
            lambda f: (f / "Annotations/000003.xml").write_text(annotation([("persn", 0)])),
            "000003.xml",
            "unknown label 'persn', the nearest known one is 'person'",
        ),
        (lambda f: (f / "labels.json").write_text("{"), "labels.json", "expected JSON, but"),
        (lambda f: (f / "labels.json").write_text('{"names": []}'), "labels.json", "expected at least one label"),
        (lambda f: (f / "labels.json").write_text("[1]"), "labels.json", "expected an object in braces, found a list"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refusals_name_the_file(devkit: Path, damage: object, named: str, message: str) -> None:
    damage(devkit)
    with pytest.raises(DataError, match=pinned(message)) as caught:
        read_voc(devkit.parent.parent, train=True)
    text = str(caught.value)
    assert Path(text.split(": ")[0]).name == named
    assert "\n" not in text


@pytest.mark.usefixtures("unchecked")
def test_unknown_choices_are_refused(devkit: Path) -> None:
    with pytest.raises(DataError, match="difficult: expected 'unknown', 'A', 'B' or 'C', got 'D'"):
        read_voc(devkit, difficult="D", train=True)
    with pytest.raises(DataError, match="how: expected 'never' or 'download', got 'maybe'"):
        obtain_voc(devkit, "2007", "maybe")


@pytest.mark.parametrize("year", ["2006", "2013", "../x"])
def test_only_years_that_were_published_are_downloaded(tmp_path: Path, year: str) -> None:
    message = "year: expected one to download of 2007, 2008, 2009, 2010, 2011, 2012, got "
    with pytest.raises(DataError, match=f"^{re.escape(message + repr(year))}$"):
        obtain_voc(tmp_path, year, "download")
    obtain_voc(tmp_path, year, "never")


def test_a_name_with_a_space_is_no_other_picture(tmp_path: Path) -> None:
    folder = write_voc(tmp_path)

    def copy(name: str) -> None:
        for ending, part in (("jpg", "JPEGImages"), ("xml", "Annotations")):
            (folder / part / f"{name}.{ending}").write_bytes((folder / part / f"000001.{ending}").read_bytes())

    listed = folder / "ImageSets" / "Main" / "trainval.txt"
    listed.write_text("000002\n000001 2\n")
    with pytest.raises(DataError) as caught:
        read_voc(tmp_path, train=True)
    expected = f"{listed}: line 2: expected a name, alone or with -1, 0 or 1, found "
    assert str(caught.value) == f"{expected}'000001 2' and no annotation of '000001 2'"
    copy("000001 2")
    assert read_voc(tmp_path, train=True).identifiers == ("000002", "000001 2")
    listed.write_text("000002\n000001 1\n")
    assert read_voc(tmp_path, train=True).identifiers == ("000002", "000001"), "1 is a mark"
    copy("000001 1")
    with pytest.raises(DataError) as caught:
        read_voc(tmp_path, train=True)
    assert str(caught.value) == (
        f"{expected}'000001 1' and annotations of both '000001 1' and '000001': rename one of them"
    )
    listed.write_text("000002\n000003 1\n000001 1 1\n")
    assert read_voc(tmp_path, train=True).identifiers == ("000002", "000003", "000001 1")


@pytest.mark.parametrize("text", ["000002 -1\r\n000001  1\r\n", "  000002\t0\n\n000001 \n", "\ufeff000002\n000001"])
def test_lists_with_and_without_marks(tmp_path: Path, text: str) -> None:
    (write_voc(tmp_path) / "ImageSets" / "Main" / "trainval.txt").write_text(text, newline="", encoding="utf-8")
    assert read_voc(tmp_path, train=True).identifiers == ("000002", "000001")


def test_folders_that_nobody_may_search_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a folder VOC2007, but File name too long"):
        read_voc(tmp_path / ("x" * 300), train=True)
    with pytest.raises(DataError, match=r"expected the list of the split 'x{300}', but File name too long"):
        read_voc(write_voc(tmp_path), split="x" * 300, train=True)


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxx">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected well-formed XML"),
        (b"<annotation><object></annotation>", "expected well-formed XML"),
        (b"<annotation>\x00</annotation>", "expected an annotation, found a NUL byte"),
        (b"<scene/>", "expected the element <annotation>, found 'scene'"),
        (b"<annotation><object/></annotation>", "expected every <object> to have a <name>"),
        (
            annotation([("cat", 2)]).encode(),
            "expected <difficult> of 'cat' to be 0 or 1, true or false, yes or no, or Unspecified, found '2'",
        ),
        (BOMB.encode(), "without document type and entities, found <!DOCTYPE"),
        (BOMB.encode("utf-16"), "expected an annotation in UTF-8"),
        (b"<annotation>" + b" " * 1_000_000 + b"</annotation>", "at most 1,000,000 bytes"),
        (b'<?xml version="1.0" encoding="utf-7"?>' + b"<annotation>&x;</annotation>", "expected well-formed XML"),
    ],
)
def test_annotations_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "1.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_annotation(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_annotations_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "1.xml"
    path.write_bytes(b"\xef\xbb\xbf<?xml version='1.0'?><annotation><object><name> cat </name></object></annotation>")
    assert read_annotation(path) == {"cat": 1}
    path.write_text(annotation([("cat", 1), ("cat", 0), ("dog", 1)]))
    assert read_annotation(path) == {"cat": 1, "dog": 0}


class Download:
    """Stands in for torchvision's function: writes the archive of a data set."""

    def __init__(self, folder: Path, fail_at: str = "nowhere", message: str = "the network\nis down") -> None:
        self.folder, self.fail_at, self.message, self.asked = folder, fail_at, message, []
        write_voc(folder)

    def __call__(self, url: str, root: str, filename: str, md5: str) -> None:
        assert url.endswith(filename)
        assert len(md5) == 32
        self.asked.append(filename)
        if self.fail_at in filename:
            raise RuntimeError(self.message)
        with tarfile.open(Path(root) / filename, "w") as archive:
            archive.add(self.folder / "VOCdevkit", arcname="VOCdevkit")


def test_obtaining_downloads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Download(tmp_path / "there")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", fake)
    obtain_voc(tmp_path / "new", "2007", "never")
    assert not (tmp_path / "new").exists()
    for _ in range(2):
        obtain_voc(tmp_path / "new", "2007", "download")
    assert fake.asked == ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["VOCdevkit"]
    assert len(read_voc(tmp_path / "new", train=True)) == len(TRAINVAL)


@pytest.mark.parametrize("fail_at", ["trainval", "test"])
def test_a_failed_download_leaves_nothing_and_says_three_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: str
) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_url", Download(tmp_path / "there", fail_at))
    root = tmp_path / "new"
    with pytest.raises(DataError) as caught:
        obtain_voc(root, "2007", "download")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0] == f"{root}: expected to obtain Pascal VOC 2007, but the network is down"
    assert "torchvision.datasets.utils.download_url" in lines[1]
    assert lines[2].endswith("--data.root FOLDER")
    assert list(root.iterdir()) == []


def test_real_annotations_agree_with_the_official_table(shared: Path) -> None:
    folder = shared / "data" / "voc-mini"
    with (folder / "labels.csv").open(newline="") as file:
        table = {Path(line["path"]).stem: [int(line[name]) for name in VOC_LABELS] for line in csv.DictReader(file)}
    for split, count in (("trainval", 1012), ("test", 1013)):
        data = read_voc(folder, split=split, train=split == "trainval")
        expected = torch.tensor([table[identifier] for identifier in data.identifiers])
        assert len(data) == count
        assert torch.equal(data.target, (expected == 1).float())
        assert torch.equal(data.known, expected != 0)


def test_real_pictures_decode(shared: Path) -> None:
    data = read_voc(shared / "data" / "voc-mini", split="test", train=False)
    for index in range(0, len(data), 100):
        assert min(data[index].image.shape[1:]) == 256
