"""Tagging of many pictures: read ahead by threads, processed in batches, returned in their order."""

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from pvlr.core.arguments import require_int, require_number
from pvlr.data.batch import DataError, MachineError
from pvlr.data.images import MAX_PIXELS, decode_rgb
from pvlr.data.video import EVERY, is_video, key_frames
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tags import Tag

__all__ = ["Tagged", "Unreadable", "tag_files", "tag_pictures", "thumbnail_of"]

AHEAD = 2
"""Number of batches that are read while one is processed."""


class Tagged(NamedTuple):
    """Tags of a picture.

    Attributes:
        path: Its file, or its name if it is none. Of a video's frame: the video and the time, ``clip.mp4#t=12.480``.
        tags: Its labels, most probable first.
        thumbnail: The picture, smaller, as a WebP file; None unless requested.
        video: The video that it is a frame of, or None.
    """

    path: str
    tags: list[Tag]
    thumbnail: bytes | None
    video: str | None = None

    @property
    def file(self) -> str:
        """The file that the tags are of: the picture, or the video that it is a frame of."""
        return self.path if self.video is None else self.video


class Unreadable(NamedTuple):
    """A picture that cannot be read.

    Attributes:
        path: Its file, or its name if it is none.
        reason: One sentence: what was expected, and what was found.
    """

    path: str
    reason: str


class _Read(NamedTuple):
    path: str
    image: Tensor
    thumbnail: bytes | None
    video: str | None


class _Frame(NamedTuple):
    video: str
    picture: Image.Image


def tag_files(
    recognizer: Recognizer,
    paths: Iterable[str],
    *,
    batch_size: int = 32,
    workers: int = 2,
    threshold: float | None = None,
    thumbnails: int = 0,
    max_pixels: int = MAX_PIXELS,
    every: float = EVERY,
) -> Iterator[Tagged | Unreadable]:
    """Tag any number of files, with the memory of a few batches; of videos, each key frame.

    Args:
        recognizer: The model.
        paths: Files; consumed only as fast as they are tagged.
        batch_size: Pictures per forward pass, at least 1.
        workers: Threads that read and resize pictures (both release the GIL), at least 1.
        threshold: Least probability of any label; None: each label's own.
        thumbnails: Longer side, in pixels, of the small picture that is yielded with the tags, which then have their
            attention too; 0: neither.
        max_pixels: Largest width times height of a picture; see :func:`~pvlr.data.images.decode_rgb`.
        every: Least time between two frames of a video, in seconds; see :func:`~pvlr.data.video.key_frames`.

    Yields:
        For each file, in order, its tags or the reason why it cannot be read; for a video the tags of each key frame,
        and then the reason if not all could be read.

    Raises:
        ValueError: if a number is out of range.
    """
    require_int("batch_size", batch_size, least=1)
    require_int("workers", workers, least=1)
    require_int("max_pixels", max_pixels, least=1)
    require_number("every", every, least=0.0)
    pictures = _frames_too(paths, every, max(recognizer.transform.side, thumbnails))
    return _tag_pictures(recognizer, pictures, batch_size, workers, threshold, thumbnails, max_pixels)


def _frames_too(paths: Iterable[str], every: float, side: int) -> Iterator[tuple[str, "str | _Frame | Unreadable"]]:
    """Yield each picture, and each frame of a video."""
    for path in paths:
        if not is_video(path):
            yield path, path
            continue
        try:
            for frame in key_frames(path, every=every, side=side):
                yield f"{path}#t={frame.time:.3f}", _Frame(path, frame.picture)
        except MachineError:
            raise  # Not caused by the video: the next call may tag it.
        except DataError as err:
            yield path, Unreadable(path, str(err))


def tag_pictures(
    recognizer: Recognizer,
    pictures: Iterable[tuple[str, str | bytes]],
    *,
    batch_size: int = 32,
    workers: int = 2,
    threshold: float | None = None,
    thumbnails: int = 0,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Tagged | Unreadable]:
    """Tag pictures that need not be files, each given as a name and a path or bytes; see :func:`tag_files`."""
    require_int("batch_size", batch_size, least=1)
    require_int("workers", workers, least=1)
    require_int("max_pixels", max_pixels, least=1)
    return _tag_pictures(recognizer, iter(pictures), batch_size, workers, threshold, thumbnails, max_pixels)


def _tag_pictures(
    recognizer: Recognizer,
    remaining: Iterator[tuple[str, str | bytes | _Frame | Unreadable]],
    batch_size: int,
    workers: int,
    threshold: float | None,
    thumbnails: int,
    max_pixels: int,
) -> Iterator[Tagged | Unreadable]:
    def read(path: str, source: str | bytes | _Frame | Unreadable) -> _Read | Unreadable:
        if isinstance(source, Unreadable):
            return source
        picture, video = (source.picture, source.video) if isinstance(source, _Frame) else (source, None)
        try:
            small = None
            if thumbnails:
                small = thumbnail_of(decode_rgb(picture, side=thumbnails, max_pixels=max_pixels), thumbnails)
            return _Read(path, recognizer.prepare(picture, max_pixels=max_pixels), small, video)
        except MachineError:
            raise  # Not caused by the picture: the next call may tag it.
        except DataError as err:
            return Unreadable(path, str(err))

    waiting: deque[Future[_Read | Unreadable]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                room = (AHEAD + 1) * batch_size - len(waiting)
                waiting.extend(pool.submit(read, *named) for named in islice(remaining, room))
                if not waiting:
                    return
                batch = [waiting.popleft().result() for _ in range(min(batch_size, len(waiting)))]
                yield from _tagged(recognizer, batch, threshold, bool(thumbnails))
        finally:
            for future in waiting:
                future.cancel()


def _tagged(
    recognizer: Recognizer, batch: list[_Read | Unreadable], threshold: float | None, attention: bool
) -> Iterator[Tagged | Unreadable]:
    images = [one.image for one in batch if isinstance(one, _Read)]
    found = iter(recognizer.tag_batch(torch.stack(images), threshold=threshold, attention=attention) if images else [])
    for one in batch:
        yield one if isinstance(one, Unreadable) else Tagged(one.path, next(found), one.thumbnail, one.video)


def thumbnail_of(picture: Image.Image, side: int) -> bytes:
    """Return a picture as a WebP file, its longer side at most ``side`` pixels.

    Example:
        >>> Image.open(io.BytesIO(thumbnail_of(Image.new("RGB", (40, 20)), 10))).size
        (10, 5)
    """
    picture = picture.copy()
    picture.thumbnail((side, side))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=70)
    return content.getvalue()
