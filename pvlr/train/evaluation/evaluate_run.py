"""Evaluation of a finished run, or of towers without training, on its own test split or on any other data."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch

from pvlr.core.arguments import ConfigError
from pvlr.core.labels import LabelSet
from pvlr.data.batch import Batch
from pvlr.data.sampling import EpochSampler
from pvlr.data.scan import without_bad_images
from pvlr.inference.device import find_device
from pvlr.inference.recognizer import Recognizer
from pvlr.train.data_config import COCOData, DataConfig, NUSWideData, TableData, VOCData
from pvlr.train.dataloaders import load_batches
from pvlr.train.evaluation.predictions import predict_logits
from pvlr.train.evaluation.score_files import Scored
from pvlr.train.monitoring.record import CONFIG_NAME

__all__ = ["KINDS", "DataKind", "evaluate_run", "read_data_config"]

DataKind = Literal["voc", "coco", "nuswide", "table"]
KINDS: dict[str, type[DataConfig]] = {"voc": VOCData, "coco": COCOData, "nuswide": NUSWideData, "table": TableData}


def evaluate_run(
    folder: Path | None,
    *,
    data: Path | None = None,
    kind: str | None = None,
    split: str | None = None,
    tower: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    batch_size: int = 64,
    watch: Callable[[Iterable[Batch], int], Iterable[Batch]] = lambda batches, count: batches,
) -> Scored:
    """Predict the labels of a split with the averaged weights of a finished run.

    Probabilities are calibrated, if the run fitted a temperature. If the data have other labels than the training data,
    the model predicts theirs.

    Args:
        folder: The run's folder; None for ``tower`` alone.
        data: A configuration with a section ``data``, as the training scripts read it; None: the run's own.
        kind: Kind of the data, one of ``KINDS``; None: the one that has all its fields.
        split: Name of the split; None: the test split of the configuration.
        tower: Present location of the run's towers, if they were moved; or, without a run, towers that recognise the
            data's labels by their names.
        weights: Weights of ``tower`` without a run, if its name does not include them.
        device: Device of the model: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
        batch_size: Number of images of one forward pass.
        watch: Wrapper of the batches, given their number: for a progress bar.

    Raises:
        ConfigError: if the configuration cannot be read or does not fit.
        DataError: if the data cannot be read.
        PretrainedError: if a file of the run is missing or damaged, naming it.
        TowerError: if the towers cannot be loaded.
    """
    model_device = find_device(device)
    if folder is None and data is None:
        raise ConfigError("data: expected a configuration of the data to evaluate towers on, got none")
    config, seed = read_data_config(cast(Path, folder) / CONFIG_NAME if data is None else data, kind)
    recognizer = Recognizer.open(None if folder is None else str(folder), tower, weights=weights, device=device)
    if split is None:
        images = config.splits(seed).test
    else:
        labels = None if data is not None else recognizer.labels
        images = config.read(split, train=False, labels=labels)
    (images,) = without_bad_images([images], config.on_bad_image, workers=config.workers)
    if images.labels != recognizer.labels:
        recognizer = recognizer.with_labels(images.labels)
    sampler = EpochSampler(len(images), batch_size)
    batches = load_batches(images.with_transform(recognizer.transform), sampler, workers=config.workers)
    found = predict_logits(recognizer.model, watch(batches, len(sampler)), device=model_device)
    labels, decision = LabelSet(images.labels.names), recognizer.decision
    # Similarities have no meaningful threshold; metrics of ranking need none.
    probabilities = found.logits.sigmoid() if decision.scores == "similarity" else decision.probabilities(found.logits)
    thresholds = torch.tensor(decision.for_labels(recognizer.labels)) if decision.thresholds else None
    return Scored(labels, probabilities, found.logits, found.target.float(), found.known, thresholds)


def read_data_config(path: Path, kind: str | None = None) -> tuple[DataConfig, int]:
    """Read the section ``data`` of a configuration file, and its ``loop.seed`` (0 if it has none).

    Raises:
        ConfigError: if the file cannot be read, or its fields belong to several kinds of data or to none.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        section, seed = dict(content["data"]), int(dict(content.get("loop") or {}).get("seed", 0))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as err:
        reason = " ".join(str(err).split())
        raise ConfigError(f"{path}: expected a configuration with a section 'data', {reason}") from None
    fits = [name for name, made in KINDS.items() if set(section) <= {field.name for field in dataclasses.fields(made)}]
    if kind is not None:
        fits = [name for name in fits if name == kind]
    if len(fits) != 1:
        kinds = " or ".join(fits) if fits else f"none of {', '.join(KINDS)}" if kind is None else f"not {kind}"
        raise ConfigError(f"{path}: expected a section 'data' of one kind of data, its fields fit {kinds}")
    return _made(KINDS[fits[0]], section, path), seed


def _made(kind: type[DataConfig], section: Mapping[str, Any], path: Path) -> DataConfig:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=kind)
    try:
        made: DataConfig = parser.instantiate(parser.parse_object({"data": dict(section)})).data
    except (ArgumentError, ValueError) as err:
        raise ConfigError(f"{path}: {' '.join(str(err).split())}") from None
    return made
