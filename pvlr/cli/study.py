"""``pvlr study [KIND]``: methods and settings compared over several seeds, with a table and a figure."""

from pvlr.cli.help import Usage
from pvlr.cli.train import COMMON_DATA
from pvlr.train.evaluation.evaluate_run import KINDS
from pvlr.train.evaluation.study import study

__all__ = ["KINDS", "USAGES", "study"]

COMMON = (
    *(f"study.{name}" for name in ("folder", "only", "seeds", "processes")),
    *(f"data.{name}" for name in ("keep_labels", "shots", "workers")),
    *("tower.name", "tower.weights", "loop.epochs", "loop.batch_size", "loop.device", "optimizer.lr"),
)
EXAMPLES = {
    "voc": ("--config ablation_scenes --study.only '[all labels]'", "--config ablation_voc --data.root FOLDER"),
    "coco": ("--config ablation_coco --data.root FOLDER", "--config ablation_coco --study.seeds '[0]'"),
    "nuswide": ("--config rows.yaml --data.root FOLDER --data.lists asl",),
    "table": ("--config rows.yaml --data.images FOLDER --data.table labels.csv",),
}
USAGES = {
    kind: Usage(name="", examples=EXAMPLES[kind], common=(*COMMON, *(f"data.{name}" for name in COMMON_DATA[kind])))
    for kind in KINDS
}
