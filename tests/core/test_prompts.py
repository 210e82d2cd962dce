from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import reference
from helpers.messages import pinned
from helpers.strategies import (
    Draw,
    Sizes,
    as_lists,
    backward,
    draws,
    missing_gradients,
    perturb,
    seeds,
    sizes,
    survives,
)
from helpers.toy_text import LABELS, ToyTower, prompts_for
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.attention import RelationMap
from pvlr.core.functional import splice_context
from pvlr.core.labels import LabelSet
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter, PromptBank
from pvlr.core.protocols import TextTower
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def test_the_toy_is_a_text_tower() -> None:
    assert isinstance(ToyTower(), TextTower)
    assert not isinstance(object(), TextTower)


# --- KnowledgePrompter


def is_related(labels: Tensor, found: Any, state: Any, vectors: list, heads: int | None) -> None:
    """The relation's formula over the vectors, and its map; without heads there is no relation."""
    if heads is not None:
        inner = {name.removeprefix("relation."): value for name, value in state.items() if name.startswith("relation.")}
        vectors, maps = reference.label_relation(inner, vectors, heads)
        assert_close(found.dense(), torch.tensor(maps, dtype=torch.float64), **EXACT)
    else:
        assert found is None
    assert_close(labels, torch.tensor(vectors, dtype=torch.float64), **EXACT)


@given(sizes(), draws(), st.booleans(), st.booleans())
def test_knowledge_prompter_is_its_formula(s: Sizes, draw: Draw, projected: bool, related: bool) -> None:
    relation = "attention" if related else "none"
    source = {"source_dim": s.k} if projected else {}
    block = perturb(KnowledgePrompter(dim=s.d, heads=s.h, relation=relation, **source).double(), draw)
    vectors = draw.normal(s.c, s.k if projected else s.d)
    state, wanted = as_lists(block), vectors.tolist()
    if projected:
        wanted = [reference.linear(state, "projection", row) for row in wanted]
    labels, found = block(vectors)
    is_related(labels, found, state, wanted, s.h if related else None)
    order = draw.order(s.c)
    assert_close(block(vectors[order])[0], labels[order], **EXACT)


@given(sizes(), draws())
def test_law_6_untrained_knowledge_comes_out_as_it_went_in(s: Sizes, draw: Draw) -> None:
    vectors = draw.normal(s.c, s.d)
    for relation in ("attention", "none"):
        assert torch.equal(KnowledgePrompter(dim=s.d, heads=s.h, relation=relation).double()(vectors)[0], vectors)


# --- ContextPrompter


