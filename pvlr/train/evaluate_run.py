"""What a finished run, or towers without training, say about a split: its own test split, or any other data."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from pvlr.core.labels import LabelSet
from pvlr.data.batch import Batch
from pvlr.data.sampling import EpochSampler
from pvlr.data.scan import without_bad_images
from pvlr.train.config import ConfigError
from pvlr.train.data_config import COCOData, DataConfig, NUSWideData, TableData, VOCData
from pvlr.train.device import find_device
from pvlr.train.evaluate import predict_logits
from pvlr.train.feed import load_batches
from pvlr.train.predict import Tagger
from pvlr.train.record import CONFIG_NAME
from pvlr.train.score_files import Scored

__all__ = ["KINDS", "evaluate_run", "read_data_config"]

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
    """Run the averaged weights of a finished run over a split.

    Probabilities are calibrated, if the run fitted a temperature. Where the data have other labels than the run was
    trained on, the model is asked for theirs.

    Args:
        folder: The run's folder; None for ``tower`` alone.
        data: A configuration with a section ``data``, as the training scripts read it; None: the run's own.
        kind: Which kind of data that is, one of ``KINDS``; None: the one that its fields belong to.
        split: Name of the split; None: the test split of the configuration.
        tower: Where the run's towers lie now, if not where they were; or towers that recognise the data's labels by
            their names, without a run.
        weights: Of ``tower`` alone, where its name does not say them.
        device: Where the model goes: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
        batch_size: Number of images that go through the model at once.
        watch: Sees the batches go by, with their number: for a progress bar.

    Raises:
        ConfigError: where the configuration cannot be read or does not fit.
        DataError: where the data cannot be read.
        PretrainedError: naming the file of the run that is missing or damaged.
        TowerError: where the towers cannot be loaded.
    """
    place = find_device(device)
    if folder is None and data is None:
        raise ConfigError("data: expected a configuration of the data to evaluate towers on, got none")
    config, seed = read_data_config(cast(Path, folder) / CONFIG_NAME if data is None else data, kind)
    tagger = Tagger.opened(None if folder is None else str(folder), tower, weights=weights, device=device)
    if split is None:
        images = config.splits(seed).test
    else:
        labels = None if data is not None else tagger.labels
        images = config.read(split, train=False, labels=labels)
    (images,) = without_bad_images([images], config.on_bad_image, workers=config.workers)
    if images.labels != tagger.labels:
        tagger = tagger.with_labels(images.labels)
    sampler = EpochSampler(len(images), batch_size)
    batches = load_batches(images.with_transform(tagger.transform), sampler, workers=config.workers)
    found = predict_logits(tagger.model, watch(batches, len(sampler)), device=place)
    labels, decision = LabelSet(images.labels.names), tagger.model.decision
    # Similarities have no threshold of a meaning; what ranks by them has one.
    probabilities = found.logits.sigmoid() if decision.scores == "similarity" else decision.probabilities(found.logits)
    return Scored(labels, probabilities, found.logits, found.target.float(), found.known)


def read_data_config(path: Path, kind: str | None = None) -> tuple[DataConfig, int]:
    """The section ``data`` of a configuration file, and its ``loop.seed`` (0 where it has none).

    Raises:
        ConfigError: where the file cannot be read, or its fields belong to several kinds of data or to none.
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
        told = " or ".join(fits) if fits else f"none of {', '.join(KINDS)}" if kind is None else f"not {kind}"
        raise ConfigError(f"{path}: expected a section 'data' of one kind of data, its fields fit {told}")
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
