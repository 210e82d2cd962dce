"""The laws of the method on all blocks together, with vectors in the place of towers."""

import torch
from helpers import reference
from helpers.strategies import Draw, Sizes, as_lists, draws, perturb, sizes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter
from pvlr.core.semantic import SemanticPooling

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def stack(s: Sizes, draw: Draw, trained: bool, hidden: int = 3, **options: str) -> tuple:
    """Patches and label vectors through every block; returns the function from (knowledge, soft, patches) to logits."""
    blocks = [
        KnowledgePrompter(dim=s.d, heads=s.h, relation=options.get("relation", "attention")),
        ContextPrompter(width=s.w, dim=s.d, heads=s.h, relation=options.get("relation", "attention")),
        FusionBlock(dim=s.d, heads=s.h, fusion=options.get("fusion", "gate")),
        VisualAdapter(dim=s.d, adapter_width=hidden),
        DualModalAttention(dim=s.d, heads=s.h, direction=options.get("direction", "both"), feedforward=hidden),
        SemanticPooling(dim=s.d, feedforward=hidden, sharpness=5.0),
        SimilarityHead(scale=3.0, bias=-1.0),
    ]
    for block in blocks:
        block.double()
        if trained:
            perturb(block, draw)
    know, see, fuse, adapt, look, pool, head = blocks

    def logits(hard: Tensor, soft: Tensor, patches: Tensor) -> Tensor:
        knowledge, knowledge_map = know(hard)
        context, context_map = see.relate(soft)
        labels, seen = fuse(knowledge, context, knowledge_map, context_map), adapt(patches)
        out = look(labels, seen)
        visual = pool(seen, hard, out.gathered)
        return head(out.patches, labels, looked=out.labels, visual=visual)

    return logits, blocks


def as_given(blocks: list, vectors: Tensor, patches: Tensor) -> Tensor:
    """Scores of evidence and head of vectors that nothing has changed, by the loops of the reference."""
    pool, head = (as_lists(block) for block in blocks[-2:])
    rows = []
    for image in patches.tolist():
        visual = reference.semantic_pooling({"log_sharpness": pool["log_sharpness"]}, image, vectors.tolist(), None)
        rows.append(reference.similarity_head(head, image, vectors.tolist(), None, visual, None))
    return torch.tensor(rows, dtype=torch.float64)


@given(sizes(), draws())
def test_law_6_untrained_blocks_score_as_the_cosines_of_what_they_are_given(s: Sizes, draw: Draw) -> None:
    vectors, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    logits, blocks = stack(s, draw, trained=False)
    assert_close(logits(vectors, vectors, patches), as_given(blocks, vectors, patches), **EXACT)


@given(sizes(), draws())
def test_law_6_trained_blocks_do_so_without_attention_fusion_relation_and_feed_forwards(s: Sizes, draw: Draw) -> None:
    vectors, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    logits, blocks = stack(s, draw, trained=True, hidden=0, direction="none", fusion="knowledge", relation="none")
    found = logits(vectors, draw.normal(s.c, s.d), patches)
    assert_close(found, as_given(blocks, vectors, patches), **EXACT)


@given(sizes(), draws(), st.sampled_from(["both", "labels", "patches"]))
def test_laws_1_and_2_hold_for_all_trained_blocks_together(s: Sizes, draw: Draw, direction: str) -> None:
    hard, soft, patches = draw.normal(s.c, s.d), draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    order, (logits, _) = draw.order(s.c), stack(s, draw, trained=True, direction=direction)
    whole = logits(hard, soft, patches)
    assert_close(logits(hard[order], soft[order], patches), whole[:, order], **EXACT)
    for b in range(s.b):
        assert_close(logits(hard, soft, patches[b : b + 1]), whole[b : b + 1], **EXACT)
