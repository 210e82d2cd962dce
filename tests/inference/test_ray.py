"""Bulk tagging: its parts, its refusals, and a cluster of two workers of which one is killed."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.extras import require_extra
from helpers.tagging_toys import make_recognizer, write_pictures

from pvlr.data.batch import DataError
from pvlr.inference.ray import BulkError, _claim, _PartRecognizer, parts_of, tag_bulk

REPOSITORY = Path(__file__).resolve().parents[2]


def write_table(path: Path, files: Sequence[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    content = [Path(file).read_bytes() for file in files]
    parquet.write_table(pyarrow.table({"name": [Path(file).name for file in files], "image": content}), path)


def write_shard(path: Path, files: Sequence[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for file in files:
            archive.add(file, arcname=Path(file).name)
            note = tarfile.TarInfo(f"{Path(file).stem}.json")
            note.size = 2
            archive.addfile(note, io.BytesIO(b"{}"))


def test_parts_hold_every_picture_once_in_an_order_of_their_names(tmp_path: Path) -> None:
    require_extra("ray", "pyarrow")
    files = write_pictures(tmp_path / "all" / "deep", 5)
    write_shard(tmp_path / "all" / "a.tar", files[:3])
    write_table(tmp_path / "all" / "b.parquet", files[:3])
    (tmp_path / "all" / "notes.txt").write_text("no picture")
    parts = parts_of(str(tmp_path / "all"), size=2)
    assert [part.name for part in parts] == [f"{number:08d}" for number in range(7)]
    assert [part.kind for part in parts] == ["files"] * 3 + ["tar"] * 2 + ["parquet"] * 2
    assert [member for part in parts[:3] for member in part.members] == sorted(files)
    assert [member for part in parts[3:5] for member in part.members] == ["000.png", "001.png", "002.png"]
    assert [part.members for part in parts[5:]] == [("0", "2"), ("2", "3")]
    assert parts_of(str(tmp_path / "all" / "deep" / "*.png"), size=9)[0].members == tuple(sorted(files))


def test_refusals_name_the_argument_or_file(tmp_path: Path) -> None:
    require_extra("ray", "pyarrow", "ray")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with pytest.raises(BulkError, match=r"^pictures: expected pictures, .tar or .parquet files at .*, found none$"):
        parts_of(str(tmp_path), size=2)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"x.parquet: expected a Parquet file, but "):
        parts_of(str(tmp_path), size=2)
    parquet.write_table(pyarrow.table({"name": ["a"], "picture": [b""]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet: expected the column 'image', found name, picture$"):
        parts_of(str(tmp_path), size=2)
    with pytest.raises(ValueError, match=r"^workers: expected a whole number of at least 1, got 0$"):
        tag_bulk(run="x", pictures="y", out="z", workers=0)
    with pytest.raises(ValueError, match="max_pixels: expected a whole number of at least 1, got 0"):
        tag_bulk(run="x", pictures="y", out="z", max_pixels=0)


def test_tags_within_the_folder_of_the_pictures_are_no_pictures(tmp_path: Path) -> None:
    require_extra("ray", "pyarrow")
    files = write_pictures(tmp_path / "all", 3)
    out = tmp_path / "all" / "tags"
    out.mkdir()
    write_table(out / "00000000.parquet", files)  # Of somebody else: nothing says that it holds tags.
    (before, mine) = parts_of(str(tmp_path / "all"), size=3, out=str(out))
    assert (before.members, mine.kind) == (tuple(sorted(files)), "parquet")
    with pytest.raises(BulkError, match=r"^out: expected a folder without other tables, found 00000000\.parquet in "):
        _claim(out, {}, [before])
    (out / "00000000.parquet").unlink()
    _claim(out, {}, [before])
    for name in ("00000000.parquet", "00000001.parquet"):
        (out / name).write_bytes(b"tags")
    for pictures in (tmp_path / "all", tmp_path / "all" / "**" / "*"):
        assert parts_of(str(pictures), size=3, out=str(out)) == [before]
    (tmp_path / "link").symlink_to(out)
    assert parts_of(str(tmp_path / "all"), size=3, out=str(tmp_path / "link")) == [before]
    _claim(out, {}, parts_of(str(tmp_path / "all"), size=3, out=str(out)))  # The same command goes on.


def test_pictures_that_a_folder_leaves_out_are_told(tmp_path: Path) -> None:
    files = write_pictures(tmp_path / "all", 2)
    (tmp_path / "all" / "a.jxl").write_bytes(b"")
    (tmp_path / "all" / "note.txt").write_text("no picture")
    Path(files[1]).rename(tmp_path / "all" / "scan.dat")
    told: list[str] = []
    (part,) = parts_of(str(tmp_path / "all"), size=9, left_out=told.append)
    assert part.members == (files[0],)
    assert [reason.partition(":")[0] for reason in told] == [
        str(tmp_path / "all" / name) for name in ("a.jxl", "scan.dat")
    ]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return [row for path in sorted(folder.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


def test_a_worker_takes_the_limit_of_pixels(tmp_path: Path) -> None:
    require_extra("ray", "pyarrow")
    make_recognizer(tmp_path / "tower").save_pretrained(tmp_path / "model")
    (part,) = parts_of(str(Path(write_pictures(tmp_path / "pictures", 2)[0]).parent), size=9)
    chosen, row = {"run": str(tmp_path / "model")}, {"part": json.dumps(part)}
    for limit, bad in ((10, 2), (100_000, 0)):
        sizes = {"batch_size": 2, "max_pixels": limit}
        assert _PartRecognizer(chosen=chosen, out=str(tmp_path), sizes=sizes)(row) == {"pictures": 2, "bad": bad}
    assert [row["error"] for row in rows_of(tmp_path)] == [None, None]


def workers_there() -> list[int]:
    """Processes of this machine in which a Ray worker tags."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ray::MapWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_worker_is_killed_in_the_middle_and_every_picture_comes_once(tmp_path: Path) -> None:
    require_extra("ray", "ray", "pyarrow")
    recognizer = make_recognizer(tmp_path / "tower")
    recognizer.save_pretrained(tmp_path / "model")
    files = write_pictures(tmp_path / "pictures", 120)
    Path(files[7]).write_bytes(b"no picture")
    write_shard(tmp_path / "pictures" / "more.tar", files[:4])
    write_table(tmp_path / "pictures" / "most.parquet", files[:4])
    out = tmp_path / "tags"
    command = [
        sys.executable, "-m", "pvlr", "bulk", "--run", str(tmp_path / "model"), "--pictures",
        str(tmp_path / "pictures"), "--out", str(out), "--part_size", "2",
    ]  # fmt: skip
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log.txt").open("w") as log:
        run = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = time.monotonic() + 180
            while len(list(out.glob("*.parquet"))) < 3 and run.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
            there = len(list(out.glob("*.parquet")))
            victims = workers_there()
            os.kill(victims[0], signal.SIGKILL)
            assert run.wait(timeout=240) == 1, (tmp_path / "log.txt").read_text()  # One is unreadable.
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert 3 <= there < 64  # In the middle.
    assert len(victims) == 2
    rows = rows_of(out)
    archive, table = (str(tmp_path / "pictures" / name) for name in ("more.tar", "most.parquet"))
    assert sorted(row["name"] for row in rows) == sorted(
        [*files, *(f"{archive}/{number:03d}.png" for number in range(4)), *(f"{number:03d}.png" for number in range(4))]
    )
    assert table not in {row["name"] for row in rows}
    bad = [row for row in rows if row["error"] is not None]
    assert [row["name"] for row in bad] == [files[7]]
    assert "007.png: expected" in bad[0]["error"]
    for row in (rows[0], rows[50]):  # The same as one machine says.
        wanted = recognizer.tag(row["name"])
        assert row["labels"] == [tag.name for tag in wanted]
        assert row["probabilities"] == pytest.approx([tag.probability for tag in wanted], abs=1e-4)

    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    (out / "00000005.parquet").unlink()
    (out / ".00000006.parquet-x.partial").write_bytes(b"left by a kill")
    again = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert "64 parts of at most 2 pictures, 63 done before" in again.stdout
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert [name for name in before if before[name] != after.get(name)] == ["00000005.parquet"]
    assert sorted(row["name"] for row in rows_of(out)) == sorted(row["name"] for row in rows)

    Path(files[0]).unlink()
    other = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert other.returncode == 2
    refusal = f"out: {out} holds the tags of other pictures or another model; choose another folder"
    assert other.stderr == f"error: {refusal}\n"
