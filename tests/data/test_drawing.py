"""Sheets and maps: everything in its place, readable, and refused where it does not fit."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pvlr.core.shapes import ShapeError
from pvlr.data.batch import DataError
from pvlr.data.drawing import CELL, GAP, Line, Tile, heat_map, sheet

RED, BLUE = (255, 0, 0), (0, 0, 255)


def ink(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((np.asarray(picture) == colour).all(axis=-1))


def test_tiles_lie_in_rows_with_their_lines_below() -> None:
    tiles = [Tile(Image.new("RGB", (10, 10), RED), (Line("x" * 8, "blue"),)), Tile(Image.new("RGB", (10, 10), RED))]
    drawn = sheet([*tiles, tiles[0]], columns=2, side=100)
    # Two in the first row, one in the second.
    for left, top in ((GAP, GAP), (100 + 2 * GAP, GAP)):
        assert drawn.getpixel((left, top)) == drawn.getpixel((left + 99, top + 99)) == RED
    assert drawn.getpixel((50, drawn.height - GAP - 30)) == RED
    rows = ink(drawn, BLUE)[:, 0]
    assert rows.min() >= GAP + 100
    assert ((rows < 130) | (rows > 200)).all()


def test_proportions_stay_and_long_lines_are_cut_at_the_picture() -> None:
    drawn = sheet([Tile(Image.new("RGB", (40, 20), RED), (Line("long " * 99, "blue"),))] * 2, columns=2, side=80)
    assert len(ink(drawn, RED)) == 2 * 80 * 40
    columns = ink(drawn, BLUE)[:, 1]
    assert not ((columns > GAP + 80) & (columns < 2 * GAP + 80)).any()


def test_the_largest_value_is_brightest_in_its_row_and_column() -> None:
    values = torch.zeros(3, 4)
    values[1, 2] = 0.25
    drawn = heat_map(values, rows=("a", "b", "c"), columns=("d", "e", "f", "g"), title="who looks at whom")
    bright = ink(drawn, (252, 255, 164))
    cell = bright[bright[:, 1] < bright[:, 1].min() + CELL]  # The scale beside it is as bright at its top.
    dark = ink(drawn, (0, 0, 4))
    top, left = dark[:, 0].min(), dark[:, 1].min()
    assert cell[:, 0].min() == top + CELL
    assert cell[:, 1].min() == left + 2 * CELL
    assert len(cell) == CELL**2


def test_names_stand_beside_the_map_and_not_on_it() -> None:
    names = ("a very long name of a label", "b")
    drawn = heat_map(torch.full((2, 2), 0.5), rows=names, columns=names)
    bright = ink(drawn, (252, 255, 164))
    left, above = bright[:, 1].min(), bright[:, 0].min()
    written = ink(drawn, (0, 0, 0))
    assert (written[:, 1] < left).any()
    assert (written[:, 0] < above).any()
    assert not ((written[:, 0] >= above) & (written[:, 1] >= left) & (written[:, 1] < left + 2 * CELL)).any()


@pytest.mark.usefixtures("unchecked")
def test_a_map_and_its_names_have_one_size() -> None:
    with pytest.raises(ShapeError, match=r"^values: expected axes 'r c' with r=1, got shape \(2, 2\)$"):
        heat_map(torch.eye(2), rows=("a",), columns=("a", "b"))


@pytest.mark.parametrize("changed", [{"tiles": []}, {"columns": 0}, {"side": 0}])
def test_refusals(changed: dict[str, Any]) -> None:
    options: dict[str, Any] = {"tiles": [Tile(Image.new("RGB", (1, 1)))], "columns": 1, "side": 1} | changed
    with pytest.raises(DataError, match=rf"^{next(iter(changed))}: expected at least 1, got 0$"):
        sheet(options.pop("tiles"), **options)
