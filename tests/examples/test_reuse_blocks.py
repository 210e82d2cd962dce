"""Single blocks in foreign models: each helps, each is short enough to copy, and the script prints what it measured."""

import contextlib
import importlib.util
import inspect
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "reuse_blocks.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reuse_blocks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reuse_blocks"] = module  # Where inspect looks for the source of a class.
    spec.loader.exec_module(module)
    return module


EXAMPLE = load()
USES = {
    "DualModalAttention": (EXAMPLE.WordClassifier, EXAMPLE.attention_in_a_classifier),
    "ContextPrompter": (EXAMPLE.context_for_classification,),
    "SimilarityHead": (EXAMPLE.LabelVectorHead, EXAMPLE.head_on_foreign_features),
}


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, tuple[float, float]], str]:
    """Run the script in short; return its measurements and its output."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = EXAMPLE.main((150, 40, 200))
    torch.set_num_threads(threads)
    return {one.block: (one.without, one.with_it) for one in found}, said.getvalue()


@pytest.mark.parametrize("block", USES)
def test_each_block_helps(measured: tuple[dict[str, tuple[float, float]], str], block: str) -> None:
    without, with_it = measured[0][block]
    assert 0.1 < without < 0.9, "a baseline that is broken or leaves nothing to gain shows nothing"
    assert with_it > without + 0.1
    assert f"{block:<20}" in measured[1]
    assert f" {without:.3f} without, {with_it:.3f} with it\n" in measured[1]


def test_one_line_is_printed_for_each(measured: tuple[dict[str, tuple[float, float]], str]) -> None:
    assert [line.split()[0] for line in measured[1].splitlines()] == list(USES) == list(measured[0])


@pytest.mark.parametrize("block", USES)
def test_each_use_is_short_enough_to_copy(block: str) -> None:
    assert sum(len(inspect.getsource(part).splitlines()) for part in USES[block]) < 40
    assert any(block in inspect.getsource(part) for part in USES[block])


def test_measurements_are_repeatable() -> None:
    first, second = (EXAMPLE.attention_in_a_classifier(steps=20) for _ in range(2))
    assert first == second
