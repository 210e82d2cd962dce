import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import Draw, Sizes, as_lists, backward, draws, missing_gradients, norms, perturb, seeds, sizes, survives
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.attention import DualModalAttention, RelationMap
from pvlr.core.functional import cosine_scores, pool_regions, splice_context
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter, PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import PromptTokens, TextTower
from pvlr.core.shapes import ShapeError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
LABELS = LabelSet(("cat", "traffic_light", "cow"), descriptions={"cow": ("It moos.", "It eats grass.")})


class ToyTower:
    """A text tower small enough to read: words are tokens, a prompt is a nonlinear sum over its first words."""

    path = "plain"

    def __init__(self, *, dim: int = 8, width: int = 6, seed: int = 0) -> None:
        draw = Draw(seed)
        self.dim, self.width, self.context_length = dim, width, 12
        self.table, self.places = draw.normal(64, width), draw.normal(self.context_length, width)
        self.out = draw.normal(width, dim)
        self.encoded: list[int] = []

    def tokens(self, sentence: str) -> list[int]:
        return [1 + sum(map(ord, word)) % 62 for word in sentence.replace(".", " .").split()]

    def tokenize_prompts(self, sentences: Sequence[str], context: str | None, tokens: int) -> PromptTokens:
        rows = [self.tokens(sentence) for sentence in sentences]
        ids = torch.tensor([row + [0] * (self.context_length - len(row)) for row in rows])
        return PromptTokens(ids=ids, start=0, length=tokens, end=torch.tensor([len(row) - 1 for row in rows]))

    def embed(self, ids: Tensor) -> Tensor:
        return self.table[ids]

    def run(self, embeddings: Tensor, end: Tensor) -> Tensor:
        states = torch.tanh(embeddings + self.places).cumsum(dim=1)
        return torch.sin(states[torch.arange(len(end)), end]) @ self.out

    def encode(self, sentences: Sequence[str]) -> Tensor:
        self.encoded.append(len(sentences))
        prompts = self.tokenize_prompts(sentences, None, 0)
        with torch.no_grad():
            return self.run(self.embed(prompts.ids), prompts.end)

    def encode_context(self, context: Tensor, prompts: PromptTokens) -> Tensor:
        return self.run(splice_context(self.embed(prompts.ids), context, prompts.start), prompts.end)


def prompts_for(tower: ToyTower, bank: PromptBank) -> PromptTokens:
    return tower.tokenize_prompts(bank.context_sentences(), bank.context_words, bank.context_tokens)


def test_the_toy_is_a_text_tower() -> None:
    assert isinstance(ToyTower(), TextTower)
    assert not isinstance(object(), TextTower)


# --- PromptBank


def test_sentences_are_templates_then_descriptions() -> None:
    bank = PromptBank(LABELS, templates=("a photo of a {}.", "{} outdoors"))
    assert bank.fixed() == (
        ("a photo of a cat.", "cat outdoors"),
        ("a photo of a traffic light.", "traffic light outdoors"),
        ("a photo of a cow.", "cow outdoors", "It moos.", "It eats grass."),
    )
    assert PromptBank(LABELS, descriptions={}).fixed()[2] == ("a photo of a cow.",)
    assert PromptBank(LABELS, descriptions={"cat": ("It purrs.",)}).fixed()[0] == ("a photo of a cat.", "It purrs.")
    only = {name: (f"About {name}.",) for name in LABELS}
    assert PromptBank(LABELS, templates=(), descriptions=only).fixed()[0] == ("About cat.",)


def test_learnable_prompts_put_words_or_placeholders_before_the_name() -> None:
    assert PromptBank(LABELS).context_sentences()[1] == "a photo of a traffic light."
    bank = PromptBank(LABELS, context_words=None, context_tokens=3, suffix=" now")
    assert bank.context_sentences()[0] == "X X X cat now"
    assert bank.context_prefix == "X X X"


def test_braces_in_a_name_are_letters() -> None:
    assert PromptBank(LabelSet(("a{}b", "{x}"))).fixed() == (("a photo of a a{}b.",), ("a photo of a {x}.",))


def test_a_bank_pickles_and_equals_its_copy() -> None:
    bank = PromptBank(LABELS, templates=("{}",))
    assert pickle.loads(pickle.dumps(bank)) == bank  # noqa: S301


