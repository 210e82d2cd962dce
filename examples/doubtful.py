"""Labels that a trained model contradicts most, where people may have erred: ``pvlr doubtful``.

python examples/doubtful.py --run runs/mine --out doubtful.html --csv doubtful.csv
python examples/doubtful.py --run runs/mine --data other.yaml --top 50 --out doubtful.html
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("doubtful"))
