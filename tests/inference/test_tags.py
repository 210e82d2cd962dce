"""Choice of the labels that are told of a picture."""

import pytest
import torch
from helpers.messages import pinned
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.labels import LabelSet
from pvlr.core.metrics.report import multilabel_report
from pvlr.core.shapes import ShapeError
from pvlr.inference.tags import choose_tags

ONE, TWO = LabelSet(("a",)), LabelSet(("a", "b"))


@given(st.floats(0, 1), st.booleans())
def test_a_label_is_told_exactly_where_the_report_counts_it_as_told(threshold: float, wide: bool) -> None:
    probability = torch.tensor([[threshold]], dtype=torch.float64 if wide else torch.float32)
    told = choose_tags(ONE, probability[0], (threshold,))
    report = multilabel_report(probability, torch.tensor([[1]]), labels=ONE, threshold=threshold)
    assert len(told) == report.OR == 1


def test_a_threshold_is_reached_in_the_width_of_the_probabilities() -> None:
    for width in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        probabilities = torch.tensor([0.7, 0.3], dtype=width)
        assert [tag.name for tag in choose_tags(TWO, probabilities, (0.7, 0.3))] == ["a", "b"]
        assert [tag.name for tag in choose_tags(TWO, probabilities, (0.75, 0.3))] == ["b"]
        assert choose_tags(TWO, probabilities, (0.75, 1.0)) == []


def test_each_tag_has_its_own_map() -> None:
    maps = torch.rand(2, 3, 3)
    first, second = choose_tags(TWO, torch.tensor([0.5, 0.75]), (0.5, 0.5), maps)
    assert (first.name, first.probability, second.name) == ("b", 0.75, "a")
    assert torch.equal(first.attention, maps[1])
    assert torch.equal(second.attention, maps[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("probabilities", "thresholds", "kind", "message"),
    [
        ((0.5, torch.nan), (0.5, 0.5), ValueError, "probabilities: expected numbers, got nan for 'b'"),
        ((0.5,), (0.5, 0.5), ShapeError, "probabilities: expected axes 'c' with c=2, got shape (1,)"),
        ((1, 0), (0.5, 0.5), ShapeError, "probabilities: expected a tensor of dtype float, got torch.int64"),
        ((0.5, 0.5), (0.5,), ValueError, "thresholds: expected one for each of the 2 labels, got 1"),
    ],
)
def test_what_is_no_probability_or_threshold_is_refused(
    probabilities: tuple, thresholds: tuple, kind: type, message: str
) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        choose_tags(TWO, torch.tensor(probabilities), thresholds)
