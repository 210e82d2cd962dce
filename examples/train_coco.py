"""Training of PVLR on MS-COCO, or any data set in its format, from a configuration file or the command line.

    python examples/train_coco.py --config examples/configs/coco14_vit_b16.yaml
    python examples/train_coco.py --help

Options, configuration files and stopping work as described in ``examples/train_voc.py``.
"""

import sys

from pvlr.train import train
from pvlr.train.cli import command
from pvlr.train.data_config import COCOData

if __name__ == "__main__":
    sys.exit(command(train, data=COCOData))
