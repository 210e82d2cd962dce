"""The base class of all models: frozen towers, the labels' texts, and a cache of values that no image changes."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.labels import LabelSet
from pvlr.core.models.cache import Cache
from pvlr.core.protocols import (
    ImageFeatures,
    ImageTower,
    PromptTokens,
    Regions,
    TextTower,
    encode_images,
    join_regions,
)
from pvlr.core.shapes import expect
from pvlr.core.towers import TowerOrigin

__all__ = ["TowerModel"]

T = TypeVar("T", bound="TowerModel")


class TowerModel(nn.Module):
    """Base class of models on the two towers of a vision-language model.

    A subclass states which vectors of an image it reads (:attr:`sees`), encodes a list of labels
    (``_encode_labels``), and computes logits of vectors (``forward_features``); the rest is here.

    Args:
        labels: Labels to be trained on, or their names.
        text: Text tower, which is frozen.
        image: Image tower.
    """

    config: Any
    known_positives: Tensor
    members: Tensor
    prompt_ids: Tensor
    prompt_ends: Tensor
    _prompt_start: int
    _prompt_used: int

    def __init__(self, labels: LabelSet | Sequence[str], text: TextTower, image: ImageTower) -> None:
        super().__init__()
        self.labels = self.trained = LabelSet.of(labels)
        self.text, self.image = text, image
        if isinstance(text, nn.Module):
            text.requires_grad_(False).eval()
        self.origin: TowerOrigin | None = None
        self._cache: Cache[Any] = Cache()
        self.register_buffer("known_positives", torch.zeros(len(self.labels)))

    @property
    def sees(self) -> Regions:
        """The vectors of an image that it reads."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of its own tensors."""
        return self.known_positives.device

    @property
    def source_dim(self) -> int:
        """Width of the features the tower computes its pooled vector from, where it provides them; else 0."""
        return getattr(self.image, "source_dim", 0)

    @property
    def own_dim(self) -> int:
        """Width of the features the tower computes each patch vector from, where it is wider than that; else 0."""
        return getattr(self.image, "own_dim", 0)

    def _encode_labels(self, labels: LabelSet) -> None:
        """Encode the labels' texts into buffers: of the constructor's labels, and of any that replace them."""
        raise NotImplementedError

    def _set_labels(self, labels: LabelSet) -> None:
        """Set the labels that are recognised."""
        rows = {name: row for row, name in enumerate(self.trained)}
        self.labels = labels
        self._encode_labels(labels)
        # Not persistent: derived from the labels, like the encoded texts.
        self._register_texts(members=torch.tensor([rows.get(name, -1) for name in labels]))

    def _register_texts(self, **buffers: Tensor) -> None:
        # On the device of the existing buffers, which may have been moved since the start.
        for name, value in buffers.items():
            self.register_buffer(name, value.to(self.device), persistent=False)

    def _set_prompts(self, prompts: PromptTokens) -> None:
        self._register_texts(prompt_ids=prompts.ids, prompt_ends=prompts.end)
        self._prompt_start, self._prompt_used = prompts.start, prompts.used

    @property
    def prompts(self) -> PromptTokens:
        """The labels' prompts with the positions of the learnable context."""
        return PromptTokens(
            self.prompt_ids, self._prompt_start, self.config.context_tokens, self.prompt_ends, self._prompt_used
        )

    def with_labels(self: T, labels: LabelSet | Sequence[str]) -> T:
        """Return the same model for other labels: all modules are shared, only the texts are new.

        Changes to one of the two change both, except that moving one to another device or dtype does not move the
        texts of the other: move first.

        Args:
            labels: The labels, or their names.

        Raises:
            LabelError: where these are not labels.
        """
        other = copy.copy(self)
        other._modules, other._buffers = self._modules.copy(), self._buffers.copy()
        other._cache = Cache()
        other._set_labels(LabelSet.of(labels))
        return other

    def regions(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m d"]:
        """Return the vectors of images that ``forward_features`` takes.

        Raises:
            ShapeError: where the images are not of the tower's size.
        """
        return join_regions(self.features(images), self.sees)

    def features(self, images: Float[Tensor, "b 3 s s"], *, threads: bool = False) -> ImageFeatures:
        """Return the image tower's vectors.

        Args:
            images: `b 3 s s`, of the tower's size.
            threads: See :func:`~pvlr.core.protocols.encode_images`.

        Raises:
            ShapeError: where the images are not of the tower's size.
        """
        size = self.image.image_size
        expect("images", images, "b rgb height width", dtype="float", rgb=3, height=size, width=size)
        return encode_images(self.image, images, threads=threads)

    def train(self: T, mode: bool = True) -> T:
        """Switch the mode, but not the text tower's, and clear the label vectors cached for evaluation."""
        self._cache.clear()
        super().train(mode)
        if isinstance(self.text, nn.Module):
            self.text.eval()
        return self

    @torch.no_grad()
    def set_known_positives(self, counts: Float[Tensor, " c"]) -> None:
        """Set the number of known positives of each label in training, which weights its learned score.

        Args:
            counts: At least 0, one for each of the labels the model was made for.

        Raises:
            ShapeError: where there is not one for each label.
        """
        expect("counts", counts, "c", c=len(self.trained))
        self.known_positives.copy_(counts)
