import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pvlr.core.labels import LabelSet
from pvlr.data.archives import Member
from pvlr.data.batch import DataError, collate
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers import shards
from pvlr.data.readers.shards import read_shards
from pvlr.data.readers.voc import VOC_LABELS, read_voc
from pvlr.data.sampling import EpochSampler

LABELS = LabelSet(("cat", "cow", "dog"))
Files = list[tuple[str, bytes]]


def picture(red: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (red, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def said(*present: str | int, **more: object) -> bytes:
    return json.dumps({"labels": present, **more}).encode()


def write(path: Path, files: Files, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in files:
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return path


def signs(data: LabelledImages) -> dict[str, str]:
    """Picture to a sign per label: + present, - absent, ? unknown."""
    rows = zip(data.identifiers, data.target.tolist(), data.known.tolist(), strict=True)
    return {
        key: "".join(("+" if mark else "-") if known else "?" for mark, known in zip(marks, knowns, strict=True))
        for key, marks, knowns in rows
    }


SAMPLES: Files = [
    ("a.png", picture(10)),
    ("a.json", said("cat", "dog")),
    ("a.txt", b"a caption"),
    ("deep/b.PNG", picture(20)),
    ("deep/b.seg.png", b"no picture that is read"),
    ("deep/b.json", said(unknown=["cow"], author="me")),
]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_pictures_and_labels(tmp_path: Path, form: int) -> None:
    first = write(tmp_path / "train-0.tar", SAMPLES, form=form)
    long = "x" * 90 + "/" + "y" * 90
    second = write(
        tmp_path / "train-1.tar", [("./a.cls", b" 1\n"), ("./a.png", picture(30)), ("._a.png", b"")], form=form
    )
    third = write(tmp_path / "train-2.tar", [(f"{long}.cls", b"0"), (f"{long}.png", picture(40))], form=form)
    data = read_shards([first, str(second), third], name="mine train", labels=LABELS)
    assert signs(data) == {
        "train-0/a": "+-+",
        "train-0/deep/b": "-?-",
        "train-1/a": "-+-",
        f"train-2/{long}": "+--",
    }
    assert [round(float(data[index].image[0].mean()) * 255) for index in (3, 0, 2, 1)] == [40, 10, 30, 20]
    assert data.summary() == "mine train: 4 images, 3 labels, 1.00 positives per image, 1 unknown labels"
    assert read_shards([first], name="mine").labels.names == ("cat", "cow", "dog")


def test_it_pickles_and_reads_in_workers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.tar", [part for n in range(5) for part in ((f"{n}.png", picture(n)), (f"{n}.cls", b"0"))]
    )
    data = pickle.loads(pickle.dumps(read_shards([path], name="mine", labels=LABELS)))  # noqa: S301
    batches = list(DataLoader(data, batch_sampler=EpochSampler(5, 2), num_workers=2, collate_fn=collate))
    reds = torch.cat([batch.image[:, 0, 0, 0] for batch in batches]) * 255
    assert reds.round().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.json", said("cat"))], ": a: expected one picture, found none"),
        ([("a.txt", b""), ("a.cls", b"0")], ": a: expected one picture, found none"),
        ([("a.png", b"")], ": a: expected one .json or .cls, found none"),
        ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"0")], ": a: expected one picture, found png, jpg, cls"),
        (
            [("a.png", b""), ("a.json", said()), ("a.cls", b"0")],
            ": a: expected one .json or .cls, found png, json, cls",
        ),
        ([("a.png", b""), ("a.PNG", b"")], ": a.PNG: expected every file once, found it again"),
        ([("a.png", b""), ("./a.png", b"")], ": a.png: expected every file once, found it again"),
        ([("README", b"")], ": README: expected names such as key.jpg and key.json"),
        ([("a.", b"")], ": a.: expected names such as key.jpg and key.json"),
        ([("../a.png", b"")], ": expected a picture inside its folder, found '../a.png'"),
        ([("a\n.png", b"")], ": expected the name of a picture without control characters, found 'a\\n.png'"),
        ([("/a.png", b"")], ": expected a picture inside its folder, found '/a.png'"),
        ([("a\\b.png", b"")], ": expected a picture's path with / between folders, found 'a\\\\b.png'"),
        ([("a.png", b""), ("a.json", said("catt"))], ": a: unknown label 'catt', the nearest known one is 'cat'"),
        ([("a.png", b""), ("a.json", said(3))], ": a: expected the position of a label from 0 to 2, found 3"),
        ([("a.png", b""), ("a.json", b"{}")], ": a.json: expected the key 'labels', found no keys"),
        ([("a.png", b""), ("a.json", b"[]")], ": a.json: expected an object in braces, found a list"),
        ([("a.png", b""), ("a.json", b"\xff")], ": a.json: expected labels in UTF-8, found other bytes"),
        ([("a.png", b""), ("a.json", b'{"labels": 1}')], ": a.json: expected 'labels' to be a list, found 1"),
        ([("a.png", b""), ("a.cls", b"cat")], ": a.cls: expected the position of a label, found 'cat'"),
        ([("a.png", b""), ("a.cls", b"")], ": a.cls: expected the position of a label, found ''"),
        ([("a.png", b""), ("a.cls", b"9")], ": a: expected the position of a label from 0 to 2, found 9"),
    ],
)
def test_samples_that_are_refused(tmp_path: Path, files: Files, message: str) -> None:
    path = write(tmp_path / "x.tar", files)
    with pytest.raises(DataError) as caught:
        read_shards([path], name="mine", labels=LABELS)
    assert str(caught.value) == f"{path}{message}"