BANKS = [
    ({"templates": ("a photo.",)}, ValueError, "templates: expected exactly one {} for the label, got 'a photo.'"),
    ({"templates": ("{} {}",)}, ValueError, "templates: expected exactly one {} for the label, got '{} {}'"),
    ({"templates": ("a {c}.",)}, ValueError, "templates: expected exactly one {} for the label, got 'a {c}.'"),
    ({"templates": ("{{}}",)}, ValueError, "templates: expected exactly one {} for the label, got '{{}}'"),
    (
        {"templates": ()},
        ValueError,
        "templates: expected a template or a description for every label, 'cat' has none",
    ),
    (
        {"descriptions": {"cta": ("x",)}},
        LabelError,
        "descriptions: unknown label 'cta', the nearest known one is 'cat'",
    ),
    (
        {"descriptions": {"cat": "x"}},
        LabelError,
        "descriptions of 'cat': expected a sequence of sentences, got a str",
    ),
    ({"context_tokens": 0}, ValueError, "context_tokens: expected a whole number of at least 1, got 0"),
    (
        {"context_words": " "},
        ValueError,
        "context_words: expected words, or None to start from none, got an empty text",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("options", "kind", "message"), BANKS)
def test_banks_that_are_refused(options: dict, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        PromptBank(LABELS, **options)


# --- encode_knowledge


@given(seeds(), st.integers(1, 9))
def test_knowledge_is_the_mean_of_normalised_sentences_however_they_are_batched(seed: int, batch: int) -> None:
    tower, bank = ToyTower(seed=seed), PromptBank(LABELS, templates=("a {}", "the {} here"))
    found = encode_knowledge(bank, lambda sentences: tower.encode(sentences).requires_grad_(), batch=batch)
    assert all(count <= batch for count in tower.encoded)
    assert sum(tower.encoded) == 8
    for label, sentences in enumerate(bank.fixed()):
        vectors = [reference.normalise(tower.encode([sentence])[0].tolist()) for sentence in sentences]
        wanted = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
        assert found[label].tolist() == pytest.approx(wanted, abs=1e-6)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def encode_to(vectors: object) -> object:
    return lambda sentences: vectors


ONE = LabelSet(("cat", "dog"))
ENCODERS = [
    (encode_to(torch.ones(3, 4)), ShapeError, "encode: expected axes 's k' with s=2, got shape (3, 4)"),
    (encode_to(torch.ones(2)), ShapeError, "encode: expected axes 's k', got shape (2,)"),
    (encode_to(torch.ones(2, 4).long()), ShapeError, "encode: expected a tensor of dtype float, got torch.int64"),
    (encode_to(np.ones((2, 4))), ShapeError, "encode: expected a tensor with axes 's k', got ndarray"),
    (
        encode_to(torch.tensor([[1.0], [0.0]])),
        ValueError,
        "encode: expected a finite vector other than zero for every sentence, not so for 'a photo of a dog.'",
    ),
    (
        encode_to(torch.tensor([[float("nan")], [1.0]])),
        ValueError,
        "encode: expected a finite vector other than zero for every sentence, not so for 'a photo of a cat.'",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("encode", "kind", "message"), ENCODERS)
def test_encoders_that_are_refused(encode: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        encode_knowledge(PromptBank(ONE), encode)


@pytest.mark.usefixtures("unchecked")
def test_an_encoder_whose_width_changes_between_batches_is_refused() -> None:
    widths = iter((4, 5))
    with pytest.raises(ShapeError, match=r"^encode: expected axes 's k' with k=4, got shape \(1, 5\)$"):
        encode_knowledge(PromptBank(ONE), lambda sentences: torch.ones(1, next(widths)), batch=1)


# --- load_label_vectors


def test_vectors_are_read_in_the_order_of_the_labels(tmp_path: Path) -> None:
    vectors = np.arange(12, dtype=np.float64).reshape(4, 3)
    np.savez(tmp_path / "v.npz", names=np.array(["cow", "dog", "traffic_light", "cat"]), vectors=vectors)
    found = load_label_vectors(tmp_path / "v.npz", LABELS)
    assert found.dtype == torch.float32
    assert_close(found, torch.from_numpy(vectors[[3, 2, 0]]).float())
    assert torch.equal(load_label_vectors(str(tmp_path / "v.npz"), LABELS), found)


NAMES = np.array(["cat", "traffic_light", "cow"])
V = np.ones((3, 2), dtype=np.float32)
FILES = [
    ({"names": NAMES}, "expected the arrays 'names' and 'vectors', got 'names'"),
    ({"other": V}, "expected the arrays 'names' and 'vectors', got neither"),
    ({"names": NAMES[:2], "vectors": V[:2]}, "unknown label 'cow', the nearest known one is '"),
    ({"names": NAMES, "vectors": V[:2]}, "expected 'vectors' to be 3 rows of floats, got float32 (2, 2)"),
    ({"names": NAMES, "vectors": V.astype(int)}, "expected 'vectors' to be 3 rows of floats, got int64 (3, 2)"),
    ({"names": NAMES, "vectors": V[:, 0]}, "expected 'vectors' to be 3 rows of floats, got float32 (3,)"),
    ({"names": np.arange(3), "vectors": V}, "expected 'names' to be one axis of texts, got int64 (3,)"),
    ({"names": NAMES[[0, 0, 1]], "vectors": V}, "names: expected unique labels, got 'cat' more than once"),
    ({"names": NAMES.astype(object), "vectors": V}, "expected a readable .npz file of label vectors, Object arrays"),
    ({"names": NAMES, "vectors": V * np.array([[1], [1], [np.nan]])}, "expected finite vectors, 'cow' has none"),
]


@pytest.mark.parametrize(("arrays", "message"), FILES)
def test_files_that_are_refused_are_named(tmp_path: Path, arrays: dict, message: str) -> None:
    path = tmp_path / "v.npz"
    np.savez(path, **arrays)
    with pytest.raises(LabelError, match=f"^{re.escape(f'{path}: {message}')}"):
        load_label_vectors(path, LABELS)


def test_what_is_no_such_file_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    whole = tmp_path / "whole.npz"
    np.savez(whole, names=NAMES, vectors=V)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:-40])
    np.save(tmp_path / "single.npy", V)
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(NAMES))
    for name in ("text.npz", "cut.npz", "single.npy", "pickle.npz", "absent.npz"):
        message = f"^{re.escape(str(tmp_path / name))}: expected a readable .npz file of label vectors, "
        with pytest.raises(LabelError, match=message):
            load_label_vectors(tmp_path / name, LABELS)


# --- KnowledgePrompter


@given(sizes(), draws(), norms(), st.booleans(), st.booleans())
def test_knowledge_prompter_is_its_formula(s: Sizes, draw: Draw, norm: str, projected: bool, related: bool) -> None:
    relation = "attention" if related else "none"
    source = {"source_dim": s.k} if projected else {}
    block = perturb(KnowledgePrompter(dim=s.d, heads=s.h, relation=relation, norm=norm, **source).double(), draw)
    vectors = draw.normal(s.c, s.k if projected else s.d)
    state, wanted = as_lists(block), vectors.tolist()
    if projected:
        wanted = [reference.linear(state, "projection", row) for row in wanted]
    labels, found = block(vectors)
    if related:
        inner = {name.removeprefix("relation."): value for name, value in state.items() if name.startswith("relation.")}
        wanted, maps = reference.label_relation(inner, wanted, s.h, norm)
        assert_close(found.dense(), torch.tensor(maps, dtype=torch.float64), **EXACT)
    else:
        assert found is None
    assert_close(labels, torch.tensor(wanted, dtype=torch.float64), **EXACT)
    order = draw.order(s.c)
    assert_close(block(vectors[order])[0], labels[order], **EXACT)


@given(sizes(), draws())
def test_law_6_untrained_knowledge_comes_out_as_it_went_in(s: Sizes, draw: Draw) -> None:
    vectors = draw.normal(s.c, s.d)
    for relation in ("attention", "none"):
        assert torch.equal(KnowledgePrompter(dim=s.d, heads=s.h, relation=relation).double()(vectors)[0], vectors)


# --- ContextPrompter


@given(seeds(), draws(), st.booleans(), st.sampled_from([2, 4]))
def test_encoding_is_the_normalised_tower_with_the_context_in_place(
    seed: int, draw: Draw, own: bool, tokens: int
) -> None:
    tower, bank = ToyTower(seed=seed), PromptBank(LABELS, context_words=None, context_tokens=tokens)
    classes = {"classes": 3} if own else {}
    prompter = perturb(ContextPrompter(width=6, dim=8, tokens=tokens, heads=2, **classes).double(), draw)
    prompts = prompts_for(tower, bank)
    spliced = splice_context(tower.embed(prompts.ids), prompter.context, 0)
    wanted = [reference.normalise(row) for row in tower.run(spliced, prompts.end).tolist()]
    assert_close(prompter.encode(tower, prompts), torch.tensor(wanted, dtype=torch.float64), **EXACT)


@given(seeds(), st.booleans())
def test_law_4_context_that_holds_the_words_encodes_as_the_words(seed: int, own: bool) -> None:
    tower, bank = ToyTower(seed=seed), PromptBank(LABELS)
    prompts = prompts_for(tower, bank)
    prompter = ContextPrompter(width=6, dim=8, heads=2, **({"classes": 3} if own else {})).double()
    prompter.start_from(tower.embed(prompts.ids[0, :4]))
    wanted = F.normalize(tower.encode(bank.context_sentences()), dim=-1)
    assert_close(prompter.encode(tower, prompts), wanted, **EXACT)
    # Untrained and unconditioned, the rest leaves that as it is.
    assert_close(prompter(tower, prompts)[0], wanted, **EXACT)


@given(sizes(), draws(), norms(), st.booleans(), st.booleans())
def test_relating_looks_at_the_patches_first_then_relates(
    s: Sizes, draw: Draw, norm: str, conditioned: bool, related: bool
) -> None:
    form = {"condition": "image" if conditioned else "none", "relation": "attention" if related else "none"}
    block = perturb(ContextPrompter(width=s.w, dim=s.d, heads=s.h, norm=norm, **form).double(), draw)
    vectors, patches, state = draw.normal(s.c, s.d), draw.normal(s.b, s.n, s.d), as_lists(block)
    labels, found = block.relate(vectors, patches)
    assert labels.shape == ((s.b, s.c, s.d) if conditioned else (s.c, s.d))
    assert (found is not None) == related

    def inner(name: str) -> dict:
        return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}

    for b in range(s.b):
        wanted = vectors.tolist()
        if conditioned:
            look = {"heads": s.h, "direction": "labels", "layers": 1, "feedforward": 0, "norm": norm}
            wanted = reference.dual_modal(inner("condition."), wanted, patches[b].tolist(), **look)[0]
        if related:
            wanted, _ = reference.label_relation(inner("relation."), wanted, s.h, norm)
        of_image = labels[b] if conditioned else labels
        assert_close(of_image, torch.tensor(wanted, dtype=torch.float64), **EXACT)
    order = draw.order(s.c)
    turned = block.relate(vectors[order], patches)[0]
    assert_close(turned, labels[..., order, :], **EXACT)
    if conditioned:
        assert_close(block.relate(vectors, patches[:1])[0], labels[:1], **EXACT)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("condition", ["image", "none"])
