import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvlr.core.shapes import ShapeError
from pvlr.data.batch import DataError
from pvlr.data.contact_sheet import GAP, LINE, contact_sheet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 7), columns=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 6),
    captioned=st.booleans(), seed=st.integers(0, 2**32),
)  # fmt: skip
def test_every_picture_is_on_the_sheet_as_it_was_before_normalisation(
    count: int, columns: int, height: int, width: int, captioned: bool, seed: int
) -> None:
    levels = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    captions = ["cat"] * count if captioned else None
    sheet = contact_sheet((levels - mean) / std, mean=MEAN, std=STD, captions=captions, columns=columns)
    expected = torch.ones_like(sheet)
    step = height + GAP + (LINE if captioned else 0)
    for number in range(count):
        top, left = GAP + number // columns * step, GAP + number % columns * (width + GAP)
        expected[:, top : top + height, left : left + width] = levels[number]
        if captioned:
            below = slice(top + height, top + height + LINE)
            expected[:, below, left : left + width] = sheet[:, below, left : left + width]
    rows, wide = -(-count // columns), min(count, columns)
    assert sheet.shape == (3, GAP + rows * step, GAP + wide * (width + GAP))
    torch.testing.assert_close(sheet, expected)


def test_captions_stand_below_their_pictures() -> None:
    black = torch.full((2, 3, 20, 60), -2.0)
    plain, one = (
        contact_sheet(black, mean=MEAN, std=STD, captions=captions) for captions in (["", ""], ["", "cat\nand dog"])
    )
    rows, columns = (plain != one).any(0).nonzero().unbind(1)
    assert rows.min() >= GAP + 20
    assert rows.max() < GAP + 20 + LINE
    assert columns.min() >= 2 * GAP + 60


def test_levels_stay_within_their_range() -> None:
    sheet = contact_sheet(torch.tensor([-50.0, 50.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4), mean=MEAN, std=STD)
    assert (float(sheet.min()), float(sheet.max())) == (0.0, 1.0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 8, 8)}, ShapeError, r"images: expected axes 'b k y x', got shape \(3, 8, 8\)"),
        ({"images": torch.zeros(1, 4, 8, 8)}, ShapeError, "images: expected axes 'b k y x' with k=3"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, ShapeError, "expected a tensor of dtype float"),
        ({"columns": 0}, DataError, "columns: expected at least 1, got 0"),
        ({"captions": ["a"]}, DataError, "captions: expected one for each of the 2 pictures, got 1"),
        ({"mean": (0.5,)}, DataError, "mean: expected three numbers, got 1"),
        ({"std": (0.5, 0.5)}, DataError, "std: expected three numbers, got 2"),
    ],
)  # fmt: skip
def test_what_it_refuses(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        contact_sheet(**{"images": torch.zeros(2, 3, 8, 8), "mean": MEAN, "std": STD, **change})
