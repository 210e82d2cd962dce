"""Runs that earlier versions wrote, which can still be read."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.training_toys import write_voc
from safetensors.torch import load_file

from pvlr.cli.command import command
from pvlr.inference.recognizer import Recognizer
from pvlr.train import train
from pvlr.train.checkpoint import FORMAT, Checkpoints
from pvlr.train.data_config import VOCData

FOLDERS = sorted(Path(__file__).parent.glob("run-format-*"))


def test_there_is_one_of_every_format() -> None:
    assert [folder.name for folder in FOLDERS] == [f"run-format-{number}" for number in range(1, FORMAT + 1)]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_run_of_an_earlier_version_predicts_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_voc(Path("voc"), train=8, test=4)
    shutil.copytree(folder, "run")
    expected = json.loads(Path("run/expected.json").read_text())
    tags = Recognizer.from_pretrained("run").tag("voc/VOCdevkit/VOC2007/JPEGImages/000009.jpg", threshold=0.0)
    found = {one.name: one.probability for one in tags}
    assert found == pytest.approx(expected, abs=1e-4)
    loaded = Checkpoints(Path("run/checkpoints")).load()
    assert loaded is not None
    assert loaded[1]["step"] == 2
    Path("run/model.safetensors").unlink()
    assert command(train, ["--config=run/config.yaml", "--run.resume=require"], data=VOCData) == 0
    assert "going on from step 2 of the run in run" in capsys.readouterr().out
    for name, value in load_file("run/model.safetensors").items():
        torch.testing.assert_close(value, load_file(folder / "model.safetensors")[name], atol=1e-3, rtol=0, msg=name)