def test_every_parameter_learns_and_the_context_learns_from_the_first_step(own: bool, condition: str) -> None:
    draw, tower, bank = Draw(1), ToyTower(), PromptBank(LABELS)
    prompts, patches = prompts_for(tower, bank), draw.normal(2, 5, 8)
    options = {"classes": 3} if own else {}
    prompter = ContextPrompter(width=6, dim=8, heads=2, condition=condition, **options).double()
    backward(prompter(tower, prompts, patches)[0])
    assert "context" not in missing_gradients(prompter)
    prompter = perturb(prompter, draw)
    prompter.zero_grad()
    backward(prompter(tower, prompts, patches)[0])
    assert missing_gradients(prompter) == []
    knowledge = perturb(KnowledgePrompter(dim=8, heads=2, source_dim=5).double(), draw)
    backward(knowledge(draw.normal(3, 5))[0])
    assert missing_gradients(knowledge) == []


def test_law_3_only_a_context_per_label_fixes_the_number_of_labels() -> None:
    draw, tower = Draw(0), ToyTower()
    shared = ContextPrompter(width=6, dim=8, heads=2, condition="image").double()
    for labels in (LabelSet(("cat",)), LABELS, LabelSet(tuple(f"label{i}" for i in range(9)))):
        out, _ = shared(tower, prompts_for(tower, PromptBank(labels)), draw.normal(2, 5, 8))
        assert out.shape == (2, len(labels), 8)
    assert ContextPrompter(width=6, dim=8, classes=3).context.shape == (3, 4, 6)


