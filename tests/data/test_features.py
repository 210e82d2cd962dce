"""The store of features: what is saved stays, whatever interrupts, and nothing else is taken for it."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import ReadWriteLock
from helpers.messages import pinned
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.shapes import ShapeError
from pvlr.data.archives import Member
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.features import CachedFeatures, FeatureStore, state_of_pictures
from pvlr.data.sampling import Draw as Position

ROWS, N, D = 6, 4, 3


def store(folder: Path, **changes: object) -> FeatureStore:
    return FeatureStore(
        folder, **{"key": {"tower": "x"}, "rows": ROWS, "patches": N, "dim": D, "dtype": "float32", **changes}
    )


def vectors(rows: int = ROWS, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = Draw(seed, torch.float32)
    return draw.normal(rows, N, D), draw.normal(rows, D)


@given(draws(), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.sampled_from(["float16", "float32"]))
def test_what_goes_in_comes_out_however_it_was_cut(draw: Draw, parts: list[int], dtype: str) -> None:
    import tempfile

    rows = sum(parts)
    patches, pooled = draw.normal(rows, N, D).float(), draw.normal(rows, D).float()
    with tempfile.TemporaryDirectory() as name:
        for done in range(len(parts)):
            # Opened anew for every part, as after an interruption.
            kept = store(Path(name, "s"), rows=rows, dtype=dtype)
            assert kept.done == sum(parts[:done])
            begin, end = kept.done, kept.done + parts[done]
            kept.append(patches[begin:end], pooled[begin:end])
            kept.save()
            kept.close()
        assert kept.complete
        assert sum(Path(name, "s", f"{part}.bin").stat().st_size for part in ("patches", "pooled")) == kept.bytes_needed
        for row in range(rows):
            found = kept.read(row)
            for got, wanted in zip(found, (patches[row], pooled[row]), strict=True):
                assert got.dtype == torch.float32
                assert torch.equal(got, wanted.half().float() if dtype == "float16" else wanted)


@given(draws(), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.sampled_from(["float16", "float32"]))
def test_what_pooled_vectors_were_made_of_is_kept_beside_them(draw: Draw, parts: list[int], dtype: str) -> None:
    import tempfile

    rows, wide, own = sum(parts), 7, 5
    given = [draw.normal(rows, *shape).float() for shape in ((N, D), (D,), (wide,), (N, own))]
    with tempfile.TemporaryDirectory() as name:
        for done in range(len(parts)):
            kept = store(Path(name, "s"), rows=rows, dtype=dtype, source=wide, own=own)
            assert (kept.done, kept.renewed) == (sum(parts[:done]), False)
            kept.append(*(vectors[kept.done : kept.done + parts[done]] for vectors in given))
            kept.save()
            kept.close()
        files = [Path(name, "s", f"{part}.bin") for part in ("patches", "pooled", "source", "own")]
        assert sum(path.stat().st_size for path in files) == kept.bytes_needed
        for row in range(rows):
            for got, wanted in zip(kept.read(row), (vectors[row] for vectors in given), strict=True):
                assert got.dtype == torch.float32
                assert torch.equal(got, wanted.half().float() if dtype == "float16" else wanted)


def test_an_interruption_between_the_files_of_a_row_costs_that_row(tmp_path: Path) -> None:
    (patches, pooled), source = vectors(), Draw(1, torch.float32).normal(ROWS, 7)
    kept = store(tmp_path / "s", source=7)
    kept.append(patches[:3], pooled[:3], source[:3])
    kept.save()
    kept.append(patches[4:5], pooled[4:5], source[4:5])
    kept.close()
    with (tmp_path / "s" / "source.bin").open("r+b") as file:
        file.truncate(2 * 7 * 4 + 5)  # Of the rows that were saved, one is lost and one is half there.
    again = store(tmp_path / "s", source=7)
    assert again.done == 2
    again.append(patches[2:], pooled[2:], source[2:])
    again.save()
    again.close()
    found = store(tmp_path / "s", source=7)
    assert found.complete
    for row in range(ROWS):
        for got, wanted in zip(found.read(row), (patches[row], pooled[row], source[row]), strict=True):
            assert torch.equal(got, wanted)


def test_features_of_patches_are_kept_where_they_are_asked_for_and_tell_stores_apart(tmp_path: Path) -> None:
    (patches, pooled), own = vectors(), Draw(1, torch.float32).normal(ROWS, N, 5)
    kept = store(tmp_path / "s", own=5)
    assert kept.bytes_needed == store(tmp_path / "plain").bytes_needed + 4 * ROWS * N * 5
    kept.append(patches, pooled, None, own)  # Without a source.
    kept.save()
    kept.close()
    found = store(tmp_path / "s", own=5)
    assert (found.complete, found.renewed) == (True, False)
    assert found.files == ("patches", "pooled", "own")
    assert torch.equal(found.read(4)[2], own[4])
    found.close()
    plain = store(tmp_path / "s")
    assert (plain.renewed, plain.done) == (True, 0)
    assert sorted(path.stem for path in (tmp_path / "s").glob("*.bin")) == ["patches", "pooled"]
    assert "own" not in json.loads((tmp_path / "s" / "features.json").read_text())  # As before there was a choice.


@pytest.mark.usefixtures("unchecked")
def test_features_of_patches_of_another_shape_or_none_are_refused(tmp_path: Path) -> None:
    (patches, pooled), own = vectors(), Draw(1, torch.float32).normal(ROWS, N, 5)
    kept = store(tmp_path / "s", own=5)
    with pytest.raises(ShapeError, match=pinned("own: expected axes 'b n w' with w=5, got shape (6, 4, 4)")):
        kept.append(patches, pooled, None, own[..., 1:])
    with pytest.raises(ShapeError, match=pinned("own: expected axes 'b n w' with n=4, got shape (6, 3, 5)")):
        kept.append(patches, pooled, None, own[:, 1:])
    with pytest.raises(ShapeError, match=pinned("own: expected a tensor with axes 'b n w', got NoneType")):
        kept.append(patches, pooled)


@pytest.mark.usefixtures("unchecked")
def test_a_source_of_another_width_or_none_is_refused(tmp_path: Path) -> None:
    (patches, pooled), source = vectors(), Draw(1, torch.float32).normal(ROWS, 7)
    kept = store(tmp_path / "s", source=7)
    with pytest.raises(ShapeError, match=r"source: expected axes 'b k' with k=7, got shape \(6, 6\)"):
        kept.append(patches, pooled, source[:, 1:])
    with pytest.raises(ShapeError, match=r"source: expected axes 'b k' with b=6, got shape \(5, 7\)"):
        kept.append(patches, pooled, source[1:])
    with pytest.raises(ShapeError, match="source: expected a tensor with axes 'b k', got NoneType"):
        kept.append(patches, pooled)
    with pytest.raises(ValueError, match="source: expected finite vectors that float32 can hold, got others"):
        kept.append(patches, pooled, source / 0)
    kept.close()
    again = store(tmp_path / "s", source=7)
    assert (again.renewed, again.done) == (False, 0)
    again.append(patches, pooled, source)
    assert torch.equal(again.read(5)[2], source[5])


def test_what_was_not_saved_does_not_count_and_is_overwritten(tmp_path: Path) -> None:
    patches, pooled = vectors()
    kept = store(tmp_path / "s")
    kept.append(patches[:2], pooled[:2])
    kept.save()
    kept.append(patches[4:5], pooled[4:5])
    kept.close()  # As a kill does, before it was saved.
    again = store(tmp_path / "s")
    assert again.done == 2
    again.append(patches[2:], pooled[2:])
    again.save()
    for row in range(ROWS):
        assert torch.equal(store(tmp_path / "s").read(row)[0], patches[row])


@pytest.mark.parametrize("damage", ["cut", "no progress", "odd progress"])
def test_damage_costs_rows_and_never_gives_wrong_ones(tmp_path: Path, damage: str) -> None:
    kept = store(tmp_path / "s")
    kept.append(*vectors())
    kept.save()
    if damage == "cut":
        with (tmp_path / "s" / "patches.bin").open("r+b") as file:
            file.truncate(2 * N * D * 4 + 5)
    elif damage == "no progress":
        (tmp_path / "s" / "progress.json").unlink()
    else:
        (tmp_path / "s" / "progress.json").write_text('{"done": "many"')
    kept.close()
    again = store(tmp_path / "s")
    assert again.done == (2 if damage == "cut" else 0)
    assert not again.renewed


@pytest.mark.parametrize(
    "change", [{"key": {"tower": "y"}}, {"rows": 7}, {"patches": 5}, {"source": 7}, {"dtype": "float16"}]
)
def test_another_key_begins_anew_and_says_so(tmp_path: Path, change: dict) -> None:
    kept = store(tmp_path / "s")
    kept.append(*vectors())
    kept.save()
    kept.close()
    again = store(tmp_path / "s", **change)
    assert (again.renewed, again.done) == (True, 0)
    again.close()
    assert not store(tmp_path / "s", **change).renewed


@pytest.mark.parametrize("names", [["features.json.partial"], ["patches.bin", "pooled.bin", "progress.json.partial"]])
def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    kept = store(tmp_path)
    assert (kept.renewed, kept.done) == (False, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.json", "locks", "patches.bin", "pooled.bin"]


def test_files_of_somebody_else_are_not_removed_with_old_features(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected a folder for features alone, found 'holiday\.jpg' in it"):
        store(tmp_path, key={"tower": "y"})
    assert (tmp_path / "holiday.jpg").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match=r"expected a folder for features alone, found 'holiday\.jpg' in it"):
        store(tmp_path)
    assert (tmp_path / "holiday.jpg").read_bytes() == b"x"


def test_a_full_disk_ends_it_with_what_was_saved_still_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, pooled = vectors()
    kept = store(tmp_path / "s")
    kept.append(patches[:2], pooled[:2])
    kept.save()
    opened = Path.open

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def seek(self, place: int) -> None:
            self.file.seek(place)  # type: ignore[attr-defined]

        def write(self, content: bytes) -> None:
            self.file.write(content[:7])  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *args, **options: Full(opened(path, *args, **options)))
        with pytest.raises(
            DataError, match="but the disk is full after 2 of 6; they stay, and the same command goes on"
        ):
            kept.append(patches[2:4], pooled[2:4])
    kept.close()
    again = store(tmp_path / "s")
    assert again.done == 2
    again.append(patches[2:], pooled[2:])
    again.save()
    assert all(torch.equal(store(tmp_path / "s").read(row)[1], pooled[row]) for row in range(ROWS))


def test_nobody_else_has_a_folder_that_is_being_filled(tmp_path: Path) -> None:
    patches, pooled = vectors()
    kept = store(tmp_path / "s")
    for change in ({}, {"key": {"tower": "y"}}):
        with pytest.raises(
            DataError, match="s: expected a folder of features that nobody writes, another run is filling"
        ):
            store(tmp_path / "s", **change)
    kept.append(patches, pooled)
    kept.save()
    readers = [store(tmp_path / "s") for _ in range(2)]
    with pytest.raises(
        DataError, match="s: expected a folder that no other run uses, since it holds features of another"
    ):
        store(tmp_path / "s", key={"tower": "y"})
    for reader in (kept, *readers):
        assert torch.equal(reader.read(3)[0], patches[3])
        reader.close()
    assert store(tmp_path / "s", key={"tower": "y"}).renewed


def test_of_two_that_begin_at_once_one_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other comes between the look and the claim, and is complete by then."""
    first, claimed, patches = FeatureStore._locked, FeatureStore._lock_alone, vectors()

    def late(own: FeatureStore, found: str) -> None:
        monkeypatch.setattr(FeatureStore, "_locked", first)
        monkeypatch.setattr(FeatureStore, "_lock_alone", claimed)
        other = store(tmp_path / "s")
        other.append(*patches)
        other.save()
        other.close()
        assert own._lock is not None
        own._lock.acquire_read()
        claimed(own, found)

    monkeypatch.setattr(FeatureStore, "_locked", lambda own: _unlocked(first(own)))
    monkeypatch.setattr(FeatureStore, "_lock_alone", late)
    kept = store(tmp_path / "s")
    assert (kept.complete, kept.renewed) == (True, False)
    assert torch.equal(kept.read(5)[0], patches[0][5])
    assert store(tmp_path / "s").complete, "it is shared again"


