"""Configuration of the data: one dataclass per kind of data set, with the method that reads it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pvlr.core.arguments import require_choices, require_int, require_number
from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, hide_labels, know_few, split_by_name
from pvlr.data.readers.coco import read_coco
from pvlr.data.readers.folders import read_folders
from pvlr.data.readers.nuswide import NUSWideLists, read_nuswide
from pvlr.data.readers.table import Mark, NoSplitError, read_table
from pvlr.data.readers.voc import Difficult, obtain_voc, read_voc
from pvlr.data.sampling import derive_seed
from pvlr.data.scan import OnBadImage
from pvlr.data.scenes.dataset import ScenesConfig, write_scenes
from pvlr.train.config import ConfigError, section

__all__ = ["COCOData", "DataConfig", "NUSWideData", "Splits", "TableData", "VOCData"]

# Seed offset: the validation pictures are drawn independently of the test pictures.
VALIDATION = 1


class Splits(NamedTuple):
    """The splits of a data set, with the same labels.

    Attributes:
        train: The training split.
        test: The split of the final report.
        validation: The split evaluated during training; None: the test split is, and nothing may be chosen by it.
    """

    train: LabelledImages
    test: LabelledImages
    validation: LabelledImages | None = None


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Splits, augmentation and known labels of any data set; each kind of data set adds its files.

    Args:
        train_split: Name of the training split.
        test_split: Name of the split of the final report.
        val_split: Name of the split that is evaluated during training in place of the test split, and on which
            temperature and thresholds are fitted after training; null for none.
        val_share: Share of the training pictures used as validation split instead of ``val_split``, in (0, 1); drawn by
            ``loop.seed`` and the pictures' names. Null for none.
        crop: Smallest share of a training picture's area in a random crop, which is resized, in (0, 1]; the object of a
            label may lie outside of it. 1 takes whole pictures.
        flip: Flip half of the training pictures left to right.
        rand_augment: Apply RandAugment to the training pictures.
        cutout: Side of the square that is masked in training pictures, as a share of theirs, in [0, 1); 0 is off.
        keep_labels: Share of the training labels (those set aside by ``val_share`` included) that stays known, in
            (0, 1), or ``single_positive``: one present label per picture; null for all. Drawn by ``loop.seed``.
        shots: Number of positives of each label, at least 1: labels stay known for only as many training pictures
            (those set aside by ``val_share`` included) as it takes; null for all. Drawn by ``loop.seed``.
        unseen: Labels that are removed from all splits; a trained model can predict them by their names. Null for none.
        on_bad_image: Treatment of pictures that cannot be read, for which all are checked before the run: ``raise`` (an
            error before training) or ``drop`` (they are left out and listed in ``refused.jsonl``).
        workers: Number of worker processes that read pictures; 0 reads them in the training process.
    """

    train_split: str = "trainval"
    test_split: str = "test"
    val_split: str | None = None
    val_share: float | None = None
    crop: float = 1.0
    flip: bool = True
    rand_augment: bool = True
    cutout: float = 0.5
    keep_labels: float | Literal["single_positive"] | None = None
    shots: int | None = None
    unseen: tuple[str, ...] | None = None
    on_bad_image: OnBadImage = "raise"
    workers: int = 2

    def __post_init__(self) -> None:
        with section("data"):
            require_choices(self)
            if self.crop != 1:
                require_number("crop", self.crop, above=0.0, below=1.0)
            require_number("cutout", self.cutout, least=0.0, below=1.0)
            require_int("workers", self.workers, least=0)
            if self.val_share is not None:
                require_number("val_share", self.val_share, above=0.0, below=1.0)
                if self.val_split is not None:
                    raise ValueError(f"val_share: expected none with data.val_split={self.val_split!r}")
            if self.shots is not None:
                require_int("shots", self.shots, least=1)
            if self.keep_labels not in (None, "single_positive"):
                require_number("keep_labels", self.keep_labels, above=0.0, below=1.0)
        self._require_texts("train_split", "test_split", *(() if self.val_split is None else ("val_split",)))

    def _require_texts(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name):
                raise ConfigError(f"data.{name}: expected a non-empty text, got ''")

    def prepare(self) -> None:
        """Generate or download the data if it is absent and the configuration requires it."""

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split.

        Args:
            split: Its name.
            train: Whether it is the training split.
            labels: The labels of the columns; None: the data set's own.

        Raises:
            DataError: naming the file or folder that is missing or broken.
        """
        raise NotImplementedError

    def splits(self, seed: int) -> Splits:
        """Read all splits, with the same labels.

        Args:
            seed: Seed of the draw of validation pictures and of hidden labels, if configured.

        Raises:
            DataError: naming the file or folder that is missing or broken.
        """
        train, test = self._both(seed)
        validation = None if self.val_split is None else self.read(self.val_split, train=False, labels=train.labels)
        if self.unseen:
            for name in self.unseen:
                train.labels.index(name)
            seen = [name for name in train.labels if name not in self.unseen]
            train, test = train.with_labels(seen), test.with_labels(seen)
            validation = None if validation is None else validation.with_labels(seen)
        if self.shots is not None:
            train = know_few(train, positives=self.shots, seed=seed)
        if self.val_share is not None:
            train, validation = split_by_name(train, share=self.val_share, seed=derive_seed(seed, VALIDATION))
        if self.keep_labels is not None:
            train = hide_labels(train, keep=self.keep_labels, seed=seed)
            if validation is not None and self.val_share is not None:
                validation = hide_labels(validation, keep=self.keep_labels, seed=seed)
        return Splits(train, test, validation)

    def _both(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        train = self.read(self.train_split, train=True)
        return train, self.read(self.test_split, train=False, labels=train.labels)


@dataclass(frozen=True, kw_only=True)
class VOCData(DataConfig):
    """Pascal VOC, or a data set in its layout.

    Args:
        root: Folder that contains (or will contain) ``VOCdevkit/VOC<year>``.
        year: Year of the Pascal VOC set.
        obtain: Preparation of the data: ``never`` (use the existing files), ``download`` (download Pascal VOC if the
            folder is absent) or ``scenes`` (generate the built-in data set if the folder is absent).
        scenes: Settings of the generated data set, if ``obtain`` is ``scenes``.
        difficult: State of a label whose objects are all marked difficult: ``unknown`` in both splits, or
            convention ``A`` (positive in training, unknown in test), ``B`` (negative in training, unknown in test) or
            ``C`` (negative in both).
    """

    root: str = "data/voc"
    year: str = "2007"
    obtain: Literal["never", "download", "scenes"] = "never"
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    difficult: Difficult = "unknown"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("root", "year")

    def prepare(self) -> None:
        """Generate or download the data set if it is absent and ``obtain`` requires it."""
        if self.obtain == "scenes":
            write_scenes(self.root, self.scenes)
        else:
            obtain_voc(self.root, self.year, self.obtain)

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read ``ImageSets/Main/<split>.txt`` and the annotations of its pictures."""
        return read_voc(self.root, year=self.year, split=split, labels=labels, difficult=self.difficult, train=train)


