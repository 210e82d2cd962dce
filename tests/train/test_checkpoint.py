"""Checkpoints: whole or absent, checked, with one to fall back on."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from pvlr.core.files import write_atomically
from pvlr.train.checkpoint import CheckpointError, Checkpoints


def state_at(step: int) -> dict[str, object]:
    return {"step": step, "weight": torch.full((100,), float(step)), "config": {"names": ["a"], "none": None}}


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "new")
    for step in (1, 2, 3):
        checkpoints.save(state_at(step), step=step)
    assert [path.name for path in checkpoints.paths()] == ["step-00000002.pt", "step-00000003.pt"]
    assert len(list(checkpoints.folder.iterdir())) == 4
    found = checkpoints.load()
    assert found is not None
    assert found[1]["step"] == 3
    assert torch.equal(found[1]["weight"], torch.full((100,), 3.0))
    assert found[1]["config"] == {"names": ["a"], "none": None}


def test_a_damaged_one_is_not_counted_among_those_that_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(state_at(step), step=step)
    flip_a_bit(checkpoints.save(state_at(4), step=4))
    assert len(checkpoints.paths()) == 2
    # The run goes on from step 2, and is stopped before it comes to step 4 again.
    new = checkpoints.save(state_at(3), step=3)
    assert [path.name.removeprefix("step-0000000") for path in checkpoints.paths()] == ["2.pt", "3.pt", "4.pt"]
    content = new.read_bytes()
    flip_a_bit(new)
    found = checkpoints.load()
    assert found is not None
    assert found[1]["step"] == 2
    new.write_bytes(content)
    checkpoints.save(state_at(5), step=5)
    assert [path.name.removeprefix("step-0000000") for path in checkpoints.paths()] == ["3.pt", "4.pt", "5.pt"]
    checkpoints.save(state_at(6), step=6)
    assert [path.name for path in checkpoints.paths()] == ["step-00000005.pt", "step-00000006.pt"]
    assert len(list(tmp_path.iterdir())) == 4


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "absent").load() is None


@pytest.mark.parametrize("harm", ["flip", "truncate", "no_digest", "empty"])
def test_a_damaged_one_is_passed_over_with_a_warning_that_names_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    checkpoints = Checkpoints(tmp_path)
    old, new = (checkpoints.save(state_at(step), step=step) for step in (1, 2))
    if harm == "flip":
        flip_a_bit(new)
    elif harm == "truncate":
        os.truncate(new, 100)
    elif harm == "empty":
        new.write_bytes(b"")
    else:
        new.with_name(f"{new.name}.sha256").unlink()
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load()
    assert found is not None
    assert found[0] == old
    assert found[1]["step"] == 1
    assert str(old) in caplog.text
    assert str(new) in caplog.text
    # The step is reached again: the damaged file is replaced.
    checkpoints.save(state_at(2), step=2)
    again = checkpoints.load()
    assert again is not None
    assert again[0] == new


def test_all_damaged_is_refused_by_name(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        flip_a_bit(checkpoints.save(state_at(step), step=step))
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged: .*step-00000002.*step-00000001") as err:
        checkpoints.load()
    assert "\n" not in str(err.value)


def test_a_save_that_fails_leaves_the_previous_ones_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(state_at(step), step=step)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full_disk(state: object, file) -> None:  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(state_at(3), step=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_older_ones_go_only_after_the_new_one_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(state_at(1), step=1)
    seen: list[list[str]] = []
    unlink = Path.unlink

    def spy(path: Path, missing_ok: bool = False) -> None:
        seen.append([found.name for found in checkpoints.paths()])
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", spy)
    checkpoints.save(state_at(2), step=2)
    assert seen[0] == ["step-00000001.pt", "step-00000002.pt"]


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("harmed",)


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    path = tmp_path / "step-00000001.pt"
    digest = write_atomically(path, pickle.dumps(Harmful()))
    write_atomically(tmp_path / f"{path.name}.sha256", digest.encode())
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        checkpoints.load()
    assert not (tmp_path / "harmed").exists()


def test_atomic_writing_replaces_and_tells_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        digest = write_atomically(path, content)
        assert path.read_bytes() == content
    assert digest == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    assert list(tmp_path.iterdir()) == [path]
