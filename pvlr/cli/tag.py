"""``pvlr tag``: tagging of files, folders, patterns, or paths from standard input, by a trained model or by towers."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pvlr.cli.checks import require_places, require_probability, require_whole
from pvlr.cli.help import Usage
from pvlr.core.arguments import ConfigError
from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.images import MAX_PIXELS
from pvlr.data.sources import STDIN, picture_paths
from pvlr.data.video import EVERY
from pvlr.inference.gallery import THUMBNAIL, Gallery
from pvlr.inference.interchange import FiftyOneFile, LabelStudioFile
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.tag_file import TagFile, identity_of
from pvlr.inference.tagging import Tagged, Unreadable, tag_files
from pvlr.inference.tags import Tag
from pvlr.inference.xmp import write_sidecar
from pvlr.train.monitoring.latency import latency_table

__all__ = ["USAGE", "tag"]

RANKED = 5
"""Number of labels per picture that are printed if their numbers only rank them."""
USAGE = Usage(
    name="",
    examples=(
        '--tower pvlr:photos --labels "cat, sofa, laptop" PICTURE.jpg',
        "--run runs/quickstart PICTURES/ --out tags.jsonl --html gallery.html",
    ),
    positional=("pictures", "PICTURE"),
)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Files that tags are written to; see :func:`tag`."""

    model: str
    out: Path | None
    format: Literal["jsonl", "csv"] | None
    html: Path | None
    html_limit: int
    xmp: bool
    label_studio: Path | None
    image_prefix: str
    fiftyone: Path | None

    def __post_init__(self) -> None:
        require_places({name: getattr(self, name) for name in ("out", "html", "label_studio", "fiftyone")})
        if self.image_prefix and self.label_studio is None:
            raise ConfigError("--image_prefix: expected --label_studio with it, whose pictures it stands in front of")