@dataclass(frozen=True, kw_only=True)
class COCOData(DataConfig):
    """MS-COCO, or a data set in its format: a file of annotations per split.

    Args:
        root: Folder of the data set.
        images: Folder of a split's pictures in ``root``; ``{split}`` stands for the split.
        annotations: File of a split's annotations in ``root``; ``{split}`` stands for the split.
        keep_unlabelled: Keep the pictures without a label (40,504 of val2014 instead of 40,137).
    """

    train_split: str = "train2014"
    test_split: str = "val2014"
    root: str = "data/coco"
    images: str = "{split}"
    annotations: str = "annotations/instances_{split}.json"
    keep_unlabelled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("root", "images", "annotations")

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split's file of annotations."""
        images, annotations = (
            Path(self.root, part.replace("{split}", split)) for part in (self.images, self.annotations)
        )
        return read_coco(images, annotations, labels=labels, keep_unlabelled=self.keep_unlabelled)


@dataclass(frozen=True, kw_only=True)
class NUSWideData(DataConfig):
    """NUS-WIDE, by one of the three pairs of lists in use.

    Args:
        root: Folder of the lists.
        lists: Pair of lists: ``official`` (161,789 / 107,859 pictures), ``labelled`` (the same without unlabelled
            pictures, 125,449 / 83,898) or ``asl`` (the CSV list of the authors of the asymmetric loss, 119,103 /
            50,720).
        images: Folder to which the lists' paths are relative; null for ``root/Flickr`` (``asl``: ``root``).
    """

    train_split: str = "train"
    test_split: str = "test"
    root: str = "data/nuswide"
    lists: NUSWideLists = "labelled"
    images: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("root")

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split's lists."""
        return read_nuswide(self.root, split=split, lists=self.lists, images=self.images, labels=labels)


@dataclass(frozen=True, kw_only=True)
class TableData(DataConfig):
    """Any other pictures: a folder and a table of files and labels, or a folder per label.

    Args:
        images: Folder to which the table's files are relative. Without a table, ``images/<split>`` contains a folder
            per label (``images`` itself, if ``test_share`` is given).
        table: A CSV file (columns ``file`` and ``labels``; optionally ``unknown`` and ``split``) or the same as JSONL;
            null for folders.
        labels: The labels, in the order of the columns; null for all labels of the data, sorted.
        separator: Separator of the labels in a cell.
        marks: For a CSV file with a column per label: the meaning of each cell (``present``, ``absent``, ``unknown``).
        file_column: Name of the column of files.
        split_column: Name of the column of splits.
        test_share: Share of the pictures used as test split, in (0, 1), if the table (or the folder) has no splits;
            drawn by ``loop.seed`` and the files' names. Null if it has splits.
    """

    train_split: str = "train"
    test_split: str = "test"
    images: str = "data/mine"
    table: str | None = None
    labels: tuple[str, ...] | None = None
    separator: str = ";"
    marks: dict[str, Mark] | None = None
    file_column: str = "file"
    split_column: str = "split"
    test_share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("images", "separator", "file_column", "split_column")
        with section("data"):
            if self.test_share is not None:
                require_number("test_share", self.test_share, above=0.0, below=1.0)
                if self.val_split is not None:
                    raise ValueError(
                        f"val_split: expected null with test_share, give val_share, got {self.val_split!r}"
                    )

    def read(self, split: str | None, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split; None: all pictures."""
        labels = LabelSet(tuple(self.labels)) if labels is None and self.labels is not None else labels
        if self.table is None:
            folder = Path(self.images) if split is None else Path(self.images, split)
            if split is not None and not folder.is_dir():
                raise NoSplitError(f"{self.images}: expected a folder {split!r} in it, found none")
            return read_folders(folder, labels=labels)
        return read_table(
            self.images,
            self.table,
            split=split,
            labels=labels,
            marks=self.marks,
            separator=self.separator,
            file_column=self.file_column,
            split_column=self.split_column,
        )

    def _both(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        if self.test_share is None:
            try:
                return super()._both(seed)
            except NoSplitError as err:
                raise DataError(f"{err}; data.test_share sets a share of all pictures aside instead") from None
        train, test = split_by_name(self.read(None, train=True), share=self.test_share, seed=seed)
        return train, test
