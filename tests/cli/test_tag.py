"""The command that tags pictures, as a person uses it: its files, its refusals, and runs that were stopped."""

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tagging_toys import NAMES, make_recognizer, write_pictures

from pvlr.cli.main import main as pvlr
from pvlr.core import BaselineConfig, BaselineModel, LabelSet, TowerSpec, build_towers
from pvlr.data.sources import ENDINGS
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.xmp import read_sidecar, write_sidecar

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "predict.py"


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return lambda words: pvlr(["tag", *words])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_recognizer(folder / "tower").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", 9)
    (tmp_path / "pictures" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "pictures"


def tagged(path: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["file"] for row in rows}) == len(rows)
    return {row["file"]: row["tags"] for row in rows}


def test_a_baseline_tags_as_pvlr_does(main: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "broken.jpg").unlink()
    towers = build_towers(TowerSpec(name=f"local-dir:{model.parent / 'tower'}"))
    baseline = Recognizer(BaselineModel.from_towers(BaselineConfig(kind="coop"), LabelSet(NAMES), towers).eval())
    baseline.save_pretrained(tmp_path / "baseline")
    out, page = tmp_path / "tags.jsonl", tmp_path / "page.html"
    asked = ["--run", str(tmp_path / "baseline"), str(pictures), "--threshold", "0"]
    assert main([*asked, "--out", str(out), "--html", str(page)]) == 0
    for path, tags in tagged(out).items():
        expected = baseline.tag(path, threshold=0.0)
        assert [tag["name"] for tag in tags] == [tag.name for tag in expected]
        assert [tag["probability"] for tag in tags] == pytest.approx([tag.probability for tag in expected], abs=1e-4)
    assert page.is_file()
    assert main([*asked, "--benchmark"]) == 0


