"""Export of a trained model as a program for torch.export or ONNX: ``pvlr export``.

python examples/export.py --run runs/quickstart --out exported
python examples/export.py --run runs/quickstart --out exported --labels input --benchmark
python examples/export.py --run runs/quickstart --out exported --labels input --names "zebra, fire truck"
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("export"))
