"""Hugging Face text towers against open_clip's own encoder, run whole on the same embeddings."""

import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from helpers.hf_text_models import FAMILIES, write_hf_tower
from helpers.tower_models import SENTENCES, WordTokenizer, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import HFTokenizer
from torch import Tensor, nn

from pvlr.core import PVLR, LabelSet, PVLRConfig
from pvlr.core.functional import splice_context
from pvlr.core.protocols import PromptTokens, TextTower
from pvlr.core.shapes import ShapeError
from pvlr.core.towers import TowerError, load_towers
from pvlr.core.towers.files.hf_files import _read_settings
from pvlr.core.towers.text.hugging_face import HFTextTower

# One repository of each family, and where its prompts begin: after `<s>`, `[CLS]` or a language, or at once.
KINDS = {
    "roberta-base": 1,
    "xlm-roberta-base": 1,
    "google/mt5-base": 0,
    "facebook/nllb-200-distilled-600M": 1,
    "sentence-transformers/all-MiniLM-L6-v2": 1,
}
WORDS = "a photo of a"
ROBERTA, MT5, BERT = "roberta-base", "google/mt5-base", "sentence-transformers/all-MiniLM-L6-v2"
NLLB = "facebook/nllb-200-distilled-600M"


@cache
def small(name: str, pooler: str = "mean_pooler", proj: str | None = "mlp", dim: int = 24) -> tuple[Any, HFTextTower]:
    with tempfile.TemporaryDirectory() as place:
        text = {"hf_pooler_type": pooler, "hf_proj_type": proj}
        model = write_hf_tower(Path(place), name, embed_dim=dim, **text)
        return model, tower_in(Path(place), model)


def tower_in(folder: Path, model: Any, context_length: int = 24, **changes: Any) -> HFTextTower:
    config = _read_settings(folder / "config.json")
    return HFTextTower(model, HFTokenizer(str(folder)), config=config, context_length=context_length, **changes)


@pytest.fixture
def unchecked():
    """Switch the annotations' run-time checks off, so that the library's own messages are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def reference(model: Any, context: Tensor, prompts: PromptTokens) -> Tensor:
    """open_clip's own encoder over the whole context length, from token ids, with the context put into its table."""
    table = model.text.transformer.get_input_embeddings()
    hook = table.register_forward_hook(lambda _, ids, found: splice_context(found, context, prompts.start))
    try:
        return model.text(prompts.ids)
    finally:
        hook.remove()


def words_of(tower: HFTextTower, prompts: PromptTokens) -> Tensor:
    return tower.embed(prompts.ids[0, prompts.start : prompts.start + prompts.length])


def assert_same(got: Tensor, expected: Tensor) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ definition


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"])
@pytest.mark.parametrize("name", KINDS)
def test_plain_sentences_are_encoded_as_open_clip_does(name, pooler):
    model, tower = small(name, pooler)
    sentences = ["dog", "", *SENTENCES, "猫 X xylophone?"]
    expected = model.encode_text(tower.tokenizer(sentences, context_length=24))
    assert_same(tower.encode(sentences), expected)
    assert not tower.encode(sentences).requires_grad
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("proj", "dim"), [("mlp", 24), ("linear", 24), (None, 32)])
@pytest.mark.parametrize("name", [MT5, BERT])
def test_every_projection(name, proj, dim):
    model, tower = small(name, "mean_pooler", proj, dim)
    assert tower.dim == dim
    assert_same(tower.encode(SENTENCES), model.encode_text(tower.tokenizer(list(SENTENCES), context_length=24)))


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("name", KINDS)
def test_context_of_the_words_is_encode_text_of_the_words(name, own):
    model, tower = small(name)
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    words = words_of(tower, prompts)
    got = tower.encode_context(words.expand(3, -1, -1) if own else words, prompts)
    assert_same(got, model.encode_text(tower.tokenizer(list(SENTENCES), context_length=24)))
    assert prompts.start == KINDS[name]
    assert prompts.used == int(prompts.end.max()) + 1 < 24  # so the run is cut
    padding = prompts.ids == tower._pad
    assert torch.equal(padding, torch.arange(24) > prompts.end[:, None])


