"""Evaluation of an exported program beside the model that it was made of, on the same pictures."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.arguments import ConfigError
from pvlr.core.metrics.ranking import average_precision, mean_average_precision
from pvlr.data.batch import Batch
from pvlr.data.sampling import EpochSampler
from pvlr.data.scan import without_bad_images
from pvlr.inference.export import Program, label_rows
from pvlr.inference.recognizer import Recognizer
from pvlr.train.dataloaders import load_batches
from pvlr.train.evaluation.evaluate_run import read_data_config

__all__ = ["ProgramScores", "evaluate_program", "require_data"]

BATCH = 32


class ProgramScores(NamedTuple):
    """Mean average precision of a model and of its program, in [0, 1], on a number of pictures."""

    model: float
    program: float
    pictures: int


def require_data(data: str | None, **options: object) -> None:
    """Refuse options of the data where there are none.

    Raises:
        ConfigError: naming those that are given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if data is None and given:
        found = ", ".join(map(str, given.values()))
        raise ConfigError(f"{', '.join(given)}: expected none without data, got {found}; name them: --data CONFIG")


@torch.no_grad()
def evaluate_program(
    program: Program,
    recognizer: Recognizer,
    data: Path,
    *,
    kind: str | None = None,
    split: str | None = None,
    watch: Callable[[Iterable[Batch], int], Iterable[Batch]] = lambda batches, count: batches,
) -> ProgramScores:
    """Compute the mAP of a model and of the program that was made of it.

    Args:
        program: The program.
        recognizer: Its model, on the CPU.
        data: A configuration with a section ``data``, as the training scripts read it.
        kind: Kind of the data; None: the one that has all its fields.
        split: Name of the split; None: the test split of the configuration.
        watch: Wrapper of the batches, given their number: for a progress bar.

    Raises:
        ConfigError: if the configuration cannot be read or does not fit, or its labels are not those of a program whose
            labels are constants.
        DataError: if the data cannot be read.
    """
    config, seed = read_data_config(data, kind)
    images = config.splits(seed).test if split is None else config.read(split, train=False, labels=None)
    (images,) = without_bad_images([images], config.on_bad_image, workers=config.workers)
    vectors: tuple[Tensor, ...] = ()
    if program.labels == "input":
        if images.labels != recognizer.labels:
            recognizer = recognizer.with_labels(images.labels)
        vectors = (label_rows(recognizer.model),)
    elif images.labels.names != recognizer.labels.names:
        raise ConfigError(
            f"data: expected the labels of the program, {_listed(recognizer.labels.names)}, found "
            f"{_listed(images.labels.names)}; labels 'input' makes a program that takes any"
        )
    size = BATCH if program.batch is None else program.batch
    sampler = EpochSampler(len(images), size)
    batches = load_batches(images.with_transform(recognizer.transform), sampler, workers=config.workers)
    parts = []
    for batch in watch(batches, len(sampler)):
        wanted = recognizer.model(batch.image).logits
        parts.append((wanted, _run(program, batch.image, vectors), batch.target, batch.known))
    if not parts:
        raise ConfigError(f"data: expected at least one picture in the split, found none: {data}")
    of_model, of_program, target, known = (torch.cat(column) for column in zip(*parts, strict=True))

    def mean_ap(logits: Tensor) -> float:
        return float(mean_average_precision(average_precision(logits, target, known)))

    return ProgramScores(mean_ap(of_model), mean_ap(of_program), len(target))


def _run(program: Program, images: Float[Tensor, "b 3 s s"], vectors: tuple[Tensor, ...]) -> Float[Tensor, "b c"]:
    """Run a program; of a fixed number of images, the last batch is filled up with zeros."""
    count = len(images)
    if program.batch is not None and count < program.batch:
        images = torch.cat([images, images.new_zeros(program.batch - count, *images.shape[1:])])
    return program.run(images, *vectors)[:count]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
