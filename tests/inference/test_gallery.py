"""The page of tagged pictures: its content, its size, and text that nobody can smuggle in as code."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pvlr.core import LabelSet
from pvlr.data.overlay import overlay
from pvlr.inference.gallery import Gallery
from pvlr.inference.tagging import Tagged, Unreadable
from pvlr.inference.tags import Tag

LABELS = LabelSet(("cat", "<b>dog</b>", "cow"))
THRESHOLDS = (0.5, 0.25, 0.5)
HOSTILE = 'x"><script>alert(1)<!--&.jpg'


class Page(HTMLParser):
    """Parser that keeps the elements of a page and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def thumbnail(colour: tuple[int, int, int] = (200, 100, 50)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(content, "WEBP")
    return content.getvalue()


def written(path: Path, pictures: list[Tagged], *, limit: int = 10, bad: int = 0) -> str:
    with Gallery(path, LABELS, THRESHOLDS, title="Tags of <me>", limit=limit) as gallery:
        for picture in pictures:
            gallery.add(picture)
        for number in range(bad):
            gallery.refuse(Unreadable(f"{number}.jpg", f"{number}.jpg: expected a picture & <more>"))
    return path.read_text(encoding="utf-8")


def test_every_picture_its_tags_and_where_they_are(tmp_path: Path) -> None:
    where = torch.tensor([[0.0, 0.7], [0.1, 0.2]])
    pictures = [
        Tagged("a/cat.jpg", [Tag("cat", 0.9, where), Tag("<b>dog</b>", 0.3, where)], thumbnail()),
        Tagged(HOSTILE, [], thumbnail()),
    ]
    text = written(tmp_path / "page.html", pictures)
    page = Page(text)
    assert [card["data-file"] for card in page.all("article")] == ["a/cat.jpg", HOSTILE]
    assert json.loads(page.all("article")[0]["data-scores"] or "") == {"cat": 0.9, "<b>dog</b>": 0.3}
    assert [picture["alt"] for picture in page.all("img") if picture.get("class") == "picture"] == [
        "cat.jpg: cat 90%, <b>dog</b> 30%", f"{HOSTILE}: no label",
    ]  # fmt: skip
    assert [option["value"] for option in page.all("option")][:3] == ["", "<b>dog</b>", "cat"]
    assert page.all("b") == []
    assert len(page.all("script")) == 1
    assert "No label reaches its threshold." in text
    assert "<title>Tags of &lt;me&gt;</title>" in text
    assert not (tmp_path / "page.html").read_text().count("{{")
    data = page.all("button")[0]["data-map"] or ""
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGBA")).astype(float)
    # Laid on a grey ground it is what the overlay paints there (but for the losses of WebP).
    ground = Image.new("RGB", (64, 64), (128, 128, 128))
    alpha = shown[..., 3:] / 255
    laid = shown[..., :3] * alpha + 128 * (1 - alpha)
    assert np.abs(laid - np.asarray(overlay(ground, where)).astype(float)).mean() < 6


def test_nothing_is_fetched_and_no_other_script_runs(tmp_path: Path) -> None:
    text = written(tmp_path / "page.html", [Tagged(HOSTILE, [], thumbnail())])
    policy = next(meta["content"] or "" for meta in Page(text).all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    import hashlib

    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]  # type: ignore[index]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert re.findall(r"""(?:src|href|srcset|action)\s*=\s*"(?!data:)|url\(""", text.replace(script, "")) == []


def test_it_says_what_it_does_not_show(tmp_path: Path) -> None:
    pictures = [Tagged(f"{number}.jpg", [Tag("cat", 0.9)], thumbnail()) for number in range(5)]
    text = written(tmp_path / "page.html", pictures, limit=3, bad=120)
    assert len(Page(text).all("article")) == 3
    assert "3 pictures, 3 labels asked for; 2 more were tagged and are not shown here." in text
    assert "120 could not be read" in text
    assert "and 20 more" in text
    assert html.escape("0.jpg: expected a picture & <more>") in text


def test_an_interrupted_run_leaves_a_whole_page_and_nothing_beside(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Gallery(tmp_path / "page.html", LABELS, THRESHOLDS, title="x") as gallery:
            gallery.add(Tagged("a.jpg", [], thumbnail()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text().endswith("</html>\n")
