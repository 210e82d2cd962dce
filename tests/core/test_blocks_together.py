"""The laws of the method on all blocks together, with vectors in the place of towers."""

from hypothesis import given
from hypothesis import strategies as st
from strategies import Draw, Sizes, draws, perturb, sizes
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.attention import DualModalAttention
from pvlr.core.functional import cosine_scores, pool_regions
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def stack(s: Sizes, draw: Draw, trained: bool, **options: str) -> tuple:
    """Patches and label vectors through every block; returns the function from (knowledge, soft, patches) to logits."""
    blocks = [
        KnowledgePrompter(dim=s.d, heads=s.h, relation=options.get("relation", "attention")),
        ContextPrompter(width=s.w, dim=s.d, heads=s.h, condition=options.get("condition", "none")),
        FusionBlock(dim=s.d, heads=s.h, mode=options.get("mode", "gate")),
        DualModalAttention(dim=s.d, heads=s.h, direction=options.get("direction", "both")),
        SimilarityHead(scale=3.0, bias=-1.0),
    ]
    for block in blocks:
        block.double()
        if trained:
            perturb(block, draw)
    know, see, fuse, look, head = blocks

    def logits(hard: Tensor, soft: Tensor, patches: Tensor) -> Tensor:
        knowledge, knowledge_map = know(hard)
        context, context_map = see.relate(soft, patches)
        out = look(fuse(knowledge, context, knowledge_map, context_map), patches)
        return head(out.patches, out.labels)

    return logits, head


@given(sizes(), draws(), st.sampled_from(["none", "image"]))
def test_law_6_untrained_blocks_score_as_the_cosines_of_what_they_are_given(
    s: Sizes, draw: Draw, condition: str
) -> None:
    vectors, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    logits, _ = stack(s, draw, trained=False, condition=condition)
    wanted = pool_regions(cosine_scores(patches, vectors, scale=3.0, bias=-1.0), "max")
    assert_close(logits(vectors, vectors, patches), wanted, rtol=1e-6, atol=1e-6)  # log 3 is kept in float32.


@given(sizes(), draws())
def test_law_6_trained_blocks_do_so_without_attention_fusion_and_relation(s: Sizes, draw: Draw) -> None:
    vectors, patches = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    logits, head = stack(s, draw, trained=True, direction="none", mode="knowledge", relation="none")
    scores = cosine_scores(patches, vectors, scale=head.log_scale.exp(), bias=head.bias)
    assert_close(logits(vectors, draw.normal(s.c, s.d), patches), pool_regions(scores, "max"), **EXACT)


@given(sizes(), draws(), st.sampled_from(["none", "image"]))
def test_laws_1_and_2_hold_for_all_trained_blocks_together(s: Sizes, draw: Draw, condition: str) -> None:
    hard, soft, patches = draw.normal(s.c, s.d), draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d)
    order, (logits, _) = draw.order(s.c), stack(s, draw, trained=True, condition=condition)
    whole = logits(hard, soft, patches)
    assert_close(logits(hard[order], soft[order], patches), whole[:, order], **EXACT)
    for b in range(s.b):
        assert_close(logits(hard, soft, patches[b : b + 1]), whole[b : b + 1], **EXACT)
