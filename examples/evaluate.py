"""Evaluation of a run, towers without training, or scores of any model: ``pvlr evaluate``.

python examples/evaluate.py --run runs/quickstart
python examples/evaluate.py --run runs/quickstart --data voc07_vit_b16 --split test
python examples/evaluate.py --tower pvlr:photos --data voc07_photos
python examples/evaluate.py --scores scores.npz --json report.json --csv report.csv
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("evaluate"))
