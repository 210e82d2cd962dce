"""What a text tower and an image tower have to offer, whatever library they come from."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "ImageFeatures",
    "ImageTower",
    "PromptTokens",
    "Regions",
    "TextTower",
    "ZeroShot",
    "join_regions",
    "split_regions",
]

Regions = Literal["patches", "pooled", "both"]
"""Which vectors of an image are read: its patches, its pooled vector alone, or both."""


class PromptTokens(NamedTuple):
    """Tokenized prompts in which one stretch of positions belongs to the learnable context.

    Attributes:
        ids: Token ids, int64 ``c t``, at the tower's full context length.
        start: First position of the context.
        length: Number of context positions (``m``).
        end: Position at which the tower pools each prompt, int64 ``c``.
        used: Positions in use, one more than the largest ``end``: a number, so that no graph has to ask a tensor.
    """

    ids: Int[Tensor, "c t"]
    start: int
    length: int
    end: Int[Tensor, " c"]
    used: int


class ImageFeatures(NamedTuple):
    """What an image tower sees, in the joint space and not normalised.

    Attributes:
        patches: One vector per patch, ``b n d``.
        pooled: One vector per image, ``b d``.
    """

    patches: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b d"]


class ZeroShot(NamedTuple):
    """How towers recognise without training, where their scale and bias make probabilities of cosines.

    Attributes:
        regions: Which vectors of an image are compared with the labels.
        threshold: Probability from which on a label is told.
        fitted_on: What scale, bias and threshold were fitted on, in words.
    """

    regions: Regions
    threshold: float
    fitted_on: str


def join_regions(seen: ImageFeatures, regions: Regions) -> Float[Tensor, "b m d"]:
    """The vectors of an image that a model reads, in one tensor: this is what is cached, batched and compared.

    Args:
        seen: What the tower saw.
        regions: ``"patches"``: ``m = n``; ``"pooled"``: the pooled vector as the only one, ``m = 1``; ``"both"``: the
            pooled vector and then the patches, ``m = 1 + n``.

    Example:
        >>> seen = ImageFeatures(patches=torch.zeros(2, 49, 8), pooled=torch.zeros(2, 8))
        >>> [join_regions(seen, regions).shape[1] for regions in ("patches", "pooled", "both")]
        [49, 1, 50]
    """
    if regions == "patches":
        return seen.patches
    pooled = seen.pooled.unsqueeze(-2)
    return pooled if regions == "pooled" else torch.cat([pooled, seen.patches], dim=-2)


def split_regions(vectors: Float[Tensor, "b m d"], regions: Regions) -> tuple[Tensor, Tensor | None]:
    """The patches, and the pooled vector where it comes beside them, of what :func:`join_regions` joined.

    Args:
        vectors: ``b m d``.
        regions: As they were joined.

    Returns:
        ``b n d`` (with ``"pooled"``, that vector as the only patch) and ``b d``, or None.

    Example:
        >>> patches, pooled = split_regions(torch.zeros(2, 50, 8), "both")
        >>> patches.shape, pooled.shape
        (torch.Size([2, 49, 8]), torch.Size([2, 8]))
    """
    return (vectors[:, 1:], vectors[:, 0]) if regions == "both" else (vectors, None)


@runtime_checkable
class TextTower(Protocol):
    """A frozen text encoder into the joint space. Its outputs are not normalised."""

    @property
    def dim(self) -> int:
        """Width of the joint space (``d``)."""
        ...

    @property
    def width(self) -> int:
        """Width of a token embedding (``w``)."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens a prompt may have (``t``)."""
        ...

    @property
    def path(self) -> Literal["prefix", "plain"]:
        """How learnable context is encoded.

        ``"prefix"``: cut and prefix-shared, exact for causal towers; ``"plain"``: the whole transformer per label.
        """
        ...

    def tokenize_prompts(self, sentences: Sequence[str], context: str | None, tokens: int) -> PromptTokens:
        """Tokenize one sentence per label, and give the context its stretch at the beginning.

        Args:
            sentences: One prompt per label, its context words included.
            context: The words at the start of every sentence that the context replaces; None where there are none and
                it is put before them.
            tokens: Number of context tokens (``m``); ``context`` must have exactly as many.
        """
        ...

    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "s d"]:
        """Encode plain sentences, without gradient."""
        ...

    def embed(self, ids: Int[Tensor, "*s"]) -> Float[Tensor, "*s w"]:
        """Look up token embeddings."""
        ...

    def encode_context(
        self, context: Float[Tensor, "m w"] | Float[Tensor, "c m w"], prompts: PromptTokens
    ) -> Float[Tensor, "c d"]:
        """Encode prompts with ``context`` in place of their context tokens; gradient flows to ``context`` alone."""
        ...


@runtime_checkable
class ImageTower(Protocol):
    """An image encoder into the joint space, in practice an ``nn.Module``. Its outputs are not normalised."""

    @property
    def dim(self) -> int:
        """Width of the joint space (``d``)."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square images it takes, in pixels."""
        ...

    @property
    def grid(self) -> int:
        """Patches along one side, so that ``n = grid * grid``."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 s s"]) -> ImageFeatures:
        """Encode normalised images."""
        ...
