"""Tag very many pictures on one machine or a cluster with Ray Data: Parquet out, a restart does what is left.

    python examples/tag_ray.py --run runs/quickstart --pictures pictures/ --out tags
    python examples/tag_ray.py --run runs/quickstart --pictures "shards/*.tar" --out tags --workers 8
    python examples/tag_ray.py --run runs/quickstart --pictures pictures.parquet --out tags
    python examples/tag_ray.py --tower pvlr:photos --labels "cat, sofa" --pictures pictures/ --out tags

It needs the package ray (pip install 'pvlr[ray]'). Pictures are gone through in parts; the tags of each are a Parquet
file that appears whole or not at all, and a part whose file is there is skipped. A worker that dies is replaced, and
its part is done again: every picture comes exactly once.
"""

import sys

from pvlr.train.bulk import tag_bulk
from pvlr.train.cli import command

if __name__ == "__main__":
    sys.exit(command(tag_bulk))
