"""Labels that a trained model contradicts most: where people may have erred, on a page of thumbnails and as a table.

    python examples/doubtful.py --run runs/mine --out doubtful.html --csv doubtful.csv
    python examples/doubtful.py --run runs/mine --data other.yaml --top 50 --out doubtful.html

The pictures are those of all splits of the run, or of --data. For each label the page shows the ones whose given label
is least probable; labels that are unknown are left out. It is for looking at them: the model may be wrong, too.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from pvlr.core.arguments import ConfigError
from pvlr.data.batch import Batch
from pvlr.data.dataset import LabelledImages
from pvlr.data.sampling import EpochSampler
from pvlr.data.scan import without_bad_images
from pvlr.inference.device import find_device
from pvlr.inference.doubtful import most_doubtful, write_doubts_csv, write_doubts_page
from pvlr.inference.recognizer import Recognizer
from pvlr.train.dataloaders import load_batches
from pvlr.train.evaluation.evaluate_run import KINDS, read_data_config
from pvlr.train.evaluation.predictions import predict_logits
from pvlr.train.monitoring.record import CONFIG_NAME


def main(args: Sequence[str] | None = None) -> int:
    """Write the files, or print a line per label in doubt; return 2 after a one-line error."""
    given = arguments(args)
    try:
        splits, probabilities = predicted(given)
        found = most_doubtful(splits, probabilities, top=given.top)
        if given.csv is not None:
            write_doubts_csv(given.csv, found)
        if given.out is not None:
            write_doubts_page(given.out, found, splits, title=f"Labels that {given.run} contradicts")
        if given.csv is None and given.out is None:
            for doubt in found:
                print(
                    f"{doubt.label}: {doubt.picture} ({doubt.split}), given as {doubt.given}, the other answer has "
                    f"{doubt.probability:.1%}"
                )
        pictures = len({(doubt.split, doubt.row) for doubt in found})
        print(f"{len(found):,} given labels of {pictures:,} pictures are contradicted")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, ValueError) as err:  # ValueError: errors of this package, one sentence each.
        print(f"error: {err}", file=sys.stderr)
        return 2
    return 0


def arguments(args: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, each value in its range."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", type=Path, metavar="FOLDER", required=True, help="folder of a finished run")
    parser.add_argument("--data", type=Path, metavar="CONFIG", help="a configuration with other data than the run's")
    parser.add_argument("--data-kind", choices=tuple(KINDS), help="what data these are, where the fields do not say it")
    parser.add_argument("--tower", metavar="NAME", help="where the run's tower lies now")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a page of thumbnails")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="pictures per label")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures at once")
    parser.add_argument("--device", default="cpu", help="where the model computes")
    given = parser.parse_args(args)
    for name in ("top", "batch_size"):
        if getattr(given, name) < 1:
            found = getattr(given, name)
            parser.error(f"--{name.replace('_', '-')}: expected a number of at least 1, got {found}")
    for name in ("out", "csv"):
        path = getattr(given, name)
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"--{name}: expected a file in a folder that is there, got {path}")
    if given.out is not None and given.csv is not None and given.out.resolve() == given.csv.resolve():
        parser.error(f"--csv: expected another file than --out, got {given.csv}")
    return given


def predicted(given: argparse.Namespace) -> tuple[dict[str, LabelledImages], dict[str, Tensor]]:
    """Return the splits of the data, and the probabilities of their labels."""
    device = find_device(given.device)
    config, seed = read_data_config(given.run / CONFIG_NAME if given.data is None else given.data, given.data_kind)
    recognizer = Recognizer.open(str(given.run), given.tower, device=given.device)
    if recognizer.decision.scores != "probability":
        raise ConfigError("run: expected a model of probabilities, found one whose numbers only rank labels")
    named = {name: part for name, part in config.splits(seed)._asdict().items() if part is not None}
    readable = without_bad_images(list(named.values()), config.on_bad_image, workers=config.workers)
    splits: dict[str, LabelledImages] = dict(zip(named, readable, strict=True))
    if (labels := splits["train"].labels) != recognizer.labels:
        recognizer = recognizer.with_labels(labels)
    probabilities = {}
    for name, images in splits.items():
        sampler = EpochSampler(len(images), given.batch_size)
        batches = load_batches(images.with_transform(recognizer.transform), sampler, workers=config.workers)
        found = predict_logits(recognizer.model, _progress(batches, len(sampler), name), device=device)
        probabilities[name] = recognizer.decision.probabilities(found.logits)
    return splits, probabilities


def _progress(batches: Iterable[Batch], count: int, name: str) -> Iterator[Batch]:
    from tqdm import tqdm

    yield from tqdm(batches, total=count, desc=name, unit="batch", leave=False, disable=None)


if __name__ == "__main__":
    sys.exit(main())
