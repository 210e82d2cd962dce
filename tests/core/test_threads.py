"""Parts that threads compute side by side: every part once, in order, and the caller's number of threads as it was."""

from collections.abc import Iterator
from threading import Barrier, Thread, get_ident

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pvlr.core.protocols import side_by_side


@pytest.fixture(autouse=True, scope="module")
def _four_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@given(st.lists(st.integers(), max_size=20))
def test_every_part_is_computed_once_and_told_in_order(parts: list[int]) -> None:
    seen: list[int] = []
    assert side_by_side(lambda part: (seen.append(part), 2 * part)[1], parts) == [2 * part for part in parts]
    assert sorted(seen) == sorted(parts)


@pytest.mark.parametrize(("parts", "threads", "each"), [(1, 1, 4), (2, 2, 2), (3, 3, 1), (4, 4, 1), (9, 4, 1)])
def test_the_cores_are_shared_out(parts: int, threads: int, each: int) -> None:
    together = Barrier(threads)

    def work(part: int) -> tuple[int, int]:
        if part < threads:
            together.wait(60)  # As many as there are threads run at once, or this fails.
        return get_ident(), torch.get_num_threads()

    found = side_by_side(work, range(parts))
    assert len({ident for ident, _ in found}) == threads
    assert {cores for _, cores in found} == {each}


def test_the_caller_and_threads_to_come_have_as_many_as_before() -> None:
    side_by_side(lambda part: part, range(4))
    later: list[int] = []
    thread = Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), later) == (4, [4])


def test_an_error_of_a_part_is_the_callers() -> None:
    def work(part: int) -> float:
        return 1 / (part - 2)

    with pytest.raises(ZeroDivisionError):
        side_by_side(work, range(5))
    assert torch.get_num_threads() == 4
