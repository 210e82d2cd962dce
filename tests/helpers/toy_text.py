"""A text tower small enough to read, for tests of what is built on one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from helpers.strategies import Draw
from pvlr.core.functional import splice_context
from pvlr.core.labels import LabelSet
from pvlr.core.prompts import PromptBank
from pvlr.core.protocols import PromptTokens

LABELS = LabelSet(("cat", "traffic_light", "cow"), descriptions={"cow": ("It moos.", "It eats grass.")})


class WordTower:
    """Tower of which words are tokens, and a prompt is a nonlinear sum over its first words.

    Who inherits it has ``table``, ``places``, ``out`` and ``context_length``, and says which token a word is.
    """

    path = "plain"
    context_length: int
    table: Tensor
    places: Tensor
    out: Tensor

    def token(self, word: str) -> int:
        raise NotImplementedError

    def tokenize_prompts(self, sentences: Sequence[str], context: str | None, tokens: int) -> PromptTokens:
        lead = [self.token("X")] * tokens if context is None else []
        rows = [[*lead, *(self.token(word) for word in text.replace(".", " .").split())] for text in sentences]
        ids = torch.tensor([row + [0] * (self.context_length - len(row)) for row in rows])
        end = torch.tensor([len(row) - 1 for row in rows])
        return PromptTokens(ids=ids, start=0, length=tokens, end=end, used=int(end.max()) + 1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def run(self, embeddings: Tensor, end: Tensor) -> Tensor:
        states = torch.tanh(embeddings + self.places).cumsum(dim=1)
        return torch.sin(states[torch.arange(end.shape[0], device=end.device), end]) @ self.out


class ToyTower(WordTower):
    """Tower that draws its tables, and counts the sentences of each call."""

    def __init__(self, *, dim: int = 8, width: int = 6, seed: int = 0) -> None:
        draw = Draw(seed)
        self.dim, self.width, self.context_length = dim, width, 12
        self.table, self.places = draw.normal(64, width), draw.normal(self.context_length, width)
        self.out = draw.normal(width, dim)
        self.encoded: list[int] = []

    def token(self, word: str) -> int:
        return 1 + sum(map(ord, word)) % 62

    def encode(self, sentences: Sequence[str]) -> Tensor:
        self.encoded.append(len(sentences))
        prompts = self.tokenize_prompts(sentences, None, 0)
        with torch.no_grad():
            return self.run(self.embed(prompts.ids), prompts.end)

    def encode_context(self, context: Tensor, prompts: PromptTokens) -> Tensor:
        return self.run(splice_context(self.embed(prompts.ids), context, prompts.start), prompts.end)


def prompts_for(tower: ToyTower, bank: PromptBank) -> PromptTokens:
    return tower.tokenize_prompts(bank.context_sentences(), bank.context_words, bank.context_tokens)
