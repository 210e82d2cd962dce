"""What one would write without the library: features of a published network, and a linear head with thresholds.

    python tests/benchmarks/plain.py FOLDER/VOCdevkit/VOC2007

It has the same network and image size as pvlr:photos, and reads and trains as torchvision's and torch's tutorials do.
"""

import argparse
import xml.etree.ElementTree as ET
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

LABELS = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


class Pictures(Dataset):
    """Pictures of a split and their labels."""

    def __init__(self, root: Path, split: str) -> None:
        self.root, self.names = root, (root / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        self.transform = v2.Compose([
            v2.Resize((288, 288), antialias=True), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        name = self.names[row]
        tree = ET.parse(self.root / "Annotations" / f"{name}.xml")
        found = {item.findtext("name") for item in tree.iter("object")}
        target = torch.tensor([float(label in found) for label in LABELS])
        return self.transform(Image.open(self.root / "JPEGImages" / f"{name}.jpg").convert("RGB")), target


@torch.no_grad()
def features(network: nn.Module, data: Dataset, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pooled features and targets of all pictures."""
    parts = [(network(images), target) for images, target in DataLoader(data, batch_size=100, num_workers=workers)]
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def average_precision(scores: torch.Tensor, target: torch.Tensor) -> float:
    """Return the mean over the labels that have a positive."""
    values = []
    for column in range(target.shape[1]):
        hits = target[scores[:, column].argsort(descending=True), column]
        if hits.sum() > 0:
            precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
            values.append(float((precision * hits).sum() / hits.sum()))
    return sum(values) / len(values)


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="the network's file; random weights without it")
    given = parser.parse_args()
    network = timm.create_model("efficientnet_lite0", num_classes=0).eval()
    if given.weights is not None:
        values = list(torch.load(given.weights, weights_only=True).values())
        network.load_state_dict(dict(zip(network.state_dict(), values, strict=False)))
    vectors, target = features(network, Pictures(given.root, "trainval"), given.workers)
    held = len(vectors) // 5
    head = nn.Linear(vectors.shape[1], len(LABELS))
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(given.epochs):
        for rows in (held + torch.randperm(len(vectors) - held)).split(32):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(head(vectors[rows]), target[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        probabilities = head(vectors[:held]).sigmoid()
        steps = torch.linspace(0.05, 0.95, 19)
        picked = probabilities[None] >= steps[:, None, None]
        hits = (picked * target[:held]).sum(1)
        f1 = 2 * hits / (picked.sum(1) + target[:held].sum(0)).clamp(min=1)
        thresholds = steps[f1.argmax(dim=0)]
        vectors, target = features(network, Pictures(given.root, "test"), given.workers)
        scores = head(vectors)
    print(f"thresholds {[round(float(value), 2) for value in thresholds]}")
    print(f"mAP {100 * average_precision(scores, target):.2f}")


if __name__ == "__main__":
    main()
