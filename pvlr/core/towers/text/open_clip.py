"""open_clip's text towers: plain sentences, and sentences in which learnable context replaces words."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from pvlr.core.functional import attend, merge_heads, splice_context, split_heads
from pvlr.core.protocols import PromptTokens
from pvlr.core.towers.errors import TowerError, shown
from pvlr.core.towers.text.base import FrozenTextTower

__all__ = ["OpenClipTextTower"]


class OpenClipTextTower(FrozenTextTower):
    """The text half of an open_clip model, permanently frozen: no parameter is trainable, no mode but evaluation.

    A tower that is causal and pools at the end of the text needs no position after that end, and computes a prefix that
    all prompts share only once (``path="prefix"``); both are exact. Any other tower runs the whole transformer over the
    whole context length (``path="plain"``).

    Attributes:
        dim: Width of the joint space (``d``).
        width: Width of a token embedding (``w``).
        context_length: Maximum number of tokens of a prompt (``t``).
        path: The method of :meth:`encode_context`.
    """

    attn_mask: Tensor | None

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Tensor]) -> None:
        """Wrap the text modules of ``model``.

        Args:
            model: An ``open_clip.CLIP`` or ``open_clip.CustomTextCLIP``; its parameters are shared, and frozen.
            tokenizer: Called as ``tokenizer(texts, context_length=t)``, returns int64 ``s t``.

        Raises:
            TowerError: naming the class or setting that is not supported.
        """
        super().__init__(tokenizer)
        tower, pool, self._end_id = _text_parts(model)
        self.context_length = int(tower.context_length)
        self.width = int(tower.positional_embedding.shape[1])
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_buffer("attn_mask", tower.attn_mask, persistent=False)
        self.dim = _projected_width(self.text_projection, self.width)
        self._pool: str = pool
        self._cut = _is_causal(self.attn_mask) and pool in ("argmax", "eos")
        plain_blocks = all(_is_plain_block(block) for block in self.transformer.resblocks)
        self.path = "prefix" if self._cut and plain_blocks else "plain"
        self.requires_grad_(False)
        self.train(False)

    @torch.no_grad()
    def encode(self, sentences: Sequence[str]) -> Float[Tensor, "s d"]:
        """Encode plain sentences, see :meth:`FrozenTextTower.encode`."""
        ids = self._tokenize(sentences)
        end = self._ends(ids, sentences)
        return self._run(self.embed(ids[:, : self._needed(int(end.max()) + 1)]), end)

    def encode_context(
        self, context: Float[Tensor, "m w"] | Float[Tensor, "c m w"], prompts: PromptTokens
    ) -> Float[Tensor, "c d"]:
        """Encode prompts with ``context`` by ``path``, see :meth:`FrozenTextTower.encode_context`."""
        self._expect_context(context, prompts)
        embeddings = self.embed(prompts.ids[:, : self._needed(prompts.used)])
        context = context.to(embeddings)
        # Shared context is part of the prefix that is computed once; a label's own is not.
        shared = prompts.start + (prompts.length if context.ndim == 2 else 0)
        if self.path == "plain" or shared == 0:
            return self._run(splice_context(embeddings, context, prompts.start), prompts.end)
        embeddings = splice_context(embeddings, context, prompts.start)
        return self._run_prefixed(embeddings[:1, :shared], embeddings[:, shared:], prompts.end)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return (
            f"path={self.path!r}, dim={self.dim}, width={self.width}, context_length={self.context_length}, "
            f"pool={self._pool!r}"
        )

    def _needed(self, used: int) -> int:
        # In a causal tower no token attends to positions after the last pooled one.
        return used if self._cut else self.context_length

    def _run(self, embeddings: Float[Tensor, "c t w"], end: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length].to(embeddings.dtype)
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        return self._project(self.transformer(x, attn_mask=mask), end)

    def _run_prefixed(
        self, prefix: Float[Tensor, "1 p w"], rest: Float[Tensor, "c r w"], end: Int[Tensor, " c"]
    ) -> Float[Tensor, "c d"]:
        begin, length = prefix.shape[1], prefix.shape[1] + rest.shape[1]
        positions = self.positional_embedding[:length].to(prefix.dtype)
        prefix, rest = prefix + positions[:begin], rest + positions[begin:]
        # True where row r of the rest may attend: all of the prefix, and the rest up to itself.
        mask = torch.ones(rest.shape[1], length, dtype=torch.bool, device=rest.device).tril(begin)
        rows = torch.cat([prefix[0], rearrange(rest, "c r w -> (c r) w")])
        for block in self.transformer.resblocks:
            rows = _prefixed_block(block, rows, begin, mask)
        rest = rearrange(rows[begin:], "(c r) w -> c r w", r=rest.shape[1])
        return self._project(rest, end - begin)

    def _project(self, x: Float[Tensor, "c t w"], end: Int[Tensor, " c"]) -> Float[Tensor, "c d"]:
        rows = torch.arange(x.shape[0], device=x.device)
        pooled: Tensor = self.ln_final(x[rows, end.to(x.device)])
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(pooled)  # type: ignore[no-any-return]
        return pooled if self.text_projection is None else pooled @ self.text_projection

    def _table(self) -> Any:
        return self.token_embedding

    def _ends(self, ids: Int[Tensor, "s t"], sentences: Sequence[str]) -> Int[Tensor, " s"]:
        if self._pool == "argmax":
            return ids.argmax(dim=1)
        if self._pool == "eos":
            is_end = ids == self._end_id
            without = ~is_end.any(dim=1)
            self._refuse_some(sentences, without, f"expected the end-of-text token {self._end_id}, found none")
            return is_end.int().argmax(dim=1)
        return torch.full((ids.shape[0],), self.context_length - 1 if self._pool == "last" else 0)


def _prefixed_block(
    block: Any, rows: Float[Tensor, "rows w"], begin: int, mask: Bool[Tensor, "r t"]
) -> Float[Tensor, "rows w"]:
    """Run one causal pre-norm block over sequences that share their first ``begin`` tokens.

    All tokens are the rows of one matrix, the shared ones first: a few large products are faster than many small ones.
    """
    attention, length = block.attn, mask.shape[0]
    projected = F.linear(block.ln_1(rows), attention.in_proj_weight, attention.in_proj_bias)

    def heads(part: Tensor) -> list[Tensor]:
        return [split_heads(x, attention.num_heads) for x in part.chunk(3, dim=-1)]

    query, key, value = heads(projected[None, :begin])
    own_query, own_key, own_value = heads(rearrange(projected[begin:], "(c r) x -> c r x", r=length))
    labels = own_key.shape[0]
    keys = torch.cat([key.expand(labels, -1, -1, -1), own_key], dim=2)
    values = torch.cat([value.expand(labels, -1, -1, -1), own_value], dim=2)
    causal = torch.ones(begin, begin, dtype=torch.bool, device=mask.device).tril()
    shared, own = attend(query, key, value, causal), attend(own_query, keys, values, mask)
    attended = torch.cat([rearrange(merge_heads(x), "c r w -> (c r) w") for x in (shared, own)])
    rows = rows + block.ls_1(attention.out_proj(attended))
    return rows + block.ls_2(block.mlp(block.ln_2(rows)))  # type: ignore[no-any-return]


def _text_parts(model: nn.Module) -> tuple[Any, str, int]:
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    if type(model) not in (CLIP, CustomTextCLIP):
        raise TowerError(f"text tower: expected an open_clip CLIP or CustomTextCLIP, got {type(model).__name__}")
    tower: Any = getattr(model, "text", model)
    if tower is model:
        pool, end_id = model.text_pool_type, model.text_eos_id
    elif type(tower) is TextTransformer:
        pool, end_id = tower.pool_type, tower.eos_id
    else:
        raise TowerError(f"text tower: expected open_clip's TextTransformer, got {type(tower).__name__}")
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        raise TowerError("text tower: a class token or a padding mask (CoCa) is not supported")
    if tower.positional_embedding.shape[0] != tower.context_length:
        raise TowerError(
            f"text tower: expected {tower.context_length} positions, got {tower.positional_embedding.shape[0]}"
        )
    if pool not in ("argmax", "eos", "last", "first"):
        raise TowerError(f"text tower: expected pooling argmax, eos, last or first, got {shown(pool)}")
    return tower, str(pool), int(end_id)


def _projected_width(projection: Any, width: int) -> int:
    if projection is None:
        return width
    return int(projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1])


def _is_causal(mask: Tensor | None) -> bool:
    return mask is not None and torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1))


def _is_plain_block(block: nn.Module) -> bool:
    from open_clip.transformer import ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return False
    attention: Any = block.attn
    return attention.in_proj_weight is not None and attention.bias_k is None and not attention.add_zero_attn