def test_the_context_starts_small_and_as_random_as_asked() -> None:
    context = ContextPrompter(width=300, dim=8, tokens=16, std=0.5).context
    assert context.std().item() == pytest.approx(0.5, rel=0.1)
    assert torch.equal(ContextPrompter(width=3, dim=8, std=0.0).context, torch.zeros(4, 3))


def test_save_load_pickle_and_copy() -> None:
    draw, tower = Draw(2), ToyTower()
    prompts, patches = prompts_for(tower, PromptBank(LABELS)), draw.normal(2, 5, 8)
    for options in ({}, {"classes": 3, "condition": "image", "norm": "post"}):
        made = [ContextPrompter(width=6, dim=8, heads=2, **options).double() for _ in range(2)]
        survives(perturb(made[0], draw), made[1], tower, prompts, patches)
    made = [KnowledgePrompter(dim=8, heads=2, source_dim=5).double() for _ in range(2)]
    survives(perturb(made[0], draw), made[1], draw.normal(3, 5))


def test_repr_is_a_constructor_call() -> None:
    for block in (
        KnowledgePrompter(dim=8, heads=2, source_dim=5, relation="none", norm="post"),
        KnowledgePrompter(dim=16),
        ContextPrompter(width=6, dim=8),
        ContextPrompter(width=6, dim=8, tokens=2, classes=3, relation="none", std=0.1),
        ContextPrompter(width=6, dim=8, condition="image", heads=4, norm="post"),
    ):
        again = eval(repr(block))  # noqa: S307
        assert repr(again) == repr(block)
        assert [x.shape for x in again.parameters()] == [x.shape for x in block.parameters()]


