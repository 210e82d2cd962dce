"""Training of PVLR on Pascal VOC, or on any data in its layout, from a configuration file or the command line.

    python examples/train_voc.py --config examples/configs/quickstart.yaml
    python examples/train_voc.py --config examples/configs/voc07_vit_b16.yaml --data.root /data/voc
    python examples/train_voc.py --help

Any field of the file can be set on the command line as well (``--optimizer.lr 1e-4 --loop.epochs 2``), and
``--print_config`` writes the whole configuration. Stop it at any time; the same command continues where it stopped.
"""

import sys

from pvlr.train import train
from pvlr.train.cli import command
from pvlr.train.data_config import VOCData

if __name__ == "__main__":
    sys.exit(command(train, data=VOCData))
