"""Training of PVLR on MS-COCO, or any data set in its format: ``pvlr train coco``.

    python examples/train_coco.py --config coco14_vit_b16
    python examples/train_coco.py --help

Options, configuration files and stopping work as described in ``examples/train_voc.py``.
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("train", "coco"))
