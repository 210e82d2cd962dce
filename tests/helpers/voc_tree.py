"""A tiny data set in Pascal VOC layout, for tests that read one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Objects = Sequence[tuple[str, int]]
"""Names and difficult marks of a picture's objects."""

TRAINVAL: Mapping[str, Objects] = {
    "000001": [("dog", 0), ("person", 0), ("person", 1)],
    "000002": [("cat", 1), ("sofa", 0)],
    "000003": [],
    "000004": [("diningtable", 1), ("diningtable", 1), ("dog", 0)],
    "000005": [("person", 0)],
}
TEST: Mapping[str, Objects] = {"000006": [("cat", 0), ("dog", 1)], "000007": [("person", 0)]}


def annotation(objects: Objects) -> str:
    items = "".join(
        f"<object><name>{name}</name><difficult>{mark}</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        "<part><name>head</name></part></object>"
        for name, mark in objects
    )
    return f"<annotation><folder>VOC2007</folder>{items}</annotation>\n"


def write_voc(root: Path, trainval: Mapping[str, Objects] = TRAINVAL, test: Mapping[str, Objects] = TEST) -> Path:
    """Write `root/VOCdevkit/VOC2007` and return it; pictures are noise, a function of their number."""
    folder = root / "VOCdevkit" / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    for split, images in (("trainval", trainval), ("test", test)):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, objects in images.items():
            pixels = np.random.default_rng(int(name)).integers(0, 256, size=(24, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(annotation(objects))
    return folder
