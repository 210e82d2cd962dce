"""Training of PVLR on pictures of your own: ``pvlr train table``.

    python examples/train_table.py --config table_vit_b16
    python examples/train_table.py --help

Options, configuration files and stopping work as described in ``examples/train_voc.py``.
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("train", "table"))
