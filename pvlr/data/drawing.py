"""Drawings for people: sheets of pictures with lines below them, and maps with named rows and columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pvlr.core.shapes import expect
from pvlr.data.batch import DataError
from pvlr.data.overlay import colours

__all__ = ["Line", "Tile", "heat_map", "sheet"]

GAP = 6
# Larger on sheets, which viewers shrink; a map's text has the size of its cells.
SHEET_FONT, SHEET_LINE = 16, 21
MAP_FONT, CELL = 12, 16


class Line(NamedTuple):
    """A line of text.

    Attributes:
        text: The text; cut off if it is too long.
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
    font = ImageFont.load_default(SHEET_FONT)
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
                draw.text(place, _cut(line.text, font, side), fill=line.colour, font=font)
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
    font = ImageFont.load_default(MAP_FONT)
    values = values.detach().float().cpu()
    top = float(values.max()) or 1.0
    cell = CELL
    names = [[_cut(name, font, 180) for name in axis] for axis in (rows, columns)]
    left, above = (round(max(map(font.getlength, axis))) + 2 * GAP for axis in names)
    above += CELL + GAP
    height, width = (count * cell for count in values.shape)
    bar = left + width + 2 * GAP
    ground = Image.new("RGB", (max(bar + 60, round(font.getlength(title)) + 2 * GAP), above + height + GAP), "white")
    draw = ImageDraw.Draw(ground)
    draw.text((GAP, GAP // 2), title, fill="black", font=font)
    ground.paste(_magnified(values / top, cell), (left, above))
    for number, name in enumerate(names[0]):
        draw.text((left - GAP - font.getlength(name), above + number * cell), name, fill="black", font=font)
    for number, name in enumerate(names[1]):
        strip = Image.new("RGB", (round(font.getlength(name)) + 2, CELL), "white")
        ImageDraw.Draw(strip).text((0, 0), name, fill="black", font=font)
        turned = strip.rotate(90, expand=True)
        ground.paste(turned, (left + number * cell, above - GAP // 2 - turned.height))
    scale = _magnified(torch.linspace(1, 0, max(height, 2 * CELL))[:, None], 1).resize((GAP * 2, max(height, 2 * CELL)))
    ground.paste(scale, (bar, above))
    draw.text((bar + 2 * GAP + 3, above), f"{top:.3g}", fill="black", font=font)
    draw.text((bar + 2 * GAP + 3, above + scale.height - CELL), "0", fill="black", font=font)
    return ground


def _magnified(values: Float[Tensor, "r c"], cell: int) -> Image.Image:
    pixels = np.asarray(colours(values).numpy())
    return Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return as much of a text as fits a width."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