def odd(kind: bytes) -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        item = tarfile.TarInfo("a.png")
        item.type, item.linkname = kind, "/etc/passwd"
        archive.addfile(item)

    return add


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        odd(kind)(archive)
    with pytest.raises(DataError) as caught:
        read_shards([path], name="mine", labels=LABELS)
    assert str(caught.value) == f"{path}: 'a.png': expected files and folders, found a link, device or other"


INCOMPLETE = "expected the end mark of an archive, found the end of the file: it is incomplete"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "expected a tar archive that is not compressed, but empty file"),
        (lambda data: b"x" * 2000, "expected a tar archive that is not compressed, but "),
        (lambda data: data[:100], "expected a tar archive that is not compressed, but "),
        (lambda data: data[:700], "expected a tar archive that is not compressed, but unexpected end of data"),
        (lambda data: data[:1024], INCOMPLETE),
        (lambda data: data[:2048], INCOMPLETE),
        (lambda data: data[:2300], INCOMPLETE),
        (lambda data: data + data, "expected nothing after byte 3,072, found a damaged header or another archive"),
        (
            lambda data: data[:1024] + b"?" + data[1025:],
            "expected nothing after byte 1,024, found a damaged header or another archive",
        ),
    ],
)
def test_damaged_archives_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    """Three files of a block each: tarfile reads what comes before the damage, and is content."""
    path = write(
        tmp_path / "x.tar", [("a.cls", b"0"), ("a.png", picture()), ("a.txt", b"x")], form=tarfile.USTAR_FORMAT
    )
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        read_shards([path], name="mine", labels=LABELS)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archives_are_refused(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "x.tar", SAMPLES, mode)
    with pytest.raises(DataError, match=r"x\.tar: expected a tar archive that is not compressed, but "):
        read_shards([path], name="mine")


def test_archives_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.tar: expected a tar archive, but No such file or directory"):
        read_shards([tmp_path / "x.tar"], name="mine")
    with pytest.raises(DataError, match="mine: expected at least one picture in the archives, found none"):
        read_shards([], name="mine")
    path = write(tmp_path / "x.tar", SAMPLES)
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other" / "x.tar", SAMPLES)
    with pytest.raises(DataError) as caught:
        read_shards([path, other], name="mine")
    assert str(caught.value) == f"{other}: a: expected every picture once, found 'x/a' again, after {path}: a"


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.tar", SAMPLES)
    monkeypatch.setattr(shards, "MAX_LABEL_BYTES", 5)
    with pytest.raises(DataError, match=r"a\.json: expected at most 5 bytes, found 26"):
        read_shards([path], name="mine")
    monkeypatch.setattr(shards, "MAX_BYTES", 9)
    with pytest.raises(DataError, match=r"a\.png: expected at most 9 bytes, found "):
        read_shards([path], name="mine")


def test_an_archive_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", SAMPLES)
    data = read_shards([path], name="mine")
    member = data.paths[0]
    assert isinstance(member, Member)
    assert member() == picture(10)
    path.write_bytes(path.read_bytes()[: member.offset + 7])
    with pytest.raises(DataError, match=rf"x\.tar: expected {member.size} bytes of a\.png, found 7"):
        data[0]
    path.unlink()
    with pytest.raises(DataError, match=r"x\.tar: expected a\.png in it, but No such file or directory"):
        data[0]


@given(cut=st.integers(0, 20_000), at=st.integers(0, 4_000), value=st.integers(0, 255))
def test_damaged_bytes_give_data_or_a_data_error(
    cut: int, at: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "damaged.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(bytes(content[:cut]))
    message = "mine: "
    try:
        assert len(read_shards([path], name="mine", labels=LABELS)) <= 2
    except DataError as err:
        message = str(err)
    assert message.startswith((f"{path}: ", "mine: "))


KEYS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"], exclude_characters="\\/:."),
    min_size=1,
    max_size=120,
).filter(lambda key: key == key.strip())


@given(data=st.data())
def test_what_is_written_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = data.draw(st.dictionaries(KEYS, st.text("+-?", min_size=3, max_size=3), min_size=1, max_size=5))
    files: Files = []
    for key, row in rows.items():
        found = {sign: [name for name, mark in zip(LABELS, row, strict=True) if mark == sign] for sign in "+?"}
        files.extend(((f"{key}.jpg", key.encode()), (f"{key}.json", said(*found["+"], unknown=found["?"]))))
    path = write(tmp_path_factory.getbasetemp() / "round.tar", files)
    read = read_shards([path], name="mine", labels=LABELS)
    assert signs(read) == {f"round/{key}": row for key, row in rows.items()}
    assert [source() for source in read.paths if callable(source)] == [key.encode() for key in rows]


def test_real_pictures(shared: Path, tmp_path: Path) -> None:
    voc = read_voc(shared / "data" / "voc-mini", split="test", train=False).select(range(0, 200, 10))
    for shard in range(2):
        files: Files = []
        for row in range(shard * 10, shard * 10 + 10):
            path = voc.paths[row]
            assert isinstance(path, Path)
            lists = [
                [name for name, mark in zip(VOC_LABELS, marks[row].tolist(), strict=True) if mark]
                for marks in (voc.target, ~voc.known)
            ]
            files.append((f"{path.stem}.jpg", path.read_bytes()))
            files.append((f"{path.stem}.json", said(*lists[0], unknown=lists[1])))
        write(tmp_path / f"{shard}.tar", files)
    data = read_shards([tmp_path / "0.tar", tmp_path / "1.tar"], name="VOC2007 test", labels=VOC_LABELS)
    assert [key.partition("/")[2] for key in data.identifiers] == list(voc.identifiers)
    assert torch.equal(data.target, voc.target)
    assert torch.equal(data.known, voc.known)
    for row in (0, 7, 19):
        assert torch.equal(data[row].image, voc[row].image)
