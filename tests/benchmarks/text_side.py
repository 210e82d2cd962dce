"""The text side of a training step, beside the same tower over all positions of every label."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import measure, table
from prompt_path import CONTEXT, names

LABELS, POSITIONS = 80, 77
DEFAULT = 4
"""Context tokens of PVLR, unless it is configured otherwise; published methods have 16."""
VIT = {"name": "ViT-B-16-quickgelu", "weights": "random"}
TOWERS = {"CLIP ViT-B/16's, causal": VIT, "MiniLM, of pvlr:photos": {"name": "pvlr:photos"}}


def all_positions(tower: Any, context: torch.Tensor, prompts: Any) -> torch.Tensor:
    """Encode prompts as it is usually written: every label padded to all positions, nothing shared."""
    ids = torch.nn.functional.pad(prompts.ids[:, :POSITIONS], (0, max(0, POSITIONS - prompts.ids.shape[1])))
    start, length = prompts.start, prompts.length
    embedded, shared = tower.embed(ids), context.expand(len(ids), -1, -1)
    embedded = torch.cat([embedded[:, :start], shared, embedded[:, start + length :]], dim=1)
    if hasattr(tower, "pooler"):
        # No mask: a padded position costs what another does.
        mask = torch.ones_like(ids)
        return tower.proj(tower.pooler(tower.transformer(attention_mask=mask, inputs_embeds=embedded), mask))
    x = tower.transformer(embedded + tower.positional_embedding[:POSITIONS], attn_mask=tower.attn_mask)
    return tower.ln_final(x)[torch.arange(len(ids)), prompts.end] @ tower.text_projection


def text_side(tower: dict[str, str], plain: bool, labels: int, tokens: int) -> Callable[[], object]:
    """Forward and backward from every label's vector to the shared context."""
    from pvlr.core.towers import build_towers
    from pvlr.core.towers.spec import TowerSpec

    text: Any = build_towers(TowerSpec(**tower)).text
    prompts = text.tokenize_prompts([f"{name}." for name in names(labels)], None, tokens)
    context = torch.nn.Parameter(0.02 * torch.randn(tokens, text.width))
    weight = torch.randn(labels, text.dim)

    def work() -> None:
        context.grad = None
        vectors = all_positions(text, context, prompts) if plain else text.encode_context(context, prompts)
        (vectors * weight).sum().backward()

    return work


def report(small: bool = False) -> Iterator[str]:
    """The table, ratio first."""
    labels, repeat, rows = (4, 1, []) if small else (LABELS, 5, [])
    for (title, tower), tokens in itertools.product(TOWERS.items(), (CONTEXT, DEFAULT)):
        plain, ours = (
            measure(text_side, repeat=repeat, tower=tower, plain=way, labels=labels, tokens=tokens)
            for way in (True, False)
        )
        rows.append(
            (
                title,
                str(tokens),
                f"{plain.seconds / ours.seconds:.1f}×",
                f"1/{plain.megabytes / max(ours.megabytes, 0.1):.1f}",
                f"{ours.seconds:.3f} s",
                f"{plain.seconds:.3f} s",
                f"{ours.megabytes:,.0f} MiB",
                f"{plain.megabytes:,.0f} MiB",
            )
        )
    header = ("text tower", "context tokens", "faster", "memory", "pvlr", "all positions", "pvlr", "all positions")
    yield table(
        f"Text side of a training step: {labels} labels, forward + backward, float32, beside "
        f"{POSITIONS} positions of every label",
        header,
        rows,
    )
