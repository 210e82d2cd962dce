"""Pictures with labels, whatever files they were read from."""

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
from pvlr.data.images import Picture, decode_rgb
from pvlr.data.sampling import Draw, derive_seed

__all__ = ["LabelledImages", "Source", "Transform", "hide_labels", "know_few", "split_by_name"]

Transform = Callable[[Image.Image, torch.Generator], Tensor]

Source = Path | Callable[[], Picture]
"""Where a picture is: a file, or something that gives it when called. It must pickle to be read in workers."""


class LabelledImages(Dataset[Sample]):
    """A split of a data set: picture files, and what is known about each of their labels. Every reader returns one.

    Args:
        name: Of the data set and its split, for messages.
        labels: The columns of ``target``.
        paths: The picture files; each is opened when its sample is asked for. Where pictures are no files of their
            own, something that gives one when called, see `Source`.
        identifiers: The pictures' names, each once; they stay when the folder moves.
        target: ``n c``, 1 for labels that are present, else 0.
        known: ``n c``, False where nothing is known about a label; None: everything is known.
        note: What the summary says about how the labels were read.
        transform: Takes the picture and a generator that is a function of (seed, epoch, index). If it says to which
            ``side`` it resizes, JPEG files are decoded no larger than that needs. None: pictures become tensors from 0
            to 1 of their own size.

    Raises:
        ShapeError: where ``target`` or ``known`` is not ``n c``.
        DataError: where there is no picture, a name comes twice, or there are not as many names as pictures.

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

    def with_transform(self, transform: Transform | None) -> "LabelledImages":
        """The same pictures and labels, shown another way; nothing is read again."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_known(self, known: Bool[Tensor, "n c"], note: str) -> "LabelledImages":
        """The same pictures, of whose labels less is known; the target is 0 where nothing is."""
        return LabelledImages(
            name=self.name, labels=self.labels, paths=self.paths, identifiers=self.identifiers,
            target=self.target.masked_fill(~known, 0.0), known=known, note=self._noted(note), transform=self.transform,
        )  # fmt: skip

    def with_labels(self, names: Sequence[str]) -> "LabelledImages":
        """The same pictures, of which these labels alone are told.

        Raises:
            LabelError: naming a label that is unknown or given twice.
        """
        columns = [self.labels.index(name) for name in names]
        return LabelledImages(
            name=self.name, labels=self.labels.select(names), paths=self.paths, identifiers=self.identifiers,
            target=self.target[:, columns], known=self.known[:, columns],
            note=self._noted(f"{len(columns)} of {len(self.labels)} labels"), transform=self.transform,
        )  # fmt: skip

    def select(self, rows: Sequence[int], note: str = "") -> "LabelledImages":
        """These pictures alone, in this order; ``note`` is added to the summary.

        Raises:
            DataError: where there are none.
        """
        return LabelledImages(
            name=self.name, labels=self.labels, paths=[self.paths[row] for row in rows],
            identifiers=[self.identifiers[row] for row in rows], target=self.target[list(rows)],
            known=self.known[list(rows)], note=self._noted(note), transform=self.transform,
        )  # fmt: skip

    def _noted(self, note: str) -> str:
        return ", ".join(part for part in (self.note, note) if part)

    def summary(self) -> str:
        """One line: how many images, labels, positives per image and unknown labels."""
        positives, unknown = float(self.target.sum()) / len(self), int((~self.known).sum())
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.name}: {len(self):,} images, {len(self.labels)} labels, "
            f"{positives:.2f} positives per image, {unknown:,} unknown labels{note}"
        )

    def digest(self) -> str:
        """Sha256 over the names of labels and pictures, and over what is known; not over where the pictures are."""
        digest = hashlib.sha256("\n".join((*self.labels, "", *self.identifiers)).encode())
        digest.update(self.target.numpy().tobytes())
        digest.update(self.known.numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int | Draw) -> Sample:
        """A sample by its index, or by a `Draw` that brings the seed of the transform along."""
        if isinstance(position, Draw):
            index, seed = position
        else:
            index, seed = position, derive_seed(0, 0, position)
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected a number from 0 to {len(self) - 1}, got {index}")
        source, side = self.paths[index], getattr(self.transform, "side", None)
        if isinstance(source, Path):
            picture = decode_rgb(source, side=side)
        else:
            picture = decode_rgb(source(), name=f"{self.name}: {self.identifiers[index]}", side=side)
        if self.transform is None:
            image = F.pil_to_tensor(picture).float() / 255
        else:
            image = self.transform(picture, torch.Generator().manual_seed(seed))
        return Sample(image, self.target[index], self.known[index], index)


