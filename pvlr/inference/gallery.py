"""Self-contained page of tagged pictures: thumbnails, tags, bars, and a map of each tag's attention."""

import base64
import hashlib
import html
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.data.overlay import colours
from pvlr.files import write_atomically
from pvlr.inference.tagging import Tagged, Unreadable
from pvlr.inference.tags import Tag

__all__ = ["THUMBNAIL", "Gallery", "card", "page_around"]

THUMBNAIL = 288
"""Longer side of a thumbnail, in pixels."""
MAP_SIDE = 64
STRENGTH = 0.75
LISTED = 100
HINT = (
    "Point at a tag, or go to it by Tab and the arrow keys, to see where it was found; click or press Enter\n"
    "to keep it, Escape to let go. The mark under a bar is the label's threshold."
)


class Gallery:
    """Page of tagged pictures, each written to disk at once; the page is complete when the context is left.

    Args:
        path: The page.
        labels: The labels that were looked for.
        thresholds: Least probability of each label, in their order.
        title: Title of the page.
        limit: Largest number of pictures on the page, which states how many more there were.
        scores: Kind of the tags' numbers: ``"probability"`` or ``"similarity"``.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "page.html")
        >>> with Gallery(path, LabelSet(("cat",)), (0.5,), title="Mine") as gallery:
        ...     gallery.add(Tagged("a.jpg", [Tag("cat", 0.75, torch.eye(2))], b"thumbnail"))
        >>> page = path.read_text()
        >>> "<h1>Mine</h1>" in page, page.count("<article"), "://" in page
        (True, 1, False)
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: Path,
        labels: LabelSet,
        thresholds: tuple[float, ...],
        *,
        title: str,
        limit: int = 1000,
        scores: str = "probability",
    ) -> None:
        self.path, self.labels, self.title, self.limit = path, labels, title, limit
        self._form = ".0%" if scores == "probability" else ".2f"
        self._thresholds = dict(zip(labels, thresholds, strict=True))
        self._cards: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed on leaving
        self._shown, self._more = 0, 0
        self._counts: Counter[str] = Counter()
        self._bad: list[Unreadable] = []
        self._refused = 0

    @property
    def is_full(self) -> bool:
        """True if further pictures are only counted."""
        return self._shown >= self.limit

    def add(self, picture: Tagged) -> None:
        """Add a picture that has a thumbnail, and whose tags have their attention."""
        if self.is_full:
            self.skip()
            return
        self._cards.write(self._card(picture).encode())
        self._counts.update(tag.name for tag in picture.tags)
        self._shown += 1

    def skip(self) -> None:
        """Count a picture that is not shown."""
        self._more += 1

    def refuse(self, bad: Unreadable) -> None:
        """Add a picture that cannot be read."""
        self._refused += 1
        if len(self._bad) < LISTED:
            self._bad.append(bad)

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cards:
            if kind is None or self._shown:  # An interrupted run writes its page too.
                write_atomically(self.path, self._write)

    def _write(self, file: IO[bytes]) -> None:
        before, after = page_around(
            self.labels, self._counts, title=self.title, summary=self._summary(), hint=HINT, below=self._refusals()
        )
        file.write(before)
        self._cards.seek(0)
        while block := self._cards.read(1 << 20):
            file.write(block)
        file.write(after)

    def _summary(self) -> str:
        summary = f"{self._shown:,} pictures, {len(self.labels):,} labels asked for"
        return f"{summary}; {self._more:,} more were tagged and are not shown here" if self._more else summary

    def _refusals(self) -> str:
        if not self._refused:
            return ""
        rows = "".join(f"<li>{html.escape(_printable(bad.reason))}</li>" for bad in self._bad)
        rest = self._refused - len(self._bad)
        more = f"<li>and {rest:,} more</li>" if rest else ""
        return f"<details><summary>{self._refused:,} could not be read</summary><ul>{rows}{more}</ul></details>"

    def _card(self, picture: Tagged) -> str:
        listing = ", ".join(f"{self.labels.readable[tag.name]} {tag.probability:{self._form}}" for tag in picture.tags)
        tags = "".join(self._tag(tag) for tag in picture.tags)
        return card(
            picture.path,
            os.path.basename(picture.path),
            {tag.name: tag.probability for tag in picture.tags},
            listing=listing or "no label",
            content=f"<ul>{tags}</ul>" if tags else '<p class="none">No label reaches its threshold.</p>',
            thumbnail=picture.thumbnail or b"",
        )

    def _tag(self, tag: Tag) -> str:
        threshold = self._thresholds[tag.name]
        where = "" if tag.attention is None else f' data-map="{_data(_map(tag.attention), "webp")}"'
        return (
            f'<li><button type="button" aria-pressed="false"{where}>'
            f"<span>{html.escape(self.labels.readable[tag.name])}</span><span>{tag.probability:{self._form}}</span>"
            f'<meter min="0" max="1" value="{tag.probability:.4f}" aria-hidden="true"></meter>'
            f'<i style="--at:{max(0.0, threshold):.4f}" title="threshold {threshold:.2f}"></i>'
            "</button></li>"
        )


def page_around(
    labels: LabelSet, counts: Mapping[str, int], *, title: str, summary: str, hint: str, below: str = ""
) -> tuple[bytes, bytes]:
    """Return the parts of a page before and after its cards.

    Args:
        labels: The labels, with their readable names.
        counts: Number of cards by label, for the filter.
        title: Title of the page.
        summary: Text below the title.
        hint: How the page is used, behind the summary, as HTML.
        below: HTML below the cards.

    Example:
        >>> before, after = page_around(LabelSet(("cat",)), {"cat": 2}, title="Mine", summary="2 pictures", hint="")
        >>> b"<h1>Mine</h1>" in before, b"cat (2)</option>" in before, after.strip().endswith(b"</html>")
        (True, True, True)
    """
    page = (files("pvlr") / "assets" / "gallery.html").read_text(encoding="utf-8")
    script = page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    before, after = page.split("{{cards}}")
    values = {
        # Nothing is fetched, and no script runs but the page's own, whatever the name of a file.
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "title": html.escape(title),
        "summary": html.escape(summary),
        "hint": hint,
        "options": "".join(
            f'<option value="{html.escape(name)}">{html.escape(labels.readable[name])} ({count})</option>'
            for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        ),
        "refused": below,
    }
    for name, value in values.items():
        before, after = (part.replace(f"{{{{{name}}}}}", value) for part in (before, after))
    return before.encode(), after.encode()


def card(path: str, name: str, scores: Mapping[str, float], *, listing: str, content: str, thumbnail: bytes) -> str:
    """Return a picture on a page.

    Args:
        path: Its file.
        name: Its caption.
        scores: The numbers it is filtered and sorted by, by label.
        listing: Its labels in words, for people who cannot see it.
        content: HTML below the caption.
        thumbnail: The picture as a WebP file.

    Example:
        >>> card("a/1.jpg", "1.jpg", {"cat": 0.75}, listing="cat 75%", content="", thumbnail=b"")[:61]
        '<article tabindex="-1" data-file="a/1.jpg" data-scores="{&quo'
    """
    path, name = html.escape(_printable(path)), _printable(name)
    rounded = json.dumps({label: round(score, 4) for label, score in scores.items()})
    alternative = html.escape(f"{name}: {listing}")
    return (
        f'<article tabindex="-1" data-file="{path}" data-scores="{html.escape(rounded)}">'
        f'<figure><img class="picture" alt="{alternative}" src="{_data(thumbnail, "webp")}">'
        f'<img class="map" alt="" hidden></figure><h2 title="{path}">{html.escape(name)}</h2>'
        f"{content}</article>\n"
    )


def _map(attention: Float[Tensor, "g g"]) -> bytes:
    """Return a map as a WebP image, more opaque where values are larger, which gives ``overlay`` on a thumbnail."""
    values = attention.float() / (float(attention.max()) or 1.0)
    smooth = Image.fromarray(values.numpy()).resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BICUBIC)
    level = torch.from_numpy(np.array(smooth)).clamp(0.0, 1.0)
    alpha = (level * STRENGTH * 255).round().to(torch.uint8).unsqueeze(-1)
    content = io.BytesIO()
    Image.fromarray(torch.cat([colours(level), alpha], dim=-1).numpy(), "RGBA").save(content, "WEBP", quality=80)
    return content.getvalue()


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _printable(text: str) -> str:
    # A file's name need not be UTF-8, but a page must be.
    return text.encode("utf-8", errors="replace").decode()
