"""``pvlr evaluate``: a run, towers without training, or scores of any model; a table on the screen, JSON and CSV.

The format of score files is described in pvlr/train/evaluation/score_files.py. The interval of the mAP is its
uncertainty due to the choice of images: they are drawn again, with replacement, ``--resamples`` times.
"""

from pathlib import Path
from typing import Literal

from pvlr.cli.checks import require_places, require_probability, require_whole
from pvlr.cli.help import Usage
from pvlr.cli.progress import progress
from pvlr.cli.recipes import find_config
from pvlr.core.arguments import ConfigError
from pvlr.core.metrics.bootstrap import bootstrap_map, percentile_interval
from pvlr.core.metrics.ranking import precision_recall
from pvlr.core.metrics.report import multilabel_report
from pvlr.train.evaluation.evaluate_run import DataKind, evaluate_run
from pvlr.train.evaluation.report_files import report_table, write_report_csv, write_report_json
from pvlr.train.evaluation.score_files import read_scores

__all__ = ["USAGE", "evaluate"]

USAGE = Usage(
    name="",
    examples=(
        "--run runs/quickstart --json report.json",
        "--run runs/quickstart --data voc07_vit_b16 --split test",
        "--tower pvlr:photos --data voc07_photos",
        "--scores scores.npz --csv report.csv",
    ),
)


def evaluate(
    *,
    run: str | None = None,
    scores: str | None = None,
    tower: str | None = None,
    weights: str | None = None,
    kind: Literal["probabilities", "logits"] = "probabilities",
    data: str | None = None,
    data_kind: DataKind | None = None,
    split: str | None = None,
    device: str = "cpu",
    threshold: float = 0.5,
    resamples: int = 1000,
    seed: int = 0,
    json: str | None = None,
    csv: str | None = None,
) -> None:
    """Print the metrics of a run, of towers without training, or of scores of any model.

    Args:
        run: Folder of a finished run.
        scores: File of scores and targets of any model, .npz or .csv.
        tower: With data: towers without training. With run: current location of its towers.
        weights: Weights of the tower, if several are published: a tag, or a file.
        kind: The kind of scores in the file.
        data: Configuration file, or a recipe's name, with other data than the run's.
        data_kind: Kind of these data, if their fields fit several.
        split: Name of another split than the configuration's test split.
        device: Device of the model: auto, cpu, cuda or cuda:<number>.
        threshold: Lowest probability of a predicted label, in [0, 1].
        resamples: Sets of images that are drawn for the interval of the mAP; 0 for none.
        seed: Seed of their draw, at least 0.
        json: File for all numbers.
        csv: File for all numbers, one a row.
    """
    if run is None and scores is None and (tower is None or data is None):
        raise ConfigError("expected --run, --scores, or --tower with --data")
    if run is not None and scores is not None:
        raise ConfigError("--scores: expected no --run with it, got both")
    require_probability("threshold", threshold)
    require_whole(0, resamples=resamples, seed=seed)
    if seed >= 2**63:
        raise ConfigError(f"--seed: expected a number below 2^63, got {seed}")
    places = {name: None if path is None else Path(path) for name, path in (("json", json), ("csv", csv))}
    require_places(places)
    if scores is not None:
        found = read_scores(Path(scores), kind)
    else:
        found = evaluate_run(
            None if run is None else Path(run),
            data=None if data is None else find_config(data, "--data"),
            kind=data_kind,
            split=split,
            tower=tower,
            weights=weights,
            device=device,
            watch=progress,
        )
    report = multilabel_report(found.probabilities, found.target, found.known, found.labels, threshold, found.scores)
    interval = None
    if resamples:
        interval = percentile_interval(
            bootstrap_map(found.scores, found.target, found.known, resamples=resamples, seed=seed)
        )
    fitted = None
    if found.thresholds is not None:
        fitted = precision_recall(found.probabilities >= found.thresholds, found.target, found.known)
    print(report_table(report, interval, fitted))
    if places["json"] is not None:
        bootstrap = {"resamples": resamples, "seed": seed, "level": 0.95}
        limits = None if interval is None else {**interval._asdict(), **bootstrap}
        more = {} if fitted is None else {"at_thresholds": fitted._asdict()}
        write_report_json(places["json"], report, mAP_interval=limits, **more)
    if places["csv"] is not None:
        write_report_csv(places["csv"], report)
