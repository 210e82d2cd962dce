"""Labels that are hidden, and pictures that are set aside."""

from pathlib import Path

import pytest
import torch

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, hide_labels, split_by_name


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


def numbered(count: int, labels: int = 3) -> LabelledImages:
    names = [f"{number}.jpg" for number in range(count)]
    target = torch.zeros(count, labels)
    target[torch.arange(count), torch.arange(count) % labels] = 1.0
    return LabelledImages(
        name="mine", labels=LabelSet(tuple("abcdefgh")[:labels]), paths=[Path(name) for name in names],
        identifiers=names, target=target,
    )  # fmt: skip


def test_what_is_set_aside_hangs_on_the_seed_and_the_names_and_not_on_their_order() -> None:
    data = numbered(60)
    aside = set(split_by_name(data, share=0.2, seed=1)[1].identifiers)
    turned = data.select(list(range(59, -1, -1)))
    assert set(split_by_name(turned, share=0.2, seed=1)[1].identifiers) == aside
    assert set(split_by_name(data, share=0.2, seed=2)[1].identifiers) != aside


def test_each_label_has_its_share_of_what_is_set_aside_by_its_known_positives() -> None:
    data = numbered(60)
    rest, aside = split_by_name(data, share=0.2)
    assert (len(rest), len(aside)) == (48, 12)
    assert aside.target.sum(dim=0).tolist() == [4.0, 4.0, 4.0]
    known = torch.ones(60, 3, dtype=torch.bool)
    known[10:, 0] = False  # Of the first label four positives are known.
    rest, aside = split_by_name(data.with_known(known, "few"), share=0.5)
    assert [int(part.target[:, 0].sum()) for part in (rest, aside)] == [2, 2]


def test_one_picture_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"^mine: expected enough pictures to set 0\.5 of them aside, found 1$"):
        split_by_name(numbered(1, labels=1), share=0.5)
