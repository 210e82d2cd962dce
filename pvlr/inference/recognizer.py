"""Recognition of labels in pictures by a model with its thresholds and card."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Float
from torch import Tensor

from pvlr.core.arguments import ConfigError
from pvlr.core.labels import LabelSet
from pvlr.core.models.baselines import BaselineModel
from pvlr.core.models.network import PVLR
from pvlr.core.models.state import PretrainedError
from pvlr.core.models.zero_shot import zero_shot_config
from pvlr.core.towers import TowerOrigin, Towers, build_towers, spec_of
from pvlr.core.towers.files.sources import HUB_PREFIX
from pvlr.core.towers.text.sentence_encoders import SentenceEncoder
from pvlr.data.images import MAX_PIXELS, Picture, Pixels
from pvlr.data.label_lists import labels_of, require_apart
from pvlr.data.transforms import as_tensor, still_transform
from pvlr.inference.card import ModelCard
from pvlr.inference.decision import Decision
from pvlr.inference.device import find_device
from pvlr.inference.hub import publish, require_repository
from pvlr.inference.saving import FILES, Saved, load_pretrained, save_pretrained
from pvlr.inference.tags import Tag, tag_images

__all__ = ["Recognizer", "Tag"]


class Recognizer:
    """A model of any kind, with everything needed to tag pictures.

    Args:
        model: Model built by its class's ``from_towers``, which stores the preprocessing of its towers.
        decision: Temperature and thresholds; None: 1, and 0.5 for every label.
        card: Its data, figures and limits.

    Raises:
        PretrainedError: if the model does not store its towers' origin.

    Attributes:
        model: The network.
        decision: Temperature and thresholds.
        card: Its data, figures and limits.
        transform: Transform of a decoded picture to the network's input.

    Example:
        >>> from PIL import Image
        >>> from pvlr.core import load_towers
        >>> recognizer = Recognizer.from_towers(load_towers("pvlr:scenes-clip"), ["red circle", "star"])
        >>> sorted(tag.name for tag in recognizer.tag(Image.new("RGB", (40, 30))))
        ['red circle', 'star']
        >>> recognizer.with_labels(["zebra", "fire truck"]).labels
        LabelSet(names=('zebra', 'fire truck'))
    """

    def __init__(
        self, model: PVLR | BaselineModel, *, decision: Decision | None = None, card: ModelCard | None = None
    ) -> None:
        if model.origin is None:
            raise PretrainedError("model: expected one that was made by from_towers, this one knows no transform")
        self.model, self.origin = model, model.origin
        self.decision = Decision() if decision is None else decision
        self.card = ModelCard() if card is None else card
        self.transform = still_transform({**model.origin.preprocess, "size": model.image.image_size})

    origin: TowerOrigin

    @classmethod
    @torch.no_grad()
    def from_towers(
        cls, towers: Towers, labels: LabelSet | Sequence[str], *, templates: Sequence[str] = ("a photo of a {}.",)
    ) -> "Recognizer":
        """Build a recognizer of labels by their names, without training; it can be saved and exported as any other.

        Its numbers are probabilities if the towers include a scale and a bias for single labels (``pvlr:photos``,
        SigLIP). A plain CLIP does not: its scale was trained to distinguish one caption of a batch from the others, not
        to give the probability of a single label. Then the numbers are cosine similarities, which rank the labels, and
        ``decision.scores`` is ``"similarity"``.

        Args:
            towers: Both towers of one model.
            labels: The labels to recognise, or their names.
            templates: Fixed prompts, each with one ``{}`` for the label's name.

        Raises:
            LabelError: if a name is not a valid label.
            TowerError: if a prompt is too long for the text tower.

        Example:
            >>> from pvlr.core import load_towers
            >>> recognizer = Recognizer.from_towers(load_towers("pvlr:scenes-clip"), ["red circle", "blue star"])
            >>> recognizer.decision.scores, recognizer.model.config.base
            ('similarity', ('pooled',))
        """
        model = PVLR.from_towers(zero_shot_config(towers, templates=templates), LabelSet.of(labels), towers).eval()
        if towers.zero_shot is None:
            model.mixture.bias.zero_()
            decision = Decision(scores="similarity")
        else:
            given = towers.zero_shot
            thresholds = dict.fromkeys(model.labels, given.threshold)
            decision = Decision(thresholds=thresholds, rule="one for all labels", fitted_on=given.fitted_on)
        card = ModelCard(data=("nothing: what the towers know of the labels' names",))
        return cls(model, decision=decision, card=card)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        device: str = "cpu",
        encoder: SentenceEncoder | None = None,
        tower: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> "Recognizer":
        """Load a trained model of any kind, in evaluation mode; see :func:`~pvlr.inference.saving.load_pretrained`.

        Args:
            source: Folder of a finished run or of a saved model, or ``hf-hub:ORGANISATION/REPOSITORY``.
            device: Device of the model: ``auto``, ``cpu``, ``cuda`` or ``cuda:<number>``.
            encoder: The function from sentences to vectors that the model was trained with, if its knowledge was
                ``encoder``.
            tower: Current folder, file or name of its towers, if it has changed; others are refused.
            revision: Branch, tag or commit on the Hub.
            cache_dir: Folder for downloads; None: the default cache.

        Raises:
            ConfigError: if the device is not available.
            PretrainedError: naming the file that is missing, damaged or unknown; if the encoder is missing or another;
                if the download fails.
            TowerError: if the towers cannot be loaded.
        """
        place = find_device(device)
        found = load_pretrained(source, encoder=encoder, tower=tower, revision=revision, cache_dir=cache_dir)
        return cls(found.model.to(place), decision=found.decision, card=found.card)

    @classmethod
    def open(
        cls,
        run: str | None = None,
        tower: str | None = None,
        *,
        weights: str | None = None,
        labels: str | None = None,
        device: str = "cpu",
    ) -> "Recognizer":
        """Open a trained model, or towers that recognise labels by their names only, from command-line arguments.

        Args:
            run: Folder of a run or of a saved model, or ``hf-hub:ORGANISATION/REPOSITORY``.
            tower: With ``run``: the current place of its towers, if it has changed. Without: the towers, see
                :func:`~pvlr.core.towers.spec.spec_of`.
            weights: Weights of ``tower`` without ``run``, if its name does not include them: a tag or a file.
            labels: See :func:`~pvlr.data.label_lists.labels_of`; None: the run's own, or COCO's 80.
            device: Device of the model.

        Raises:
            ConfigError: if neither is given, or the device is not available.
            DataError: if the file of labels cannot be read.
            LabelError: if a name is not a valid label, or a label of the run that holds a comma was taken apart.
            PretrainedError: see :meth:`from_pretrained`.
            TowerError: if the towers cannot be loaded.

        Example:
            >>> Recognizer.open(tower="pvlr:scenes-clip", labels="red circle, star").labels.names
            ('red circle', 'star')
        """
        if run is None and tower is None:
            raise ConfigError("run: expected a trained model, or tower for one that tags without training, got neither")
        if run is not None and weights is not None:
            raise ConfigError("weights: expected none with run, whose own are known; tower says where they lie now")
        chosen = None if labels is None else labels_of(labels)
        if run is not None:
            recognizer = cls.from_pretrained(run, tower=tower, device=device)
            if chosen is None:
                return recognizer
            require_apart(str(labels), recognizer.labels)
            return recognizer.with_labels(chosen)
        place = find_device(device)
        towers = build_towers(spec_of(str(tower), weights))
        recognizer = cls.from_towers(towers, labels_of("coco") if chosen is None else chosen)
        recognizer.model.to(place)
        return recognizer

    @property
    def labels(self) -> LabelSet:
        """The labels that are recognised."""
        return self.model.labels

    def with_labels(self, labels: LabelSet | Sequence[str]) -> "Recognizer":
        """Return a recognizer for other labels, which the model need not have been trained on.

        Labels that had a threshold keep it, new ones take the median.

        Raises:
            ValueError: if the model's labels are fixed, as in decoders and probes.
            LabelError: if a name is not a valid label, or the model's file of label vectors lacks one.
        """
        model = self.model.with_labels(labels)
        card = self.card if model.labels == self.labels else self.card.for_other_labels()
        return Recognizer(model, decision=self.decision, card=card)

    def prepare(self, picture: Picture | Pixels, *, max_pixels: int = MAX_PIXELS) -> Float[Tensor, "3 s s"]:
        """Return the model's input for a picture.

        Args:
            picture: A file's path, its bytes or the open file; an image of Pillow; an array ``h w 3`` or a tensor
                ``3 h w`` of 8-bit levels or of floats from 0 to 1; it need not have the tower's size.
            max_pixels: Largest width times height of a file; see :func:`~pvlr.data.images.decode_rgb`.

        Raises:
            DataError: naming the picture that cannot be read.
        """
        return as_tensor(picture, self.transform, max_pixels=max_pixels)

    def tag(
        self, picture: Picture | Pixels, *, threshold: float | None = None, max_pixels: int = MAX_PIXELS
    ) -> list[Tag]:
        """Return the labels of a picture, most probable first, with the attention of each.

        Args:
            picture: See :meth:`prepare`.
            threshold: Least probability of any label; None: each label's own, as fitted after training.
            max_pixels: See :meth:`prepare`.

        Raises:
            DataError: naming the picture that cannot be read.

        Example:
            >>> recognizer = Recognizer.open(tower="pvlr:scenes-clip", labels="star, red circle")
            >>> sorted((tag.name, tag.attention.shape) for tag in recognizer.tag(torch.zeros(3, 40, 30)))
            [('red circle', torch.Size([8, 8])), ('star', torch.Size([8, 8]))]
        """
        image = self.prepare(picture, max_pixels=max_pixels)
        return self.tag_batch(image.unsqueeze(0), threshold=threshold)[0]

    def tag_batch(
        self, images: Float[Tensor, "b 3 s s"], *, threshold: float | None = None, attention: bool = True
    ) -> list[list[Tag]]:
        """Return the labels of each picture of a batch, stacked from results of :meth:`prepare`.

        Args:
            images: Images of the image tower's size and normalisation.
            threshold: See :meth:`tag`.
            attention: Whether to return the attention of each label.

        Raises:
            ShapeError: if the images have another shape.
        """
        images = images.to(next((x for x in self.model.parameters()), images))
        return tag_images(self.model, images, self.decision, threshold=threshold, attention=attention)

    def save_pretrained(self, folder: str | os.PathLike[str], *, include_towers: bool = False) -> None:
        """Write all that :meth:`from_pretrained` needs; see :func:`~pvlr.inference.saving.save_pretrained`.

        Args:
            folder: Target folder, created if absent.
            include_towers: Whether to write the frozen towers too, instead of their name and the hash of their weights.

        Raises:
            PretrainedError: if a file that the model was built from is missing.
            TowerError: if towers cannot be included.
        """
        save_pretrained(Saved(self.model, self.decision, self.card), folder, include_towers=include_towers)

    def push_to_hub(self, repository: str, *, private: bool = False, include_towers: bool = False) -> str:
        """Publish on the Hugging Face Hub: weights as safetensors, the rest as JSON, and the card as README.

        Args:
            repository: ``ORGANISATION/REPOSITORY``; created if absent.
            private: Whether a new repository is private.
            include_towers: See :meth:`save_pretrained`.

        Returns:
            The address of the published model.

        Raises:
            PretrainedError: if it cannot be published, or others could not load its towers.
        """
        require_repository(repository)
        if self.origin.copies is None and self.origin.spec.is_local and not include_towers:
            raise PretrainedError(
                f"include_towers: expected True, the towers are '{self.origin.spec.name}' of this machine, which "
                "nobody else has"
            )
        with TemporaryDirectory() as name:
            saved, folder = Saved(self.model, self.decision, self.card), Path(name)
            save_pretrained(saved, folder, include_towers=include_towers, name=f"{HUB_PREFIX}{repository}")
            return publish(folder, repository, FILES, private=private)
