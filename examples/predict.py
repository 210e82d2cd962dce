"""Tagging of files, folders, patterns, or paths from standard input: ``pvlr tag``.

python examples/predict.py --tower pvlr:photos --labels "cat, sofa, laptop" PICTURE.jpg
python examples/predict.py --run runs/quickstart pictures/ --out tags.jsonl --html gallery.html
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("tag"))
