"""Comparison of methods and switches on the same features, over several seeds: a table and a figure.

    python examples/ablate.py --config examples/configs/ablation_scenes.yaml
    python examples/ablate.py --config examples/configs/ablation_voc.yaml --data.root FOLDER
    python examples/ablate.py --format coco --config examples/configs/ablation_coco.yaml --data.root FOLDER

Formats: voc, coco, nuswide, table. Stop it at any time; the same command continues with the unfinished cells.
``--study.only '[methods]'`` trains a part.
"""

import argparse
import sys

from pvlr.train.cli import command
from pvlr.train.data_config import COCOData, DataConfig, NUSWideData, TableData, VOCData
from pvlr.train.evaluation.study import study

FORMATS: dict[str, type[DataConfig]] = {
    "voc": VOCData,
    "coco": COCOData,
    "nuswide": NUSWideData,
    "table": TableData,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--format", choices=FORMATS, default="voc")
    given, rest = parser.parse_known_args()
    sys.exit(command(study, rest, data=FORMATS[given.format]))
