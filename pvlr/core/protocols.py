"""Protocols of text towers and image towers, independent of the library they come from."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Literal, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "ImageFeatures",
    "ImageTower",
    "PromptTokens",
    "Regions",
    "Seen",
    "TextTower",
    "ZeroShot",
    "encode_images",
    "join_regions",
    "side_by_side",
    "split_regions",
]

Part = TypeVar("Part")
Result = TypeVar("Result")

Regions = Literal["patches", "pooled", "both", "all", "own", "all_own"]
"""The vectors of an image that are read: its patches, its pooled vector alone, or both; or also the features that the
pooled vector was computed from, where the tower provides them (``all``). ``own``: each patch's own features, before the
projection to the joint space; ``all_own``: all of these."""


class PromptTokens(NamedTuple):
    """Tokenized prompts in which one range of positions belongs to the learnable context.

    Attributes:
        ids: Token ids, int64 ``c t``, at the tower's full context length.
        start: First position of the context.
        length: Number of context positions (``m``).
        end: Position at which the tower pools each prompt, int64 ``c``.
        used: Positions in use, one more than the largest ``end``: an int, so that no graph has to read a tensor.
    """

    ids: Int[Tensor, "c t"]
    start: int
    length: int
    end: Int[Tensor, " c"]
    used: int


class ImageFeatures(NamedTuple):
    """Features of an image tower, in the joint space and not normalised.

    Attributes:
        patches: One vector per patch, ``b n d``.
        pooled: One vector per image, ``b d``.
        source: The features that the pooled vector was computed from, ``b k``, where that is more than a projection and
            loses information. None: there are none.
        own: The features that each patch vector was computed from, ``b n w``, where they are wider than the joint
            space (``w > d``). None: there are none.
    """

    patches: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b d"]
    source: Float[Tensor, "b k"] | None = None
    own: Float[Tensor, "b n w"] | None = None


IMAGES_AT_ONCE = 4
"""Images that a CPU encodes at a time; memory of more is taken from the system page by page (docs/benchmarks.md)."""


def encode_images(
    tower: Callable[[Tensor], ImageFeatures], images: Float[Tensor, "b 3 s s"], *, threads: bool = False
) -> ImageFeatures:
    """Return a tower's features of images; on a CPU and without gradients, of a few images at a time, which is faster.

    Args:
        tower: The image tower; in training mode it is given all images at once, which batch norm may need.
        images: `b 3 s s`.
        threads: Whether threads compute these parts side by side, if the tower is ``thread_safe``: faster while other
            threads or processes read pictures. Counters of operations and profilers see only their own thread.

    Example:
        >>> class Mean(torch.nn.Module):
        ...     def forward(self, images: Tensor) -> ImageFeatures:
        ...         pooled = images.mean(dim=(2, 3))
        ...         return ImageFeatures(pooled.unsqueeze(1), pooled)
        >>> with torch.no_grad():
        ...     encode_images(Mean().eval(), torch.ones(9, 3, 2, 2)).patches.shape
        torch.Size([9, 1, 3])
    """
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or images.device.type != "cpu"
    if whole or getattr(tower, "training", False) or len(images) <= IMAGES_AT_ONCE:
        return tower(images)
    parts: Sequence[Tensor] = images.split(IMAGES_AT_ONCE)  # type: ignore[no-untyped-call]
    several = threads and getattr(tower, "thread_safe", False)
    found = _in_threads(tower, parts) if several else [tower(part) for part in parts]
    return ImageFeatures._make(None if one[0] is None else torch.cat(one) for one in zip(*found, strict=True))


def _in_threads(tower: Callable[[Tensor], ImageFeatures], parts: Sequence[Tensor]) -> list[ImageFeatures]:
    """Encode parts side by side, in the caller's mode."""
    autocasts, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    inference = torch.is_inference_mode_enabled()

    def encode(part: Tensor) -> ImageFeatures:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocasts):
            return tower(part)

    return side_by_side(encode, parts)


