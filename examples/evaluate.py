"""Evaluation of a run, towers without training, or scores of any model: a table on the screen, JSON and CSV.

    python examples/evaluate.py --run runs/quickstart
    python examples/evaluate.py --run runs/quickstart --data examples/configs/voc07_vit_b16.yaml --split test
    python examples/evaluate.py --tower pvlr:photos --data examples/configs/voc07_photos.yaml
    python examples/evaluate.py --scores scores.npz --json report.json --csv report.csv

The format of score files is described in pvlr/train/evaluation/score_files.py. The interval of the mAP is its
uncertainty due to the choice of images: they are drawn again, with replacement, --resamples times.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pvlr.core.metrics.bootstrap import bootstrap_map, percentile_interval
from pvlr.core.metrics.report import multilabel_report
from pvlr.data.batch import Batch
from pvlr.train.evaluation.evaluate_run import KINDS, evaluate_run
from pvlr.train.evaluation.report_files import report_table, write_report_csv, write_report_json
from pvlr.train.evaluation.score_files import Scored, read_scores


def main(args: Sequence[str] | None = None) -> int:
    """Print the table and write the files; return 2 after a one-line error in the arguments or the data."""
    given = arguments(args)
    try:
        found = scored(given)
        report = multilabel_report(
            found.probabilities, found.target, found.known, found.labels, given.threshold, found.scores
        )
        interval = None
        if given.resamples:
            values = bootstrap_map(found.scores, found.target, found.known, resamples=given.resamples, seed=given.seed)
            interval = percentile_interval(values)
        print(report_table(report, interval))
        if given.json is not None:
            bootstrap = {"resamples": given.resamples, "seed": given.seed, "level": 0.95}
            limits = None if interval is None else {**interval._asdict(), **bootstrap}
            write_report_json(given.json, report, mAP_interval=limits)
        if given.csv is not None:
            write_report_csv(given.csv, report)
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
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--run", type=Path, metavar="FOLDER", help="folder of a finished run")
    source.add_argument("--scores", type=Path, metavar="FILE", help=".npz or .csv file of scores and targets")
    parser.add_argument(
        "--tower", metavar="NAME", help="towers without training, with --data; with --run: where its tower lies now"
    )
    parser.add_argument("--weights", metavar="TAG", help="of --tower, where several are published; or a file")
    parser.add_argument("--kind", choices=("probabilities", "logits"), default="probabilities", help="what scores are")
    parser.add_argument("--data", type=Path, metavar="CONFIG", help="a configuration with other data")
    parser.add_argument("--data-kind", choices=tuple(KINDS), help="what data these are, where the fields do not say it")
    parser.add_argument("--split", help="another split than the configuration's test split")
    parser.add_argument("--device", default="cpu", help="where the model computes")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of a label that is predicted")
    parser.add_argument("--resamples", type=int, default=1000, help="sets of images for the interval; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="of these sets")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers to this file, one a row")
    given = parser.parse_args(args)
    if given.run is None and given.scores is None and (given.tower is None or given.data is None):
        parser.error("expected --run, --scores, or --tower with --data")
    if not 0 <= given.threshold <= 1:
        parser.error(f"--threshold: expected a probability in [0, 1], got {given.threshold:g}")
    for name in ("resamples", "seed"):
        if getattr(given, name) < 0:
            parser.error(f"--{name}: expected a whole number of at least 0, got {getattr(given, name)}")
    if given.seed >= 2**63:
        parser.error(f"--seed: expected a number below 2^63, got {given.seed}")
    for name in ("json", "csv"):
        path = getattr(given, name)
        if path is not None and not path.parent.is_dir():
            parser.error(f"--{name}: expected a file in a folder that is there, got {path}")
    return given


def scored(given: argparse.Namespace) -> Scored:
    """Return the requested predictions."""
    if given.scores is not None:
        return read_scores(given.scores, given.kind)

    def watch(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
        from tqdm import tqdm

        yield from tqdm(batches, total=count, unit="batch", leave=False, disable=None)

    return evaluate_run(
        given.run,
        data=given.data,
        kind=given.data_kind,
        split=given.split,
        tower=given.tower,
        weights=given.weights,
        device=given.device,
        watch=watch,
    )


if __name__ == "__main__":
    sys.exit(main())
