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

from pvlr.data.sources import STDIN, picture_paths
from pvlr.inference.gallery import THUMBNAIL, Gallery
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tag_file import TagFile, identity_of
from pvlr.inference.tagging import Unreadable, tag_files
from pvlr.inference.tags import Tag
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
    for name, path in (("out", given.out), ("html", given.html)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise ValueError(f"--{name}: expected a file in a folder that is there, got {path}")
    if given.out is not None and given.html is not None and given.out.resolve() == given.html.resolve():
        raise ValueError(f"--html: expected another file than --out, got {given.html}")
    recognizer = Recognizer.open(
        given.run, given.tower, weights=given.weights, labels=given.labels, device=given.device
    )
    if given.batch_size is None:
        # Small batches are fastest on a CPU: memory of larger ones is allocated from the system page by page.
        given.batch_size = 4 if recognizer.model.knowledge_vectors.device.type == "cpu" else 32
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
    paths = picture_paths(given.pictures, sys.stdin.buffer)
    if given.benchmark:
        print(latency_table(recognizer, list(islice(paths, 256)), batch_size=given.batch_size, workers=given.workers))
        return 0
    return _tag(recognizer, paths, given)


def _tag(recognizer: Recognizer, paths: Iterator[str], given: argparse.Namespace) -> int:
    decision = recognizer.decision
    threshold = decision.least if given.top else given.threshold
    own = decision.for_labels(recognizer.labels)
    refused = 0
    with ExitStack() as stack:
        file, page = None, None
        if given.out is not None:
            about = {**identity_of(recognizer), "threshold": given.threshold, "top": given.top}
            file = stack.enter_context(TagFile(given.out, about, kind=given.format))
        if given.html is not None:
            shown = own if threshold is None else (threshold,) * len(own)
            title = f"Tags by {given.run or given.tower}"
            page = stack.enter_context(
                Gallery(
                    given.html, recognizer.labels, shown, title=title, limit=given.html_limit, scores=decision.scores
                )
            )
        todo = _todo(paths, file, page)
        found = tag_files(
            recognizer,
            _progress(todo, given),
            batch_size=given.batch_size,
            workers=given.workers,
            threshold=threshold,
            thumbnails=THUMBNAIL if page is not None else 0,
        )
        for one in found:
            if isinstance(one, Unreadable):
                refused += 1
                print(f"unreadable: {one.reason}", file=sys.stderr)
                for place in (file, page):
                    if place is not None:
                        place.refuse(one)
                continue
            one = one._replace(tags=one.tags[: given.top])
            if page is not None:
                page.add(one)
            if file is not None and one.path not in file.done:
                file.write(one.path, one.tags)
            if file is None and page is None:
                print(f"{one.path}: {_listing(recognizer, one.tags)}", flush=True)
    if file is not None and refused:
        print(f"{refused} unreadable, listed in {file.refused_path}", file=sys.stderr)
    return 1 if refused else 0


def _todo(paths: Iterator[str], file: TagFile | None, page: Gallery | None) -> Iterator[str]:
    """Yield the paths to tag: those in the file already only as far as the page shows them."""
    for path in paths:
        if file is None or path not in file.done or (page is not None and not page.is_full):
            yield path
        elif page is not None:
            page.skip()


def _progress(paths: Iterator[str], given: argparse.Namespace) -> Iterator[str]:
    """Wrap the paths in a progress bar on a terminal, nowhere else."""
    if not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    total = None if STDIN in given.pictures else sum(1 for _ in picture_paths(given.pictures))
    return iter(tqdm(paths, total=total, unit="picture"))


def _listing(recognizer: Recognizer, tags: Sequence[Tag]) -> str:
    listing = ", ".join(f"{recognizer.labels.readable[tag.name]} {tag.probability:.3f}" for tag in tags)
    return listing or "no label reaches its threshold (--top K tells the nearest)"


if __name__ == "__main__":
    sys.exit(main())
