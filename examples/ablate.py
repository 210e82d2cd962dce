"""Comparison of methods and switches on the same features, over several seeds: ``pvlr study``.

    python examples/ablate.py --config ablation_scenes
    python examples/ablate.py voc --config ablation_voc --data.root FOLDER
    python examples/ablate.py coco --config ablation_coco --data.root FOLDER

The first word is the kind of data: voc (the default), coco, nuswide or table. Stop it at any time; the same command
continues with the unfinished cells. ``--study.only '[methods]'`` trains a part.
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("study"))
