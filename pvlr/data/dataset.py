"""Data sets of pictures with labels, independent of the files they were read from."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from pvlr.core.labels import LabelSet
from pvlr.core.shapes import expect
from pvlr.data.batch import DataError, Sample
from pvlr.data.images import MAX_PIXELS, Picture, decode_rgb
from pvlr.data.sampling import Draw, derive_seed
from pvlr.data.stratify import stratified_split

__all__ = ["LabelledImages", "Source", "Transform", "hide_labels", "know_few", "split_by_name"]

Transform = Callable[[Image.Image, torch.Generator], Tensor]

Source = Path | Callable[[], Picture]
"""Source of a picture: a file, or a callable that returns it, which must be picklable to be read in workers."""


class LabelledImages(Dataset[Sample]):
    """A split of a data set: picture files with known and unknown labels. Every reader returns one.

    Args:
        name: Name of the data set and its split, for messages.
        labels: The columns of ``target``.
        paths: The picture files; each is opened when its sample is read. Pictures without a file of their own are
            callables, see `Source`.
        identifiers: The pictures' names, unique and independent of the folder's location.
        target: ``n c``, 1 for labels that are present, else 0.
        known: ``n c``, False where a label is unknown; None: all labels are known.
        note: Remark of the summary on how the labels were read.
        transform: Callable of the picture and a generator that is a function of (seed, epoch, index). If it has the
            attribute ``side``, the size to which it resizes, JPEG files are decoded no larger than needed. None:
            pictures become tensors from 0 to 1 of their own size.

    Raises:
        ShapeError: if ``target`` or ``known`` is not ``n c``.
        DataError: if there is no picture, a name is repeated, or the numbers of names and pictures differ.

    Example:
        >>> labels, target = LabelSet(("cat", "dog")), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> data = LabelledImages(
        ...     name="mine", labels=labels, paths=[Path("a.jpg"), Path("b.jpg")], identifiers=["a", "b"], target=target
        ... )
        >>> data.summary()
        'mine: 2 images, 2 labels, 1.50 positives per image, 0 unknown labels'
        >>> data.select([1]).identifiers
        ('b',)
    """

    def __init__(
        self,
        *,
        name: str,
        labels: LabelSet,
        paths: Sequence[Source],
        identifiers: Sequence[str],
        target: Float[Tensor, "n c"],
        known: Bool[Tensor, "n c"] | None = None,
        note: str = "",
        transform: Transform | None = None,
    ) -> None:
        self.name, self.labels, self.note, self.transform = name, labels, note, transform
        self.max_pixels = MAX_PIXELS
        self.paths, self.identifiers = tuple(paths), tuple(identifiers)
        if not self.paths:
            raise DataError(f"{name}: expected at least one picture, found none")
        if len(self.identifiers) != len(self.paths):
            raise DataError(f"{name}: expected a name per picture, found {len(self.identifiers)} for {len(self.paths)}")
        seen: set[str] = set()
        for identifier in self.identifiers:
            if identifier in seen:
                raise DataError(f"{name}: expected every picture once, found {identifier!r} twice")
            seen.add(identifier)
        sizes = {"n": len(self.paths), "c": len(labels)}
        expect("target", target, "n c", dtype="float", n=sizes["n"], c=sizes["c"])
        self.target = target
        self.known = torch.ones_like(target, dtype=torch.bool) if known is None else known
        expect("known", self.known, "n c", dtype="bool", n=sizes["n"], c=sizes["c"])

    @property
    def present(self) -> Bool[Tensor, "n c"]:
        """The labels that are known to be present, ``n c``."""
        return (self.target > 0) & self.known

    def with_transform(self, transform: Transform | None) -> "LabelledImages":
        """Return the same pictures and labels with another transform; nothing is read again."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_max_pixels(self, max_pixels: int) -> "LabelledImages":
        """Return the same with another limit of a picture's size, see :func:`~pvlr.data.images.decode_rgb`."""
        other = copy.copy(self)
        other.max_pixels = max_pixels
        return other

    def with_known(self, known: Bool[Tensor, "n c"], note: str) -> "LabelledImages":
        """Return the same pictures with fewer known labels; the target is 0 where a label is unknown."""
        return LabelledImages(
            name=self.name, labels=self.labels, paths=self.paths, identifiers=self.identifiers,
            target=self.target.masked_fill(~known, 0.0), known=known, note=self._noted(note), transform=self.transform,
        ).with_max_pixels(self.max_pixels)  # fmt: skip

    def with_labels(self, names: Sequence[str]) -> "LabelledImages":
        """Return the same pictures with these labels only.

        Raises:
            LabelError: naming a label that is unknown or given twice.
        """
        columns = [self.labels.index(name) for name in names]
        return LabelledImages(
            name=self.name, labels=self.labels.select(names), paths=self.paths, identifiers=self.identifiers,
            target=self.target[:, columns], known=self.known[:, columns],
            note=self._noted(f"{len(columns)} of {len(self.labels)} labels"), transform=self.transform,
        ).with_max_pixels(self.max_pixels)  # fmt: skip

    def select(self, rows: Sequence[int], note: str = "") -> "LabelledImages":
        """Return these pictures only, in this order; ``note`` is added to the summary.

        Raises:
            DataError: if ``rows`` is empty.
        """
        return LabelledImages(
            name=self.name, labels=self.labels, paths=[self.paths[row] for row in rows],
            identifiers=[self.identifiers[row] for row in rows], target=self.target[list(rows)],
            known=self.known[list(rows)], note=self._noted(note), transform=self.transform,
        ).with_max_pixels(self.max_pixels)  # fmt: skip

    def _noted(self, note: str) -> str:
        return ", ".join(part for part in (self.note, note) if part)

    def summary(self) -> str:
        """The numbers of images, labels, positives per image and unknown labels, in one line."""
        positives, unknown = float(self.target.sum()) / len(self), int((~self.known).sum())
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.name}: {len(self):,} images, {len(self.labels)} labels, "
            f"{positives:.2f} positives per image, {unknown:,} unknown labels{note}"
        )

    def digest(self) -> str:
        """The SHA-256 of the names of labels and pictures, of target and known, but not of the pictures' paths."""
        digest = hashlib.sha256("\n".join((*self.labels, "", *self.identifiers)).encode())
        digest.update(self.target.numpy().tobytes())
        digest.update(self.known.numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int | Draw) -> Sample:
        """Return a sample by its index, or by a `Draw` that also holds the seed of the transform."""
        if isinstance(position, Draw):
            index, seed = position
        else:
            index, seed = position, derive_seed(0, 0, position)
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected a number from 0 to {len(self) - 1}, got {index}")
        source, side = self.paths[index], getattr(self.transform, "side", None)
        if isinstance(source, Path):
            picture = decode_rgb(source, side=side, max_pixels=self.max_pixels)
        else:
            name = f"{self.name}: {self.identifiers[index]}"
            picture = decode_rgb(source(), name=name, side=side, max_pixels=self.max_pixels)
        if self.transform is None:
            image = F.pil_to_tensor(picture).float() / 255
        else:
            image = self.transform(picture, torch.Generator().manual_seed(seed))
        return Sample(image, self.target[index], self.known[index], index)


