"""Fitting of `pvlr:photos` on its two published networks: text vectors of the classes, scale, bias, threshold.

    python examples/fit_photos_tower.py --voc FOLDER --coco_images FOLDER --coco_annotations instances_train.json

writes `concepts.safetensors` and the entry `zero_shot` of `open_clip_config.json` into `pvlr/assets/photos`, and
`made.json` with the command, the values tried and the one chosen. Everything is chosen and fitted on VOC's `trainval`
and on COCO's training pictures; no test picture is read. It takes minutes, and needs the extra `photos`.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional as F

import pvlr
from pvlr.cli.command import command
from pvlr.core import PVLR, LabelSet, average_precision, load_towers, mean_average_precision
from pvlr.core.losses import binary_cross_entropy
from pvlr.core.models.zero_shot import zero_shot_config
from pvlr.core.towers import Towers
from pvlr.core.towers.photos import CONCEPTS_NAME
from pvlr.data.batch import Batch
from pvlr.data.dataset import LabelledImages
from pvlr.data.readers.coco import read_coco
from pvlr.data.readers.voc import read_voc
from pvlr.data.sampling import EpochSampler
from pvlr.data.transforms import still_transform
from pvlr.files import write_atomically
from pvlr.train.dataloaders import load_batches
from pvlr.train.evaluation.predictions import Predictions, predict_logits

ASSETS = Path(pvlr.__file__).parent / "assets" / "photos"
CONFIG = ASSETS / "open_clip_config.json"
DIM = 384


def fit(
    *,
    voc: str,
    coco_images: str,
    coco_annotations: str,
    sizes: Sequence[int] = (224, 256, 288, 320, 352),
    temperatures: Sequence[float] = (1.0, 1.25, 1.5, 1.75, 2.0),
    workers: int = 2,
) -> None:
    """Write the files and print the result.

    Args:
        voc: Folder that holds VOCdevkit/VOC2007.
        coco_images: Folder of COCO's training pictures.
        coco_annotations: Their annotations.
        sizes: Image sizes that are tried.
        temperatures: Divisors of the logits of single positions that are tried.
        workers: Processes that read pictures.
    """
    started = time.time()
    _write_concepts(torch.zeros(1000, DIM), scale=10.0, bias=0.0)
    concepts = _concepts(load_towers("pvlr:photos"))
    _write_concepts(concepts, scale=10.0, bias=0.0)
    data = (
        read_voc(voc, split="trainval", train=True),
        read_coco(coco_images, coco_annotations, keep_unlabelled=True),
    )
    tried = []
    for size in sizes:
        towers = load_towers("pvlr:photos", image_size=size)
        rows: list[dict[str, float]] = [{"image_size": size, "patch_temperature": one} for one in temperatures]
        for part in data:
            for row, value in zip(rows, _mean_aps(towers, part, temperatures, workers), strict=True):
                row[part.name] = round(100 * value, 2)
        for row in rows:
            print(row, flush=True)
        tried += rows
    best = max(tried, key=lambda row: sum(row[part.name] for part in data))
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    config["model_cfg"]["vision_cfg"]["image_size"] = best["image_size"]
    config["model_cfg"]["vision_cfg"]["concepts"]["patch_temperature"] = best["patch_temperature"]
    on = " and ".join(part.summary() for part in data)
    config["zero_shot"] = {"regions": "both", "threshold": 0.5, "fitted_on": on}
    _write_config(config)
    # By the model itself, as in use.
    found = [_cosines(load_towers("pvlr:photos"), part, workers) for part in data]
    scale, bias = _fit_two(found)
    config["zero_shot"]["threshold"] = threshold = _fit_threshold(found, scale, bias)
    _write_config(config)
    _write_concepts(concepts, scale=scale, bias=bias)
    record = {
        "command": "python examples/fit_photos_tower.py --voc FOLDER --coco_images FOLDER --coco_annotations FILE",
        "fitted_on": on,
        "tried": tried,
        "chosen": best,
        "mAP": [round(100 * _mean_ap(part), 2) for part in found],
        "scale": scale,
        "bias": bias,
        "threshold": threshold,
        "classes": "ImageNet-1k, lemmas and gloss of WordNet as timm.data.ImageNetInfo has them",
        "seconds": round(time.time() - started),
    }
    write_atomically(ASSETS / "made.json", f"{json.dumps(record, indent=1)}\n".encode())
    print(f"chosen: {best}; scale {scale:.2f}, bias {bias:.2f}, threshold {threshold:.2f}")


def _concepts(towers: Towers) -> Tensor:
    """Return unit text vectors of the 1,000 classes, from their names and glosses in WordNet."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    texts = [info.index_to_description(index, detailed=True) for index in range(1000)]
    parts = [towers.text.encode(texts[start : start + 50]) for start in range(0, 1000, 50)]
    return F.normalize(torch.cat(parts), dim=-1)


