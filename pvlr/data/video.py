"""Key frames of videos from untrusted sources, with their times."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from PIL import Image

from pvlr.core.arguments import require_number
from pvlr.data.batch import DataError, refusal
from pvlr.data.images import MAX_PIXELS, head_of, kind_of

__all__ = ["EVERY", "KeyFrame", "is_video", "key_frames"]

EVERY = 1.0
"""Least time between two frames, in seconds: some cameras write key frames only."""
CONTAINERS = ("MP4", "MOV", "MKV", "WebM", "AVI", "MPEG", "FLV", "WMV", "OGV")
ENDINGS = (
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2ts", ".flv", ".wmv", ".ogv",
)  # fmt: skip
# FFmpeg's readers by the first bytes of a file: those of playlists, which open other files, are not among them.
BEGINNINGS = (
    ("mov", rb"....(?:ftyp(?!M4[AB])|moov|mdat|wide)"),
    ("matroska", rb"\x1a\x45\xdf\xa3"),
    ("avi", rb"RIFF....AVI "),
    ("flv", rb"FLV\x01"),
    ("mpeg", rb"\0\0\x01\xba"),
    ("mpegts", rb"(?:.{4})?G.{187}(?:.{4})?G"),
)
# Readers of sound, too: a file is taken for a video by its extension only.
BEGINNINGS_OF_SOUND = (("asf", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), ("ogg", rb"OggS"), ("mov", rb"....ftyp"))
HEAD = 512
MISSING = 0.5
"""Seconds that may be missing at the end of a whole video, whose parts need not end together."""
UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
"""Transpositions that make a frame upright, by its rotation counter-clockwise in degrees."""


class KeyFrame(NamedTuple):
    """A frame of a video that is stored as a whole.

    Attributes:
        time: Its time from the video's beginning, in seconds.
        picture: The frame, upright, mode RGB.
    """

    time: float
    picture: Image.Image


def is_video(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a video: by its first bytes, or by its extension if it is no picture.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, content in (("a", b"RIFF....AVI "), ("b.mp4", b""), ("c.mp4", b"GIF89a"), ("d.ts", b"let a")):
        ...         _ = Path(folder, name).write_bytes(content)
        ...     [is_video(Path(folder, name)) for name in sorted(os.listdir(folder))]
        [True, True, False, False]
    """
    head = head_of(path, HEAD)
    if head is None or kind_of(head) is not None:
        return False
    return os.path.splitext(path)[1].lower() in ENDINGS or _container_of(head, BEGINNINGS) is not None


def key_frames(path: str | os.PathLike[str], *, every: float = EVERY, side: int | None = None) -> Iterator[KeyFrame]:
    """Yield the key frames of a video, in their order; one is in memory at a time.

    Nothing is shared between calls: threads may read videos at once, each with an iterator of its own. Frames between
    key frames are not decoded. The rotation in the file is applied.

    Args:
        path: The file. Other files and addresses in it are not opened.
        every: Least time between two frames, in seconds, at least 0.
        side: Size to which frames will be resized: no side is made shorter than this. None: their own.

    Yields:
        The frames. If the file is damaged or ends too early, what can be read comes before the error.

    Raises:
        DataError: naming the file and the reason: no video, no package ``av``, frames of more than `MAX_PIXELS`, or the
            part that is missing; a `MachineError` if the file is not the cause.
    """
    require_number("every", every, least=0.0)
    name, head = str(path), head_of(path, HEAD)
    if head is None:
        raise DataError(f"{name}: expected a video, found no such file")
    form = _container_of(head, (*BEGINNINGS, *BEGINNINGS_OF_SOUND))
    if form is None:
        raise DataError(f"{name}: expected a video ({', '.join(CONTAINERS)}), found something else")
    try:
        import av
    except ImportError:
        raise DataError(
            f"{name}: expected the package av to read videos, found none: pip install 'pvlr[video]'"
        ) from None
    read = _Read(name)
    try:
        options = {"max_pixels": str(2 * MAX_PIXELS)}
        # An open file, and not its name: FFmpeg's other protocols are out of reach.
        with (
            open(path, "rb") as file,
            av.open(file, "r", format=form, options=options, metadata_errors="replace") as opened,
        ):
            yield from _frames(opened, read, every, side)
    except (av.FFmpegError, OSError, MemoryError) as err:
        reason = (getattr(err, "strerror", None) or str(err) or "its reader gave up").splitlines()[0]
        raise refusal(err)(f"{name}: expected a whole video, but {reason}{read.kept()}") from None