@given(seeds(), draws(), st.sampled_from([2, 4]))
def test_encoding_is_the_normalised_tower_with_the_context_in_place(seed: int, draw: Draw, tokens: int) -> None:
    tower, bank = ToyTower(seed=seed), PromptBank(LABELS, context_words=None, context_tokens=tokens)
    prompter = perturb(ContextPrompter(width=6, dim=8, context_tokens=tokens, heads=2).double(), draw)
    prompts = prompts_for(tower, bank)
    spliced = splice_context(tower.embed(prompts.ids), prompter.context, 0)
    wanted = [reference.normalise(row) for row in tower.run(spliced, prompts.end).tolist()]
    assert_close(prompter.encode(tower, prompts), torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(seeds())
def test_law_4_context_that_holds_the_words_encodes_as_the_words(seed: int) -> None:
    tower, bank = ToyTower(seed=seed), PromptBank(LABELS)
    prompts = prompts_for(tower, bank)
    prompter = ContextPrompter(width=6, dim=8, heads=2).double()
    prompter.start_from(tower.embed(prompts.ids[0, :4]))
    wanted = F.normalize(tower.encode(bank.context_sentences()), dim=-1)
    assert_close(prompter.encode(tower, prompts), wanted, **EXACT)
    # Untrained, the rest leaves that as it is.
    assert_close(prompter(tower, prompts)[0], wanted, **EXACT)


@given(sizes(), draws(), st.booleans())
def test_relating_is_the_relation_of_labels(s: Sizes, draw: Draw, related: bool) -> None:
    relation = "attention" if related else "none"
    block = perturb(ContextPrompter(width=s.w, dim=s.d, heads=s.h, relation=relation).double(), draw)
    vectors, order, state = draw.normal(s.c, s.d), draw.order(s.c), as_lists(block)
    labels, found = block.relate(vectors)
    wanted = vectors.tolist()
    is_related(labels, found, state, wanted, s.h if related else None)
    assert_close(block.relate(vectors[order])[0], labels[order], **EXACT)


def test_every_parameter_learns_and_the_context_learns_from_the_first_step() -> None:
    draw, tower, bank = Draw(1), ToyTower(), PromptBank(LABELS)
    prompts = prompts_for(tower, bank)
    prompter = ContextPrompter(width=6, dim=8, heads=2).double()
    backward(prompter(tower, prompts)[0])
    assert "context" not in missing_gradients(prompter)
    prompter = perturb(prompter, draw)
    prompter.zero_grad()
    backward(prompter(tower, prompts)[0])
    assert missing_gradients(prompter) == []
    knowledge = perturb(KnowledgePrompter(dim=8, heads=2, source_dim=5).double(), draw)
    backward(knowledge(draw.normal(3, 5))[0])
    assert missing_gradients(knowledge) == []


def test_law_3_one_context_serves_any_number_of_labels() -> None:
    tower, shared = ToyTower(), ContextPrompter(width=6, dim=8, heads=2).double()
    for labels in (LabelSet(("cat",)), LABELS, LabelSet(tuple(f"label{i}" for i in range(9)))):
        out, _ = shared(tower, prompts_for(tower, PromptBank(labels)))
        assert out.shape == (len(labels), 8)


def test_the_context_starts_small_and_as_random_as_asked() -> None:
    context = ContextPrompter(width=300, dim=8, context_tokens=16, std=0.5).context
    assert context.std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(ContextPrompter(width=3, dim=8, std=0.0).context, torch.zeros(4, 3))


def test_save_load_pickle_and_copy() -> None:
    draw, tower = Draw(2), ToyTower()
    prompts = prompts_for(tower, PromptBank(LABELS))
    made = [ContextPrompter(width=6, dim=8, heads=2).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], tower, prompts)
    made = [KnowledgePrompter(dim=8, heads=2, source_dim=5).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(3, 5))


