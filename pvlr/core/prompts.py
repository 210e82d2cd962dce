"""Label vectors from label names: by fixed prompts, and by learnable prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_choice, require_int, require_number
from pvlr.core.attention import LabelRelation, RelationMap
from pvlr.core.block import Block
from pvlr.core.functional import by_rows, upcast, without_autocast
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.protocols import PromptTokens, TextTower
from pvlr.core.shapes import expect

__all__ = ["ContextPrompter", "KnowledgePrompter", "PromptBank", "encode_knowledge", "load_label_vectors"]

Relation = Literal["attention", "none"]


@dataclass(frozen=True)
class PromptBank:
    """The prompts of labels for a text tower.

    Args:
        labels: The labels.
        templates: Sentences with one ``{}`` for the label's readable text.
        descriptions: Label name to sentences added to its templates; None: those of ``labels``.
        context_words: Words before every label that initialise the learnable context; None: none.
        context_tokens: Number of context tokens ``m``; as many as ``context_words`` have.
        suffix: Text after the label in a learnable prompt.

    Raises:
        ValueError: where a template has not exactly one ``{}``, or a label would have no sentence.
        LabelError: where a description belongs to no label.

    Example:
        >>> bank = PromptBank(LabelSet(("cat", "traffic_light")))
        >>> bank.fixed()
        (('a photo of a cat.',), ('a photo of a traffic light.',))
        >>> bank.context_sentences(), PromptBank(LabelSet(("cat",)), context_words=None).context_sentences()
        (('a photo of a cat.', 'a photo of a traffic light.'), ('cat.',))
    """

    labels: LabelSet
    templates: tuple[str, ...] = ("a photo of a {}.",)
    descriptions: Mapping[str, tuple[str, ...]] | None = None
    context_words: str | None = "a photo of a"
    context_tokens: int = 4
    suffix: str = "."

    def __post_init__(self) -> None:
        for template in self.templates:
            if not isinstance(template, str):
                raise ValueError(f"templates: expected texts, got {template!r}")
            if template.count("{}") != 1 or {"{", "}"} & set(template.replace("{}", "")):
                raise ValueError(f"templates: expected exactly one {{}} for the label, got {template!r}")
        # The label set's own checks: every description belongs to a label and is a sequence of sentences.
        if self.descriptions is not None:
            LabelSet(self.labels.names, descriptions=self.descriptions)
        require_int("context_tokens", self.context_tokens, least=1)
        if self.context_words is not None and not self.context_words.strip():
            raise ValueError("context_words: expected words, or None to start from none, got an empty text")
        for name, sentences in zip(self.labels, self.fixed(), strict=True):
            if not sentences:
                raise ValueError(f"templates: expected a template or a description for every label, {name!r} has none")

    def fixed(self) -> tuple[tuple[str, ...], ...]:
        """Return the sentences of each label: the templates filled in, then its descriptions."""
        described = self.labels.descriptions if self.descriptions is None else self.descriptions
        # Not str.format: a label's own braces would be read as fields.
        return tuple(
            (*(template.replace("{}", text) for template in self.templates), *described.get(name, ()))
            for name, text in self.labels.readable.items()
        )

    def context_sentences(self) -> tuple[str, ...]:
        """Return for each label the sentence whose first words the context replaces, or before which it is inserted."""
        words = "" if self.context_words is None else f"{self.context_words} "
        return tuple(f"{words}{text}{self.suffix}" for text in self.labels.texts)


@torch.no_grad()
def encode_knowledge(bank: PromptBank, encode: Callable[[list[str]], Tensor], batch: int = 256) -> Float[Tensor, "c k"]:
    """Compute ``T_hard[c] = mean_k norm(E(sentence_k(c)))``: each label's sentences, encoded, normalised and averaged.

    Args:
        bank: The prompts.
        encode: Function from ``s`` sentences to vectors ``s k``: a text tower's, or any sentence encoder's.
        batch: Maximum number of sentences per call of ``encode``.

    Returns:
        ``c k``, float32, without gradient; of length 1 where a label has one sentence, else at most 1.

    Raises:
        ShapeError: where ``encode`` returns anything but one float vector per sentence, all of one width.
        ValueError: where an encoding is zero or not finite.

    Example:
        >>> bank = PromptBank(LabelSet(("a", "bcd")), templates=("{}", "two {}"))
        >>> encode_knowledge(bank, lambda sentences: torch.tensor([[float(len(s)), 0.0] for s in sentences]))
        tensor([[1., 0.],
                [1., 0.]])
    """
    require_int("batch", batch, least=1)
    grouped = bank.fixed()
    sentences = [sentence for group in grouped for sentence in group]
    parts: list[Tensor] = []
    for start in range(0, len(sentences), batch):
        chunk = sentences[start : start + batch]
        vectors = encode(chunk)
        known_width = {"k": parts[0].shape[1]} if parts else {}
        expect("encode", vectors, "s k", dtype="float", s=len(chunk), **known_width)  # type: ignore[arg-type]
        vectors = vectors.float()
        length = vectors.norm(dim=-1)
        if not bool((length.isfinite() & (length > 0)).all()):
            worst = chunk[int((~(length.isfinite() & (length > 0))).nonzero()[0])]
            raise ValueError(
                f"encode: expected a finite vector other than zero for every sentence, not so for {worst!r}"
            )
        parts.append(vectors / length[:, None])
    encoded = torch.cat(parts).split([len(group) for group in grouped])  # type: ignore[no-untyped-call]
    return torch.stack([group.mean(dim=0) for group in encoded])


def load_label_vectors(path: str | Path, labels: LabelSet) -> Float[Tensor, "c k"]:
    """Read label vectors from a file, in the order of ``labels``.

    Args:
        path: A ``.npz`` file with the arrays ``names`` (texts, ``r``) and ``vectors`` (numbers, ``r k``); it may
            hold more labels than ``labels``. Nothing in it is ever executed.
        labels: The labels to read.

    Returns:
        ``c k``, float32, as in the file (not normalised).

    Raises:
        LabelError: where the file is not such a file, or lacks a label (by name).

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vectors = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
        ...     np.savez(f"{folder}/mine.npz", names=np.array(["cat", "dog"]), vectors=vectors)
        ...     load_label_vectors(f"{folder}/mine.npz", LabelSet(("dog", "cat")))
        tensor([[3., 4.],
                [1., 2.]])
    """
    import numpy as np  # Not needed by any block.

    try:
        # Opened here, because numpy does not close a file that it cannot read.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("names", "vectors") if name in file.files}
    except Exception as err:  # numpy, zipfile and zlib each raise other errors for a damaged file.
        raise LabelError(f"{path}: expected a readable .npz file of label vectors, {err}") from None
    if len(arrays) != 2:
        found = next(map(repr, arrays), "neither")
        raise LabelError(f"{path}: expected the arrays 'names' and 'vectors', got {found}")
    names, vectors = arrays["names"], arrays["vectors"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise LabelError(f"{path}: expected 'names' to be one axis of texts, got {names.dtype} {names.shape}")
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.shape[0] != names.shape[0] or vectors.shape[1] == 0:
        found = f"{vectors.dtype} {vectors.shape}"
        raise LabelError(f"{path}: expected 'vectors' to be {names.shape[0]} rows of floats, got {found}")
    try:
        known = LabelSet(tuple(names.tolist()))
        rows = [known.index(name) for name in labels]
    except LabelError as err:
        raise LabelError(f"{path}: {err}") from None
    chosen = torch.from_numpy(vectors[rows].astype(np.float32))
    if not bool(chosen.isfinite().all()):
        raise LabelError(
            f"{path}: expected finite vectors, {labels.names[int((~chosen.isfinite()).nonzero()[0, 0])]!r} has none"
        )
    return chosen


class KnowledgePrompter(Block):
    """Prompter of fixed vectors, with self-attention over labels: ``(T_ka, M_ka) = SA(T_hard)``.

    Args:
        dim: Joint width ``d``.
        heads: Number of heads of the relation.
        source_dim: Width ``k`` of the vectors if they are not the text tower's: a learned projection ``k → d`` comes
            before the relation. None: they are ``d`` wide, and are not projected.
        relation: ``"attention"``, or ``"none"`` to leave the vectors as they are.

    Example:
        >>> labels, relation = KnowledgePrompter(dim=8, heads=2, source_dim=5)(torch.ones(3, 5))
        >>> labels.shape, relation.dense().shape
        (torch.Size([3, 8]), torch.Size([2, 3, 3]))
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int = 8,
        source_dim: int | None = None,
        relation: Relation = "attention",
    ) -> None:
        super().__init__(dim=dim, heads=heads, source_dim=source_dim, relation=relation)
        require_int("dim", dim, least=1)
        if source_dim is not None:
            require_int("source_dim", source_dim, least=1)
        require_choice("relation", relation, get_args(Relation))
        self.source_dim = dim if source_dim is None else source_dim
        self.projection = None if source_dim is None else nn.Linear(source_dim, dim, bias=False)
        self.relation = LabelRelation(dim=dim, heads=heads) if relation == "attention" else None

    def forward(self, vectors: Float[Tensor, "c k"]) -> tuple[Float[Tensor, "c d"], RelationMap | None]:
        """Project (if ``source_dim`` was given) and relate.

        Args:
            vectors: ``c k`` (``k = d`` without a projection), for instance :func:`encode_knowledge`'s.

        Returns:
            Label vectors ``c d`` and the factors of their map (None without a relation).

        Raises:
            ShapeError: where ``vectors`` has another width.
        """
        like = next(self.parameters(), None)
        expect("vectors", vectors, "c k", dtype="float", like=like, k=self.source_dim)
        labels = vectors if self.projection is None else self.projection(vectors)
        if self.relation is None:
            return labels, None
        related, relation = self.relation(labels)
        return related, relation


