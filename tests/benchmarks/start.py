"""Seconds from ``pvlr tag`` to the first tag, and where they go."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from measure import THREADS, table
from tagging import write_photographs

TOWERS = {"pvlr:photos": "coco", "pvlr:scenes-clip": "red circle, star"}
PARTS = ("interpreter", "imports", "tower", "labels", "picture")
# The steps of `pvlr tag` one after the other; the times are compared with those of the parent, which started it.
CODE = """
import sys, time
marks = [time.time()]
import pvlr.cli.tag as command
marks.append(time.time())
from pvlr.core.towers import build_towers, spec_of
from pvlr.data.label_lists import labels_of
towers = build_towers(spec_of({tower!r}, None))
marks.append(time.time())
recognizer = command.Recognizer.from_towers(towers, labels_of({labels!r}))
marks.append(time.time())
next(command.tag_files(recognizer, [{picture!r}], batch_size=4))
marks.append(time.time())
import json
print(json.dumps(marks))
"""


def seconds(tower: str, labels: str, picture: str) -> list[float]:
    """Return the seconds of each part, and last those of the script itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    code = CODE.format(tower=tower, labels=labels, picture=picture)
    begin = time.time()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment, text=True)
    marks = [begin, *json.loads(run.stdout.splitlines()[-1])]
    script = [sys.executable, "-m", "pvlr", "tag", "--tower", tower, "--labels", labels, picture]
    begin = time.time()
    subprocess.run(script, capture_output=True, check=True, env=environment)
    return [*(after - before for before, after in pairwise(marks)), time.time() - begin]


def report(small: bool = False) -> Iterator[str]:
    """The table: medians of five starts, files in the system's cache."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), 1, None)
        for tower, labels in list(TOWERS.items())[1 if small else 0 :]:
            found = [seconds(tower, labels, f"{folder}/0000.jpg") for _ in range(1 if small else 6)]
            # The first start fills the system's cache of files.
            columns = zip(*found[0 if small else 1 :], strict=True)
            rows.append((tower, *(f"{statistics.median(column):.2f}" for column in columns)))
    yield table(
        "Seconds from the command to the first tag of a picture of 2 megapixels",
        ("tower", *PARTS, "pvlr tag to its end"),
        rows,
    )