def split_by_name(data: LabelledImages, *, share: float, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Split off a share of the pictures, and with it the same share of each label's positives.

    The choice is a function of the seed, the pictures' names and their labels; see
    :func:`~pvlr.data.stratify.stratified_split`. Labels that are unknown count as absent.

    Args:
        data: Pictures with labels.
        share: Share of the pictures to split off, in (0, 1); at least one is, and at least one remains.
        seed: Seed of the choice.

    Returns:
        The remaining pictures, and those that are split off.

    Raises:
        DataError: if there is one picture only.

    Example:
        >>> labels, names = LabelSet(("cat",)), [str(number) for number in range(100)]
        >>> paths = [Path(f"{name}.jpg") for name in names]
        >>> target = torch.zeros(100, 1).index_fill(0, torch.arange(10), 1.0)
        >>> data = LabelledImages(name="x", labels=labels, paths=paths, identifiers=names, target=target)
        >>> [(len(part), int(part.target.sum())) for part in split_by_name(data, share=0.2)]
        [(80, 8), (20, 2)]
    """
    if len(data) < 2:
        raise DataError(f"{data.name}: expected enough pictures to set {share:g} of them aside, found {len(data)}")
    # By name and not by position: the order of a file of labels plays no part.
    draws = [(derive_seed(seed, _number(identifier)), identifier) for identifier in data.identifiers]
    order = sorted(range(len(data)), key=lambda row: draws[row])
    chosen = stratified_split(data.present, share, order).tolist()
    rows = {part: [row for row, aside in enumerate(chosen) if aside is part] for part in (False, True)}
    return data.select(rows[False], note=f"{1 - share:.0%} of all"), data.select(rows[True], note=f"{share:.0%} of all")


def hide_labels(data: LabelledImages, *, keep: float | str, seed: int = 0) -> LabelledImages:
    """Make labels unknown, as in studies of partial labels; the same ones of a picture in any selection.

    The choice is a function of the seed, the picture's name, and the number and order of the labels, not of the other
    pictures. It is drawn column by column, so another order of the labels hides others.

    Args:
        data: Pictures with labels.
        keep: Share of each picture's known labels that stays known, in (0, 1), drawn for each label independently. Or
            ``"single_positive"``: one present label of each picture stays known, all others become unknown.
        seed: Seed of the choice.

    Raises:
        DataError: if ``keep`` is neither.

    Example:
        >>> labels, target = LabelSet(("cat", "dog")), torch.tensor([[1.0, 1.0]])
        >>> data = LabelledImages(name="x", labels=labels, paths=[Path("a.jpg")], identifiers=["a"], target=target)
        >>> hide_labels(data, keep="single_positive").known.sum().item()
        1
    """
    single = keep == "single_positive"
    if not single and (isinstance(keep, str | bool) or not 0 < keep < 1):
        raise DataError(f"keep: expected a share between 0 and 1 or 'single_positive', got {keep!r}")
    known, every = torch.zeros_like(data.known), data.present
    for row, identifier in enumerate(data.identifiers):
        # By name and not by position: the same picture keeps the same labels in a selection.
        generator = torch.Generator().manual_seed(derive_seed(seed, _number(identifier)))
        draws = torch.rand(len(data.labels), generator=generator)
        if single:
            present = every[row]
            if bool(present.any()):
                known[row, int(draws.masked_fill(~present, -1.0).argmax())] = True
        else:
            known[row] = data.known[row] & (draws < float(keep))
    note = "one positive label per image known" if single else f"{float(keep):.0%} of the labels known"
    return data.with_known(known, note)


def know_few(data: LabelledImages, *, positives: int, seed: int = 0) -> LabelledImages:
    """Make all labels unknown but those of as few random pictures as give each label a number of positives.

    Pictures are chosen label by label, from the rarest to the most frequent: frequent labels end up with more
    positives, and labels with fewer keep all of them. The choice is a function of the seed, the pictures' names and
    their labels.

    Args:
        data: Pictures with labels.
        positives: Known positives of each label, at least 1.
        seed: Seed of the choice.

    Raises:
        DataError: if ``positives`` is not a whole number of at least 1, or no picture has a label.

    Example:
        >>> labels, target = LabelSet(("cat", "dog")), torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
        >>> paths = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
        >>> data = LabelledImages(name="x", labels=labels, paths=paths, identifiers=["a", "b", "c"], target=target)
        >>> know_few(data, positives=1).known.any(dim=1)
        tensor([False,  True, False])
    """
    if isinstance(positives, bool) or not isinstance(positives, int) or positives < 1:
        raise DataError(f"positives: expected a whole number of at least 1, got {positives!r}")
    present = data.present
    draws = [derive_seed(seed, _number(identifier)) for identifier in data.identifiers]
    order = sorted(range(len(data)), key=lambda row: draws[row])
    chosen: set[int] = set()
    counts = torch.zeros(len(data.labels), dtype=torch.int64)
    for label in present.sum(dim=0).argsort(stable=True).tolist():
        for row in order:
            if counts[label] >= positives:
                break
            if present[row, label] and row not in chosen:
                chosen.add(row)
                counts += present[row]
    if not chosen:
        raise DataError(f"{data.name}: expected pictures that have a label, found none")
    mask = torch.zeros(len(data), 1, dtype=torch.bool)
    mask[sorted(chosen)] = True
    return data.with_known(data.known & mask, f"{positives} positives of each label, labels of {len(chosen):,} known")


def _number(identifier: str) -> int:
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:7], "big")
