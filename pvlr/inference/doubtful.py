"""Labels that a model contradicts: where people may have erred, as a table and a page of thumbnails."""

import csv
import html
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.shapes import expect
from pvlr.data.dataset import LabelledImages
from pvlr.data.images import decode_rgb
from pvlr.files import write_atomically
from pvlr.inference.gallery import THUMBNAIL, card, page_around
from pvlr.inference.tagging import thumbnail_of

__all__ = ["Doubt", "most_doubtful", "write_doubts_csv", "write_doubts_page"]

HINT = (
    "Each bar is the probability, by the model, of the answer that was not given: look whether the given one is right. "
    "Labels that are unknown are not listed. Tab goes to the first one, the arrow keys to the others."
)


class Doubt(NamedTuple):
    """A given label that the model contradicts.

    Attributes:
        label: The label.
        split: Name of the picture's split.
        row: Position of the picture in its split.
        picture: Name of the picture.
        given: State of the label in the data.
        probability: Probability, by the model, of the other state.
    """

    label: str
    split: str
    row: int
    picture: str
    given: Literal["present", "absent"]
    probability: float


def most_doubtful(
    splits: Mapping[str, LabelledImages], probabilities: Mapping[str, Float[Tensor, "n c"]], *, top: int = 20
) -> list[Doubt]:
    """Return the given labels whose other state is more probable, for each label the most contradicted ones.

    A model knows the pictures it was trained on: what it contradicts there all the same is doubtful, but errors that it
    has learnt are not among them.

    Args:
        splits: Pictures with labels, by the name of their split; all with the same labels.
        probabilities: Probabilities of the labels by the model, ``n c``, of each split.
        top: Largest number of pictures for each label.

    Returns:
        Label by label, the most contradicted first. Labels that are unknown are not contradicted.

    Raises:
        ShapeError: if the probabilities are not those of the pictures and labels.

    Example:
        >>> from pvlr.core.labels import LabelSet
        >>> data = LabelledImages(
        ...     name="mine", labels=LabelSet(("cat", "dog")), paths=[Path("a.jpg"), Path("b.jpg")],
        ...     identifiers=["a", "b"], target=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        ... )
        >>> found = most_doubtful({"train": data}, {"train": torch.tensor([[0.125, 0.25], [0.75, 0.875]])})
        >>> [(doubt.label, doubt.picture, doubt.given, doubt.probability) for doubt in found]
        [('cat', 'a', 'present', 0.875), ('cat', 'b', 'absent', 0.75)]
    """
    found = []
    others = {}
    for name, images in splits.items():
        given = probabilities[name]
        expect("probabilities", given, "n c", dtype="float", n=len(images), c=len(images.labels))
        others[name] = torch.where(images.target > 0, 1 - given, given).masked_fill(~images.known, 0.0)
    for column, label in enumerate(next(iter(splits.values())).labels):
        doubts = []
        for name, images in splits.items():
            values, rows = others[name][:, column].topk(min(top, len(images)))
            doubts += [
                Doubt(
                    label,
                    name,
                    row,
                    images.identifiers[row],
                    "present" if images.target[row, column] > 0 else "absent",
                    value,
                )
                for value, row in zip(values.tolist(), rows.tolist(), strict=True)
                if value > 0.5
            ]
        found += sorted(doubts, key=lambda doubt: -doubt.probability)[:top]
    return found


def write_doubts_csv(path: Path, doubts: Iterable[Doubt]) -> None:
    """Write a table with a row for each doubt, and the columns ``label,file,split,given,probability_of_other``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_doubts_csv(Path(folder, "a.csv"), [Doubt("cat", "train", 0, "a.jpg", "absent", 0.75)])
        ...     print(Path(folder, "a.csv").read_text().splitlines()[1])
        cat,a.jpg,train,absent,0.7500
    """
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("label", "file", "split", "given", "probability_of_other"))
    for doubt in doubts:
        rows.writerow((doubt.label, doubt.picture, doubt.split, doubt.given, f"{doubt.probability:.4f}"))
    write_atomically(path, text.getvalue().encode("utf-8", errors="surrogateescape"))


def write_doubts_page(path: Path, doubts: Sequence[Doubt], splits: Mapping[str, LabelledImages], *, title: str) -> None:
    """Write a page that needs no other file: a thumbnail of each picture, and its labels that are contradicted.

    Args:
        path: The page.
        doubts: See :func:`most_doubtful`.
        splits: The pictures, by the name of their split.
        title: Title of the page.

    Raises:
        DataError: naming the picture that cannot be read.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from pvlr.core.labels import LabelSet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     picture, page = Path(folder, "a.png"), Path(folder, "page.html")
        ...     Image.new("RGB", (4, 4)).save(picture)
        ...     data = LabelledImages(
        ...         name="x", labels=LabelSet(("cat",)), paths=[picture], identifiers=["a"], target=torch.zeros(1, 1)
        ...     )
        ...     doubt = Doubt("cat", "train", 0, "a", "absent", 0.75)
        ...     write_doubts_page(page, [doubt], {"train": data}, title="Mine")
        ...     "<span>cat: given as absent</span><span>75.0%</span>" in page.read_text()
        True
    """
    by_picture: dict[tuple[str, int], list[Doubt]] = {}
    for doubt in sorted(doubts, key=lambda doubt: -doubt.probability):
        by_picture.setdefault((doubt.split, doubt.row), []).append(doubt)
    labels = next(iter(splits.values())).labels
    summary = f"{len(doubts):,} given labels of {len(by_picture):,} pictures are contradicted"
    counts = Counter(doubt.label for doubt in doubts)
    before, after = page_around(labels, counts, title=title, summary=summary, hint=HINT)

    def write(file: IO[bytes]) -> None:
        file.write(before)
        for (split, _), found in by_picture.items():
            file.write(_card(splits[split], found).encode())
        file.write(after)

    write_atomically(path, write)


def _card(images: LabelledImages, doubts: Sequence[Doubt]) -> str:
    first, readable = doubts[0], images.labels.readable
    source = images.paths[first.row]
    if isinstance(source, Path):
        picture = decode_rgb(source, side=THUMBNAIL, max_pixels=images.max_pixels)
    else:
        name = f"{images.name}: {first.picture}"
        picture = decode_rgb(source(), name=name, side=THUMBNAIL, max_pixels=images.max_pixels)
    said = [f"{readable[doubt.label]}: given as {doubt.given}" for doubt in doubts]
    items = "".join(
        f'<li><button type="button" aria-pressed="false"><span>{html.escape(text)}</span>'
        f"<span>{doubt.probability:.1%}</span>"
        f'<meter min="0" max="1" value="{doubt.probability:.4f}" aria-hidden="true"></meter></button></li>'
        for text, doubt in zip(said, doubts, strict=True)
    )
    return card(
        first.picture,
        f"{first.picture} ({first.split})",
        {doubt.label: doubt.probability for doubt in doubts},
        listing=", ".join(said),
        content=f"<ul>{items}</ul>",
        thumbnail=thumbnail_of(picture, THUMBNAIL),
    )
