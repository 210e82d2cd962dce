"""The base class of all text towers: frozen weights, and prompts as tokens."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pvlr.core.protocols import PromptTokens
from pvlr.core.shapes import expect
from pvlr.core.towers.errors import TowerError, shown
from pvlr.core.towers.files.hf_files import no_panic

__all__ = ["FrozenTextTower"]

# Prepended to a sentence while it is tokenized, because some tokenizers encode the first word of a text differently
# from the words after it. Its own tokens, in the vocabulary or not, are replaced by the context.
LEAD = "X"


class FrozenTextTower(nn.Module):
    """A permanently frozen text tower: no parameter is trainable, no mode but evaluation.

    Attributes:
        dim: Width of the joint space (``d``).
        width: Width of a token embedding (``w``).
        context_length: Maximum number of tokens of a prompt (``t``).
        path: The method of :meth:`encode_context`.
        tokenizer: Called as ``tokenizer(texts, context_length=t)``, returns int64 ``s t``.
    """

    dim: int
    width: int
    context_length: int
    path: Literal["prefix", "plain"]

    def __init__(self, tokenizer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def architecture(self) -> dict[str, Any]:
        """The part of the architecture that open_clip's configuration of the model leaves to another file."""
        return {}

    def train(self, mode: bool = True) -> "FrozenTextTower":
        """Stay in evaluation mode, for any ``mode``."""
        super().train(False)
        return self

    def tokenize_prompts(self, sentences: Sequence[str], context: str | None, tokens: int) -> PromptTokens:
        """Tokenize one sentence per label, and reserve positions for the context at the beginning.

        Args:
            sentences: One prompt per label, such as ``"a photo of a dog."``.
            context: The words at the start of every sentence that the context replaces; None where the sentences have
                none, such as ``"dog."``: the context is inserted before them.
            tokens: Number of context tokens (``m``), at least 1.

        Returns:
            Ids ``c t`` at the full context length, the positions of the context, and the position each prompt is pooled
            at.

        Raises:
            TowerError: naming a sentence that is too long or does not begin with the context, or a context that is not
                ``tokens`` tokens long.
        """
        if tokens < 1:
            raise TowerError(f"tokens: expected at least 1 context token, got {tokens}")
        words = LEAD if context is None else context
        first, empty = self._tokenize([words])[0], self.tokenizer([""], context_length=self.context_length)[0]
        start, count = _stretch(first, empty)
        if context is None:
            ids = self._tokenize_after(count, sentences, tokens)
        elif count == tokens:
            ids = self._tokenize(sentences)
        else:
            raise TowerError(
                f"context {shown(words)}: expected {tokens} tokens, the tower's tokenizer makes {count} of it"
            )
        begin = start + count
        other = (ids[:, :begin] != first[:begin]).any(dim=1)
        self._refuse_some(sentences, other, f"expected it to begin with the context {shown(words)}, token by token")
        if context is None:
            ids = torch.cat([ids[:, :start], first[start].expand(len(ids), tokens), ids[:, begin:]], dim=1)
        end = self._ends(ids, sentences)
        return PromptTokens(ids=ids, start=start, length=tokens, end=end, used=int(end.max()) + 1)

    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "s d"]:
        """Encode plain sentences as open_clip's ``encode_text`` does: not normalised, without gradient.

        Raises:
            TowerError: naming a sentence that is too long.
        """
        raise NotImplementedError

    def embed(self, ids: Int[Tensor, "*s"]) -> Float[Tensor, "*s w"]:
        """Look up token embeddings, before positions are added."""
        table = self._table()
        embeddings: Tensor = table(ids.to(table.weight.device))
        return embeddings

    def encode_context(
        self, context: Float[Tensor, "m w"] | Float[Tensor, "c m w"], prompts: PromptTokens
    ) -> Float[Tensor, "c d"]:
        """Encode prompts with ``context`` in place of their context tokens.

        Args:
            context: Vectors of the width of token embeddings, shared by all labels (``m w``) or their own (``c m w``).
            prompts: The result of :meth:`tokenize_prompts`.

        Returns:
            One vector per prompt, not normalised, equal to the output of the whole transformer for the same embeddings
            (1e-5 in float32). Gradient flows to ``context`` alone.

        Raises:
            ShapeError: ``context`` does not fit the tower or the prompts.
        """
        raise NotImplementedError

    def _table(self) -> Any:
        """Return the module that looks up token embeddings."""
        raise NotImplementedError

    def _ends(self, ids: Int[Tensor, "s t"], sentences: Sequence[str]) -> Int[Tensor, " s"]:
        """Return the position where each prompt is pooled, or its end where pooling takes all of it."""
        raise NotImplementedError

    def _expect_context(self, context: Tensor, prompts: PromptTokens) -> None:
        sizes = {"m": prompts.length, "w": self.width}
        if context.ndim == 3:
            expect("context", context, "c m w", dtype="float", c=prompts.ids.shape[0], **sizes)  # type: ignore[arg-type]
        else:
            expect("context", context, "m w", dtype="float", **sizes)  # type: ignore[arg-type]

    def _tokenize(self, sentences: Sequence[str]) -> Int[Tensor, "s t"]:
        return self._fitted(sentences, sentences, self.context_length, f"{self.context_length} tokens the tower has")

    def _tokenize_after(self, count: int, sentences: Sequence[str], tokens: int) -> Int[Tensor, "s r"]:
        """Tokenize sentences after the lead of ``count`` tokens, with room for ``tokens`` in its place."""
        left = self.context_length - tokens
        if left < 1:
            raise TowerError(
                f"tokens: expected fewer context tokens than the tower's {self.context_length}, got {tokens}"
            )
        if count == 0:
            raise TowerError(f"context: expected words, since the tower's tokenizer makes no token of '{LEAD}'")
        texts = sentences if isinstance(sentences, str) else [f"{LEAD} {sentence}" for sentence in sentences]
        return self._fitted(sentences, texts, left + count, f"{left} tokens that a context of {tokens} leaves")

    def _fitted(self, sentences: Sequence[str], texts: Sequence[str], room: int, most: str) -> Int[Tensor, "s r"]:
        """Tokenize ``texts`` in rows of ``room``; error messages contain the ``sentences`` instead."""
        if isinstance(sentences, str) or not sentences:
            raise TowerError(f"sentences: expected a sequence of at least one sentence, got {shown(sentences)}")
        surrogates = torch.tensor([any("\ud800" <= letter <= "\udfff" for letter in text) for text in texts])
        self._refuse_some(sentences, surrogates, "expected letters, found half of one")
        # Tokenizers silently truncate long texts, and pad in different ways. Where more room changes the tokens, some
        # were truncated; the tokens of a row are those that differ from the row of the empty text.
        far = room + self.context_length
        with no_panic("the tokenizer"):
            longer = self.tokenizer(list(texts), context_length=far)
        differs = longer != self.tokenizer([""], context_length=far)
        used = (differs * torch.arange(1, far + 1)).amax(dim=1, keepdim=True)
        self._refuse_some(sentences, used.squeeze(1) > room, f"expected at most the {most}, got more")
        ids = self.tokenizer(list(texts), context_length=room)
        changed = (ids != longer[:, :room]) & (torch.arange(room) < used)
        self._refuse_some(sentences, changed.any(dim=1), f"expected at most the {most}, got more")
        known = int(self._table().weight.shape[0])
        unknown = (ids >= known).any(dim=1)
        self._refuse_some(
            sentences, unknown, f"expected the {known} tokens the tower knows, its tokenizer makes others"
        )
        return ids

    def _refuse_some(self, sentences: Sequence[str], wrong: Tensor, why: str) -> None:
        for sentence, is_wrong in zip(sentences, wrong.tolist(), strict=True):
            if is_wrong:
                raise TowerError(f"prompt {shown(sentence)}: {why}")


def _stretch(words: Int[Tensor, " t"], empty: Int[Tensor, " t"]) -> tuple[int, int]:
    """Return the first position of words and their number of tokens, by comparison with the row of the empty text.

    The last position is left out: some tokenizers reserve it for a token of their own.
    """
    differs = (words != empty).nonzero()
    if len(differs) == 0:
        return 0, 0
    start, last = int(differs[0]), len(words) - 1
    counts = (n for n in range(last - start) if torch.equal(words[start + n : last], empty[start : last - n]))
    return start, next(counts, last - start)