def tag(
    *,
    pictures: list[str],
    run: str | None = None,
    tower: str | None = None,
    weights: str | None = None,
    labels: str | None = None,
    threshold: float | None = None,
    top: int | None = None,
    out: str | None = None,
    format: Literal["jsonl", "csv"] | None = None,
    html: str | None = None,
    html_limit: int = 1000,
    xmp: bool = False,
    label_studio: str | None = None,
    image_prefix: str = "",
    fiftyone: str | None = None,
    benchmark: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    every: float = EVERY,
    device: str = "cpu",
) -> int:
    """Tag pictures with a trained model, or without training with pre-trained towers.

    Args:
        pictures: File, folder, pattern, or - for paths from standard input.
        run: Folder of a run or a saved model, or hf-hub:OWNER/NAME.
        tower: Without a run: pvlr:photos, a folder, hf-hub:OWNER/NAME or a name of open_clip's (pvlr towers lists
            them). With one: current location of its towers.
        weights: Weights of the tower, if several are published: a tag, or a file.
        labels: Labels to look for: names separated by commas, @FILE with one per line, voc, coco or imagenet; null for
            the run's own, or coco.
        threshold: Lowest probability of a tag, in [0, 1]; null for each label's own.
        top: Number of most probable labels, regardless of their probability, instead of a threshold.
        out: File for the tags, .jsonl or .csv; an existing one is continued.
        format: Format of this file, regardless of its extension.
        html: File for a page of thumbnails, tags and where they are.
        html_limit: Maximum number of pictures on this page.
        xmp: Add the tags to an XMP sidecar beside each picture, for photo programs.
        label_studio: File for tasks with predictions for Label Studio.
        image_prefix: Text before each path in this file, such as /data/local-files/?d=.
        fiftyone: File for labels of FiftyOne.
        benchmark: Measure the speed on these pictures instead.
        batch_size: Pictures per forward pass; null for 4 on a CPU, 32 elsewhere.
        workers: Threads that read pictures.
        max_pixels: Largest width times height of a picture.
        every: Minimum seconds between the tagged frames of a video.
        device: Device of the model: auto, cpu, cuda or cuda:<number>.

    Returns:
        The exit code: 0; 1 if a picture could not be read or was left out; 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A file's name need not be text; what cannot be printed is escaped.
            stream.reconfigure(errors="backslashreplace")
    if threshold is not None:
        require_probability("threshold", threshold, least=-1.0)
    require_whole(1, top=top, html_limit=html_limit, batch_size=batch_size, workers=workers, max_pixels=max_pixels)
    if top is not None and threshold is not None:
        raise ConfigError("--top: expected no --threshold with it, for it takes labels whatever they have")
    places = Places(
        model=str(run or tower),
        out=_path(out),
        format=format,
        html=_path(html),
        html_limit=html_limit,
        xmp=xmp,
        label_studio=_path(label_studio),
        image_prefix=image_prefix,
        fiftyone=_path(fiftyone),
    )
    try:
        recognizer = Recognizer.open(run, tower, weights=weights, labels=labels, device=device)
        if batch_size is None:
            # Small batches are fastest on a CPU: memory of larger ones is allocated from the system page by page.
            batch_size = 4 if recognizer.model.device.type == "cpu" else 32
        top = _ranked(recognizer, str(tower or run), threshold, top)
        if benchmark:
            paths = list(islice(picture_paths(pictures, sys.stdin.buffer), 256))
            print(latency_table(recognizer, paths, batch_size=batch_size, workers=workers))
            return 0
        with ExitStack() as stack:
            outputs = _Outputs(stack, recognizer, places, threshold, top)
            shown = _progress(
                outputs.todo(picture_paths(pictures, sys.stdin.buffer, left_out=outputs.leave_out)), pictures
            )
            found = tag_files(
                recognizer,
                shown,
                batch_size=batch_size,
                workers=workers,
                threshold=outputs.threshold,
                thumbnails=THUMBNAIL if outputs.page is not None else 0,
                max_pixels=max_pixels,
                every=every,
            )
            for one in found:
                if isinstance(one, Unreadable):
                    outputs.refuse(one)
                else:
                    outputs.add(one._replace(tags=one.tags[:top]))
    except KeyboardInterrupt:
        print("interrupted" + ("; the same command goes on" if out else ""), file=sys.stderr)
        return 130
    return outputs.finish()


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _ranked(recognizer: Recognizer, name: str, threshold: float | None, top: int | None) -> int | None:
    """Return the number of labels per picture, and say it if the scores are no probabilities."""
    if recognizer.decision.scores == "probability":
        if threshold is not None:
            require_probability("threshold", threshold)
        return top
    if recognizer.decision.scores == "similarity":
        print(
            f"{name}: no scale and bias make probabilities of its scores; the numbers are cosine similarities, which "
            "rank the labels",
            file=sys.stderr,
        )
        if top is None and threshold is None:
            return RANKED
    return top


class _Outputs:
    """Everything that tags are written to, as the command line asks for it."""

    def __init__(
        self, stack: ExitStack, recognizer: Recognizer, places: Places, threshold: float | None, top: int | None
    ) -> None:
        decision, labels = recognizer.decision, recognizer.labels
        self.labels, self.places = labels, places
        self.tagged = self.failed = self.refused = self.left_out = 0
        self.videos: set[str] = set()  # Those that some output has no place for.
        self.threshold = decision.least if top else threshold
        self.file: TagFile | None = None
        self.page: Gallery | None = None
        self.exports: list[LabelStudioFile | FiftyOneFile] = []
        if places.out is not None:
            about = {**identity_of(recognizer), "threshold": threshold, "top": top}
            self.file = stack.enter_context(TagFile(places.out, about, kind=places.format))
        if places.html is not None:
            shown = decision.for_labels(labels) if self.threshold is None else (self.threshold,) * len(labels)
            title, limit = f"Tags by {places.model}", places.html_limit
            page = Gallery(places.html, labels, shown, title=title, limit=limit, scores=decision.scores)
            self.page = stack.enter_context(page)
        if places.label_studio is not None:
            prefix = places.image_prefix
            tasks = LabelStudioFile(places.label_studio, labels, model=places.model, prefix=prefix)
            self.exports.append(stack.enter_context(tasks))
        if places.fiftyone is not None:
            self.exports.append(stack.enter_context(FiftyOneFile(places.fiftyone, labels)))

    @property
    def is_silent(self) -> bool:
        """True if tags are written to files, and not printed."""
        return bool(self.file or self.page or self.exports or self.places.xmp)

    def todo(self, paths: Iterator[str]) -> Iterator[str]:
        """Yield the paths to tag: those that --out has already only if another output needs them."""
        for path in paths:
            done = self.file is not None and path in self.file.done
            if not done or self.exports or self.places.xmp or (self.page is not None and not self.page.is_full):
                yield path
            elif self.page is not None:
                self.page.skip()

    def add(self, one: Tagged) -> None:
        """Write the tags of a picture."""
        self.tagged += 1
        if self.page is not None:
            self.page.add(one)
        if self.file is not None and one.path not in self.file.done:
            self.file.write(one.path, one.tags)
        if one.video is None:
            for export in self.exports:
                export.add(one.path, one.tags)
        elif self.exports and one.video not in self.videos:
            self.videos.add(one.video)
            self.leave_out(one.video, f"{one.video}: expected a picture for --label_studio or --fiftyone, got a video")
        if self.places.xmp and Path(one.file).is_file():
            try:
                write_sidecar(Path(one.file), (self.labels.readable[tag.name] for tag in one.tags))
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
        """Print how many pictures have no tags, and on a terminal how many have, and return the exit code."""
        if self.is_silent and sys.stdout.isatty():
            files = [getattr(self.places, name) for name in ("out", "html", "label_studio", "fiftyone")]
            written = [*(str(file) for file in files if file is not None), *(["sidecars"] if self.places.xmp else [])]
            print(f"{self.tagged:,} picture{'' if self.tagged == 1 else 's'} tagged: {', '.join(written)}")
        counts = ((self.refused, "unreadable"), (self.left_out, "left out"))
        said = " and ".join(f"{count} {what}" for count, what in counts if count)
        if said and self.file is not None:
            print(f"{said}, listed in {self.file.refused_path}", file=sys.stderr)
        return 1 if said or self.failed else 0


def _progress(paths: Iterator[str], pictures: list[str]) -> Iterator[str]:
    """Wrap the paths in a progress bar on a terminal, nowhere else."""
    if not sys.stderr.isatty():
        return paths
    from tqdm import tqdm

    total = None if STDIN in pictures else sum(1 for _ in picture_paths(pictures))
    return iter(tqdm(paths, total=total, unit="picture"))


def _listing(labels: LabelSet, tags: Sequence[Tag]) -> str:
    listing = ", ".join(f"{labels.readable[tag.name]} {tag.probability:.3f}" for tag in tags)
    return listing or "no label reaches its threshold (--top K tells the nearest)"