def test_bf16_autocast_keeps_encoded_vectors_float32() -> None:
    tower, draw = ToyTower(), Draw(0, torch.float32)
    tower.table, tower.places, tower.out = tower.table.float(), tower.places.float(), tower.out.float()
    prompts, prompter = (
        prompts_for(tower, PromptBank(LABELS)),
        ContextPrompter(width=6, dim=8, heads=2, condition="image"),
    )
    perturb(prompter, draw, 0.1)
    wanted = prompter(tower, prompts, draw.normal(2, 5, 8))
    draw = Draw(0, torch.float32)
    perturb(ContextPrompter(width=6, dim=8, heads=2, condition="image"), draw, 0.1)  # The same place in the stream.
    with torch.autocast("cpu", torch.bfloat16):
        encoded = prompter.encode(tower, prompts)
        found = prompter.relate(encoded, draw.normal(2, 5, 8))
    assert encoded.dtype == found[0].dtype == torch.float32
    assert_close(encoded.norm(dim=-1), torch.ones(3))
    assert_close(found[0], wanted[0], rtol=0.05, atol=0.05)


# --- all blocks together


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


# --- refusal

X = torch.zeros
TOWER = ToyTower()
PROMPTS = prompts_for(TOWER, PromptBank(LABELS))


def prompter(**options: object) -> ContextPrompter:
    return ContextPrompter(**{"width": 6, "dim": 8, "heads": 2, **options}).double()


REFUSED = [
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
    (lambda: prompter(tokens=0), ValueError, "tokens: expected a whole number of at least 1, got 0"),
    (lambda: prompter(width=1.5), ValueError, "width: expected a whole number of at least 1, got 1.5"),
    (lambda: prompter(classes=0), ValueError, "classes: expected a whole number of at least 1, got 0"),
    (lambda: prompter(condition="text"), ValueError, "condition: expected one of 'none', 'image', got 'text'"),
    (lambda: prompter(norm="mid"), ValueError, "norm: expected one of 'pre', 'post', got 'mid'"),
    (lambda: prompter(std=-1.0), ValueError, "std: expected a finite number >= 0, got -1.0"),
    (
        lambda: prompter().start_from(X(3, 6)),
        ShapeError,
        "embeddings: expected axes 'm w' with m=4, got shape (3, 6)",
    ),
    (
        lambda: prompter(tokens=3).encode(TOWER, PROMPTS),
        ValueError,
        "prompts: expected 3 positions for the context, got 4",
    ),
    (
        lambda: prompter(classes=2).encode(TOWER, PROMPTS),
        ShapeError,
        "prompts: expected 2 labels, each with its context, got 3",
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
    (lambda: prompter().relate(X(3, 7)), ShapeError, "vectors: expected axes 'c d' with d=8, got shape (3, 7)"),
    (
        lambda: prompter(condition="image").relate(X(3, 8)),
        ValueError,
        "patches: expected patches 'b n d' with condition='image', got None",
    ),
    (
        lambda: prompter(condition="image").relate(X(3, 8), X(5, 8)),
        ShapeError,
        "patches: expected axes 'b n d', got shape (5, 8)",
    ),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("call", "kind", "message"), REFUSED)
def test_refusals_name_the_argument(call: object, kind: type, message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


def test_the_map_of_a_relation_is_a_relation_map() -> None:
    assert isinstance(KnowledgePrompter(dim=8)(torch.randn(3, 8))[1], RelationMap)
