"""Evaluation of all of COCO's size in memory, and of 100,000 images with 10,000 labels in parts, on one core."""

import shutil
import tempfile
from collections.abc import Callable, Iterator

import torch
from measure import measure, table

COCO = 40_137, 80
LARGE = 100_000, 10_000
AT_ONCE = 2_000


def predictions(n: int, c: int, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a model that is right more often than not, and targets of which so many are there."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(n, c, generator=generator) < share
    return torch.randn(n, c, generator=generator).add_(target, alpha=2.0), target


def coco(what: str) -> Callable[[], object]:
    """One quantity over predictions in memory."""
    from sklearn.metrics import average_precision_score

    from pvlr.core.metrics.bootstrap import bootstrap_map
    from pvlr.core.metrics.ranking import average_precision, label_ranking_average_precision
    from pvlr.core.metrics.report import ReportAccumulator, multilabel_report

    torch.set_num_threads(1)
    n, c = COCO
    scores, target = predictions(n, c, 0.036, 0)
    probabilities = scores.sigmoid()

    def streamed() -> object:
        found = ReportAccumulator()
        for start in range(0, n, 64):
            rows = slice(start, start + 64)
            found.update(probabilities[rows], target[rows], scores=scores[rows])
        return found.compute()

    def theirs() -> object:
        rows, truth = scores.numpy(), target.numpy()
        return [average_precision_score(truth[:, i], rows[:, i]) for i in range(c)]

    few, some = scores[:5000, :20], target[:5000, :20]
    return {
        "average precision": lambda: average_precision(scores, target),
        "average precision, scikit-learn": theirs,
        "ranking AP per image": lambda: label_ranking_average_precision(scores, target),
        "the whole report": lambda: multilabel_report(probabilities, target, scores=scores),
        "the same in batches of 64": streamed,
        "1,000 resamples of 5,000 × 20": lambda: bootstrap_map(few, some),
    }[what]


def large(how: str) -> Callable[[], object]:
    """All of it in parts, which are made as they are needed, as a model would make them."""
    from pvlr.core.metrics.ranking import average_precision
    from pvlr.core.metrics.report import ReportAccumulator
    from pvlr.train.evaluation.spill import spill_to

    torch.set_num_threads(1)
    n, c = LARGE

    def by_images() -> object:
        folder = tempfile.mkdtemp()
        try:
            found = ReportAccumulator(keep=spill_to(folder))
            for start in range(0, n, AT_ONCE):
                scores, target = predictions(AT_ONCE, c, 0.001, start)
                found.update(scores.sigmoid(), target, scores=scores)
            return found.compute()
        finally:
            shutil.rmtree(folder)

    def by_labels() -> object:
        return torch.cat([average_precision(*predictions(n, 40, 0.001, start)) for start in range(0, c, 40)])

    def made() -> object:
        for start in range(0, n, AT_ONCE):
            predictions(AT_ONCE, c, 0.001, start)[0].sigmoid()
        return None

    return {
        "the report, by images, on disk": by_images,
        "average precision, by labels": by_labels,
        "making the numbers": made,
    }[how]


def report() -> Iterator[str]:
    """The table of what is in memory."""
    names = (
        "average precision",
        "average precision, scikit-learn",
        "ranking AP per image",
        "the whole report",
        "the same in batches of 64",
        "1,000 resamples of 5,000 × 20",
    )
    found = {name: measure(coco, repeat=3, what=name) for name in names}
    base = found["average precision"].seconds
    rows = [
        (name, f"{cost.seconds / base:.2f}×", f"{cost.seconds:.3f}", f"{cost.megabytes:.0f}")
        for name, cost in found.items()
    ]
    yield table("Evaluation of 40,137 images, 80 labels, one core", ("what", "time", "seconds", "MiB"), rows)


def report_large() -> Iterator[str]:
    """The table of what is done in parts; about ten minutes, and 5 GB of the disk."""
    rows = []
    for name in ("making the numbers", "average precision, by labels", "the report, by images, on disk"):
        cost = measure(large, repeat=0, how=name)
        rows.append((name, f"{cost.seconds:.0f}", f"{cost.megabytes:.0f}"))
    yield table("Evaluation of 100,000 images, 10,000 labels, in parts, one core", ("what", "seconds", "MiB"), rows)
