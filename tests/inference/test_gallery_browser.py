"""The gallery in a real browser: filter, sorting, keyboard, and the map of a tag."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers.browser import chromium
from PIL import Image

from pvlr.core import LabelSet
from pvlr.inference.gallery import Gallery
from pvlr.inference.tagging import Tagged
from pvlr.inference.tags import Tag

LABELS = LabelSet(("cat", "dog", "fire truck"))
SHOWN = [
    ("photos/b10.jpg", {"cat": 0.9, "dog": 0.6}),
    ("photos/b9.jpg", {"dog": 0.95}),
    ('photos/"><script>document.title=1<!--.jpg', {}),
    ("other/a.jpg", {"cat": 0.5, "dog": 0.7, "fire truck": 0.55}),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("gallery")
    content = io.BytesIO()
    Image.new("RGB", (288, 144), (90, 120, 150)).save(content, "WEBP")
    corner = torch.zeros(4, 4)
    corner[3, 3] = 1.0
    with Gallery(folder / "page.html", LABELS, (0.5, 0.5, 0.5), title="Mine") as gallery:
        for name, scores in SHOWN:
            tags = [Tag(label, value, corner) for label, value in scores.items()]
            gallery.add(Tagged(name, sorted(tags, key=lambda tag: -tag.probability), content.getvalue()))
    with chromium(folder / "profile") as browser:
        browser.get((folder / "page.html").as_uri())
        yield browser
        assert browser.title == "Mine"
        assert browser.get_log("browser") == []  # Nothing was refused, nothing failed.


@pytest.fixture(autouse=True)
def _as_opened(page: Any) -> None:
    page.refresh()


def cards(page: Any) -> list[str]:
    visible = "[...document.querySelectorAll('article')].filter(e => !e.hidden).map(e => e.dataset.file)"
    return [str(name).rpartition("/")[2] for name in page.execute_script(f"return {visible}")]


def choose(page: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find_element("id", name)).select_by_value(value)


def maps(page: Any) -> list[str]:
    return page.execute_script(
        "return [...document.querySelectorAll('.map')].filter(e => !e.hidden && e.naturalWidth > 0)"
        ".map(e => e.closest('article').dataset.file)"
    )


def test_filter_by_label_and_by_name(page: Any) -> None:
    assert page.find_element("id", "status").text == "4 of 4 shown"
    choose(page, "label", "cat")
    assert cards(page) == ["b10.jpg", "a.jpg"]
    assert page.find_element("id", "status").text == "2 of 4 shown"
    page.find_element("id", "file").send_keys("OTHER")
    assert cards(page) == ["a.jpg"]


def test_sort(page: Any) -> None:
    order = cards(page)
    choose(page, "sort", "high")
    assert cards(page)[:3] == ["b9.jpg", "b10.jpg", "a.jpg"]
    choose(page, "label", "dog")
    assert cards(page) == ["b9.jpg", "a.jpg", "b10.jpg"]
    choose(page, "sort", "low")
    assert cards(page) == ["b10.jpg", "a.jpg", "b9.jpg"]
    choose(page, "label", "")
    choose(page, "sort", "tags")
    assert cards(page)[0] == "a.jpg"
    choose(page, "sort", "file")
    assert cards(page)[0] == "a.jpg"
    assert cards(page).index("b9.jpg") < cards(page).index("b10.jpg")  # Numbers by their value.
    choose(page, "sort", "order")
    assert cards(page) == order


def test_the_map_is_shown_under_pointer_focus_and_click(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    button = page.find_element("css selector", "article button")
    assert maps(page) == []
    ActionChains(page).move_to_element(button).perform()
    assert maps(page) == ["photos/b10.jpg"]
    ActionChains(page).move_to_element(page.find_element("tag name", "h1")).perform()
    assert maps(page) == []
    button.click()
    ActionChains(page).move_to_element(page.find_element("tag name", "h1")).perform()
    assert button.get_attribute("aria-pressed") == "true"
    assert maps(page) == ["photos/b10.jpg"]
    picture, shown = (page.find_element("css selector", f"article {name}").rect for name in (".picture", ".map"))
    assert picture == pytest.approx(shown, abs=1.5)  # It lies on the picture, not beside it.
    button.send_keys(Keys.ESCAPE)
    assert maps(page) == []


def test_everything_by_keyboard(page: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(key: str) -> Any:
        ActionChains(page).send_keys(key).perform()
        return page.switch_to.active_element

    reached = [press(Keys.TAB).get_attribute("id") for _ in range(3)]
    assert reached == ["label", "file", "sort"]
    tag = press(Keys.TAB)
    assert tag.text.split() == ["cat", "90%"]
    assert maps(page) == ["photos/b10.jpg"]
    assert press(Keys.ARROW_DOWN).text.split() == ["dog", "60%"]
    assert press(Keys.ARROW_RIGHT).text.split() == ["dog", "95%"]
    assert maps(page) == ["photos/b9.jpg"]
    assert press(Keys.ENTER).get_attribute("aria-pressed") == "true"
    assert press(Keys.ARROW_RIGHT).tag_name == "article"  # Which has no tag.
    assert maps(page) == ["photos/b9.jpg"]  # Kept.
    assert press(Keys.ARROW_LEFT).get_attribute("aria-pressed") == "true"
    press(Keys.ESCAPE)
    assert maps(page) == []