def test_bf16_autocast_keeps_encoded_vectors_float32() -> None:
    tower, draw = ToyTower(), Draw(0, torch.float32)
    tower.table, tower.places, tower.out = tower.table.float(), tower.places.float(), tower.out.float()
    prompts, prompter = prompts_for(tower, PromptBank(LABELS)), ContextPrompter(width=6, dim=8, heads=2)
    perturb(prompter, draw, 0.1)
    wanted = prompter(tower, prompts)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = prompter.encode(tower, prompts)
        found = prompter.relate(encoded)
    assert encoded.dtype == found[0].dtype == torch.float32
    assert_close(encoded.norm(dim=-1), torch.ones(3))
    assert_close(found[0], wanted[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("relation", ["attention", "none"])
def test_in_half_precision_what_was_encoded_in_float32_is_related(width: torch.dtype, relation: str) -> None:
    tower, draw = ToyTower(), Draw(0, torch.float32)
    wide = perturb(ContextPrompter(width=6, dim=8, heads=2, relation=relation), draw, 0.1)
    prompts = prompts_for(tower, PromptBank(LABELS))
    results = []
    for kind in (torch.float32, width):
        tower.table, tower.places, tower.out = tower.table.to(kind), tower.places.to(kind), tower.out.to(kind)
        wide.to(kind)
        assert wide.encode(tower, prompts).dtype == torch.float32
        results.append(wide(tower, prompts)[0])
    assert results[1].dtype == width
    assert_close(results[1].float(), results[0], rtol=0.05, atol=0.05)


# --- refusal

X = torch.zeros
TOWER = ToyTower()
PROMPTS = prompts_for(TOWER, PromptBank(LABELS))


def prompter(**options: object) -> ContextPrompter:
    return ContextPrompter(**{"width": 6, "dim": 8, "heads": 2, **options}).double()


def returning(change: Callable[[Tensor], Tensor]) -> mock.Mock:
    """The tower, but for what it does to its vectors."""
    return mock.Mock(encode_context=lambda context, prompts: change(TOWER.encode_context(context, prompts)))


REFUSED = [
    (
        lambda: prompter().encode(returning(lambda x: x[:2]), PROMPTS),
        ShapeError,
        "text.encode_context: expected axes 'c d' with c=3, got shape (2, 8)",
    ),
    (
        lambda: prompter().encode(returning(lambda x: x.long()), PROMPTS),
        ShapeError,
        "text.encode_context: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: prompter().encode(returning(lambda x: x.to("meta")), PROMPTS),
        ShapeError,
        "text.encode_context: expected a tensor on cpu, got one on meta",
    ),
    (lambda: KnowledgePrompter(dim=10, heads=4), ValueError, "dim: expected a multiple of heads=4, got 10"),
    (lambda: KnowledgePrompter(dim=0), ValueError, "dim: expected a whole number of at least 1, got 0"),
    (
        lambda: KnowledgePrompter(dim=8, source_dim=0),
        ValueError,
        "source_dim: expected a whole number of at least 1, got 0",
    ),
    (
        lambda: KnowledgePrompter(dim=8, relation="some"),
        ValueError,
        "relation: expected one of 'attention', 'none', got 'some'",
    ),
    (lambda: KnowledgePrompter(dim=8)(X(3, 7)), ShapeError, "vectors: expected axes 'c k' with k=8, got shape (3, 7)"),
    (
        lambda: KnowledgePrompter(dim=8, source_dim=5)(X(3, 8)),
        ShapeError,
        "vectors: expected axes 'c k' with k=5, got shape (3, 8)",
    ),
    (lambda: prompter(context_tokens=0), ValueError, "context_tokens: expected a whole number of at least 1, got 0"),
    (lambda: prompter(width=1.5), ValueError, "width: expected a whole number of at least 1, got 1.5"),
    (lambda: prompter(std=-1.0), ValueError, "std: expected a finite number >= 0, got -1.0"),
    (
        lambda: prompter().start_from(X(3, 6)),
        ShapeError,
        "embeddings: expected axes 'm w' with m=4, got shape (3, 6)",
    ),
    (
        lambda: prompter().start_from(X(4, 7)),
        ShapeError,
        "embeddings: expected axes 'm w' with w=6, got shape (4, 7)",
    ),
    (
        lambda: prompter().start_from(X(4, 6).long()),
        ShapeError,
        "embeddings: expected a tensor of dtype float, got torch.int64",
    ),
    (
        lambda: prompter().encode(TOWER, PROMPTS._replace(end=PROMPTS.end[:2])),
        ShapeError,
        "prompts.end: expected axes 'c' with c=3, got shape (2,)",
    ),
    (
        lambda: prompter(context_tokens=3).encode(TOWER, PROMPTS),
        ValueError,
        "prompts: expected 3 positions for the context, got 4",
    ),
    (
        lambda: prompter(dim=4).encode(TOWER, PROMPTS),
        ShapeError,
        "text.encode_context: expected axes 'c d' with d=4, got shape (3, 8)",
    ),
    (
        lambda: prompter().encode(TOWER, PROMPTS._replace(ids=PROMPTS.ids[0])),
        ShapeError,
        "prompts.ids: expected axes 'c t', got shape (12,)",
    ),
    (
        lambda: prompter().relate(X(3, 8)),
        ShapeError,
        "vectors: expected a tensor of dtype torch.float64, got torch.float32",
    ),
    (
        lambda: prompter().bfloat16().relate(X(3, 8).double()),
        ShapeError,
        "vectors: expected a tensor of dtype torch.bfloat16, got torch.float64",
    ),
    (
        lambda: prompter().bfloat16().relate(X(3, 8).half()),
        ShapeError,
        "vectors: expected a tensor of dtype torch.bfloat16, got torch.float16",
    ),
    (lambda: prompter().relate(X(3, 7)), ShapeError, "vectors: expected axes 'c d' with d=8, got shape (3, 7)"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(call: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{pinned(message)}$"):
        call()


def test_the_map_of_a_relation_is_a_relation_map() -> None:
    assert isinstance(KnowledgePrompter(dim=8)(torch.randn(3, 8))[1], RelationMap)
