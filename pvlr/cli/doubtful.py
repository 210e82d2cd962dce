"""``pvlr doubtful``: labels that a trained model contradicts most, on a page of thumbnails and as a table.

The pictures are those of all splits of the run, or of ``--data``. For each label the page shows the ones whose given
label is least probable; labels that are unknown are left out. It is for looking at them: the model may be wrong, too.
"""

from pathlib import Path

from torch import Tensor

from pvlr.cli.checks import require_places, require_whole
from pvlr.cli.help import Usage
from pvlr.cli.progress import progress
from pvlr.cli.recipes import find_config
from pvlr.core.arguments import ConfigError
from pvlr.data.dataset import LabelledImages
from pvlr.data.sampling import EpochSampler
from pvlr.data.scan import without_bad_images
from pvlr.inference.device import find_device
from pvlr.inference.doubtful import most_doubtful, write_doubts_csv, write_doubts_page
from pvlr.inference.recognizer import Recognizer
from pvlr.train.data_config import DataConfig
from pvlr.train.dataloaders import load_batches
from pvlr.train.evaluation.evaluate_run import DataKind, read_data_config
from pvlr.train.evaluation.predictions import predict_logits
from pvlr.train.monitoring.record import CONFIG_NAME

__all__ = ["USAGE", "doubtful"]

USAGE = Usage(
    name="",
    examples=(
        "--run runs/mine --out doubtful.html --csv doubtful.csv",
        "--run runs/mine --data other.yaml --top 50 --out doubtful.html",
    ),
)


def doubtful(
    *,
    run: str,
    data: str | None = None,
    data_kind: DataKind | None = None,
    tower: str | None = None,
    out: str | None = None,
    csv: str | None = None,
    top: int = 20,
    batch_size: int = 64,
    device: str = "cpu",
) -> None:
    """List the annotated labels that a trained model contradicts most: possible annotation errors.

    Args:
        run: Folder of a finished run.
        data: Configuration file, or a recipe's name, with other data than the run's.
        data_kind: Kind of these data, if their fields fit several.
        tower: Current location of the run's towers.
        out: File for a page of thumbnails.
        csv: File for a table.
        top: Pictures per label, at least 1.
        batch_size: Pictures per forward pass, at least 1.
        device: Device of the model: auto, cpu, cuda or cuda:<number>.
    """
    require_whole(1, top=top, batch_size=batch_size)
    page, table = (None if path is None else Path(path) for path in (out, csv))
    require_places({"out": page, "csv": table})
    config, seed = read_data_config(Path(run) / CONFIG_NAME if data is None else find_config(data, "--data"), data_kind)
    recognizer = Recognizer.open(run, tower, device=device)
    splits, probabilities = _predicted(recognizer, config, seed, batch_size, device)
    found = most_doubtful(splits, probabilities, top=top)
    if table is not None:
        write_doubts_csv(table, found)
    if page is not None:
        write_doubts_page(page, found, splits, title=f"Labels that {run} contradicts")
    if table is None and page is None:
        for doubt in found:
            print(
                f"{doubt.label}: {doubt.picture} ({doubt.split}), given as {doubt.given}, the other answer has "
                f"{doubt.probability:.1%}"
            )
    pictures = len({(doubt.split, doubt.row) for doubt in found})
    print(f"{len(found):,} given labels of {pictures:,} pictures are contradicted")


def _predicted(
    recognizer: Recognizer, config: DataConfig, seed: int, batch_size: int, device: str
) -> tuple[dict[str, LabelledImages], dict[str, Tensor]]:
    """Return the splits of the data, and the probabilities of their labels."""
    if recognizer.decision.scores != "probability":
        raise ConfigError("run: expected a model of probabilities, found one whose numbers only rank labels")
    named = {name: part for name, part in config.splits(seed)._asdict().items() if part is not None}
    readable = without_bad_images(list(named.values()), config.on_bad_image, workers=config.workers)
    splits: dict[str, LabelledImages] = dict(zip(named, readable, strict=True))
    if (labels := splits["train"].labels) != recognizer.labels:
        recognizer = recognizer.with_labels(labels)
    probabilities = {}
    for name, images in splits.items():
        sampler = EpochSampler(len(images), batch_size)
        batches = load_batches(images.with_transform(recognizer.transform), sampler, workers=config.workers)
        found = predict_logits(recognizer.model, progress(batches, len(sampler), name), device=find_device(device))
        probabilities[name] = recognizer.decision.probabilities(found.logits)
    return splits, probabilities