def test_a_folder_becomes_lines_of_json_and_a_list_of_what_is_bad(
    main: Any, model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tags.jsonl"
    assert main(["--run", str(model), str(pictures), "--out", str(out), "--batch-size", "4"]) == 1
    found = tagged(out)
    recognizer = Recognizer.from_pretrained(model)
    assert sorted(found) == sorted(str(path) for path in pictures.glob("*.png"))
    for path, tags in found.items():
        expected = recognizer.tag(path)
        assert [tag["name"] for tag in tags] == [tag.name for tag in expected]
        assert [tag["probability"] for tag in tags] == pytest.approx([tag.probability for tag in expected], abs=1e-4)
    assert 0 < sum(map(len, found.values())) < 3 * len(found)  # By the labels' own thresholds.
    said = capsys.readouterr()
    reason = (
        f"{pictures}/broken.jpg: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found something else"
    )
    assert said.out == ""
    assert said.err == f"unreadable: {reason}\n1 unreadable, listed in {out}.refused.jsonl\n"
    listed = [json.loads(line) for line in Path(f"{out}.refused.jsonl").read_text().splitlines()]
    assert listed == [{"file": f"{pictures}/broken.jpg", "reason": reason}]


def test_a_second_run_adds_what_is_new_and_only_that(
    main: Any, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tags.csv"
    options = ["--run", str(model), "--out", str(out)]
    assert main([*options, f"{pictures}/00[0-3].png"]) == 0
    first = out.read_bytes()
    seen: list[object] = []
    prepare = Recognizer.prepare
    monkeypatch.setattr(Recognizer, "prepare", lambda self, path, **_: (seen.append(path), prepare(self, path))[1])
    assert main([*options, str(pictures)]) == 1
    assert out.read_bytes().startswith(first)
    assert len(seen) == 6
    with out.open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [f"{pictures}/{number:03d}.png" for number in range(9)]
    before = out.read_bytes()
    assert main([*options, str(pictures)]) == 1
    assert out.read_bytes() == before


def test_other_names_another_threshold_or_another_model_do_not_mix(
    main: Any, model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tags.jsonl"
    options = ["--run", str(model), f"{pictures}/000.png", "--out", str(out)]
    assert main(options) == 0
    for more, differ in (["--labels", "zebra"], "labels, texts, thresholds"), (["--threshold", "0.1"], "threshold"):
        assert main([*options, *more]) == 2
        assert capsys.readouterr().err == (
            f"error: {out}: expected tags made by the same model to go on with, found others ({differ} differ); "
            "name another file\n"
        )


def test_names_never_trained_on(main: Any, model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--run", str(model), f"{pictures}/000.png", "--labels", "zebra, fire truck,cow"]
    assert main([*options, "--top", "2"]) == 0
    path, _, said = capsys.readouterr().out.strip().partition(": ")
    assert path == f"{pictures}/000.png"
    found = dict(one.rsplit(" ", 1) for one in said.split(", "))
    assert len(found) == 2
    assert set(found) < {"zebra", "fire truck", "cow"}
    assert main([*options, "--threshold", "1"]) == 0
    assert (
        capsys.readouterr().out == f"{pictures}/000.png: no label reaches its threshold (--top K tells the nearest)\n"
    )


def test_paths_from_standard_input(
    main: Any, model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"{pictures}/001.png\n{pictures}/000.png\n{pictures}/001.png\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert main(["--run", str(model), "-"]) == 0
    assert [line.partition(": ")[0][-7:] for line in capsys.readouterr().out.splitlines()] == ["001.png", "000.png"]


def test_a_page_shows_what_the_file_holds_though_it_was_done_before(
    main: Any, model: Path, pictures: Path, tmp_path: Path
) -> None:
    out, page = tmp_path / "tags.jsonl", tmp_path / "page.html"
    options = ["--run", str(model), str(pictures), "--out", str(out)]
    assert main(options) == 1
    before = out.read_bytes()
    assert main([*options, "--html", str(page), "--html-limit", "7"]) == 1
    assert out.read_bytes() == before
    text = page.read_text()
    assert text.count("<article") == 7
    assert "2 more were tagged and are not shown here" in text
    assert text.count("<li><button") == sum(len(tags) for tags in list(tagged(out).values())[:7])


def test_the_benchmark_prints_a_table(
    main: Any, model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(model), f"{pictures}/*.png", "--benchmark", "--batch-size", "2"]) == 0
    assert "one picture, file to tags, median" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere"], "nowhere: expected a folder with a trained model, found none"),
        (["--threshold", "1.5"], "--threshold: expected a probability in [0, 1], got 1.5"),
        (["--top", "0"], "--top: expected a whole number of at least 1, got 0"),
        (["--top", "1", "--threshold", "0.5"], "--top: expected no --threshold with it, for it takes labels whatever"),
        (["--workers", "0"], "--workers: expected a whole number of at least 1, got 0"),
        (["--device", "cuda:99"], "device: expected a device of this machine, 'cuda:99' is not there"),
        (["--device", "tpu"], "device: expected 'auto', 'cpu', 'cuda' or 'cuda:<number>', got 'tpu'"),
        (["--labels", "zebra,zebra"], "labels: expected unique labels, got 'zebra' more than once"),
        (["--labels", "zebra,"], "labels: expected names with commas between, @FILE with one a line, or one of"),
        (["--out", "tags.txt"], "tags.txt: expected a file that ends in .jsonl or .csv"),
        (["--fiftyone", "no/x.json"], "--fiftyone: expected a file in a folder that is there, got no/x.json"),
        (["--label-studio", "a.json", "--fiftyone", "a.json"], "--fiftyone: expected another file than --label_studio"),
        (["--image-prefix", "/x/"], "--image_prefix: expected --label_studio with it, whose pictures it stands in"),
        (["--html", "no/where.html"], "--html: expected a file in a folder that is there, got no/where.html"),
        (["*.tif"], "*.tif: expected a pattern of picture files, it matches none"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    message: str,
    main: Any,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--run", str(model), *([] if options[0][0] != "-" else ["picture.png"]), *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1


def start(model: Path, *options: str, **more: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(SCRIPT), "--run", str(model), "-", "--batch-size", "2", *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, env={**os.environ, "OMP_NUM_THREADS": "1"}, **more)


def feed(process: "subprocess.Popen[bytes]", names: list[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("".join(f"{name}\n" for name in names).encode())
    process.stdin.flush()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_with_each_picture_once(
    number: signal.Signals, code: int, main: Any, model: Path, pictures: Path, tmp_path: Path
) -> None:
    names = sorted(str(path) for path in pictures.glob("*.png"))
    out, whole = tmp_path / "tags.jsonl", tmp_path / "whole.jsonl"
    # A shell without job control starts what runs in the background with Ctrl-C ignored, and tests with it.
    process = start(model, "--out", str(out), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    feed(process, names[:8])  # It then waits for more.
    for _ in range(6000):
        if out.exists() and len(out.read_bytes().splitlines()) >= 2:
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert error == b"interrupted; the same command goes on\n"
    assert main(["--run", str(model), *names, "--out", str(out)]) == 0
    assert main(["--run", str(model), *names, "--out", str(whole)]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(tagged(out)) == names


def test_a_full_disk_is_one_line_and_loses_nothing(main: Any, model: Path, pictures: Path, tmp_path: Path) -> None:
    names = sorted(str(path) for path in pictures.glob("*.png"))
    out = tmp_path / "tags.jsonl"

    def narrow() -> None:  # No file may grow beyond this, as on a disk that is full.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    process = start(model, "--threshold", "0", "--out", str(out), preexec_fn=narrow)
    _, error = process.communicate("".join(f"{name}\n" for name in names).encode(), timeout=120)
    assert process.returncode == 2
    assert error == b"error: [Errno 27] File too large\n"
    assert main(["--run", str(model), *names, "--threshold", "0", "--out", str(out)]) == 0
    assert sorted(tagged(out)) == names
    assert all({tag["name"] for tag in tags} == set(NAMES) for tags in tagged(out).values())


def test_places_of_the_files_are_checked_before_a_model_is_loaded(
    main: Any, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = tmp_path / "tags.jsonl"
    for options, message in (
        (
            ["--html", f"{tmp_path}/none/x.html"],
            f"--html: expected a file in a folder that is there, got {tmp_path}/none",
        ),
        (["--html", str(pictures)], f"--html: expected a file in a folder that is there, got {pictures}"),
        (["--out", str(tags), "--html", str(tags)], f"--html: expected another file than --out, got {tags}"),
    ):
        assert main(["--run", "no model", str(pictures), *options]) == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")


def test_names_that_are_no_text_stop_nothing(model: Path, pictures: Path) -> None:
    (pictures / os.fsdecode(b"0\xff.png")).write_bytes((pictures / "000.png").read_bytes())
    (pictures / "broken.jpg").unlink()
    command = [sys.executable, str(SCRIPT), "--run", str(model), str(pictures)]
    done = subprocess.run(
        command, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 10), done.stderr
    assert b"0\\udcff.png: " in done.stdout


def test_pictures_that_a_folder_leaves_out_are_told_with_what_helps(
    main: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phone, out = tmp_path / "phone", tmp_path / "tags.jsonl"
    write_pictures(phone, 2)
    (phone / "000.png").rename(phone / "picture.dat")
    (phone / "scan.jxl").write_bytes(b"\xff\x0a")
    (phone / "b").mkdir()
    (phone / "b" / "IMG_0001.DNG").write_bytes(b"II*\0")
    for name in ("notes.txt", "001.png.xmp", "clip.mp4"):
        (phone / name).write_bytes(b"\0\0\0 ftypisom" if name == "clip.mp4" else b"no picture")
    assert main(["--run", str(model), str(phone), "--out", str(out)]) == 1
    assert list(tagged(out)) == [f"{phone}/001.png"]
    formats = "expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF)"
    reasons = [
        f"{phone}/clip.mp4: expected a picture, found a video; name it by itself to tag its key frames",
        f"{phone}/picture.dat: expected a picture to end in {', '.join(ENDINGS)}, found PNG without such an ending; "
        "rename it, or name it by itself",
        f"{phone}/scan.jxl: {formats}, found JXL; convert it to JPEG or PNG",
        f"{phone}/b/IMG_0001.DNG: {formats}, found DNG; convert it to JPEG or PNG",
    ]
    assert capsys.readouterr().err.splitlines() == [
        *(f"left out: {reason}" for reason in reasons), f"4 left out, listed in {out}.refused.jsonl"
    ]  # fmt: skip
    listed = [json.loads(line)["reason"] for line in Path(f"{out}.refused.jsonl").read_text().splitlines()]
    assert listed == reasons
    assert main(["--run", str(model), f"{phone}/picture.dat"]) == 0
    (phone / "001.png").unlink()
    capsys.readouterr()
    assert main(["--run", str(model), str(phone)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"found none but 4 others ({reasons[0]})")


def test_sidecars_lie_beside_the_pictures_and_keep_what_they_hold(
    main: Any, model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.jpg").unlink()
    write_sidecar(pictures / "000.png", ["holiday"])
    (pictures / "001.png.xmp").write_text("<broken")
    assert main(["--run", str(model), str(pictures), "--xmp", "--top", "2"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"no sidecar: {pictures}/001.png.xmp: expected XMP, but ")
    assert (pictures / "001.png.xmp").read_text() == "<broken"
    recognizer = Recognizer.from_pretrained(model)
    for number in (0, 2, 8):
        names = tuple(tag.name for tag in recognizer.tag(pictures / f"{number:03d}.png", threshold=0.0)[:2])
        found = read_sidecar(pictures / f"{number:03d}.png.xmp")
        assert found == (("holiday", *names) if number == 0 else names)
    assert len(list(pictures.glob("*.xmp"))) == 9


def test_sidecars_are_written_though_the_file_has_the_tags_already(main: Any, model: Path, pictures: Path) -> None:
    options = ["--run", str(model), f"{pictures}/00[0-3].png", "--out", str(pictures / "tags.jsonl")]
    assert main(options) == 0
    before = (pictures / "tags.jsonl").read_bytes()
    assert main([*options, "--xmp"]) == 0
    assert (pictures / "tags.jsonl").read_bytes() == before
    assert len(list(pictures.glob("*.xmp"))) == 4


def test_what_comes_from_a_pipe_has_no_sidecar(model: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    os.mkfifo(folder / "pipe.png")
    command = [sys.executable, str(SCRIPT), "--run", str(model), str(folder / "pipe.png"), "--xmp", "--top", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    writer = subprocess.Popen(["cp", str(pictures / "000.png"), str(folder / "pipe.png")])
    try:
        process.communicate(timeout=60)
    finally:
        writer.kill()
        writer.wait()
    assert [path.name for path in folder.iterdir()] == ["pipe.png"]


def test_files_for_label_studio_and_fiftyone_hold_what_the_other_file_does(
    main: Any, model: Path, pictures: Path, tmp_path: Path
) -> None:
    out, tasks, labels = (tmp_path / name for name in ("tags.jsonl", "tasks.json", "labels.json"))
    options = ["--run", str(model), f"{pictures}/00[0-3].png", "--out", str(out)]
    assert main(options) == 0
    assert main([*options, "--label-studio", str(tasks), "--fiftyone", str(labels), "--image-prefix", "/d?="]) == 0
    found = tagged(out)
    written = json.loads(tasks.read_text())
    assert [task["data"]["image"] for task in written] == [f"/d?={path}" for path in found]
    assert [task["meta"]["probabilities"] for task in written] == [
        {tag["name"]: tag["probability"] for tag in tags} for tags in found.values()
    ]
    assert {task["predictions"][0]["model_version"] for task in written} == {str(model)}
    assert json.loads(labels.read_text()) == {
        "classes": list(NAMES),
        "labels": {
            path: [{"label": tag["name"], "confidence": tag["probability"]} for tag in tags]
            for path, tags in found.items()
        },
    }
