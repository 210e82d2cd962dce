"""Checkpoints: whole or absent, checked, with one to fall back on."""

import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pvlr.files import write_atomically
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
    with pytest.raises(
        CheckpointError,
        match=r"3\.pt: expected to write a checkpoint, but No space left on device; .*step-00000002\.pt stays",
    ):
        checkpoints.save(state_at(3), step=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint; where none can be mounted, a limit on the size of files."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)], capture_output=True)
    if mounted.returncode == 0:
        yield place
        subprocess.run(["umount", str(place)], check=True)
        return
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield place
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_is_full_keeps_the_previous_one(full_disk: Path) -> None:
    checkpoints = Checkpoints(full_disk)
    small, large = torch.ones(10_000), torch.ones(100_000)
    first = checkpoints.save({"step": 1, "weight": small}, step=1)
    before = sorted(path.name for path in full_disk.iterdir())
    message = r"2\.pt: expected to write a checkpoint, but (No space left on device|File too large); .*1\.pt stays"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save({"step": 2, "weight": large}, step=2)
    assert sorted(path.name for path in full_disk.iterdir()) == before
    found = checkpoints.load()
    assert found is not None
    assert found[0] == first
    assert torch.equal(found[1]["weight"], small)
    # There is room again.
    checkpoints.save({"step": 3, "weight": small}, step=3)
    assert len(checkpoints.paths()) == 2


def test_the_best_is_kept_besides_the_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.best() is None
    for step, score in ((1, float("nan")), (2, 0.5), (3, 0.7), (4, 0.7), (5, 0.2), (6, float("nan")), (7, 0.6)):
        if step != 3:
            checkpoints.save(state_at(step), step=step)
        checkpoints.keep_best(lambda step=step: state_at(step), step=step, score=score)  # type: ignore[misc]
    assert checkpoints.best() == (3, 0.7)
    assert [path.name.removeprefix("step-0000000") for path in checkpoints.paths()] == ["3.pt", "6.pt", "7.pt"]
    flip_a_bit(tmp_path / "step-00000003.pt")
    assert checkpoints.best() is None, "what is damaged is the best of nothing"
    checkpoints.save(state_at(8), step=8)
    checkpoints.keep_best(lambda: state_at(8), step=8, score=0.1)
    assert checkpoints.best() == (8, 0.1)
    assert [path.name.removeprefix("step-0000000") for path in checkpoints.paths()] == ["7.pt", "8.pt"]
    (tmp_path / "best.json").write_text("{")
    assert checkpoints.best() is None


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), step=1)
    (tmp_path / "notes.partial").touch()
    before = sorted(path.name for path in tmp_path.iterdir())
    code = (
        "import os, sys; from pathlib import Path; from pvlr.train.checkpoint import Checkpoints, write_atomically\n"
        "os.fsync = lambda file: os._exit(9)\n"
        "write_atomically(Path(sys.argv[1], 'step-00000002.pt'), b'half')"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    (tmp_path / "step-00000002.pt.sha256").touch()
    assert len(list(tmp_path.iterdir())) == len(before) + 2
    checkpoints.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", [{"step": 1}, {"step": 1, "format": 2}, torch.ones(1)])
def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, content: object) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = tmp_path / "step-00000001.pt"
    digest = write_atomically(path, lambda file: torch.save(content, file))
    write_atomically(tmp_path / f"{path.name}.sha256", digest.encode())
    with pytest.raises(CheckpointError, match=r"1\.pt: expected a checkpoint of format 1, found another one"):
        checkpoints.load()


def test_digests_are_as_sha256sum_reads_them(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(state_at(1), step=1)
    done = subprocess.run(["sha256sum", "-c", "step-00000001.pt.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "step-00000001.pt: OK\n")


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