def _write_concepts(vectors: Tensor, *, scale: float, bias: float) -> None:
    weights = {
        # One column per class: the weight of a layer from their probabilities to the joint space.
        "visual.head.concepts.weight": vectors.T.half().contiguous(),
        "logit_scale": torch.tensor(math.log(scale)),
        "logit_bias": torch.tensor(bias),
    }
    write_atomically(ASSETS / CONCEPTS_NAME, to_bytes(weights))


def _write_config(config: dict[str, Any]) -> None:
    write_atomically(CONFIG, f"{json.dumps(config, indent=1)}\n".encode())


@torch.no_grad()
def _mean_aps(towers: Towers, data: LabelledImages, temperatures: Sequence[float], workers: int) -> list[float]:
    """Return the mAP of the mean of the pooled vector's and the best patch's cosine, per temperature of patches."""
    visual: Any = towers.image.visual
    text = F.normalize(towers.text.encode([f"a photo of a {name}." for name in data.labels.texts]), dim=-1)
    scores: list[list[Tensor]] = [[] for _ in temperatures]
    batches = _batches(towers, data, workers)
    for batch in batches:
        features = rearrange(visual.trunk.forward_features(batch.image), "b w y x -> b (y x) w")
        whole = F.normalize(visual.head(features.mean(dim=1)), dim=-1) @ text.T
        logits = visual.head.proj(features.flatten(0, 1))
        for rows, temperature in zip(scores, temperatures, strict=True):
            patches = F.normalize(visual.head.concepts((logits / temperature).softmax(dim=-1)), dim=-1) @ text.T
            rows.append((whole + rearrange(patches, "(b n) c -> b n c", b=len(whole)).amax(dim=1)) / 2)
    return [
        mean_average_precision(average_precision(torch.cat(rows), data.target, data.known)).item() for rows in scores
    ]


def _batches(towers: Towers, data: LabelledImages, workers: int) -> Iterator[Batch]:
    shown = data.with_transform(still_transform(towers.preprocess))
    return load_batches(shown, EpochSampler(len(shown), 32), workers=workers)


def _cosines(towers: Towers, data: LabelledImages, workers: int) -> Predictions:
    """The mean of the pooled vector's and the best patch's cosine, for every picture and label."""
    labels = LabelSet(data.labels.names, data.labels.readable)
    model = PVLR.from_towers(zero_shot_config(towers), labels, towers).eval()
    model.base_scale = 1.0
    model.mixture.bias.data.zero_()
    return predict_logits(model, _batches(towers, data, workers))


def _mean_ap(found: Predictions) -> float:
    return mean_average_precision(average_precision(found.logits, found.target, found.known)).item()


def _fit_two(found: Sequence[Predictions]) -> tuple[float, float]:
    """Fit scale and bias by maximum likelihood, each data set with the same weight."""
    centre = sum(part.logits.mean().item() for part in found) / len(found)
    log_scale = torch.tensor(math.log(10.0), dtype=torch.float64, requires_grad=True)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, shift], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([
            binary_cross_entropy(
                log_scale.exp() * (part.logits.double() - centre) + shift, part.target.double(), part.known
            )
            for part in found
        ]).sum()  # fmt: skip
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    scale = log_scale.exp().item()
    return scale, shift.item() - scale * centre


def _fit_threshold(found: Sequence[Predictions], scale: float, bias: float) -> float:
    """The threshold, in hundredths, with the highest F1 of all decisions, averaged over the data sets."""

    def quality(threshold: float) -> float:
        values = []
        for part in found:
            predicted = ((scale * part.logits + bias).sigmoid() >= threshold) & part.known
            present = (part.target > 0) & part.known
            values.append(2 * (predicted & present).sum().item() / max(1, (predicted.sum() + present.sum()).item()))
        return sum(values)

    return max((step / 100 for step in range(1, 100)), key=quality)


if __name__ == "__main__":
    sys.exit(command(fit))
