"""Many pictures tagged one after the other: read ahead by threads, seen in batches, told in their order."""

import io
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from pvlr.core.arguments import require_int
from pvlr.core.tags import Tag
from pvlr.data.batch import DataError, MachineError
from pvlr.data.images import decode_rgb
from pvlr.train.predict import Tagger

__all__ = ["Tagged", "Unreadable", "tag_files", "tag_pictures"]

AHEAD = 2
"""Batches that are read while one is seen."""


class Tagged(NamedTuple):
    """What was said about a picture.

    Attributes:
        path: Its file, or what it is called where it is none.
        tags: Its labels, most probable first.
        thumbnail: It, smaller, as a WebP file; None unless asked for.
    """

    path: str
    tags: list[Tag]
    thumbnail: bytes | None


class Unreadable(NamedTuple):
    """A picture that cannot be read.

    Attributes:
        path: Its file, or what it is called where it is none.
        reason: One sentence: what was expected, and what was found.
    """

    path: str
    reason: str


class _Read(NamedTuple):
    path: str
    image: Tensor
    thumbnail: bytes | None


def tag_files(
    tagger: Tagger,
    paths: Iterable[str],
    *,
    batch_size: int = 32,
    workers: int = 2,
    threshold: float | None = None,
    thumbnails: int = 0,
) -> Iterator[Tagged | Unreadable]:
    """Tag files, as many as there are: memory is that of a few batches.

    Args:
        tagger: The model.
        paths: Files; taken only as fast as they are tagged.
        batch_size: Pictures of one forward pass, at least 1.
        workers: Threads that read and resize pictures (both leave Python's lock), at least 1.
        threshold: Least probability of any label; None: each label's own.
        thumbnails: Longer side, in pixels, of the small picture that is yielded with the tags, which then have their
            attention too; 0: neither.

    Yields:
        For each file, in order, its tags or why it cannot be read.

    Raises:
        ValueError: where a number is out of range.
    """
    pictures = ((path, path) for path in paths)
    return tag_pictures(
        tagger, pictures, batch_size=batch_size, workers=workers, threshold=threshold, thumbnails=thumbnails
    )


def tag_pictures(
    tagger: Tagger,
    pictures: Iterable[tuple[str, str | bytes]],
    *,
    batch_size: int = 32,
    workers: int = 2,
    threshold: float | None = None,
    thumbnails: int = 0,
) -> Iterator[Tagged | Unreadable]:
    """As :func:`tag_files`, for pictures that need not be files: each is what it is called, and its path or bytes."""
    require_int("batch_size", batch_size, least=1)
    require_int("workers", workers, least=1)
    return _tag_pictures(tagger, iter(pictures), batch_size, workers, threshold, thumbnails)


def _tag_pictures(
    tagger: Tagger,
    remaining: Iterator[tuple[str, str | bytes]],
    batch_size: int,
    workers: int,
    threshold: float | None,
    thumbnails: int,
) -> Iterator[Tagged | Unreadable]:
    def read(path: str, picture: str | bytes) -> _Read | Unreadable:
        try:
            return _Read(path, tagger.prepare(picture), _thumbnail(picture, thumbnails) if thumbnails else None)
        except MachineError:
            raise  # The picture is not to blame: the next call tags it.
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
                yield from _tagged(tagger, batch, threshold, bool(thumbnails))
        finally:
            for future in waiting:
                future.cancel()


def _tagged(
    tagger: Tagger, batch: list[_Read | Unreadable], threshold: float | None, attention: bool
) -> Iterator[Tagged | Unreadable]:
    images = [one.image for one in batch if isinstance(one, _Read)]
    found = iter(tagger.tag_batch(torch.stack(images), threshold=threshold, attention=attention) if images else [])
    for one in batch:
        yield one if isinstance(one, Unreadable) else Tagged(one.path, next(found), one.thumbnail)


def _thumbnail(source: str | bytes, side: int) -> bytes:
    picture = decode_rgb(source, side=side)
    picture.thumbnail((side, side))
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=70)
    return content.getvalue()
