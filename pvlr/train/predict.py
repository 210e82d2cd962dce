"""Labels for pictures, by a trained model: one at a time or in batches, whatever a picture comes as."""

import os
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from pvlr.core.labels import LabelSet
from pvlr.core.model import PVLR
from pvlr.core.pretrained import PretrainedError
from pvlr.core.sentence_encoders import SentenceEncoder
from pvlr.core.tags import Tag
from pvlr.core.towers import build_towers, spec_of
from pvlr.core.zero_shot import zero_shot_model
from pvlr.data.images import Picture, Pixels
from pvlr.data.label_lists import labels_of
from pvlr.data.pictures import as_tensor, still_transform
from pvlr.train.config import ConfigError
from pvlr.train.device import find_device

__all__ = ["Tag", "Tagger"]


class Tagger:
    """A trained model, and what pictures go through before it sees them.

    Args:
        model: From :meth:`~pvlr.core.model.PVLR.from_pretrained` or ``from_towers``.

    Raises:
        PretrainedError: where the model does not know what its towers ask of a picture.

    Attributes:
        model: The model.
        transform: From a decoded picture to what the model takes.

    Example:
        >>> from PIL import Image
        >>> from pvlr.core import PVLRConfig, load_towers
        >>> towers = load_towers("pvlr:scenes-clip")
        >>> tagger = Tagger(PVLR.from_towers(PVLRConfig(), LabelSet(("red circle", "star")), towers).eval())
        >>> [tag.name for tag in tagger.tag(Image.new("RGB", (40, 30)), threshold=0.0)]
        ['red circle', 'star']
        >>> tagger.with_labels(["zebra", "fire truck"]).labels
        LabelSet(names=('zebra', 'fire truck'))
    """

    def __init__(self, model: PVLR) -> None:
        if model.origin is None:
            raise PretrainedError("model: expected one that was made by PVLR.from_towers, this one knows no transform")
        self.model = model
        self.transform = still_transform(model.origin.preprocess)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str = "cpu",
        encoder: SentenceEncoder | None = None,
        tower: str | None = None,
        revision: str | None = None,
    ) -> "Tagger":
        """Load a trained model.

        Args:
            source: Folder of a finished run or of a saved model, or ``hf-hub:ORGANISATION/REPOSITORY``.
            device: Where the model goes: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
            encoder: The function from sentences to vectors that the model was trained with, if its knowledge was
                ``encoder``.
            tower: Where its towers lie now, if not where they were.
            revision: Branch, tag or commit on the Hub.

        Raises:
            ConfigError: where the device is not there.
            PretrainedError: naming the file that is missing, damaged or foreign; where the encoder is missing or
                another; where nothing could be fetched.
            TowerError: where the towers cannot be loaded.
        """
        place = find_device(device)
        return cls(PVLR.from_pretrained(source, encoder=encoder, tower=tower, revision=revision).to(place))

    @classmethod
    def opened(
        cls,
        run: str | None = None,
        tower: str | None = None,
        *,
        weights: str | None = None,
        labels: str | None = None,
        device: str = "cpu",
    ) -> "Tagger":
        """The model that a command names: a trained one, or towers that recognise labels by their names alone.

        Args:
            run: Folder of a run or of a saved model, or ``hf-hub:ORGANISATION/REPOSITORY``.
            tower: With ``run``: where its towers lie now, if elsewhere. Without: the towers, see
                :func:`~pvlr.core.towers.spec.spec_of`.
            weights: Of ``tower`` alone, where its name does not say them: a tag or a file.
            labels: See :func:`~pvlr.data.label_lists.labels_of`; None: the run's own, or COCO's 80.
            device: Where the model goes.

        Raises:
            ConfigError: where neither is given, or the device is not there.
            DataError: where the file of labels cannot be read.
            LabelError: where they are no labels.
            PretrainedError: as :meth:`from_pretrained`.
            TowerError: where the towers cannot be loaded.

        Example:
            >>> Tagger.opened(tower="pvlr:scenes-clip", labels="red circle, star").labels.names
            ('red circle', 'star')
        """
        if run is None and tower is None:
            raise ConfigError("run: expected a trained model, or tower for one that tags without training, got neither")
        if run is not None and weights is not None:
            raise ConfigError("weights: expected none with run, whose own are known; tower says where they lie now")
        asked = None if labels is None else labels_of(labels)
        if run is not None:
            tagger = cls.from_pretrained(run, tower=tower, device=device)
            return tagger if asked is None else tagger.with_labels(asked)
        place = find_device(device)
        towers = build_towers(spec_of(str(tower), weights))
        return cls(zero_shot_model(towers, labels_of("coco") if asked is None else asked).to(place))

    @property
    def labels(self) -> LabelSet:
        """What is recognised."""
        return self.model.labels

    def with_labels(self, labels: LabelSet | Sequence[str]) -> "Tagger":
        """The same model for other labels, of names that it need not have been trained on.

        Raises:
            ValueError: where the model has a context for each label it was trained on.
            LabelError: where they are no labels, or the model's file of label vectors lacks one.
        """
        return Tagger(self.model.with_labels(labels))

    def prepare(self, picture: Picture | Pixels) -> Float[Tensor, "3 s s"]:
        """A picture as the model takes it.

        Args:
            picture: A file's path, its bytes or the open file; an image of Pillow; an array ``h w 3`` or a tensor
                ``3 h w`` of 8-bit levels or of floats from 0 to 1.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        return as_tensor(picture, self.transform)

    def tag(self, picture: Picture | Pixels, *, threshold: float | None = None) -> list[Tag]:
        """Say what is in a picture.

        Args:
            picture: See :meth:`prepare`.
            threshold: Least probability of any label; None: each label's own, as fitted after training.

        Returns:
            The labels it has, most probable first, with where each looked.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        return self.tag_batch(self.prepare(picture).unsqueeze(0), threshold=threshold)[0]

    def tag_batch(
        self, images: Float[Tensor, "b 3 s s"], *, threshold: float | None = None, attention: bool = True
    ) -> list[list[Tag]]:
        """Say what is in each of several pictures that :meth:`prepare` gave, stacked."""
        return self.model.tag_batch(images, threshold=threshold, attention=attention)