def side_by_side(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Return the results of ``work`` for all parts, computed by several threads.

    One operation on all cores ends when its slowest thread does, and until then the others busy-wait. Where threads
    that read pictures need the cores too, that is most of the time; threads that compute different parts wait for
    nobody (`docs/benchmarks.md`, *From file to tags*).

    Args:
        work: A function that may run in several threads at once. Each begins outside of the caller's contexts, such
            as ``torch.no_grad``, ``torch.autocast`` or a counter of operations, and enters those it needs.
        parts: What it is called with; there are as many threads as parts, but no more than torch uses for one
            operation, which are shared out among them.

    Raises:
        Exception: the first that ``work`` raised, in the order of the parts.

    Example:
        >>> side_by_side(lambda part: part.sum(), torch.arange(6).split(2))
        [tensor(1), tensor(5), tensor(9)]
    """
    cores = torch.get_num_threads()
    count = min(cores, len(parts))
    if count < 2:
        return [work(part) for part in parts]
    started = Barrier(count + 1)

    def start() -> None:
        torch.get_num_threads()  # A new thread's first question sets its number; whatever is set before that is lost.
        torch.set_num_threads(cores // count)
        started.wait()

    with ThreadPoolExecutor(count, initializer=start) as pool:
        results = pool.map(work, parts)
        started.wait()
        torch.set_num_threads(cores)  # A thread that is new takes the number that was set last, by any other.
        return list(results)


class Seen(NamedTuple):
    """The vectors of an image that a model reads, split; see :func:`split_regions`."""

    patches: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b d"] | None
    source: Float[Tensor, "b k"] | None
    own: Float[Tensor, "b n w"] | None = None


class ZeroShot(NamedTuple):
    """Settings of recognition without training, for towers whose scale and bias turn cosines into probabilities.

    Attributes:
        regions: The vectors of an image that are compared with the labels.
        threshold: Probability from which on a label is predicted.
        fitted_on: The data that scale, bias and threshold were fitted on, in words.
    """

    regions: Regions
    threshold: float
    fitted_on: str


def join_regions(seen: ImageFeatures, regions: Regions) -> Float[Tensor, "b m d"]:
    """Join the vectors of an image that a model reads into one tensor, which is cached, batched and compared.

    Args:
        seen: Features of the tower.
        regions: ``"patches"``: ``m = n``; ``"pooled"``: the pooled vector as the only one, ``m = 1``; ``"both"``: the
            pooled vector and then the patches, ``m = 1 + n``; ``"all"``: the pooled vector, its source in rows of width
            ``d``, of which the last is padded with zeros, and the patches, ``m = 1 + ⌈k / d⌉ + n``; ``"own"``: the
            patches' own features ``b n w``, ``m = n``; ``"all_own"``: all of ``"all"`` and then, patch by patch, these
            features in rows as the source's, ``m = 1 + ⌈k / d⌉ + n + n ⌈w / d⌉``.

    Raises:
        ValueError: where the patches' own features are read, and there are none.

    Example:
        >>> seen = ImageFeatures(patches=torch.zeros(2, 49, 8), pooled=torch.zeros(2, 8), source=torch.zeros(2, 20))
        >>> [join_regions(seen, regions).shape[1] for regions in ("patches", "pooled", "both", "all")]
        [49, 1, 50, 53]
    """
    if regions == "patches":
        return seen.patches
    if regions in ("own", "all_own") and seen.own is None:
        raise ValueError("seen: expected the patches' own features, wider than the joint space, found none")
    if regions == "own":
        return cast(Tensor, seen.own)
    pooled = seen.pooled.unsqueeze(-2)
    if regions == "pooled":
        return pooled
    parts = [pooled, seen.patches]
    if regions != "both" and seen.source is not None:
        parts.insert(1, _rows(seen.source, pooled))
    if regions == "all_own":
        parts.append(_rows(cast(Tensor, seen.own), pooled))
    return torch.cat(parts, dim=-2)


def _rows(features: Float[Tensor, "b *n k"], pooled: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b r d"]:
    """Cut wider vectors into rows of width ``d``, the last of each padded with zeros."""
    dim, width = pooled.shape[-1], features.shape[-1]
    return F.pad(features, (0, -width % dim)).reshape(pooled.shape[0], -1, dim).to(pooled.dtype)


def split_regions(vectors: Float[Tensor, "b m d"], regions: Regions, source_dim: int = 0, own_dim: int = 0) -> Seen:
    """Split the vectors that :func:`join_regions` joined.

    Args:
        vectors: ``b m d``.
        regions: The argument of :func:`join_regions`.
        source_dim: Width of the source that is among them (``"all"``, ``"all_own"``); 0: there is none.
        own_dim: Width of the patches' own features that are among them (``"all_own"``).

    Returns:
        Patches ``b n d`` (with ``"pooled"``, that vector as the only patch; with ``"own"``, their own features);
        ``b d``, ``b k`` and ``b n w``, or None.

    Example:
        >>> seen = split_regions(torch.zeros(2, 53, 8), "all", source_dim=20)
        >>> seen.patches.shape, seen.pooled.shape, seen.source.shape
        (torch.Size([2, 49, 8]), torch.Size([2, 8]), torch.Size([2, 20]))
    """
    if regions in ("patches", "pooled"):
        return Seen(vectors, None, None)
    if regions == "own":
        return Seen(vectors, None, None, vectors)
    dim = vectors.shape[-1]
    rows = 0 if regions == "both" else -(-source_dim // dim)
    source = vectors[:, 1 : 1 + rows].flatten(1)[:, :source_dim] if rows else None
    patches, own = vectors[:, 1 + rows :], None
    if regions == "all_own":
        each = -(-own_dim // dim)  # Rows of one patch's own features, after one row of each patch.
        count = patches.shape[1] // (1 + each)
        own = patches[:, count:].reshape(vectors.shape[0], count, each * dim)[..., :own_dim]
        patches = patches[:, :count]
    return Seen(patches, vectors[:, 0], source, own)


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
        """Maximum number of tokens of a prompt (``t``)."""
        ...

    @property
    def path(self) -> Literal["prefix", "plain"]:
        """The method that encodes learnable context.

        ``"prefix"``: cut and prefix-shared, exact for causal towers; ``"plain"``: the whole transformer per label.
        """
        ...

    def tokenize_prompts(self, sentences: Sequence[str], context: str | None, tokens: int) -> PromptTokens:
        """Tokenize one sentence per label, and reserve positions for the context at the beginning.

        Args:
            sentences: One prompt per label, its context words included.
            context: The words at the start of every sentence that the context replaces; None where there are none and
                it is inserted before the sentences.
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
    """An image encoder into the joint space, in practice an ``nn.Module``. Its outputs are not normalised.

    One with an attribute ``thread_safe`` that is true may be called by several threads at once: it keeps nothing of a
    call.
    """

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
