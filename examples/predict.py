"""Tagging of files, folders, patterns, or paths from standard input; by a trained model, or by towers alone.

python examples/predict.py --tower pvlr:photos --labels "cat, sofa, laptop" PICTURE.jpg
python examples/predict.py --run runs/quickstart pictures/ --out tags.jsonl --html gallery.html
"""

import argparse
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.sources import STDIN, picture_paths
from pvlr.inference.gallery import THUMBNAIL, Gallery
from pvlr.inference.interchange import FiftyOneFile, LabelStudioFile
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tag_file import TagFile, identity_of
from pvlr.inference.tagging import Tagged, Unreadable, tag_files
from pvlr.inference.tags import Tag
from pvlr.inference.xmp import write_sidecar
from pvlr.train.monitoring.latency import latency_table

RANKED = 5
"""Number of labels per picture that are printed if their numbers only rank them."""


def main(args: Sequence[str] | None = None) -> int:
    """Tag pictures and return 0; 1 if one could not be read, 2 for an error, 130 after Ctrl-C."""
    given = _parser().parse_args(args)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A file's name need not be text; what cannot be printed is escaped.
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run(given)
    except KeyboardInterrupt:
        print("interrupted" + ("; the same command goes on" if given.out else ""), file=sys.stderr)
        return 130
    except (OSError, ValueError) as err:  # ValueError: errors of this package, one sentence each.
        print(f"error: {err}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tag pictures with a trained model (--run), or without training by what towers know of names "
        "(--tower)."
    )
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURE", help="file, folder, pattern, or - for paths from standard input"
    )
    parser.add_argument("--run", metavar="MODEL", help="folder of a run or model, or hf-hub:OWNER/NAME")
    parser.add_argument(
        "--tower",
        metavar="NAME",
        help="pvlr:photos, a folder, hf-hub:OWNER/NAME or a name of open_clip's; with --run: where its tower lies now",
    )
    parser.add_argument("--weights", metavar="TAG", help="of --tower, where several are published; or a file")
    parser.add_argument(
        "--labels",
        metavar="NAMES",
        help="look for these, separated by commas; @FILE with one a line; voc, coco or imagenet (default: those of "
        "the run, or coco)",
    )
    parser.add_argument("--threshold", type=float, metavar="P", help="least probability (default: each label's own)")
    parser.add_argument("--top", type=int, metavar="K", help="the K most probable labels instead")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write .jsonl or .csv, or go on with it")
    parser.add_argument("--format", choices=("jsonl", "csv"), help="of --out, whatever its ending")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of thumbnails, tags and where they are")
    parser.add_argument("--html-limit", type=int, default=1000, metavar="N", help="pictures on it (default: 1000)")
    parser.add_argument(
        "--xmp", action="store_true", help="add the tags to an XMP sidecar beside each picture, for photo programs"
    )
    parser.add_argument(
        "--label-studio", type=Path, metavar="FILE", help="write tasks with predictions for Label Studio"
    )
    parser.add_argument(
        "--image-prefix",
        default="",
        metavar="TEXT",
        help="before each path in --label-studio, such as /data/local-files/?d=",
    )
    parser.add_argument("--fiftyone", type=Path, metavar="FILE", help="write labels.json for FiftyOne")
    parser.add_argument("--benchmark", action="store_true", help="measure the speed on these pictures instead")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="pictures at once (default: 4 on a CPU, 32 elsewhere)"
    )
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read (default: 2)")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda or cuda:NUMBER (default: cpu)")
    return parser