@pytest.mark.parametrize("pooler", ["mean_pooler", "cls_pooler"])
@pytest.mark.parametrize("specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("name", KINDS)
def test_any_context_equals_the_whole_encoder_and_so_does_its_gradient(name, specific, pooler):
    model, tower = small(name, pooler)
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    noise = torch.randn((3, 4, 32) if specific else (4, 32), generator=torch.Generator().manual_seed(1))
    contexts = [(words_of(tower, prompts) + noise).requires_grad_() for _ in range(2)]
    got, expected = tower.encode_context(contexts[0], prompts), reference(model, contexts[1], prompts)
    assert_same(got, expected)
    moved = (expected - tower.encode(SENTENCES)).abs().max()
    assert moved > 1e-3 * expected.abs().max()
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    for vectors in (got, expected):
        (vectors * weights).sum().backward()
    assert_same(contexts[0].grad, contexts[1].grad)
    assert contexts[0].grad.abs().amin(dim=-1).max() > 0
    assert all(parameter.grad is None for parameter in tower.parameters())


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    tokens=st.integers(1, 8),
    specific=st.booleans(),
    name=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_of_mixed_lengths(lengths, tokens, specific, name, seed):
    model, tower = small(name)
    sentences = [" ".join(["cat"] * length) + "." for length in lengths]
    prompts = tower.tokenize_prompts(sentences, None, tokens)
    assert (prompts.start, prompts.length) == (KINDS[name], tokens)
    shape = (len(lengths), tokens, 32) if specific else (tokens, 32)
    context = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    together = tower.encode_context(context, prompts)
    assert_same(together, reference(model, context, prompts))
    # A label's vector does not depend on which others it was computed with.
    used = int(prompts.end[-1]) + 1
    alone = PromptTokens(prompts.ids[-1:], prompts.start, prompts.length, prompts.end[-1:], used)
    assert_same(tower.encode_context(context[-1:] if specific else context, alone), together[-1:])


# ---------------------------------------------------------------------------------------- a context without words


@pytest.mark.parametrize("name", KINDS)
def test_a_context_without_words_stands_before_the_same_tokens_as_words_do(name):
    _, tower = small(name)
    words = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    none = tower.tokenize_prompts([sentence.removeprefix(f"{WORDS} ") for sentence in SENTENCES], None, 4)
    stretch = slice(words.start, words.start + 4)
    for prompts in (words, none):
        prompts.ids[:, stretch] = -1
    assert torch.equal(none.ids, words.ids)
    assert torch.equal(none.end, words.end)
    assert none[1:3] == words[1:3]


@pytest.mark.parametrize("tokens", [1, 2, 16])
@pytest.mark.parametrize("name", KINDS)
def test_a_context_without_words_needs_none_in_the_vocabulary(name, tokens):
    _, tower = small(name)
    unknown = tower.tokenizer.tokenizer("X", add_special_tokens=False).input_ids
    assert len(unknown) == {MT5: 2, "xlm-roberta-base": 2, "facebook/nllb-200-distilled-600M": 2}.get(name, 1)
    prompts = tower.tokenize_prompts(["cat.", ""], None, tokens)
    assert prompts.length == tokens
    plain = tower.tokenizer(["a cat.", "a"], context_length=24)  # "a" is one token, and gives way to the context
    assert torch.equal(prompts.ids[:, prompts.start + tokens :], plain[:, prompts.start + 1 : 25 - tokens])
    assert prompts.end.tolist() == [end + tokens - 1 for end in tower._ends(plain, ["", ""]).tolist()]


# ------------------------------------------------------------------------------------------------------------ life


@pytest.mark.parametrize("name", KINDS)
def test_the_tower_is_frozen_and_speaks_the_protocol(name):
    _, tower = small(name)
    assert isinstance(tower, TextTower)
    assert (tower.path, tower.dim, tower.width, tower.context_length) == ("plain", 24, 32, 24)
    assert "path='plain', dim=24, width=32, context_length=24" in repr(tower)
    nn.Sequential(tower).train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


@pytest.mark.parametrize("name", KINDS)
def test_its_weights_have_open_clips_names(name):
    model, tower = small(name)
    assert tower.state_dict().keys() == model.text.state_dict().keys()


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_under_autocast_and_as_weights(name):
    _, tower = small(name)
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    expected = tower.encode(SENTENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tower.encode_context(words_of(tower, prompts), prompts)
    half = deepcopy(tower).bfloat16()
    for got in (cast, half.encode_context(words_of(half, prompts), prompts)):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@pytest.mark.parametrize("words", [WORDS, None], ids=["words", "none"])
@pytest.mark.parametrize("name", [MT5, "facebook/nllb-200-distilled-600M"])
def test_a_model_learns_on_it(name, words, tmp_path):
    write_hf_tower(tmp_path, name)
    towers = load_towers(f"local-dir:{tmp_path}")
    config = PVLRConfig(heads=2, context_words=words)
    model = PVLR(config, LabelSet(("dog", "traffic_light")), towers.text, towers.image)
    logits = model(torch.randn(2, 3, 32, 32)).logits
    logits.square().mean().backward()
    assert model.context.context.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in towers.text.parameters())
    other = model.with_labels(("cat", "dog", "tv_monitor")).eval()
    assert other(torch.randn(2, 3, 32, 32)).logits.shape == (2, 3)


# -------------------------------------------------------------------------------------------------------- refusals

REFUSED_PROMPTS = {
    "padding within": (["a photo of a <pad> dog."], WORDS, 4, "expected the padding token 1 only after its end"),
    "padding at the end": (["dog <pad> ."], None, 4, "^prompt 'dog <pad> .': expected the padding token 1 only after"),
    "count": (["a photo of a dog."], WORDS, 5, "context 'a photo of a': expected 5 tokens, .* makes 4 of it"),
    "other words": (["the dog."], WORDS, 4, "prompt 'the dog.': expected it to begin with the context 'a photo of a'"),
    "too long": (["dog " * 22], None, 2, "expected at most the 22 tokens that a context of 2 leaves, got more"),
    "no room": (["dog"], None, 24, "tokens: expected fewer context tokens than the tower's 24, got 24"),
    "half a letter": (["a photo of a \ud800"], WORDS, 4, "^prompt '.*ud800': expected letters, found half of one"),
}


@pytest.mark.parametrize("case", REFUSED_PROMPTS)
def test_refused_prompts(case):
    sentences, context, tokens, message = REFUSED_PROMPTS[case]
    with pytest.raises(TowerError, match=message):
        small("xlm-roberta-base")[1].tokenize_prompts(sentences, context, tokens)


def test_a_tokenizer_of_another_vocabulary_is_refused():
    model, tower = small(BERT)
    with pytest.raises(TowerError, match=r"^prompt 'a photo': expected the 126 tokens the tower knows, its tokenizer"):
        HFTextTower(model, WordTokenizer((2,), (3,), 0), config=tower.config, context_length=24)


def test_nothing_at_all_is_refused():
    model, tower = small(NLLB)
    model.text.transformer.set_input_embeddings(nn.Embedding(30_000, 32))
    bare = HFTextTower(model, WordTokenizer(begin=(), end=(), pad=1), config=tower.config, context_length=24)
    small.cache_clear()
    with pytest.raises(TowerError, match=r"^prompt '': expected at least one token, its tokenizer makes none$"):
        bare.encode(["dog", ""])


@pytest.mark.usefixtures("unchecked")
def test_refused_contexts():
    tower = small(BERT)[1]
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    with pytest.raises(ShapeError, match=r"context: expected axes 'm w' with w=32, got shape \(4, 31\)"):
        tower.encode_context(torch.zeros(4, 31), prompts)
    with pytest.raises(ShapeError, match=r"context: expected axes 'c m w' with c=3, got shape \(2, 4, 32\)"):
        tower.encode_context(torch.zeros(2, 4, 32), prompts)


def _spoilt(**parts: Any) -> Any:
    with tempfile.TemporaryDirectory() as place:
        model = write_hf_tower(Path(place), BERT)
    for name, value in parts.items():
        setattr(model.text, name, value)
    return model


def _no_padding() -> Any:
    model = _spoilt()
    model.text.config.pad_token_id = None
    return model


class _MaxPooler(nn.Module):
    pass


REFUSED_MODELS = {
    "class": (lambda: nn.Linear(1, 1), "expected an open_clip CustomTextCLIP with an HFTextEncoder, got Linear with N"),
    "text class": (
        lambda: small_model("siglip"),
        "expected an open_clip CustomTextCLIP with an HFTextEncoder, got CustomTextCLIP with TextTransformer",
    ),
    "encoder": (
        lambda: _spoilt(transformer=nn.Linear(1, 1)),
        "expected the transformer to be one of BertModel, .*, M2M100Encoder, got Linear",
    ),
    "pooler": (lambda: _spoilt(pooler=_MaxPooler()), "expected the pooler to be one of MeanPooler, .*, got _MaxPooler"),
    "padding": (_no_padding, "expected the encoder's pad_token_id to be a number, got None"),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_refused_models(case):
    build, message = REFUSED_MODELS[case]
    with pytest.raises(TowerError, match=f"^text tower: {message}"):
        HFTextTower(build(), small(BERT)[1].tokenizer, config={}, context_length=24)


@pytest.mark.parametrize(
    ("name", "most"),
    [(ROBERTA, 512), ("xlm-roberta-base", 512), (BERT, 512), ("facebook/nllb-200-distilled-600M", 1024)],
)
def test_more_tokens_than_the_encoder_has_positions_are_refused(name, most):
    model, tower = small(name)
    last = HFTextTower(model, tower.tokenizer, config={}, context_length=most)
    long = " ".join(["a"] * (most - 2))
    assert_same(last.encode([long]), model.encode_text(tower.tokenizer([long], context_length=most)))
    message = f"^text tower: expected text_cfg.context_length to be at most the {most} positions of the encoder, got"
    with pytest.raises(TowerError, match=f"{message} {most + 1}$"):
        HFTextTower(model, tower.tokenizer, config={}, context_length=most + 1)


def test_mt5_takes_any_length():
    model, tower = small(MT5)
    assert HFTextTower(model, tower.tokenizer, config={}, context_length=2000).context_length == 2000


@pytest.mark.parametrize("side", ["left", "other"])
def test_a_tokenizer_that_pads_in_another_way_is_refused(side, tmp_path):
    model = write_hf_tower(tmp_path, BERT)
    tokenizer = HFTokenizer(str(tmp_path))
    if side == "left":
        tokenizer.tokenizer.padding_side = "left"
    else:
        tokenizer.tokenizer.pad_token = "[UNK]"
    got = 3 if side == "left" else 1
    with pytest.raises(
        TowerError, match=f"^text tower: expected a tokenizer that pads on the right with 0, .* got {got}"
    ):
        HFTextTower(model, tokenizer, config={}, context_length=24)


def test_the_families_are_all_that_open_clip_names():
    import open_clip

    names = [name for name in open_clip.list_models() if not name.startswith("pvlr-test")]
    texts = [open_clip.get_model_config(name)["text_cfg"] for name in names]
    named = {text["hf_model_name"] for text in texts if "hf_model_name" in text}
    assert named <= FAMILIES.keys()
