"""Web page that tags a dropped picture, with an editable list of labels: ``pvlr demo``.

python examples/demo.py --run runs/quickstart
python examples/demo.py --tower pvlr:photos
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("demo"))
