"""Tag pictures with a trained run.

python examples/predict.py --run runs/quickstart picture.jpg another.png --threshold 0.5
"""

import argparse
import sys
from collections.abc import Sequence

from pvlr.core.pretrained import PretrainedError
from pvlr.core.towers import TowerError
from pvlr.data.batch import DataError
from pvlr.train.config import ConfigError
from pvlr.train.predict import Tagger


def main(args: Sequence[str] | None = None) -> int:
    """Print each picture's labels; 1 if a picture could not be read, 2 if the run could not."""
    parser = argparse.ArgumentParser(description="Tag pictures with a trained run.")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture files")
    parser.add_argument("--run", required=True, metavar="FOLDER", help="folder of a finished run")
    parser.add_argument("--threshold", type=float, default=0.5, help="least probability of a label (default: 0.5)")
    parser.add_argument("--top", type=int, metavar="K", help="the K most probable labels instead, whatever they have")
    parser.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    given = parser.parse_args(args)
    if not 0 <= given.threshold <= 1:
        parser.error(f"--threshold: expected a probability in [0, 1], got {given.threshold:g}")
    if given.top is not None and given.top < 1:
        parser.error(f"--top: expected a number of at least 1, got {given.top}")

    try:
        tagger = Tagger.from_pretrained(given.run, device=given.device)
    except (ConfigError, PretrainedError, TowerError) as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    unreadable = 0
    for picture in given.pictures:
        try:
            ranked = tagger.tag(picture, threshold=0.0)
        except DataError as err:
            print(f"unreadable: {err}", file=sys.stderr)
            unreadable += 1
            continue
        chosen = ranked[: given.top] if given.top else [tag for tag in ranked if tag.probability >= given.threshold]
        said = ", ".join(f"{tagger.labels.readable[tag.name]} {tag.probability:.3f}" for tag in chosen)
        print(f"{picture}: {said or f'no label of at least {given.threshold:g}'}")
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
