"""The look at all pictures before a run."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pvlr.core.labels import LabelSet
from pvlr.data import scan as scanning
from pvlr.data.batch import DataError, MachineError
from pvlr.data.dataset import LabelledImages
from pvlr.data.scan import Refused, scan, without_bad_images

GOOD = 150


@pytest.fixture
def pictures(tmp_path: Path) -> LabelledImages:
    """150 small pictures, of which the 3rd is text and the 100th is cut short."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [f"{number:03}" for number in range(GOOD)]
    for name in names:
        Image.new("RGB", (9, 7), (int(name), 0, 0)).save(folder / f"{name}.png")
    (folder / "002.png").write_bytes(b"no picture")
    (folder / "099.png").write_bytes((folder / "099.png").read_bytes()[:50])
    return LabelledImages(
        name="mine", labels=LabelSet(("cat",)), paths=[folder / f"{name}.png" for name in names], identifiers=names,
        target=torch.arange(GOOD)[:, None].remainder(2).float(),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_picture_is_found_in_order_and_named(pictures: LabelledImages, workers: int) -> None:
    found = list(scan(pictures, workers=workers))
    assert [outcome.row for outcome in found if outcome is not None] == [2, 99]
    assert len(found) == GOOD
    assert found[2] == Refused(
        2,
        "002",
        f"{pictures.paths[2]}: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found something else",
    )
    assert found[99].reason.startswith(f"{pictures.paths[99]}: expected a whole picture, but ")


@pytest.mark.usefixtures("unchecked")
def test_raise_names_the_first(pictures: LabelledImages, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        without_bad_images([pictures], "raise", folder=tmp_path)
    listed = tmp_path / "refused.jsonl"
    assert str(caught.value) == (
        f"{pictures.paths[2]}: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found something else "
        f"(and 1 more, listed in {listed})"
    )
    assert len(listed.read_text().splitlines()) == 2
    without_bad_images([pictures.select([0, 1])], "raise", folder=tmp_path)
    assert not listed.exists(), "it is of the last look"
    with pytest.raises(DataError, match="policy: expected 'raise' or 'drop', got 'skip'"):
        without_bad_images([pictures], "skip")  # type: ignore[arg-type]


def test_drop_leaves_out_and_lists_and_puts_nothing_in_their_place(pictures: LabelledImages, tmp_path: Path) -> None:
    (kept,) = without_bad_images([pictures], "drop", folder=tmp_path)
    rows = [row for row in range(GOOD) if row not in (2, 99)]
    assert kept.identifiers == tuple(pictures.identifiers[row] for row in rows)
    assert torch.equal(kept.target, pictures.target[rows])
    assert kept.summary().endswith("0 unknown labels (2 refused)")
    listed = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in listed] == ["002", "099"]
    assert all(line["data"] == "mine" and line["picture"] in line["reason"] for line in listed)
    good = pictures.select(rows)
    assert without_bad_images([good, pictures], "drop")[0] is good


def test_nothing_left_is_refused(pictures: LabelledImages) -> None:
    with pytest.raises(DataError, match=r"^mine: expected at least one picture that can be read; .*002\.png: expected"):
        without_bad_images([pictures, pictures.select([2, 99])], "drop")


def test_good_pictures_are_not_looked_at_again_unless_they_changed(
    pictures: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    decode = scanning.decode_rgb
    monkeypatch.setattr(
        scanning, "decode_rgb", lambda path, **options: (looked.append(path.stem), decode(path, **options))[1]
    )
    memory = tmp_path / "scanned.jsonl"

    def bad() -> list[int]:
        looked.clear()
        return [outcome.row for outcome in scan(pictures, memory=memory) if outcome is not None]

    assert bad() == [2, 99]
    assert len(looked) == GOOD
    assert bad() == [2, 99]
    assert looked == ["002", "099"], "bad ones are looked at again: they may have been mended"
    os.utime(pictures.paths[7], ns=(1, 1))
    pictures.paths[8].write_bytes(b"now broken")
    with memory.open("a") as file:
        file.write('["cut sho')
    assert bad() == [2, 8, 99]
    assert looked == ["002", "007", "008", "099"]


def test_a_picture_of_the_same_name_in_another_split_is_another(tmp_path: Path) -> None:
    parts = []
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "a.png"
        Image.new("RGB", (9, 7)).save(path)
        if name == "test":
            path.write_bytes(b"?" * path.stat().st_size)
        os.utime(path, ns=(1, 1))
        parts.append(
            LabelledImages(
                name=name, labels=LabelSet(("cat",)), paths=[path], identifiers=["a.png"], target=torch.zeros(1, 1)
            )
        )
    with pytest.raises(DataError, match=r"a\.png: expected a picture"):
        without_bad_images(parts, "raise", folder=tmp_path)


def test_an_interrupted_scan_remembers_what_it_saw(pictures: LabelledImages, tmp_path: Path) -> None:
    outcomes = scan(pictures, memory=tmp_path / "scanned.jsonl")
    for _ in range(40):
        next(outcomes)
    outcomes.close()
    assert len((tmp_path / "scanned.jsonl").read_text().splitlines()) == 39  # One of the forty was bad.


def test_pictures_that_are_no_files_are_looked_at_each_time(pictures: LabelledImages) -> None:
    content = pictures.paths[0].read_bytes()
    data = LabelledImages(
        name="bytes", labels=LabelSet(("cat",)), paths=[lambda: content, lambda: content[:40]],
        identifiers=["a", "b"], target=torch.zeros(2, 1),
    )  # fmt: skip
    assert [outcome and outcome.identifier for outcome in scan(data)] == [None, "b"]


class Short:
    """A picture that cannot be read for want of something; it is no fault of its own."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self) -> bytes:
        raise self.error


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files"), MachineError("a disk")])
def test_no_picture_is_left_out_for_the_machine_s_sake(
    pictures: LabelledImages, tmp_path: Path, error: Exception, workers: int
) -> None:
    data = LabelledImages(
        name="mine", labels=pictures.labels, paths=[*pictures.paths[:-1], Short(error)],
        identifiers=pictures.identifiers, target=pictures.target,
    )  # fmt: skip
    with pytest.raises(MachineError):
        without_bad_images([data], "drop", folder=tmp_path, workers=workers)
    assert not (tmp_path / "refused.jsonl").exists()
    assert len((tmp_path / "scanned.jsonl").read_text().splitlines()) >= 64, "what was seen until then"


def test_a_picture_is_known_by_its_place(tmp_path: Path) -> None:
    looked = {}
    for name in ("here", "there"):
        path = tmp_path / name / "a.bmp"
        path.parent.mkdir()
        Image.new("RGB", (9, 7)).save(path)
        if name == "there":
            path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(1, 1))
        data = LabelledImages(
            name="mine", labels=LabelSet(("cat",)), paths=[path], identifiers=["a.bmp"], target=torch.zeros(1, 1)
        )
        looked[name] = list(scan(data, memory=tmp_path / "scanned.jsonl"))
    assert looked["here"] == [None]
    assert looked["there"][0] is not None


def test_times_that_are_set_back_do_not_deceive(pictures: LabelledImages, tmp_path: Path) -> None:
    memory, path = tmp_path / "scanned.jsonl", pictures.paths[0]
    assert list(scan(pictures.select([0]), memory=memory)) == [None]
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(scan(pictures.select([0]), memory=memory)) != [None]
