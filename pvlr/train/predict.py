"""Labels for pictures, by a trained run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR
from pvlr.core.sentence_encoders import SentenceEncoder
from pvlr.data.images import decode_rgb
from pvlr.data.transforms import ImageTransform
from pvlr.train.device import find_device
from pvlr.train.export import load
from pvlr.train.feed import transform_config

__all__ = ["TrainedRun", "load_run", "tag"]


class TrainedRun(NamedTuple):
    """All that it takes to label pictures.

    Attributes:
        model: In evaluation mode.
        labels: Its labels.
        transform: Picture to tensor.
    """

    model: PVLR
    labels: LabelSet
    transform: ImageTransform


def load_run(
    folder: str | os.PathLike[str], *, device: str = "cpu", encoder: SentenceEncoder | None = None
) -> TrainedRun:
    """Load the averaged weights of a finished run.

    Args:
        folder: The run's folder (``run.folder``).
        device: Where the model goes: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
        encoder: The function from sentences to vectors that the model was trained with, if its knowledge was
            ``encoder``.

    Raises:
        ConfigError: where the device is not there.
        ExportError: naming the file that is missing or damaged; where the encoder is missing or another.
        TowerError: where the towers cannot be loaded.
    """
    place = find_device(device)
    found = load(Path(folder), encoder=encoder)
    return TrainedRun(found.model.to(place), found.labels, ImageTransform(transform_config(found.preprocess)))


@torch.no_grad()
def tag(
    run: TrainedRun, paths: Sequence[str | os.PathLike[str]], *, batch_size: int = 32
) -> list[list[tuple[str, float]]]:
    """Label pictures.

    Args:
        run: From :func:`load_run`.
        paths: The pictures' files.
        batch_size: Pictures of one forward pass, at least 1.

    Returns:
        For each picture all labels with their probabilities, most probable first.

    Raises:
        DataError: naming the picture that cannot be read.
    """
    device = next(run.model.parameters()).device
    found: list[list[tuple[str, float]]] = []
    for start in range(0, len(paths), batch_size):
        images: list[Tensor] = [
            run.transform(decode_rgb(path, side=run.transform.side)) for path in paths[start : start + batch_size]
        ]
        logits: Tensor = run.model(torch.stack(images).to(device)).logits
        rows = logits.float().sigmoid().tolist()
        found += [sorted(zip(run.labels, row, strict=True), key=lambda pair: -pair[1]) for row in rows]
    return found
