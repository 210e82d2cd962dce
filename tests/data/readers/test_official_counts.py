"""Every count and every mark of the official lists, as the readers find them."""

from pathlib import Path

import pytest
from official_counts import SETS, Count, voc_lists, voc_marks


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", SETS)
def test_the_readers_find_what_the_official_lists_say(name: str, shared: Path, tmp_path: Path) -> None:
    counts = list(SETS[name](shared, tmp_path))
    assert [count for count in counts if count.found != count.official] == []
    assert len(counts) >= 2
    assert all(isinstance(count, Count) and count.official > 0 for count in counts)


def test_the_lists_hold_every_kind_of_mark(shared: Path) -> None:
    lists = voc_lists(shared)
    for split in ("trainval", "test"):
        assert set(voc_marks(lists, split)[1].unique().tolist()) == {-1, 0, 1}
