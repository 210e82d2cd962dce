"""``python -m pvlr``: the command ``pvlr``."""

import sys

from pvlr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
