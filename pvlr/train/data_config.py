"""What a run can be told about its pictures: one dataclass per kind of data set, each of which knows how to read it."""

from dataclasses import dataclass, field
from typing import Literal

from pvlr.core.arguments import require_choice, require_int, require_number
from pvlr.core.labels import LabelSet
from pvlr.data.dataset import LabelledImages, hide_labels
from pvlr.data.scenes import ScenesConfig, write_scenes
from pvlr.data.voc import obtain_voc, read_voc
from pvlr.train.config import ConfigError, section

__all__ = ["DataConfig", "VOCData"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How pictures are shown, whatever they are; each kind of data set adds where they are.

    Args:
        train_split: Split that is trained on.
        test_split: Split that is evaluated on.
        flip: Flip half of the training pictures left to right.
        rand_augment: Apply RandAugment to the training pictures.
        cutout: Side of the square that is cut out of training pictures, as a share of theirs, in [0, 1); 0 is off.
        keep_labels: Share of the training labels that stays known, in (0, 1), or ``single_positive``: one present
            label per picture; null for all. A function of ``loop.seed``.
        workers: Processes that read pictures; 0 reads them in the training process.
    """

    train_split: str = "trainval"
    test_split: str = "test"
    flip: bool = True
    rand_augment: bool = True
    cutout: float = 0.5
    keep_labels: float | Literal["single_positive"] | None = None
    workers: int = 2

    def __post_init__(self) -> None:
        with section("data"):
            require_number("cutout", self.cutout, least=0.0, below=1.0)
            require_int("workers", self.workers, least=0)
            if self.keep_labels not in (None, "single_positive"):
                require_number("keep_labels", self.keep_labels, above=0.0, below=1.0)
        self._require_texts("train_split", "test_split")

    def _require_texts(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name):
                raise ConfigError(f"data.{name}: expected a non-empty text, got ''")

    def prepare(self) -> None:
        """Make or fetch the data where it is absent and the configuration says so."""

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read a split.

        Args:
            split: Its name.
            train: Whether it is trained on.
            labels: The columns asked for; None: the data set's own.

        Raises:
            DataError: naming the file or folder that is missing or broken.
        """
        raise NotImplementedError

    def splits(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """The training and the test split, with the same labels.

        Args:
            seed: Of which labels are hidden, where some are.

        Raises:
            DataError: naming the file or folder that is missing or broken.
        """
        train = self.read(self.train_split, train=True)
        test = self.read(self.test_split, train=False, labels=train.labels)
        return train if self.keep_labels is None else hide_labels(train, keep=self.keep_labels, seed=seed), test


@dataclass(frozen=True, kw_only=True)
class VOCData(DataConfig):
    """Pascal VOC, or a data set in its layout.

    Args:
        root: Folder that holds (or will hold) ``VOCdevkit/VOC<year>``.
        year: Year of the Pascal VOC set.
        obtain: What to do before anything else: ``never`` (use what is there), ``download`` (fetch Pascal VOC if the
            folder is absent) or ``scenes`` (generate the built-in data set if the folder is absent).
        scenes: The generated data set, where ``obtain`` is ``scenes``.
        difficult: What a label becomes whose every object is marked difficult: ``unknown`` in both splits, or
            convention ``A`` (positive in training, unknown in test), ``B`` (negative in training, unknown in test) or
            ``C`` (negative in both).
    """

    root: str = "data/voc"
    year: str = "2007"
    obtain: Literal["never", "download", "scenes"] = "never"
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    difficult: Literal["unknown", "A", "B", "C"] = "unknown"

    def __post_init__(self) -> None:
        super().__post_init__()
        with section("data"):
            require_choice("obtain", self.obtain, ("never", "download", "scenes"))
            require_choice("difficult", self.difficult, ("unknown", "A", "B", "C"))
        self._require_texts("root", "year")

    def prepare(self) -> None:
        """Generate or download the data set where it is absent and ``obtain`` says so."""
        if self.obtain == "scenes":
            write_scenes(self.root, self.scenes)
        else:
            obtain_voc(self.root, self.year, self.obtain)

    def read(self, split: str, *, train: bool, labels: LabelSet | None = None) -> LabelledImages:
        """Read ``ImageSets/Main/<split>.txt`` and the annotations it names."""
        return read_voc(self.root, year=self.year, split=split, labels=labels, difficult=self.difficult, train=train)
