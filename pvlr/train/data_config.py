"""Configuration of the data: one dataclass per kind of data set, with the method that reads it."""

from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from pvlr.core.arguments import require_choices, require_int, require_number
from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, hide_labels, know_few, split_by_name
from pvlr.data.images import MAX_PIXELS
from pvlr.data.label_check import OnBadLabels
from pvlr.data.label_lists import labels_of
from pvlr.data.readers.coco import COCORules, NoPictureError, SameNames, Strays, read_coco
from pvlr.data.readers.entries import NOTHING, kind_at
from pvlr.data.readers.exports import Unused, annotations_near
from pvlr.data.readers.folders import read_folders
from pvlr.data.readers.nuswide import NUSWideLists, read_nuswide
from pvlr.data.readers.sidecars import read_sidecars
from pvlr.data.readers.table import Mark, NoSplitError, read_table
from pvlr.data.readers.tables.format import TableFormat
from pvlr.data.readers.voc import Difficult, VOCRules, obtain_voc, read_voc
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
        test_share: Share of the pictures of ``train_split`` used as test split instead of ``test_split``, in (0, 1),
            with the same share of each label's positives; drawn by ``loop.seed``, the pictures' names and labels. For
            data without splits, null for others.
        val_split: Name of the split that is evaluated during training in place of the test split, and on which
            temperature and thresholds are fitted after training; null for none.
        val_share: Share of the training pictures used as validation split instead of ``val_split``, in (0, 1), with the
            same share of each label's positives; drawn by ``loop.seed``, the pictures' names and labels. Null for none.
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
        on_bad_labels: Treatment of labels that look wrong (labels without a positive in a split, one label in two
            spellings, several labels in one name, one picture in two splits): ``warn`` (print them before training) or
            ``refuse`` (an error before training).
        max_pixels: Largest width times height of a picture, at least 1. JPEG files of more than 100 million are decoded
            at a half, a quarter or an eighth of their size; all that cannot be have at most 200 million.
        workers: Number of worker processes that read pictures; 0 reads them in the training process.
    """

    train_split: str = "trainval"
    test_split: str = "test"
    test_share: float | None = None
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
    on_bad_labels: OnBadLabels = "warn"
    max_pixels: int = MAX_PIXELS
    workers: int = 2

    def __post_init__(self) -> None:
        with section("data"):
            require_choices(self)
            if self.crop != 1:
                require_number("crop", self.crop, above=0.0, below=1.0)
            require_number("cutout", self.cutout, least=0.0, below=1.0)
            require_int("max_pixels", self.max_pixels, least=1)
            require_int("workers", self.workers, least=0)
            if self.val_share is not None:
                require_number("val_share", self.val_share, above=0.0, below=1.0)
                if self.val_split is not None:
                    raise ValueError(f"val_share: expected none with data.val_split={self.val_split!r}")
            if self.test_share is not None:
                require_number("test_share", self.test_share, above=0.0, below=1.0)
                if self.val_split is not None:
                    raise ValueError(
                        f"val_split: expected null with test_share, give val_share, got {self.val_split!r}"
                    )
            if self.shots is not None:
                require_int("shots", self.shots, least=1)
            if self.keep_labels not in (None, "single_positive"):
                require_number("keep_labels", self.keep_labels, above=0.0, below=1.0)
        self._require_texts("train_split", "test_split", *(() if self.val_split is None else ("val_split",)))

    def _require_texts(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name):
                raise ConfigError(f"data.{name}: expected a non-empty text, got ''")

    def _require_split(self, name: str) -> None:
        """Raise an error if a path is the same for all splits and no share of the pictures is set aside."""
        if "{split}" not in (path := getattr(self, name)) and self.test_share is None:
            raise ConfigError(
                f"data.{name}: expected {{split}} in it, which stands for the split, got {path!r}; set test_share to "
                f"0.2 to set a fifth of its pictures aside"
            )

    def prepare(self) -> None:
        """Generate or download the data if it is absent and the configuration requires it."""

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split by :meth:`read_split`, with the limit of a picture's size.

        Args:
            split: Its name.
            train: Whether it is the training split.
            labels: The labels of the columns; None: the data set's own.

        Raises:
            DataError: naming the file or folder that is missing or broken.
        """
        return self.read_split(split, train=train, labels=labels).with_max_pixels(self.max_pixels)

    def read_split(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split, in the way of a kind of data; the arguments are those of :meth:`read`."""
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
            train, validation = self._set_aside(train, self.val_share, derive_seed(seed, VALIDATION))
        if self.keep_labels is not None:
            train = hide_labels(train, keep=self.keep_labels, seed=seed)
            if validation is not None and self.val_share is not None:
                validation = hide_labels(validation, keep=self.keep_labels, seed=seed)
        return Splits(train, test, validation)

    def _both(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        if self.test_share is None:
            train = self.read(self.train_split, train=True)
            return train, self.read(self.test_split, train=False, labels=train.labels)
        train, test = self._set_aside(self._whole(), self.test_share, seed)
        return train, self._as_test(test)

    def _whole(self) -> LabelledImages:
        """Read the pictures of which ``test_share`` sets some aside."""
        return self.read(self.train_split, train=True)

    def _as_test(self, aside: LabelledImages) -> LabelledImages:
        """Return pictures set aside for the test with the labels that they have in a test split."""
        return aside

    def _set_aside(self, data: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
        return split_by_name(data, share=share, seed=seed)


def _require_kept(unused: Unused) -> None:
    if unused != "keep":
        raise ConfigError(f"data.unused: expected keep with data.labels, which lists the labels, got {unused}")


def label_set(labels: tuple[str, ...] | str | None) -> LabelSet | None:
    """Return the labels of a configuration: names, or a text for :func:`~pvlr.data.label_lists.labels_of`.

    Raises:
        DataError: naming the file that cannot be read.
        ConfigError: if the labels are malformed or repeated.

    Example:
        >>> label_set(("cat", "dog")), label_set(None)
        (LabelSet(names=('cat', 'dog')), None)
    """
    if labels is None:
        return None
    try:
        return labels_of(labels) if isinstance(labels, str) else LabelSet(tuple(labels))
    except LabelError as err:
        raise ConfigError(f"data.labels: {str(err).removeprefix('labels: ').removeprefix('names: ')}") from None


@dataclass(frozen=True, kw_only=True)
class VOCData(DataConfig):
    """Pascal VOC, or a data set in its layout.

    Args:
        root: Folder that contains (or will contain) ``VOCdevkit/VOC<year>``, or is that folder under any name.
        year: Year of the Pascal VOC set.
        obtain: Preparation of the data: ``never`` (use the existing files), ``download`` (download Pascal VOC if the
            folder is absent) or ``scenes`` (generate the built-in data set if the folder is absent).
        scenes: Settings of the generated data set, if ``obtain`` is ``scenes``.
        difficult: State of a label whose objects are all marked difficult: ``unknown`` in both splits, or
            convention ``A`` (positive in training, unknown in test), ``B`` (negative in training, unknown in test) or
            ``C`` (negative in both).
        labels: The labels, in the order of the columns: names, or ``@FILE`` with one a line. Null for those of
            ``labels.json`` or ``labelmap.txt`` (of CVAT) in the data set's folder, else the 20 of Pascal VOC.
        find_labels: Use all names in the annotations as labels, sorted, without a list.
        unused: Treatment of labels that no picture of the training split has, unless ``labels`` lists them: ``keep``,
            ``drop`` or ``refuse``.
        picture_folder: Folder of the pictures in that of the data set; ``{split}`` stands for the split.
        annotation_folder: Folder of the annotations; ``{split}`` stands for the split.
        list_folder: Folder of the lists of pictures, ``<split>.txt``; null to use all annotations in their folder.
    """

    root: str = "data/voc"
    year: str = "2007"
    obtain: Literal["never", "download", "scenes"] = "never"
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    difficult: Difficult = "unknown"
    labels: tuple[str, ...] | str | None = None
    find_labels: bool = False
    unused: Unused = "keep"
    picture_folder: str = "JPEGImages"
    annotation_folder: str = "Annotations"
    list_folder: str | None = "ImageSets/Main"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("root", "year", "picture_folder", "annotation_folder")
        self._require_texts(*(() if self.list_folder is None else ("list_folder",)))
        if self.labels is not None and self.find_labels:
            raise ConfigError("data.find_labels: expected false with data.labels, got true")
        if self.labels is not None:
            _require_kept(self.unused)

    def prepare(self) -> None:
        """Generate or download the data set if it is absent and ``obtain`` requires it."""
        if self.obtain == "scenes":
            write_scenes(self.root, self.scenes)
        else:
            obtain_voc(self.root, self.year, self.obtain)

    def read_split(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read the list of a split (without lists: all annotations in their folder) and the annotations."""
        rules = VOCRules(
            picture_folder=self.picture_folder.replace("{split}", split),
            annotation_folder=self.annotation_folder.replace("{split}", split),
            list_folder=self.list_folder or "",
            find_labels=self.find_labels,
            unused=self.unused,
        )
        return read_voc(
            self.root, year=self.year, split=None if self.list_folder is None else split, rules=rules,
            labels=label_set(self.labels) if labels is None else labels, difficult=self.difficult, train=train,
        )  # fmt: skip

    def _both(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        if self.list_folder is None:
            self._require_split("annotation_folder")
        return super()._both(seed)

    def _as_test(self, aside: LabelledImages) -> LabelledImages:
        if self.difficult not in ("A", "B"):
            return aside
        whole = self.read(self.train_split, train=False, labels=aside.labels)
        rows = {name: row for row, name in enumerate(whole.identifiers)}
        return whole.select([rows[name] for name in aside.identifiers], note=f"{self.test_share:.0%} of all")


@dataclass(frozen=True, kw_only=True)
class COCOData(DataConfig):
    """MS-COCO, or a data set in its format: a file of annotations per split.

    Args:
        root: Folder of the data set.
        images: Folder of a split's pictures in ``root``; ``{split}`` stands for the split.
        annotations: File of a split's annotations in ``root``; ``{split}`` stands for the split. Without it, the file
            holds all pictures, and ``test_share`` sets some of them aside.
        keep_unlabelled: Keep the pictures without a label (40,504 of val2014 instead of 40,137).
        labels: The labels, in the order of the columns: names of categories, or ``@FILE`` with one a line. Null for all
            categories of the training split, by their ids.
        unused: Treatment of categories without an annotation in the training split, unless ``labels`` lists them:
            ``keep``, ``drop`` or ``refuse``.
        same_names: Treatment of categories of one name: ``refuse``, or ``merge`` them into one label.
        strays: Treatment of annotations of an image that the file does not list: ``refuse`` or ``drop``.
    """

    train_split: str = "train2014"
    test_split: str = "val2014"
    root: str = "data/coco"
    images: str = "{split}"
    annotations: str = "annotations/instances_{split}.json"
    keep_unlabelled: bool = False
    labels: tuple[str, ...] | str | None = None
    unused: Unused = "keep"
    same_names: SameNames = "refuse"
    strays: Strays = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("root", "images", "annotations")
        if self.labels is not None:
            _require_kept(self.unused)

    def read_split(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split's file of annotations."""
        images, annotations = (
            Path(self.root, part.replace("{split}", split)) for part in (self.images, self.annotations)
        )
        if kind_at(annotations, "annotations") == NOTHING:
            raise DataError(f"{annotations}: expected annotations, found {NOTHING}{annotations_near(Path(self.root))}")
        try:
            return read_coco(
                images, annotations, labels=label_set(self.labels) if labels is None else labels,
                keep_unlabelled=self.keep_unlabelled,
                rules=COCORules(unused=self.unused, same_names=self.same_names, strays=self.strays),
            )  # fmt: skip
        except NoPictureError as err:
            raise DataError(f"{err}{self._images_near(split, err.name)}") from None

    def _images_near(self, split: str, name: str) -> str:
        """Return the value of ``images`` with which a picture is found, for a message; empty if there is none."""
        beside = str(PurePosixPath(self.annotations).parent)
        for images in (".", "images", "{split}", beside, f"{beside}/images", "images/{split}"):
            if Path(self.root, images.replace("{split}", split), name).is_file():
                return f"; set images to {images!r}"
        return ""

    def _both(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        self._require_split("annotations")
        return super()._both(seed)


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

    def read_split(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split's lists."""
        return read_nuswide(self.root, split=split, lists=self.lists, images=self.images, labels=labels)


@dataclass(frozen=True, kw_only=True)
class TableData(DataConfig):
    """Any other pictures: a folder and a table of files and labels, or a folder per label.

    Args:
        images: Folder to which the table's files are relative. Without a table, ``images/<split>`` contains a folder
            per label (``images`` itself, if ``test_share`` is given).
        table: A file of the pictures and their labels (``.csv``, ``.tsv``, ``.xlsx``, ``.jsonl``, ``.json``; columns
            ``file`` and ``labels``; optionally ``unknown`` and ``split``); null for folders.
        labels: The labels, in the order of the columns: names, or ``@FILE`` with one a line. Null for all labels of the
            data, sorted.
        form: ``list`` (a row per picture), ``wide`` (a column per label), ``long`` (a row per picture and label) or
            ``sidecars`` (no table, but a ``.txt`` of labels beside each picture); null: ``wide`` with ``marks`` or
            ``label_columns``, else ``list``.
        file_column: Name of the column of files.
        label_column: Name of the column of labels.
        split_column: Name of the column of splits.
        value_column: Name of a long table's column of ``marks``; empty if every row says that its label is present.
        label_columns: ``others``: all columns of a wide table are labels, except those of files and splits, those
            without a name and ``ignore_columns``; null: ``labels`` names them.
        ignore_columns: Columns of a wide table that are no labels.
        marks: Meaning of each cell of a wide table, or of ``value_column``: ``present``, ``absent`` or ``unknown``.
        unnamed: State of the labels that a picture's rows do not name, ``absent`` or ``unknown``; null: ``absent``, but
            refused for a long table with a ``value_column`` that lacks rows.
        repeated: Treatment of several rows for a picture: ``refuse``, or ``union`` (a label is present if any says so).
        separator: Separator of the labels in a cell.
        cells: ``text`` (labels between separators), ``json`` (a list, or an object of ``choices``) or ``python`` (a
            list as pandas writes it).
        delimiter: Separator of the columns, ``tab`` for tabs; null: a comma, in ``.tsv`` a tab.
        encoding: Encoding of the table, such as ``cp1252`` or ``utf-16``.
        sheet: Name of a workbook's sheet; null for the only one.
        suffix: Ending that is appended to the names that have none, such as ``.jpg``.
        strip_prefix: Beginning that is removed from every name: a folder, a drive or an address. Null: names are
            relative to ``images``.
    """

    train_split: str = "train"
    test_split: str = "test"
    images: str = "data/mine"
    table: str | None = None
    labels: tuple[str, ...] | str | None = None
    form: Literal["list", "wide", "long", "sidecars"] | None = None
    file_column: str = "file"
    label_column: str = "labels"
    split_column: str = "split"
    value_column: str | None = None
    label_columns: Literal["others"] | None = None
    ignore_columns: tuple[str, ...] = ()
    marks: dict[str, Mark] | None = None
    unnamed: Literal["absent", "unknown"] | None = None
    repeated: Literal["refuse", "union"] = "refuse"
    separator: str = ";"
    cells: Literal["text", "json", "python"] = "text"
    delimiter: str | None = None
    encoding: str = "utf-8"
    sheet: str | None = None
    suffix: str = ""
    strip_prefix: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_texts("images", "separator", "file_column", "label_column", "split_column")
        with section("data"):
            marks = self._format().marks
            if marks is not None:  # Of YAML, 1.0 is a number; as a cell it is a text.
                object.__setattr__(self, "marks", dict(marks))
            if self.form == "sidecars" and self.table is not None:
                raise ValueError(f"table: expected null with form 'sidecars', got {self.table!r}")

    def _format(self) -> TableFormat:
        given = {each.name: getattr(self, each.name) for each in fields(TableFormat)}
        return TableFormat(**{**given, "form": None if self.form == "sidecars" else self.form})

    def read(self, split: str | None, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split, with the limit of a picture's size; None: all pictures."""
        return self.read_split(split, train=train, labels=labels).with_max_pixels(self.max_pixels)

    def read_split(self, split: str | None, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split; None: all pictures."""
        labels = label_set(self.labels) if labels is None else labels
        if self.table is None:
            folder = Path(self.images) if split is None else Path(self.images, split)
            if split is not None and not folder.is_dir():
                raise NoSplitError(f"{self.images}: expected a folder {split!r} in it, found none")
            if self.form == "sidecars":
                return read_sidecars(folder, labels=labels, separator=self.separator, encoding=self.encoding)
            return read_folders(folder, labels=labels)
        leave = self.on_bad_image == "drop"  # They are told and left out with those that cannot be read.
        options = self._format().options()
        return read_table(self.images, self.table, split=split, labels=labels, leave_missing=leave, **options)

    def _both(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        try:
            return super()._both(seed)
        except NoSplitError as err:
            raise DataError(f"{err}; data.test_share sets a share of all pictures aside instead") from None

    def _whole(self) -> LabelledImages:
        return self.read(None, train=True)
