"""Key frames of videos that are made here: their times, size and rotation, and what is missing of damaged ones."""

import re
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.extras import require_extra
from helpers.messages import pinned
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pvlr.data import video
from pvlr.data.batch import DataError
from pvlr.data.video import KeyFrame, is_video, key_frames

require_extra("video", "av")
import av  # noqa: E402

COLOURS = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 10)]


def write_video(
    path: Path,
    *,
    seconds: int = 4,
    gop: int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    **options: str,
) -> Path:
    """A video of 10 frames a second whose colour changes each second; its left half is black."""
    with av.open(path, "w", options=options) as opened:
        stream = opened.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        for number in range(seconds * 10):
            picture = Image.new("RGB", size, COLOURS[number // 10 % 4])
            picture.paste((0, 0, 0), (0, 0, size[0] // 2, size[1]))
            opened.mux(stream.encode(av.VideoFrame.from_image(picture)))
        opened.mux(stream.encode(None))
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Set the matrix of a track, as a phone that is held upright does."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value * 65536 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi", "x.ts", "x.mov", "x.webm"])
def test_key_frames_have_their_times_and_pictures(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, codec={"x.ts": "mpeg2video", "x.webm": "libvpx"}.get(name, "mpeg4"))
    assert is_video(path)
    found = list(key_frames(path))
    assert [frame.time for frame in found] == pytest.approx([0, 1, 2, 3], abs=0.15)
    for frame, colour in zip(found, COLOURS, strict=True):
        assert (frame.picture.mode, frame.picture.size) == ("RGB", (64, 48))
        assert np.abs(np.array(frame.picture.getpixel((56, 24))) - colour).max() < 40


@settings(max_examples=15, deadline=None)
@given(every=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0, 1.7, 9.0]))
def test_frames_lie_as_far_apart_as_asked(every: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "dense.avi"
    if not path.exists():
        write_video(path, codec="mjpeg")  # A camera that writes key frames only.
    times = [frame.time for frame in key_frames(path, every=every)]
    assert times[0] == 0
    assert np.diff(times).min(initial=9) >= every - 1e-6
    assert len(times) == len(range(0, 40, max(1, round(np.ceil(every * 10 - 1e-6)))))


@pytest.mark.parametrize(
    ("matrix", "size", "bright"),
    [
        ((1, 0, 0, 1), (64, 48), (56, 24)),
        ((0, 1, -1, 0), (48, 64), (24, 56)),  # A quarter clockwise: what was right is below.
        ((-1, 0, 0, -1), (64, 48), (8, 24)),
        ((0, -1, 1, 0), (48, 64), (24, 8)),
    ],
)
def test_frames_are_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], size: tuple[int, int], bright: tuple[int, int]
) -> None:
    frame = next(key_frames(turned(write_video(tmp_path / "x.mp4", seconds=1), matrix)))
    assert frame.picture.size == size
    assert frame.picture.getpixel(bright)[0] > 200


def test_frames_are_no_larger_than_their_use_needs(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", seconds=1, size=(640, 360))
    sizes = [next(key_frames(path, side=side)).picture.size for side in (None, 90, 360, 999)]
    assert sizes == [(640, 360), (160, 90), (640, 360), (640, 360)]


@pytest.mark.parametrize(("name", "options"), [("x.mp4", {"movflags": "faststart"}), ("x.mkv", {}), ("x.avi", {})])
def test_of_a_video_cut_short_what_is_there_is_kept_and_told(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    path = write_video(tmp_path / name, **options)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 4 // 5])
    found: list[KeyFrame] = []
    with pytest.raises(DataError) as caught:
        found.extend(key_frames(path))
    assert 1 <= len(found) < 4
    assert str(caught.value).startswith(f"{path}: expected a whole video")
    assert str(caught.value).endswith(f"; {len(found)} key frames up to {found[-1].time:.1f} s were read")


def write_sound(path: Path) -> Path:
    with av.open(path, "w") as opened:
        stream = opened.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        opened.mux(stream.encode(frame))
        opened.mux(stream.encode(None))
    return path


def refusal_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(key_frames(path))
    return str(caught.value).replace(str(path), path.name)


def test_what_is_no_video_is_refused_with_its_reason(tmp_path: Path) -> None:
    assert refusal_of(tmp_path / "gone.mp4") == "gone.mp4: expected a video, found no such file"
    (tmp_path / "text.mp4").write_bytes(b"#EXTM3U\nfile:///etc/passwd\n")
    kinds = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, OGV"
    assert refusal_of(tmp_path / "text.mp4") == f"text.mp4: expected a video ({kinds}), found something else"
    sound = write_sound(tmp_path / "sound.mp4")
    assert refusal_of(sound) == "sound.mp4: expected a video, found no stream of pictures in it"
    path = write_video(tmp_path / "x.mp4")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov")])
    assert refusal_of(path).startswith("x.mp4: expected a whole video, but ")


def test_without_its_package_a_video_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.mp4", seconds=1)
    monkeypatch.setitem(sys.modules, "av", None)
    message = "x.mp4: expected the package av to read videos, found none: pip install 'pvlr[video]'"
    assert re.match(pinned(message), refusal_of(path))


def test_the_limit_of_pixels_holds_for_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "x.mp4", seconds=1)
    assert len(list(key_frames(path))) == 1
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 48 * 4 - 1)
    large = write_video(tmp_path / "y.mp4", seconds=1, size=(128, 96))
    assert refusal_of(large) == "y.mp4: expected frames of at most 12,287 pixels, got 128 x 96"
    # A frame may be larger than the stream says: the decoder has a limit, too.
    monkeypatch.setattr(video, "MAX_PIXELS", 64 * 12)
    monkeypatch.setattr(video, "_require_size", lambda *given: None)
    assert refusal_of(large) == "y.mp4: expected frames of at most 768 pixels, found others"


def test_a_playlist_named_as_a_video_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "x.ts", codec="mpeg2video")
    for name, content in (("a.mp4", "ffconcat version 1.0\nfile x.ts\n"), ("b.mp4", "#EXTM3U\n#EXTINF:4,\nx.ts\n")):
        (tmp_path / name).write_text(content)
        assert "found something else" in refusal_of(tmp_path / name)


def test_threads_read_videos_at_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4")
    expected = [frame.time for frame in key_frames(path)]
    found: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: found.append([frame.time for frame in key_frames(path)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damaged_bytes_give_frames_or_a_data_error(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp() / "whole.mp4"
    if not base.exists():
        write_video(base, seconds=2)
    rng = np.random.default_rng(seed)
    content = bytearray(base.read_bytes())
    for position in rng.integers(0, len(content), size=rng.integers(1, 40)):
        content[position] = rng.integers(256)
    path = tmp_path_factory.getbasetemp() / "damaged.mp4"
    path.write_bytes(bytes(content[: int(rng.integers(1, len(content) + 1))]))
    message = ""
    try:
        assert all(frame.picture.mode == "RGB" for frame in key_frames(path))
    except DataError as err:
        message = str(err)
    assert not message or message.startswith(f"{path}: ")
