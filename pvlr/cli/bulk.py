"""``pvlr bulk``: tagging of large sets of pictures on one machine or a cluster with Ray Data."""

from pvlr.cli.help import Usage
from pvlr.inference.ray import tag_bulk

__all__ = ["USAGE", "tag_bulk"]

USAGE = Usage(
    name="",
    examples=(
        "--run runs/quickstart --pictures FOLDER --out tags",
        '--tower pvlr:photos --labels "cat, sofa" --pictures "*.tar" --out tags --workers 8',
    ),
)