def _run(given: argparse.Namespace) -> int:
    if given.threshold is not None and not -1 <= given.threshold <= 1:
        raise ValueError(f"--threshold: expected a probability in [0, 1], got {given.threshold:g}")
    for name in ("top", "html_limit", "batch_size", "workers"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a number of at least 1, got {getattr(given, name)}")
    if given.top and given.threshold is not None:
        raise ValueError("--top: expected no --threshold with it, for it takes labels whatever they have")
    _require_places(given)
    recognizer = Recognizer.open(
        given.run, given.tower, weights=given.weights, labels=given.labels, device=given.device
    )
    if given.batch_size is None:
        # Small batches are fastest on a CPU: memory of larger ones is allocated from the system page by page.
        given.batch_size = 4 if recognizer.model.device.type == "cpu" else 32
    decision = recognizer.decision
    if given.threshold is not None and given.threshold < 0 and decision.scores == "probability":
        raise ValueError(f"--threshold: expected a probability in [0, 1], got {given.threshold:g}")
    if decision.scores == "similarity":
        print(
            f"{given.tower or given.run}: no scale and bias make probabilities of its scores; the numbers are cosine "
            "similarities, which rank the labels",
            file=sys.stderr,
        )
        if given.top is None and given.threshold is None:
            given.top = RANKED
    if given.benchmark:
        paths = picture_paths(given.pictures, sys.stdin.buffer)
        print(latency_table(recognizer, list(islice(paths, 256)), batch_size=given.batch_size, workers=given.workers))
        return 0
    return _tag(recognizer, given)


def _require_places(given: argparse.Namespace) -> None:
    """Require of each file to be written a folder that is there, and that no other is written to the same place."""
    taken: dict[Path, str] = {}
    for name in ("out", "html", "label_studio", "fiftyone"):
        path, option = getattr(given, name), f"--{name.replace('_', '-')}"
        if path is None:
            continue
        if path.is_dir() or not path.parent.is_dir():
            raise ValueError(f"{option}: expected a file in a folder that is there, got {path}")
        if (other := taken.setdefault(path.resolve(), option)) != option:
            raise ValueError(f"{option}: expected another file than {other}, got {path}")
    if given.image_prefix and given.label_studio is None:
        raise ValueError("--image-prefix: expected --label-studio with it, whose pictures it stands in front of")


class _Outputs:
    """Everything that tags are written to, as the command line asks for it."""

    def __init__(self, stack: ExitStack, recognizer: Recognizer, given: argparse.Namespace) -> None:
        decision, labels = recognizer.decision, recognizer.labels
        self.labels, self.sidecars, self.failed, self.refused, self.left_out = labels, given.xmp, 0, 0, 0
        self.threshold = decision.least if given.top else given.threshold
        self.file: TagFile | None = None
        self.page: Gallery | None = None
        self.exports: list[LabelStudioFile | FiftyOneFile] = []
        if given.out is not None:
            about = {**identity_of(recognizer), "threshold": given.threshold, "top": given.top}
            self.file = stack.enter_context(TagFile(given.out, about, kind=given.format))
        if given.html is not None:
            shown = decision.for_labels(labels) if self.threshold is None else (self.threshold,) * len(labels)
            title, limit = f"Tags by {given.run or given.tower}", given.html_limit
            page = Gallery(given.html, labels, shown, title=title, limit=limit, scores=decision.scores)
            self.page = stack.enter_context(page)
        if given.label_studio is not None:
            model = str(given.run or given.tower)
            tasks = LabelStudioFile(given.label_studio, labels, model=model, prefix=given.image_prefix)
            self.exports.append(stack.enter_context(tasks))
        if given.fiftyone is not None:
            self.exports.append(stack.enter_context(FiftyOneFile(given.fiftyone, labels)))

    @property
    def is_silent(self) -> bool:
        """True if tags are written to files, and not printed."""
        return bool(self.file or self.page or self.exports or self.sidecars)

    def todo(self, paths: Iterator[str]) -> Iterator[str]:
        """Yield the paths to tag: those that --out has already only if another output needs them."""
        for path in paths:
            done = self.file is not None and path in self.file.done
            if not done or self.exports or self.sidecars or (self.page is not None and not self.page.is_full):
                yield path
            elif self.page is not None:
                self.page.skip()

    def add(self, one: Tagged) -> None:
        """Write the tags of a picture."""
        if self.page is not None:
            self.page.add(one)
        if self.file is not None and one.path not in self.file.done:
            self.file.write(one.path, one.tags)
        for export in self.exports:
            export.add(one.path, one.tags)
        if self.sidecars and Path(one.path).is_file():
            try:
                write_sidecar(Path(one.path), (self.labels.readable[tag.name] for tag in one.tags))
            except DataError as err:
                self.failed += 1
                print(f"no sidecar: {err}", file=sys.stderr)
        if not self.is_silent:
            print(f"{one.path}: {_listing(self.labels, one.tags)}", flush=True)

    def refuse(self, bad: Unreadable) -> None:
        """List a picture that cannot be read."""
        self.refused += 1
        print(f"unreadable: {bad.reason}", file=sys.stderr)
        self._list(bad)

    def leave_out(self, path: str, reason: str) -> None:
        """List a picture in a folder that is left out for its extension or format."""
        self.left_out += 1
        print(f"left out: {reason}", file=sys.stderr)
        self._list(Unreadable(path, reason))

    def _list(self, bad: Unreadable) -> None:
        for place in (self.file, self.page):
            if place is not None:
                place.refuse(bad)

    def finish(self) -> int:
        """Print how many pictures have no tags, and return the exit code."""
        counts = ((self.refused, "unreadable"), (self.left_out, "left out"))
        said = " and ".join(f"{count} {what}" for count, what in counts if count)
        if said and self.file is not None:
            print(f"{said}, listed in {self.file.refused_path}", file=sys.stderr)
        return 1 if said or self.failed else 0


def _tag(recognizer: Recognizer, given: argparse.Namespace) -> int:
    with ExitStack() as stack:
        outputs = _Outputs(stack, recognizer, given)
        paths = picture_paths(given.pictures, sys.stdin.buffer, left_out=outputs.leave_out)
        found = tag_files(
            recognizer,
            _progress(outputs.todo(paths), given),
            batch_size=given.batch_size,
            workers=given.workers,
            threshold=outputs.threshold,
            thumbnails=THUMBNAIL if outputs.page is not None else 0,
        )
        for one in found:
            if isinstance(one, Unreadable):
                outputs.refuse(one)
            else:
                outputs.add(one._replace(tags=one.tags[: given.top]))
    return outputs.finish()


def _progress(paths: Iterator[str], given: argparse.Namespace) -> Iterator[str]:
    """Wrap the paths in a progress bar on a terminal, nowhere else."""
    if not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    total = None if STDIN in given.pictures else sum(1 for _ in picture_paths(given.pictures))
    return iter(tqdm(paths, total=total, unit="picture"))


def _listing(labels: LabelSet, tags: Sequence[Tag]) -> str:
    listing = ", ".join(f"{labels.readable[tag.name]} {tag.probability:.3f}" for tag in tags)
    return listing or "no label reaches its threshold (--top K tells the nearest)"


if __name__ == "__main__":
    sys.exit(main())
