"""The core reads pictures by what announces itself as an entry point, and by nothing else."""

import sys
from importlib.metadata import entry_points

import pytest
import torch

from pvlr.core import pictures
from pvlr.core.pictures import GROUP, read_picture

ASKED = {"size": 4, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}


def test_what_is_announced_reads_the_picture() -> None:
    assert [point.value for point in entry_points(group=GROUP)] == ["pvlr.data.pictures:prepare"]
    assert torch.equal(read_picture(torch.ones(3, 9, 7), ASKED), torch.ones(3, 4, 4))


def test_without_it_or_without_what_it_needs_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pvlr.data.pictures", "pvlr.data.images"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        with pytest.raises(ValueError, match=r"needs the package PIL: pip install 'pvlr\[data\]'$"):
            read_picture(torch.ones(3, 9, 7), ASKED)
    monkeypatch.setattr(pictures, "entry_points", lambda group: ())
    with pytest.raises(ValueError, match=r"^picture: expected pvlr to be installed"):
        read_picture(torch.ones(3, 9, 7), ASKED)
