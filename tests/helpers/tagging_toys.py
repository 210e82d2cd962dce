"""A model that tags and pictures to tag: three colours, told apart by towers of a few thousand parameters."""

from pathlib import Path

import torch
from PIL import Image

from helpers.tower_models import write_folder
from pvlr.core import PVLR, LabelSet, PVLRConfig, TowerSpec, build_towers
from pvlr.inference.decision import Decision
from pvlr.inference.recognizer import Recognizer

NAMES = ("red", "traffic light", "blue")


def make_recognizer(folder: Path) -> Recognizer:
    """A recognizer whose tower lies in a folder, with a threshold of its own for each label."""
    write_folder(folder, "vit")
    towers = build_towers(TowerSpec(name=f"local-dir:{folder}"))
    model = PVLR.from_towers(PVLRConfig(heads=4), LabelSet(NAMES), towers).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    recognizer = Recognizer(model)
    noise = [torch.randint(256, (3, 20, 30), generator=generator, dtype=torch.uint8) for _ in range(32)]
    with torch.no_grad():
        middle = model(torch.stack([recognizer.prepare(one) for one in noise])).logits.sigmoid().median(dim=0).values
    recognizer.decision = Decision(thresholds=dict(zip(NAMES, middle.tolist(), strict=True)), fitted_on="noise")
    return recognizer


def write_pictures(folder: Path, count: int) -> list[str]:
    """Pictures of noise of several sizes, by their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        generator = torch.Generator().manual_seed(number)
        shape = (20 + number % 3, 30 + number % 5, 3)
        Image.fromarray(torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()).save(path)
    return [str(path) for path in paths]
