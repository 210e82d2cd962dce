"""Tensors in files: the same when they come back, whatever they are and in whatever process."""

import pickle
from pathlib import Path

import pytest
import torch
from helpers.strategies import Draw, draws
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.metrics.report import ReportAccumulator, multilabel_report
from pvlr.train.evaluation.spill import spill_to


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int8])
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (1,)])
def test_a_tensor_comes_back_as_it_was(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = (9 * Draw(0).normal(*shape)).to(dtype)
    back = pickle.loads(pickle.dumps(spill_to(tmp_path)(tensor)))()  # noqa: S301
    assert torch.equal(back, tensor)
    assert back.dtype == dtype
    back += 1  # What is done to it stays in memory.
    assert torch.equal(spill_to(tmp_path)(tensor)(), tensor)


@given(draws(), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_a_report_from_files_is_the_report(
    tmp_path_factory: pytest.TempPathFactory, draw: Draw, n: int, c: int, parts: int
) -> None:
    scores, target, known = draw.normal(n, c).float(), draw.chance(0.3, n, c), draw.chance(0.8, n, c)
    probabilities = scores.sigmoid()
    folder = tmp_path_factory.mktemp("shelf")
    found = ReportAccumulator(keep=spill_to(folder))
    for rows in draw.order(n).tensor_split(parts):
        found.update(probabilities[rows], target[rows], known[rows], scores=scores[rows])
    assert sum(path.stat().st_size for path in folder.iterdir()) == 5 * n * c
    wanted = multilabel_report(probabilities, target, known, scores=scores)
    assert str(found.compute().to_json()) == str(wanted.to_json())