class _Read:
    """What was read of a video."""

    def __init__(self, name: str) -> None:
        self.name, self.frames, self.damaged, self.last, self.end = name, 0, 0, 0.0, 0.0

    def kept(self) -> str:
        return f"; {self.frames:,} key frames up to {self.last:.1f} s were read" if self.frames else ""

    def require_whole(self, length: float | None) -> None:
        if length is not None and self.end < length - MISSING:
            raise DataError(
                f"{self.name}: expected a whole video of {length:.1f} s, found the first {self.end:.1f} s{self.kept()}"
            )
        if self.damaged:
            raise DataError(f"{self.name}: expected a whole video, found {self.damaged:,} damaged parts{self.kept()}")
        if not self.frames:
            raise DataError(f"{self.name}: expected a video with a key frame, found none")


def _frames(opened: Any, read: _Read, every: float, side: int | None) -> Iterator[KeyFrame]:
    import av

    streams = [one for one in opened.streams.video if not one.disposition & one.disposition.attached_pic]  # No covers.
    if not streams:
        raise DataError(f"{read.name}: expected a video, found no stream of pictures in it")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise DataError(f"{read.name}: expected a video in a known code, found another")
    _require_size(read.name, context.width, context.height)
    context.skip_frame = "NONKEY"
    # A frame may be larger than the stream says. FFmpeg counts its own margins around a frame, too.
    context.options = {"max_pixels": str(2 * MAX_PIXELS)}
    start = 0.0 if opened.start_time is None else opened.start_time / av.time_base
    due = 0.0
    for packet in opened.demux():
        at = _seconds(packet.pts if packet.pts is not None else packet.dts, packet.time_base)
        if at is not None:
            read.end = max(read.end, at - start + (_seconds(packet.duration, packet.time_base) or 0.0))
        if packet.stream is not stream and packet.stream.index != stream.index:
            continue
        if packet.size and (not packet.is_keyframe or (at is not None and at - start < due - 1e-6)):
            continue
        if at is not None:
            due = at - start + every
        try:
            found = packet.decode()
        except av.error.InvalidDataError:
            read.damaged += 1
            continue
        except av.error.ArgumentError:  # What FFmpeg says of a size beyond the limit, and of one that makes no sense.
            raise DataError(
                f"{read.name}: expected frames of at most {MAX_PIXELS:,} pixels, found others{read.kept()}"
            ) from None
        for frame in found:
            if frame.is_corrupt:
                read.damaged += 1
                continue
            _require_size(read.name, frame.width, frame.height)
            time = max(0.0, read.last if frame.time is None else frame.time - start)
            read.frames, read.last = read.frames + 1, time
            yield KeyFrame(time, _picture(frame, side))
    read.require_whole(None if opened.duration is None else opened.duration / av.time_base)


def _picture(frame: Any, side: int | None) -> Image.Image:
    width, height = frame.width, frame.height
    if side is not None and side < min(width, height):
        shrink = side / min(width, height)
        width, height = round(width * shrink), round(height * shrink)
    picture: Image.Image = frame.to_image(width=width, height=height, interpolation="AREA")
    turn = UPRIGHT.get(round(frame.rotation) % 360)
    return picture if turn is None else picture.transpose(turn)


def _require_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{name}: expected frames of at most {MAX_PIXELS:,} pixels, got {width} x {height}")


def _seconds(ticks: int | None, base: Fraction | None) -> float | None:
    return None if ticks is None or base is None else float(ticks * base)


def _container_of(head: bytes, beginnings: tuple[tuple[str, bytes], ...]) -> str | None:
    return next((name for name, beginning in beginnings if re.match(beginning, head, re.DOTALL)), None)