def split_by_name(data: LabelledImages, *, share: float, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Set a share of the pictures aside: a function of (seed, name of the picture), whatever else is in the data set.

    Args:
        data: Pictures with labels.
        share: Of the pictures that are set aside, in (0, 1); as each is drawn by its name, theirs is near it.
        seed: Of the choice.

    Returns:
        What is left, and what is set aside.

    Raises:
        DataError: where either would be empty.

    Example:
        >>> labels, names = LabelSet(("cat",)), [str(number) for number in range(100)]
        >>> paths = [Path(f"{name}.jpg") for name in names]
        >>> data = LabelledImages(
        ...     name="x", labels=labels, paths=paths, identifiers=names, target=torch.zeros(100, 1)
        ... )
        >>> [len(part) for part in split_by_name(data, share=0.2)]
        [84, 16]
    """
    chosen = [derive_seed(seed, _number(identifier)) < share * 2**63 for identifier in data.identifiers]
    rows = {part: [row for row, aside in enumerate(chosen) if aside is part] for part in (False, True)}
    if not all(rows.values()):
        raise DataError(f"{data.name}: expected enough pictures to set {share:g} of them aside, found {len(data)}")
    return data.select(rows[False], note=f"{1 - share:.0%} of all"), data.select(rows[True], note=f"{share:.0%} of all")


def hide_labels(data: LabelledImages, *, keep: float | str, seed: int = 0) -> LabelledImages:
    """Make labels unknown, as studies of partial labels do: the same ones of a picture wherever it is met.

    The choice is a function of the seed, the picture's name, and the number and order of the labels, nothing else:
    not of the other pictures. It is drawn column by column, so the same labels in another order hide others.

    Args:
        data: Pictures with labels.
        keep: Share of each picture's known labels that stays known, in (0, 1); each label on its own. Or
            ``"single_positive"``: of each picture one present label stays known, nothing else.
        seed: Of the choice.

    Raises:
        DataError: where ``keep`` is neither.

    Example:
        >>> labels, target = LabelSet(("cat", "dog")), torch.tensor([[1.0, 1.0]])
        >>> data = LabelledImages(name="x", labels=labels, paths=[Path("a.jpg")], identifiers=["a"], target=target)
        >>> hide_labels(data, keep="single_positive").known.sum().item()
        1
    """
    single = keep == "single_positive"
    if not single and (isinstance(keep, str | bool) or not 0 < keep < 1):
        raise DataError(f"keep: expected a share between 0 and 1 or 'single_positive', got {keep!r}")
    known = torch.zeros_like(data.known)
    for row, identifier in enumerate(data.identifiers):
        # By name and not by position: the same picture keeps the same labels in a selection.
        generator = torch.Generator().manual_seed(derive_seed(seed, _number(identifier)))
        luck = torch.rand(len(data.labels), generator=generator)
        if single:
            present = (data.target[row] > 0) & data.known[row]
            if bool(present.any()):
                known[row, int(luck.masked_fill(~present, -1.0).argmax())] = True
        else:
            known[row] = data.known[row] & (luck < float(keep))
    said = "one positive label per image known" if single else f"{float(keep):.0%} of the labels known"
    return data.with_known(known, said)


def know_few(data: LabelledImages, *, positives: int, seed: int = 0) -> LabelledImages:
    """Know the labels of as few pictures as give each label so many positives, chosen at random, and of no others.

    Labels are served from the rarest to the most frequent, by pictures that are not chosen yet: frequent ones have more
    in the end, and labels with fewer keep all they have. A function of the seed, the pictures' names and their labels.

    Args:
        data: Pictures with labels.
        positives: Known positives of each label, at least 1.
        seed: Of the choice.

    Raises:
        DataError: where the number is none, or no picture has a label.

    Example:
        >>> labels, target = LabelSet(("cat", "dog")), torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
        >>> paths = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]
        >>> data = LabelledImages(name="x", labels=labels, paths=paths, identifiers=["a", "b", "c"], target=target)
        >>> know_few(data, positives=1).known.any(dim=1)
        tensor([False,  True, False])
    """
    if isinstance(positives, bool) or not isinstance(positives, int) or positives < 1:
        raise DataError(f"positives: expected a whole number of at least 1, got {positives!r}")
    present = (data.target > 0) & data.known
    luck = [derive_seed(seed, _number(identifier)) for identifier in data.identifiers]
    order = sorted(range(len(data)), key=lambda row: luck[row])
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
    kept = torch.zeros(len(data), 1, dtype=torch.bool)
    kept[sorted(chosen)] = True
    return data.with_known(data.known & kept, f"{positives} positives of each label, labels of {len(chosen):,} known")


def _number(identifier: str) -> int:
    return int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:7], "big")
