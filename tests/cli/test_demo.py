"""The page that tags pictures, in a headless browser: from a picture dropped to its tags and maps."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import chromium
from helpers.extras import require_extra
from helpers.tagging_toys import NAMES, make_recognizer, write_pictures
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 90.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(found: Any, what: str) -> Any:
    """Return the result of a function once there is one."""
    end = time.monotonic() + SECONDS
    while not (value := found()):
        if time.monotonic() > end:
            pytest.fail(f"waited {SECONDS:.0f} s for {what}")
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    require_extra("demo", "gradio")
    folder = tmp_path_factory.mktemp("demo")
    make_recognizer(folder / "tower").save_pretrained(folder / "model")
    port = free_port()
    command = [sys.executable, "-m", "pvlr", "demo", "--run", str(folder / "model"), "--port", str(port)]
    command += ["--max_pixels", "1000"]
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
        try:

            def answers() -> bool:
                if server.poll() is not None:
                    pytest.fail((folder / "log.txt").read_text())
                try:
                    return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).status == 200)
                except (urllib.error.URLError, OSError):
                    return False

            until(answers, "the page to be served")
            with chromium(folder / "profile") as browser:
                browser.get(f"http://127.0.0.1:{port}/")
                yield browser
        finally:
            server.terminate()
            server.wait(timeout=30)


def by(page: Any, selector: str) -> list[Any]:
    return list(page.find_elements("css selector", selector))


def said(page: Any) -> str:
    # By the page itself: between two calls from here the element may have been replaced.
    return str(page.execute_script("return [...document.querySelectorAll('#said p')].map(e => e.textContent).join('')"))


def ask_for(page: Any, names: str, wanted: Callable[[str], bool]) -> str:
    """Return the answer to a list of labels; the answer to the list before may still come first."""
    box = by(page, "#labels textarea")[0]
    box.clear()
    box.send_keys(names)
    by(page, "#ask")[0].click()
    return str(until(lambda: said(page) if wanted(said(page)) else "", f"an answer for {names}"))


def test_from_a_picture_dropped_to_its_tags_and_back_to_other_labels(page: Any, tmp_path: Path) -> None:
    picture = write_pictures(tmp_path, 1)[0]
    until(lambda: by(page, "#picture input[type=file]"), "the page")[0].send_keys(picture)
    tags = until(lambda: said(page), "tags")
    told = set(NAMES) & set(tags.split(", "))
    assert told or tags == "no label reaches its threshold"
    if told:
        maps = until(lambda: by(page, "#maps img"), "maps")
        assert len(maps) >= len(told)

    def rows() -> bool:
        text = str(page.execute_script("return document.querySelector('#table').textContent"))
        return all(name in text for name in NAMES)

    until(rows, "a row for every label")

    by(page, "#own input")[0].click()  # One threshold for all.
    twice = "Refused: names: expected unique labels, got 'zebra' more than once"
    ask_for(page, "zebra, zebra", lambda answer: answer == twice)
    answer = ask_for(page, "zebra, fire truck", lambda answer: answer not in ("", twice))
    assert answer == "no label reaches its threshold" or set(answer.split(", ")) <= {"zebra", "fire truck"}

    elsewhere = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.includes('127.0.0.1'))"
    assert [name for name in page.execute_script(elsewhere) if name.startswith("http")] == []


def test_a_program_asks_the_same(page: Any, tmp_path: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(page.execute_script("return location.origin"), verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/tag"]
    picture = handle_file(write_pictures(tmp_path, 1)[0])
    table, maps, found = client.predict(picture, "zebra, fire truck", False, 0.0, api_name="/tag")
    assert {row[0] for row in table["data"]} == {"zebra", "fire truck"}
    assert [row[3] for row in table["data"]] == ["yes", "yes"]
    assert len(maps) == 2
    assert set(found.strip("*").split(", ")) == {"zebra", "fire truck"}
    assert client.predict(picture, "a, a", False, 0.0, api_name="/tag")[2].startswith(
        "**Refused:** names: expected uni"
    )


def test_a_picture_that_cannot_be_read_is_refused_in_words(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    page.refresh()
    until(lambda: by(page, "#picture input[type=file]"), "the page")[0].send_keys(str(tmp_path / "broken.jpg"))
    answer = until(lambda: said(page), "a refusal")
    assert (
        answer
        == "Refused: broken.jpg: expected a picture (JPEG, PNG, WEBP, BMP, GIF, TIFF, AVIF, HEIF), found something else"
    )


def test_a_picture_of_more_pixels_than_allowed_is_refused_with_the_option_that_helps(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    page.refresh()
    until(lambda: by(page, "#picture input[type=file]"), "the page")[0].send_keys(str(tmp_path / "large.png"))
    answer = until(lambda: said(page), "a refusal")
    assert answer.startswith("Refused: large.png: expected at most 1,000 pixels, got 40 x 30; set max_pixels to 1200")


def test_without_a_model_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    require_extra("demo", "gradio")
    command = [sys.executable, "-m", "pvlr", "demo", "--run", str(tmp_path / "none")]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert told.returncode == 2
    assert told.stderr == f"error: {tmp_path / 'none'}: expected a folder with a trained model, found none\n"
