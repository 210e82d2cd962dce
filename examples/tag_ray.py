"""Tagging of large sets of pictures on one machine or a cluster with Ray Data, to Parquet files: ``pvlr bulk``.

    python examples/tag_ray.py --run runs/quickstart --pictures pictures/ --out tags
    python examples/tag_ray.py --run runs/quickstart --pictures "shards/*.tar" --out tags --workers 8
    python examples/tag_ray.py --run runs/quickstart --pictures pictures.parquet --out tags
    python examples/tag_ray.py --tower pvlr:photos --labels "cat, sofa" --pictures pictures/ --out tags

It needs the package ray (pip install 'pvlr[ray]'). Pictures are tagged in parts; the tags of each are a Parquet file
that appears whole or not at all, and a part whose file exists is skipped. A worker that dies is replaced, and its part
is repeated: every picture occurs exactly once.
"""

import sys

from pvlr.cli.main import script

if __name__ == "__main__":
    sys.exit(script("bulk"))