def _unlocked(lock: ReadWriteLock | None) -> ReadWriteLock | None:
    assert lock is not None
    lock.release()
    return lock


def test_features_that_are_replaced_while_they_are_shared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is given up for a moment between filling and sharing."""
    first = FeatureStore._read_along

    def late(own: FeatureStore, lock: ReadWriteLock) -> None:
        monkeypatch.setattr(FeatureStore, "_read_along", first)
        store(tmp_path / "s", key={"tower": "y"}).close()
        first(own, lock)

    kept = store(tmp_path / "s")
    kept.append(*vectors())
    monkeypatch.setattr(FeatureStore, "_read_along", late)
    with pytest.raises(DataError, match="s: expected these features to stay, another run has replaced them"):
        kept.save()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pvlr.data.features import FeatureStore; "
        f"kept = FeatureStore(Path({str(tmp_path / 's')!r}), key={{'tower': 'x'}}, rows={ROWS}, patches={N}, dim={D}, "
        "dtype='float32'); print('filling', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        with pytest.raises(DataError, match="another run is filling it"):
            store(tmp_path / "s")
        process.kill()
        process.wait()
    assert not store(tmp_path / "s").renewed


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_complete_features_serve_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    kept = store(tmp_path / "s")
    kept.append(*vectors())
    kept.save()

    def refused(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refused)
    assert torch.equal(store(tmp_path / "s").read(2)[0], vectors()[0][2])
    with pytest.raises(DataError, match="s: expected a folder for features, but Permission denied"):
        store(tmp_path / "s", key={"tower": "y"})


def test_the_state_of_pictures_is_that_of_their_files_or_contents(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("same", b"one")):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(0, 5))
    a, b, same = (tmp_path / name for name in ("a", "b", "same"))
    first = state_of_pictures([a, b])
    assert state_of_pictures([same, b]) == first, "wherever they are"
    b.write_bytes(b"twos")
    os.utime(b, ns=(0, 5))
    longer = state_of_pictures([a, b])
    os.utime(b, ns=(0, 6))
    states = [first, longer, state_of_pictures([a, b]), state_of_pictures([a]), state_of_pictures([a, tmp_path / "no"])]
    states += [state_of_pictures([Member(a, "x", offset, size)]) for offset, size in ((0, 1), (0, 2), (1, 1))]
    os.utime(a, ns=(0, 7))
    states.append(state_of_pictures([Member(a, "x", 0, 1)]))
    states += [
        state_of_pictures([lambda given=given: given]) for given in (b"x", b"y", io.BytesIO(b"z"), str(a), str(b))
    ]
    for mode, size, colour in (("L", (2, 2), 0), ("L", (2, 2), 1), ("L", (4, 1), 0), ("1", (2, 2), 0)):
        picture = Image.new(mode, size, colour)
        states.append(state_of_pictures([lambda picture=picture: picture]))
    assert len(set(states)) == len(states)


def test_of_many_contents_some_are_looked_at_evenly() -> None:
    asked: list[int] = []

    def row(number: int) -> Callable[[], bytes]:
        return lambda: asked.append(number) or b"x"

    state_of_pictures([row(number) for number in range(130)])
    assert asked == [number * 130 // 64 for number in range(64)]


@pytest.mark.usefixtures("unchecked")
def test_refusals(tmp_path: Path) -> None:
    patches, pooled = vectors()
    kept = store(tmp_path / "s")
    with pytest.raises(ShapeError, match=r"patches: expected axes 'b n d' with n=4, got shape \(6, 3, 3\)"):
        kept.append(patches[:, :3], pooled)
    with pytest.raises(ShapeError, match=r"pooled: expected axes 'b d' with b=6, got shape \(5, 3\)"):
        kept.append(patches, pooled[:5])
    with pytest.raises(ValueError, match="pooled: expected finite vectors that float32 can hold, got others"):
        kept.append(patches, pooled / 0)
    with pytest.raises(ValueError, match="patches: expected finite vectors that float16 can hold, got others"):
        store(tmp_path / "h", dtype="float16").append(patches * 1e6, pooled)
    with pytest.raises(ValueError, match="patches: expected at most 6 more rows, got 7"):
        kept.append(*vectors(7))
    with pytest.raises(DataError, match="dtype: expected 'float16' or 'float32', got 'int8'"):
        store(tmp_path / "x", dtype="int8")
    with pytest.raises(IndexError, match="row: expected a number from 0 to -1, got 0"):
        kept.read(0)


def test_samples_are_those_of_the_pictures_with_vectors_for_pixels(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    data = LabelledImages(
        name="mine", labels=LabelSet(("cat",)), paths=[Path(name) for name in names], identifiers=names,
        target=torch.tensor([[1.0], [0.0], [1.0]]), known=torch.tensor([[True], [False], [True]]),
    )  # fmt: skip
    kept = store(tmp_path / "s")
    with pytest.raises(DataError, match="expected the features of 6 pictures, found 0"):
        CachedFeatures(data, kept, shown=2)
    patches, pooled = vectors()
    kept.append(patches, pooled)
    kept.save()
    both, plain = (pickle.loads(pickle.dumps(CachedFeatures(data, kept, shown=shown))) for shown in (2, 1))  # noqa: S301
    assert len(both) == 3
    for index in range(3):
        for seed in range(4):
            sample = both[Position(index, seed)]
            assert torch.equal(sample.image, patches[seed % 2 * 3 + index])
            assert (sample.target, sample.known, sample.index) == (data.target[index], data.known[index], index)
            assert torch.equal(plain[Position(index, seed)].image, patches[index])
        assert torch.equal(both[index].image, patches[index])
    for regions, joined in (("pooled", pooled[:, None]), ("both", torch.cat([pooled[:, None], patches], dim=1))):
        shown = both.with_regions(regions)
        assert torch.equal(torch.stack([shown[row].image for row in range(3)]), joined[:3])
    with pytest.raises(IndexError, match="index: expected a number from 0 to 2, got 3"):
        both[3]
    assert json.loads((tmp_path / "s" / "features.json").read_text())["key"] == {"tower": "x"}


def test_samples_have_the_source_where_all_is_asked_for(tmp_path: Path) -> None:
    data = LabelledImages(
        name="mine", labels=LabelSet(("cat",)), paths=[Path(f"{row}") for row in range(ROWS)],
        identifiers=[f"{row}" for row in range(ROWS)], target=torch.ones(ROWS, 1), known=torch.ones(ROWS, 1).bool(),
    )  # fmt: skip
    (patches, pooled), source = vectors(), Draw(1, torch.float32).normal(ROWS, 7)
    for wide in (7, 0):
        kept = store(tmp_path / f"{wide}", source=wide)
        kept.append(patches, pooled, *([source] if wide else []))
        kept.save()
        found = CachedFeatures(data, kept, shown=1).with_regions("all")[4].image
        # 7 numbers are three rows of a width of 3, of which the last has two zeros.
        between = torch.cat([source[4], torch.zeros(2)]).view(3, D) if wide else torch.zeros(0, D)
        assert torch.equal(found, torch.cat([pooled[4:5], between, patches[4]]))


def test_samples_have_the_patches_own_features_where_they_are_asked_for(tmp_path: Path) -> None:
    data = LabelledImages(
        name="mine", labels=LabelSet(("cat",)), paths=[Path(f"{row}") for row in range(ROWS)],
        identifiers=[f"{row}" for row in range(ROWS)], target=torch.ones(ROWS, 1), known=torch.ones(ROWS, 1).bool(),
    )  # fmt: skip
    (patches, pooled), own = vectors(), Draw(1, torch.float32).normal(ROWS, N, 5)
    kept = store(tmp_path / "s", own=5)
    kept.append(patches, pooled, None, own)
    kept.save()
    cached = CachedFeatures(data, kept, shown=1)
    assert torch.equal(cached.with_regions("own")[4].image, own[4])
    # 5 numbers are two rows of a width of 3, of which the last has a zero.
    rows = torch.cat([own[4], torch.zeros(N, 1)], dim=1).view(2 * N, D)
    assert torch.equal(cached.with_regions("all_own")[4].image, torch.cat([pooled[4:5], patches[4], rows]))
    assert torch.equal(cached[4].image, patches[4])
