"""Training of PVLR on pictures of your own, from a configuration file or the command line.

    python examples/train_table.py --config examples/configs/table_vit_b16.yaml
    python examples/train_table.py --help

Options, configuration files and stopping work as described in ``examples/train_voc.py``.
"""

import sys

from pvlr.train import train
from pvlr.train.cli import command
from pvlr.train.data_config import TableData

if __name__ == "__main__":
    sys.exit(command(train, data=TableData))
