"""Training of PVLR on Pascal VOC, or on any data in its layout: ``pvlr train voc``.

    python examples/train_voc.py --config quickstart
    python examples/train_voc.py --config voc07_vit_b16 --data.root /data/voc
    python examples/train_voc.py --help

Any field of the file can be set on the command line as well (``--optimizer.lr 1e-4 --loop.epochs 2``), and
``--print_config`` writes the whole configuration. Stop it at any time; the same command continues where it stopped.
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("train", "voc"))
