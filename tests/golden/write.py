"""Write the golden files of a format: what a run of this version leaves behind, for later versions to read.

    python tests/golden/write.py

Run it once for each new number of a format, and keep the folders of all earlier ones.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.training_toys import write_voc

from pvlr.cli.command import command
from pvlr.inference.recognizer import Recognizer
from pvlr.train import train
from pvlr.train.checkpoint import FORMAT
from pvlr.train.data_config import VOCData

FOLDER = Path(__file__).parent / f"run-format-{FORMAT}"
# The tower comes with the package; blocks without large weights, so that the files stay small.
OPTIONS = {
    "data.root": "voc",
    "data.workers": 0,
    "tower.name": "pvlr:scenes-clip",
    "model.relation": "none",
    "model.direction": "none",
    "model.fusion": "sum",
    "model.adapter_width": 4,
    "model.feedforward": 4,
    "loop.epochs": 2,
    "loop.batch_size": 4,
    "loop.ema": 0.9,
    "loop.device": "cpu",
    "optimizer.lr": 0.01,
    "run.folder": "run",
    "run.tensorboard": "false",
}
PICTURE = "voc/VOCdevkit/VOC2007/JPEGImages/000009.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    if FOLDER.exists():
        # What later versions have to read would become what this one writes.
        parser.error(f"expected no {FOLDER.name} yet, found one; remove it if no such format was ever released")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # The configuration holds no path of this machine.
        write_voc(Path("voc"), train=8, test=4)
        command(train, [f"--{name}={value}" for name, value in OPTIONS.items()], data=VOCData)
        (FOLDER / "checkpoints").mkdir(parents=True)
        for file in ("model.json", "model.safetensors", "config.yaml"):
            shutil.copy(f"run/{file}", FOLDER)
        for path in sorted(Path("run/checkpoints").glob("step-00000002.pt*")):
            shutil.copy(path, FOLDER / "checkpoints")
        found = {one.name: one.probability for one in Recognizer.from_pretrained("run").tag(PICTURE, threshold=0.0)}
        (FOLDER / "expected.json").write_text(f"{json.dumps(found, indent=1, sort_keys=True)}\n")


if __name__ == "__main__":
    main()
