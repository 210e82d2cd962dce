"""What a text tower and an image tower have to offer, whatever library they come from."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["ImageFeatures", "ImageTower", "PromptTokens", "TextTower"]


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
        """Tokenize one sentence per label, each beginning with the context.

        Args:
            sentences: One prompt per label, its context words (or placeholders) included.
            context: The words at the start of every sentence that the context replaces; None for placeholders.
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
