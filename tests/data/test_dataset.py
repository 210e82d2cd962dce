"""Labels that are hidden."""

from pathlib import Path

import pytest
import torch

from pvlr.core.labels import LabelSet
from pvlr.data.dataset import LabelledImages, hide_labels


@pytest.mark.parametrize("keep", [0.5, "single_positive"])
def test_what_is_hidden_hangs_on_the_seed_the_name_and_the_columns(keep: float | str) -> None:
    names = [f"{number}.jpg" for number in range(40)]
    data = LabelledImages(
        name="mine", labels=LabelSet(tuple("abcdefgh")), paths=[Path(name) for name in names], identifiers=names,
        target=torch.ones(40, 8),
    )  # fmt: skip
    known = hide_labels(data, keep=keep, seed=1).known
    rows = [7, 3, 39]
    assert torch.equal(hide_labels(data.select(rows), keep=keep, seed=1).known, known[rows]), "not on other pictures"
    assert not torch.equal(hide_labels(data, keep=keep, seed=2).known, known)
    # As its documentation says: column by column.
    turned = hide_labels(data.with_labels(tuple("hgfedcba")), keep=keep, seed=1).known
    assert torch.equal(turned, known)
