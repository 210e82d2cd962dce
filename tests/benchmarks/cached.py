"""Training on what a frozen tower saw, kept on the disk, beside training with the tower in the loop."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measure import measure, table

PICTURES, BATCH, EPOCH = 64, 32, 5_011


def steps(features: str, knowledge_alone: bool, photographs: str, folder: str) -> Callable[[], object]:
    """Training steps over `PICTURES` photographs: 20 labels, frozen ViT-B/16 at 224 of random weights."""
    import open_clip

    from pvlr.core import PVLR, PVLRConfig
    from pvlr.core.towers.image.tower import OpenClipImageTower
    from pvlr.core.towers.text.open_clip import OpenClipTextTower
    from pvlr.data.dataset import LabelledImages
    from pvlr.data.readers.voc import VOC_LABELS
    from pvlr.data.sampling import EpochSampler
    from pvlr.data.transforms import ImageTransform, TransformConfig
    from pvlr.train.config import OptimizerConfig
    from pvlr.train.dataloaders import load_batches
    from pvlr.train.features import cache_features
    from pvlr.train.loop import FitConfig, train_step
    from pvlr.train.optim import build_optimizer

    clip = open_clip.create_model("ViT-B-16-quickgelu", load_weights=False).eval()
    image = OpenClipImageTower(clip.visual)
    text = OpenClipTextTower(clip, open_clip.get_tokenizer("ViT-B-16-quickgelu"))
    config = PVLRConfig(fusion="knowledge") if knowledge_alone else PVLRConfig()
    model = PVLR(config, VOC_LABELS, text, image).train()
    image.requires_grad_(False)
    transform = TransformConfig(size=224, mean=(0.5,) * 3, std=(0.25,) * 3, crop=1.0, flip=False)
    paths = sorted(Path(photographs).glob("*.jpg"))[:PICTURES]
    pictures = LabelledImages(
        name="photographs", labels=VOC_LABELS, paths=paths, identifiers=[path.name for path in paths],
        target=(torch.rand(len(paths), len(VOC_LABELS)) < 0.1).float(), transform=ImageTransform(transform),
    )  # fmt: skip
    data = pictures
    if features == "cache":
        data = cache_features(pictures, image.eval(), Path(folder), fingerprint="random", transform=transform)
    optimizer = build_optimizer(model, OptimizerConfig())

    def work() -> None:
        for batch in load_batches(data, EpochSampler(len(data), BATCH, shuffle=True)):
            train_step(model, optimizer, [batch], FitConfig(clip_norm=1.0))

    return work


def report(photographs: Path) -> Iterator[str]:
    """The table, ratio first; ``photographs`` holds JPEG files."""
    rows = []
    for title, knowledge_alone in (("all of PVLR", False), ("fixed prompts alone", True)):
        seconds = {}
        for features in ("tower", "cache"):
            with tempfile.TemporaryDirectory() as folder:
                cost = measure(
                    steps, repeat=2 if features == "tower" else 5, features=features, knowledge_alone=knowledge_alone,
                    photographs=str(photographs), folder=f"{folder}/features",
                )  # fmt: skip
            seconds[features] = cost.seconds * EPOCH / PICTURES
        rows.append(
            (
                title,
                f"1/{seconds['tower'] / seconds['cache']:.1f}",
                f"{seconds['cache']:.0f} s",
                f"{seconds['tower']:.0f} s",
            )
        )
    header = ("what is trained", "time", "from the cache", "tower in the loop")
    yield table(
        f"An epoch of VOC's {EPOCH:,} pictures, scaled from {PICTURES}: ViT-B/16, 224, 20 labels, batches of {BATCH}",
        header,
        rows,
    )
