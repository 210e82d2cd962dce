"""Sentence encoders as a source of knowledge about labels: any function, or a model of sentence-transformers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "SENTENCE_TRANSFORMERS",
    "HeldEncoder",
    "SentenceEncoder",
    "SentenceEncoderError",
    "find_encoder",
    "is_encoded",
    "load_sentence_transformer",
    "require_sentence_transformers",
]

SentenceEncoder = Callable[[list[str]], Tensor]
"""From ``s`` sentences to vectors ``s k``."""

SENTENCE_TRANSFORMERS = "sentence-transformers:"
"""Prefix of a model name of that package in ``PVLRConfig.knowledge``."""


class SentenceEncoderError(ValueError):
    """Error for a sentence encoder that is missing, not used, or cannot be loaded."""


class HeldEncoder:
    """An encoder that a module references without registering it: not a submodule, and shared by all copies.

    Args:
        encode: The function; where it is a module, its parameters are not those of the referencing module.

    Example:
        >>> import copy
        >>> held = HeldEncoder(torch.nn.Linear(2, 2))
        >>> copy.deepcopy(held) is held
        True
    """

    def __init__(self, encode: SentenceEncoder) -> None:
        self.encode = encode

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeldEncoder":
        return self


def is_encoded(knowledge: str) -> bool:
    """Return whether a sentence encoder other than the text tower computes the vectors of this knowledge.

    Example:
        >>> [is_encoded(one) for one in ("text_tower", "vectors.npz", "encoder", "sentence-transformers:NAME")]
        [False, False, True, True]
    """
    return knowledge == "encoder" or knowledge.startswith(SENTENCE_TRANSFORMERS)


def find_encoder(knowledge: str, own: SentenceEncoder | None) -> SentenceEncoder | None:
    """Return the sentence encoder that a choice of knowledge requires, other than the text tower.

    Args:
        knowledge: The field of :class:`~pvlr.core.models.config.PVLRConfig`.
        own: The user's function, for ``"encoder"`` and only for it.

    Returns:
        The function; None where the choice is the text tower or a file.

    Raises:
        SentenceEncoderError: where ``own`` is missing or not used; see :func:`load_sentence_transformer`.

    Example:
        >>> find_encoder("encoder", None)
        Traceback (most recent call last):
            ...
        pvlr.core.towers.text.sentence_encoders.SentenceEncoderError: encoder: expected a function from sentences to
        vectors with knowledge='encoder', got None
    """
    if knowledge == "encoder":
        if not callable(own):
            raise SentenceEncoderError(
                f"encoder: expected a function from sentences to vectors with knowledge='encoder', got {own!r}"
            )
        return own
    if own is not None:
        raise SentenceEncoderError(
            f"encoder: expected none with knowledge={knowledge!r}, which does not use it; set knowledge='encoder'"
        )
    if knowledge.startswith(SENTENCE_TRANSFORMERS):
        return load_sentence_transformer(knowledge.removeprefix(SENTENCE_TRANSFORMERS))
    return None


def load_sentence_transformer(name: str) -> SentenceEncoder:
    """Load a model of the package sentence-transformers, as a function from sentences to vectors ``s k``.

    It computes on the CPU, so that vectors do not depend on the machine's devices, and does not change the state of
    the caller's random generator.

    Args:
        name: A model's name, such as ``all-MiniLM-L6-v2`` (downloaded if it is not in the cache), or its folder.

    Raises:
        SentenceEncoderError: where the package is absent, or has no such model or cannot fetch it.
    """
    package = require_sentence_transformers(name)
    try:
        with torch.random.fork_rng(devices=[]):
            model = package.SentenceTransformer(name, device="cpu")
    except Exception as err:  # any error of the package, its libraries or the network
        message = " ".join(str(err).split()) or type(err).__name__
        raise SentenceEncoderError(f"knowledge: could not load '{SENTENCE_TRANSFORMERS}{name}': {message}") from err

    def encode(sentences: list[str]) -> Tensor:
        vectors: Tensor = model.encode(sentences, convert_to_tensor=True, show_progress_bar=False)
        return vectors

    return encode


def require_sentence_transformers(name: str) -> Any:
    """Import the package sentence-transformers.

    Args:
        name: The model it is required for, for the message.

    Raises:
        SentenceEncoderError: naming the package to install.
    """
    try:
        import sentence_transformers
    except ImportError as err:
        raise SentenceEncoderError(
            f"knowledge: '{SENTENCE_TRANSFORMERS}{name}' needs the package {err.name or 'sentence_transformers'}, "
            "which is not installed (pip install 'pvlr[sentence]')"
        ) from err
    return sentence_transformers
