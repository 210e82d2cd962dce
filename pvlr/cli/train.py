"""``pvlr train KIND``: training of PVLR or a baseline, from a recipe, a configuration file or the command line."""

from pvlr.cli.help import Usage
from pvlr.train.evaluation.evaluate_run import KINDS
from pvlr.train.run import train

__all__ = ["COMMON_DATA", "KINDS", "USAGES", "train"]

# Options of the short help, by kind of data.
COMMON_DATA = {
    "voc": ("root", "year", "obtain", "train_split", "test_split", "labels"),
    "coco": ("root", "annotations", "images", "train_split", "test_split", "labels"),
    "nuswide": ("root", "lists"),
    "table": ("images", "table", "file_column", "label_column", "separator", "delimiter", "labels", "test_share"),
}
COMMON = (
    *(f"data.{name}" for name in ("val_share", "keep_labels", "shots", "workers")),
    *(f"tower.{name}" for name in ("name", "weights", "features")),
    *(f"loop.{name}" for name in ("epochs", "batch_size", "device", "seed")),
    *("optimizer.lr", "baseline.kind", "run.folder", "run.resume"),
)
EXAMPLES = {
    "voc": ("--config quickstart", "--config voc07_photos --data.root FOLDER --loop.epochs 4"),
    "coco": ("--config coco_photos", "--config coco14_vit_b16 --data.root FOLDER --loop.device cuda"),
    "nuswide": ("--config nuswide_vit_b16", "--config nuswide_vit_b16 --data.root FOLDER --data.lists asl"),
    "table": (
        "--config table_photos --data.images FOLDER --data.table labels.csv",
        "--config table_photos --data.images FOLDER --data.table null",
    ),
}
USAGES = {
    kind: Usage(name="", examples=EXAMPLES[kind], common=(*(f"data.{name}" for name in COMMON_DATA[kind]), *COMMON))
    for kind in KINDS
}
