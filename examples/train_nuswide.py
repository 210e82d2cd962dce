"""Training of PVLR on NUS-WIDE: ``pvlr train nuswide``.

    python examples/train_nuswide.py --config nuswide_vit_b16
    python examples/train_nuswide.py --help

Options, configuration files and stopping work as described in ``examples/train_voc.py``.
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("train", "nuswide"))
