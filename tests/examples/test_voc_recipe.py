"""The shipped Pascal VOC recipe on real photographs, with a locally saved ViT-B/16 of random weights."""

import json
import math
import shutil
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from pvlr.cli.command import command
from pvlr.train import train
from pvlr.train.data_config import VOCData


def few_photographs(shared: Path, root: Path) -> None:
    """A copy of 12 real photographs with their annotations, and the splits `few` (8 of them) and `others` (4)."""
    source, copy = (folder / "VOCdevkit" / "VOC2007" for folder in (shared / "data" / "voc-mini", root))
    identifiers = (source / "ImageSets" / "Main" / "trainval.txt").read_text().split()[:12]
    for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (copy / folder).mkdir(parents=True)
        for identifier in identifiers:
            shutil.copyfile(source / folder / f"{identifier}.{ending}", copy / folder / f"{identifier}.{ending}")
    (copy / "ImageSets" / "Main").mkdir(parents=True)
    for split, chosen in (("few", identifiers[:8]), ("others", identifiers[8:])):
        (copy / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(chosen) + "\n")


def test_recipe_trains_on_real_photographs_from_a_local_checkpoint(shared: Path, tmp_path: Path) -> None:
    few_photographs(shared, tmp_path / "voc")
    torch.manual_seed(0)
    weights = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "vit_b16.safetensors")
    del weights
    run = tmp_path / "run"
    # The recipe, but smaller pictures, fewer of them and a short run: a CPU takes a second per picture of 448 pixels.
    options = {
        "config": "voc07_vit_b16",
        "data.root": tmp_path / "voc",
        "data.train_split": "few",
        "data.test_split": "others",
        "data.workers": 0,
        "tower.weights": tmp_path / "vit_b16.safetensors",
        "tower.activation": "quick_gelu",  # Which a file does not say.
        "tower.image_size": 96,
        "loop.epochs": 6,
        "loop.batch_size": 4,
        "loop.eval_batch_size": 4,
        "loop.precision": "float32",
        "run.folder": run,
        "run.tensorboard": "false",
    }
    command(train, [part for name, value in options.items() for part in (f"--{name}", str(value))], data=VOCData)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert len(losses) == 12
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
