"""Drawings for people: sheets of pictures with lines below them, and maps with named rows and columns.

Each text is drawn in a font that has its characters, and shortened to its place.
"""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pvlr.core.shapes import expect
from pvlr.data.batch import DataError
from pvlr.data.overlay import colours

__all__ = ["Line", "Tile", "fitted", "font_for", "heat_map", "sheet"]

GAP = 6
# Larger on sheets, which viewers shrink; a map's text has the size of its cells.
SHEET_FONT, SHEET_LINE = 16, 21
MAP_FONT, CELL = 14, 18
NAME_WIDTH = 220  # Of a map's rows and columns.
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# Pillow's own font has the characters of ASCII alone. Files of the usual systems, of which Pillow knows the folders.
FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
    "msyh.ttc",
)
KEPT = 3
"""The last word of a text stays where it takes less than one part in so many of the width."""


class Line(NamedTuple):
    """A line of text.

    Attributes:
        text: The text, shortened if it is too long; a short last word, such as a score, stays.
        colour: Pillow's name of a colour.
    """

    text: str
    colour: str = "black"


class Tile(NamedTuple):
    """A picture and the lines below it."""

    picture: Image.Image
    lines: tuple[Line, ...] = ()


def sheet(tiles: Sequence[Tile], *, columns: int, side: int = 224) -> Image.Image:
    """Arrange pictures in rows on white, each with its lines below.

    Args:
        tiles: The pictures, at least one.
        columns: Pictures per row.
        side: Longest side of a picture on the sheet, in pixels.

    Raises:
        DataError: if there is no tile, or a number is out of range.

    Example:
        >>> tiles = [Tile(Image.new("RGB", (10, 10)), (Line("a cat 0.93", "green"),))] * 3
        >>> sheet(tiles, columns=2, side=40).size
        (98, 140)
    """
    for name, value in (("tiles", len(tiles)), ("columns", columns), ("side", side)):
        if value < 1:
            raise DataError(f"{name}: expected at least 1, got {value}")
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    # The height of a row depends on its largest number of lines.
    heights = [side + SHEET_LINE * max(len(tile.lines) for tile in row) + GAP for row in rows]
    width = min(columns, len(tiles)) * (side + GAP) + GAP
    ground = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(ground)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = GAP + column * (side + GAP)
            scale = side / max(tile.picture.size)
            size = (max(1, round(scale * tile.picture.width)), max(1, round(scale * tile.picture.height)))
            ground.paste(tile.picture.convert("RGB").resize(size, Image.Resampling.BICUBIC), (left, top))
            for number, line in enumerate(tile.lines):
                place = (left, top + size[1] + number * SHEET_LINE)
                text, font = fitted(line.text, SHEET_FONT, side)
                draw.text(place, text, fill=line.colour, font=font)
        top += height
    return ground


def heat_map(
    values: Float[Tensor, "r c"], *, rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Image.Image:
    """Draw a map with the names of its rows and columns, and a scale from 0 to its largest value.

    Args:
        values: ``r c``, at least 0.
        rows: Names of the rows.
        columns: Names of the columns.
        title: Title of the map.

    Raises:
        ShapeError: if the numbers of names are not those of rows and columns.

    Example:
        >>> heat_map(torch.eye(2), rows=("cat", "dog"), columns=("cat", "dog"), title="attention").mode
        'RGB'
    """
    expect("values", values, "r c", dtype="float", r=len(rows), c=len(columns))
    values = values.detach().float().cpu()
    top = float(values.max()) or 1.0
    cell = CELL
    names = [[fitted(name, MAP_FONT, NAME_WIDTH) for name in axis] for axis in (rows, columns)]
    left, above = (round(max(font.getlength(name) for name, font in axis)) + 2 * GAP for axis in names)
    above += CELL + GAP
    height, width = (count * cell for count in values.shape)
    bar = left + width + 2 * GAP
    title, font = fitted(title, MAP_FONT, None)
    ground = Image.new("RGB", (max(bar + 60, round(font.getlength(title)) + 2 * GAP), above + height + GAP), "white")
    draw = ImageDraw.Draw(ground)
    draw.text((GAP, GAP // 2), title, fill="black", font=font)
    ground.paste(_magnified(values / top, cell), (left, above))
    for number, (name, own) in enumerate(names[0]):
        draw.text((left - GAP - own.getlength(name), above + number * cell), name, fill="black", font=own)
    for number, (name, own) in enumerate(names[1]):
        strip = Image.new("RGB", (round(own.getlength(name)) + 2, CELL), "white")
        ImageDraw.Draw(strip).text((0, 0), name, fill="black", font=own)
        turned = strip.rotate(90, expand=True)
        ground.paste(turned, (left + number * cell, above - GAP // 2 - turned.height))
    scale = _magnified(torch.linspace(1, 0, max(height, 2 * CELL))[:, None], 1).resize((GAP * 2, max(height, 2 * CELL)))
    ground.paste(scale, (bar, above))
    for text, place in ((f"{top:.3g}", above), ("0", above + scale.height - CELL)):
        text, own = fitted(text, MAP_FONT, None)
        draw.text((bar + 2 * GAP + 3, place), text, fill="black", font=own)
    return ground


def _magnified(values: Float[Tensor, "r c"], cell: int) -> Image.Image:
    pixels = np.asarray(colours(values).numpy())
    return Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))


def font_for(text: str, size: int) -> Font:
    """Return Pillow's own font if it has all characters of a text, else the font of this machine that has most.

    Args:
        text: The text.
        size: Size of the font, in pixels.

    Example:
        >>> font_for("a cat", 16).getname()[0]
        'Aileron'
    """
    known = _fonts(size)
    return max(known, key=lambda font: sum(_has(font, character) for character in set(text)))


def fitted(text: str, size: int, width: int | None) -> tuple[str, Font]:
    """Return a text, shortened to a width, and its font; a short last word, such as a score, is kept.

    Args:
        text: The text; runs of white space count as one space.
        size: Size of the font, in pixels.
        width: Largest width, in pixels; None: any.

    Example:
        >>> fitted("a dining table with plates 0.93", 16, 150)[0]
        'a dining table… 0.93'
    """
    text = " ".join(text.split())
    font = font_for(text, size)
    if width is None or font.getlength(text) <= width:
        return text, font
    body, _, last = text.rpartition(" ")
    if not body or KEPT * font.getlength(last) > width:
        body, last = text, ""
    ending = f"… {last}" if last else "…"
    while body and font.getlength(body + ending) > width:
        body = body[:-1].rstrip()
    return body + ending, font


@lru_cache
def _fonts(size: int) -> tuple[Font, ...]:
    found: list[Font] = [ImageFont.load_default(size)]
    files = list(FILES)
    if (spec := importlib.util.find_spec("matplotlib")) is not None and spec.origin is not None:
        files.append(str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for file in files:
        try:
            found.append(ImageFont.truetype(file, size))
        except OSError:  # Not on this machine.
            continue
    return tuple(found)


@lru_cache(4096)
def _has(font: Font, character: str) -> bool:
    """Return False if a font draws a character as it does one that no font has."""
    if character.isspace():
        return True
    drawn, missing = font.getmask(character), font.getmask("\uffff")
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
