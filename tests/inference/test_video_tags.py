"""Key frames of videos tagged among pictures, by the library and by the command line."""

import csv
import json
from pathlib import Path

import pytest
from helpers.extras import require_extra
from helpers.tagging_toys import NAMES, make_recognizer, write_pictures
from PIL import Image

from pvlr.cli.main import main
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tagging import Tagged, Unreadable, tag_files
from pvlr.inference.xmp import read_sidecar

require_extra("video", "av")
import av  # noqa: E402


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return make_recognizer(tmp_path_factory.mktemp("tower"))


def write_video(path: Path, colours: list[str]) -> str:
    """A second of each colour, which begins with a key frame."""
    with av.open(path, "w", options={"movflags": "faststart"}) as opened:
        stream = opened.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = 5
        for colour in colours:
            for _ in range(5):
                opened.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour))))
        opened.mux(stream.encode(None))
    return str(path)


def test_frames_have_the_tags_of_their_pictures_and_their_times(recognizer: Recognizer, tmp_path: Path) -> None:
    clip, pictures = write_video(tmp_path / "clip.mp4", ["red", "blue", "lime"]), write_pictures(tmp_path / "p", 2)
    paths = [pictures[0], clip, pictures[1]]
    found = list(tag_files(recognizer, paths, batch_size=2, threshold=0.0, thumbnails=32))
    frames = [f"{clip}#t=0.000", f"{clip}#t=1.000", f"{clip}#t=2.000"]
    assert [one.path for one in found] == [pictures[0], *frames, pictures[1]]
    assert [one.video for one in found if isinstance(one, Tagged)] == [None, clip, clip, clip, None]
    assert [one.file for one in found if isinstance(one, Tagged)] == [pictures[0], clip, clip, clip, pictures[1]]
    for one, colour in zip(found[1:4], ["red", "blue", "lime"], strict=True):
        assert isinstance(one, Tagged)
        assert one.thumbnail is not None
        expected = {
            tag.name: tag.probability for tag in recognizer.tag(Image.new("RGB", (64, 48), colour), threshold=0.0)
        }
        assert {tag.name: tag.probability for tag in one.tags} == pytest.approx(expected, abs=0.03)
    assert len(list(tag_files(recognizer, [clip], every=2.0))) == 2


def test_of_a_damaged_video_the_frames_come_before_the_reason(recognizer: Recognizer, tmp_path: Path) -> None:
    clip = Path(write_video(tmp_path / "clip.mp4", ["red", "blue", "lime", "white"]))
    content = clip.read_bytes()
    start = content.index(b"mdat")
    clip.write_bytes(content[: start + (len(content) - start) * 4 // 5])
    *frames, last = tag_files(recognizer, [str(clip)])
    assert frames
    assert all(isinstance(one, Tagged) for one in frames)
    assert isinstance(last, Unreadable)
    assert last.path == str(clip)
    assert f"; {len(frames)} key frames up to " in last.reason


def test_the_command_writes_times_and_one_sidecar(
    recognizer: Recognizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, clip = tmp_path / "model", write_video(tmp_path / "clip.mp4", ["red", "blue"])
    recognizer.save_pretrained(model)
    frames = [f"{clip}#t=0.000", f"{clip}#t=1.000"]
    words = ["tag", "--run", str(model), clip, "--top", "3"]
    out, page = tmp_path / "tags.jsonl", tmp_path / "page.html"
    assert main([*words, "--out", str(out), "--html", str(page), "--xmp"]) == 0
    assert [json.loads(line)["file"] for line in out.read_text().splitlines()] == frames
    assert [f'data-file="{frame}"' in page.read_text() for frame in frames] == [True, True]
    assert sorted(read_sidecar(tmp_path / "clip.mp4.xmp")) == sorted(NAMES)
    assert main([*words, "--out", str(out), "--xmp"]) == 0, "it goes on with the same file"
    assert len(out.read_text().splitlines()) == 2
    table = tmp_path / "tags.csv"
    assert main([*words, "--out", str(table), "--every", "1.5"]) == 0
    assert [row["file"] for row in csv.DictReader(table.read_text().splitlines())] == frames[:1]
    capsys.readouterr()
    tasks = tmp_path / "tasks.json"
    assert main([*words, "--label-studio", str(tasks)]) == 1
    said = f"left out: {clip}: expected a picture for --label_studio or --fiftyone, got a video"
    assert capsys.readouterr().err.splitlines() == [said]
    assert json.loads(tasks.read_text()) == []
    assert main(["tag", "--run", str(model), clip, "--max_pixels", "0"]) == 2
