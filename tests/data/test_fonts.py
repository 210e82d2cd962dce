"""Fonts that have the characters of a text, and texts that fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from pvlr.data import drawing
from pvlr.data.drawing import fitted, font_for


def name_of(text: str) -> str | None:
    font = font_for(text, 16)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.getname()[0]


def test_a_text_gets_a_font_that_has_its_characters() -> None:
    assert name_of("a cat 0.93") == "Aileron"
    # matplotlib, which the tests need, brings it.
    for text in ("café", "кошка", "γάτα"):
        assert name_of(text) == "DejaVu Sans", text
        assert all(drawing._has(font_for(text, 16), character) for character in text)


def test_a_machine_without_fonts_draws_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FILES", ("no such font.ttf",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    drawing._fonts.cache_clear()
    try:
        assert name_of("кошка") == "Aileron"
        assert not drawing._has(font_for("к", 16), "к")
    finally:
        drawing._fonts.cache_clear()


@given(st.text(st.characters(categories=["L", "N", "Zs"]), max_size=60), st.integers(60, 300))
def test_what_is_shown_fits_and_begins_as_the_text(text: str, width: int) -> None:
    shown, font = fitted(text, 14, width)
    assert font.getlength(shown) <= width
    whole = " ".join(text.split())
    begin, dots, end = shown.partition("…")
    assert whole.startswith(begin)
    assert whole.endswith(end.strip())
    assert bool(dots) == (shown != whole)


def test_a_score_stays_and_a_long_last_word_does_not() -> None:
    assert fitted("a pedestrian traffic signal 0.93", 16, 160)[0].endswith("… 0.93")
    assert fitted("one verylongwordthatfillsthewholewidthandmore", 16, 160)[0].endswith("…")