class ContextPrompter(Block):
    """Prompter ``T_soft[c] = norm(E_t([v_1 … v_m, name_c, .]))`` with learnable ``v``; ``(T_ca, M_ca) = SA(T_soft)``.

    Args:
        width: Width ``w`` of the text tower's token embeddings.
        dim: Joint width ``d``.
        context_tokens: Number of context tokens ``m``.
        heads: Number of heads of the relation.
        relation: ``"attention"``, or ``"none"`` to leave the vectors as they are.
        std: Standard deviation of the context at the start, until :meth:`start_from` sets it.

    Example:
        >>> prompter = ContextPrompter(width=6, dim=8, heads=2)
        >>> labels, relation = prompter.relate(torch.ones(3, 8))
        >>> prompter.context.shape, labels.shape
        (torch.Size([4, 6]), torch.Size([3, 8]))
    """

    def __init__(
        self,
        *,
        width: int,
        dim: int,
        context_tokens: int = 4,
        heads: int = 8,
        relation: Relation = "attention",
        std: float = 0.02,
    ) -> None:
        super().__init__(width=width, dim=dim, context_tokens=context_tokens, heads=heads, relation=relation, std=std)
        for name, number in (("width", width), ("dim", dim), ("context_tokens", context_tokens)):
            require_int(name, number, least=1)
        require_choice("relation", relation, get_args(Relation))
        require_number("std", std, least=0.0)
        self.width, self.dim, self.context_tokens = width, dim, context_tokens
        self.context = nn.Parameter(torch.randn(context_tokens, width) * std)
        self.relation = LabelRelation(dim=dim, heads=heads) if relation == "attention" else None

    @torch.no_grad()
    def start_from(self, embeddings: Float[Tensor, "m w"]) -> None:
        """Copy token embeddings of words into the context.

        Raises:
            ShapeError: where ``embeddings`` is not ``m w`` of this prompter.
        """
        expect("embeddings", embeddings, "m w", dtype="float", m=self.context_tokens, w=self.width)
        self.context.copy_(embeddings)

    def encode(self, text: TextTower, prompts: PromptTokens) -> Float[Tensor, "c d"]:
        """Return ``T_soft``: the prompts with the context inserted, encoded and normalised, float32.

        Args:
            text: The tower; gradient flows through it to the context.
            prompts: Tokens of :meth:`PromptBank.context_sentences` by the tower's tokenizer.

        Raises:
            ShapeError: where the tower returns anything but one vector of width ``d`` per label.
            ValueError: where the prompts have another number of positions for the context.
        """
        device = self.context.device
        labels = expect("prompts.ids", prompts.ids, "c t", dtype="int", device=device)["c"]
        expect("prompts.end", prompts.end, "c", dtype="int", device=device, c=labels)
        if prompts.length != self.context_tokens:
            raise ValueError(f"prompts: expected {self.context_tokens} positions for the context, got {prompts.length}")
        vectors = by_rows(partial(self._rows, text, prompts), prompts.ids, prompts.end.unsqueeze(1))
        with without_autocast(vectors):
            return F.normalize(upcast(vectors), dim=-1)

    def _rows(self, text: TextTower, prompts: PromptTokens, ids: Tensor, end: Tensor) -> Float[Tensor, "c d"]:
        """Encode the prompts of some labels, whose ends are ``c 1``."""
        vectors = text.encode_context(self.context, prompts._replace(ids=ids, end=end.squeeze(1)))
        sizes = {"c": ids.shape[0], "d": self.dim}
        expect("text.encode_context", vectors, "c d", dtype="float", device=self.context.device, **sizes)  # type: ignore[arg-type]
        return vectors

    def relate(self, vectors: Float[Tensor, "c d"]) -> tuple[Float[Tensor, "c d"], RelationMap | None]:
        """Return ``T_ca`` and its map from ``T_soft``.

        Args:
            vectors: ``T_soft``, ``c d``, in the dtype of the parameters, or float32 where that is narrower.

        Returns:
            Label vectors ``c d``, and the factors of their map (None without a relation).

        Raises:
            ShapeError: where the axes do not fit.
        """
        # `encode` returns float32 where the parameters are narrower.
        if isinstance(vectors, Tensor) and vectors.dtype == torch.float32 and self.context.dtype != torch.float64:
            vectors = vectors.to(self.context.dtype)
        expect("vectors", vectors, "c d", dtype="float", like=self.context, d=self.dim)
        if self.relation is None:
            return vectors, None
        related, relation = self.relation(vectors)
        return related, relation

    def forward(self, text: TextTower, prompts: PromptTokens) -> tuple[Float[Tensor, "c d"], RelationMap | None]:
        """Apply :meth:`encode`, then :meth:`relate`."""
        return self.relate(self.encode(text, prompts))
