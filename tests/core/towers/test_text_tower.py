"""The text tower against open_clip's own ``encode_text`` and transformer, path by path."""

from functools import cache

import jaxtyping
import numpy as np
import open_clip
import pytest
import torch
from helpers.tower_models import CONFIGS, SENTENCES, WordTokenizer, perturb, small_model, tokenizer_for
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pvlr.core.protocols import PromptTokens, TextTower
from pvlr.core.shapes import ShapeError
from pvlr.core.towers import TowerError
from pvlr.core.towers.text.open_clip import OpenClipTextTower

PATHS = {
    "vit": "prefix",
    "vit_avg": "prefix",
    "resnet": "prefix",
    "custom_blocks": "plain",
    "siglip": "plain",
    "siglip_projected": "plain",
}
WORDS = "a photo of a"
VOCABULARY_END = 49407


@cache
def small(kind: str) -> tuple[nn.Module, OpenClipTextTower]:
    model = small_model(kind)
    return model, OpenClipTextTower(model, tokenizer_for(kind))


@pytest.fixture
def unchecked():
    """Switch the annotations' run-time checks off, so that the library's own messages are seen."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def reference(model, context: Tensor, prompts: PromptTokens) -> Tensor:
    """open_clip's own transformer over the whole context length, one label at a time."""
    tower = getattr(model, "text", model)
    rows = []
    for label, ids in enumerate(prompts.ids):
        own = context if context.ndim == 2 else context[label]
        x = tower.token_embedding(ids)
        x = torch.cat([x[: prompts.start], own, x[prompts.start + prompts.length :]])
        x = tower.transformer((x + tower.positional_embedding)[None], attn_mask=tower.attn_mask)
        x = tower.ln_final(x)[:, prompts.end[label]]
        rows.append(tower.text_projection(x) if callable(tower.text_projection) else x @ tower.text_projection)
    return torch.cat(rows)


def words_of(tower: OpenClipTextTower, prompts: PromptTokens) -> Tensor:
    return tower.embed(prompts.ids[0, prompts.start : prompts.start + prompts.length])


@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_sentences_are_encoded_as_open_clip_does(kind):
    model, tower = small(kind)
    sentences = ["dog", "", *SENTENCES, "one two three four five six seven eight nine ten eleven twelve"]
    expected = model.encode_text(tower.tokenizer(sentences, context_length=tower.context_length))
    torch.testing.assert_close(tower.encode(sentences), expected, rtol=1e-5, atol=1e-5)
    assert not tower.encode(sentences).requires_grad


@pytest.mark.parametrize("kind", CONFIGS)
def test_context_of_the_words_is_encode_text_of_the_words(kind):
    model, tower = small(kind)
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    expected = model.encode_text(tower.tokenizer(list(SENTENCES), context_length=tower.context_length))
    got = tower.encode_context(words_of(tower, prompts), prompts)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert (got[0] - got[1]).abs().max() > 1e-2  # the labels matter


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_path_is_the_one_the_tower_allows(kind):
    _, tower = small(kind)
    assert tower.path == PATHS[kind]
    assert f"path={PATHS[kind]!r}" in repr(tower)
    assert isinstance(tower, TextTower)
    assert (tower.dim, tower.width, tower.context_length) == (CONFIGS[kind]["embed_dim"], 32, 24)


@pytest.mark.parametrize("specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_any_context_equals_the_plain_transformer_and_so_does_its_gradient(kind, specific):
    model, tower = small(kind)
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    shape = (3, 4, 32) if specific else (4, 32)
    contexts = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    got, expected = tower.encode_context(contexts[0], prompts), reference(model, contexts[1], prompts)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(got.shape, generator=torch.Generator().manual_seed(2))
    for vectors in (got, expected):
        (vectors * weights).sum().backward()
    torch.testing.assert_close(contexts[0].grad, contexts[1].grad, rtol=1e-4, atol=1e-5)
    assert contexts[0].grad.abs().amin(dim=-1).max() > 0
    assert all(parameter.grad is None for parameter in tower.parameters())


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    tokens=st.integers(1, 8),
    specific=st.booleans(),
    kind=st.sampled_from(["vit", "vit_avg", "siglip"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_labels_of_mixed_lengths(lengths, tokens, specific, kind, seed):
    model, tower = small(kind)
    sentences = [" ".join(["dog"] * length) + "." for length in lengths]
    prompts = tower.tokenize_prompts(sentences, None, tokens)
    assert prompts.length == tokens
    shape = (len(lengths), tokens, 32) if specific else (tokens, 32)
    context = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    together = tower.encode_context(context, prompts)
    torch.testing.assert_close(together, reference(model, context, prompts), rtol=1e-5, atol=1e-5)
    # A label's vector does not depend on which others it was computed with.
    alone = PromptTokens(prompts.ids[-1:], prompts.start, prompts.length, prompts.end[-1:], prompts.used)
    own = context[-1:] if specific else context
    torch.testing.assert_close(tower.encode_context(own, alone), together[-1:], rtol=1e-5, atol=1e-5)


def test_a_context_that_starts_the_sequence_has_no_prefix_when_class_specific():
    model = small_model("vit")
    tower = OpenClipTextTower(model, WordTokenizer(begin=(), end=(VOCABULARY_END,), pad=0))
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    assert (tower.path, prompts.start) == ("prefix", 0)
    for shape in ((4, 32), (3, 4, 32)):
        context = torch.randn(shape)
        expected = reference(model, context, prompts)
        torch.testing.assert_close(tower.encode_context(context, prompts), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokenizer", "start"),
    [
        (WordTokenizer(begin=(2,), end=(3,), pad=0), 1),
        (WordTokenizer(begin=(), end=(1,), pad=1), 0),
        (WordTokenizer(begin=(2, 4), end=(), pad=0), 2),
        (WordTokenizer(begin=(2,), end=(3,), pad=0, last=4), 1),
    ],
    ids=["begin and end", "end is padding", "two to begin, no end", "class token last"],
)
def test_the_stretch_of_the_context_is_found_whatever_the_tokenizer_adds(tokenizer, start):
    tower = OpenClipTextTower(small_model("siglip"), tokenizer)
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    assert (prompts.start, prompts.length, prompts.end.tolist()) == (start, 4, [23, 23, 23])
    room = 24 - len(tokenizer.begin) - len(tokenizer.end) - (tokenizer.last is not None)
    tower.encode([" ".join(["dog"] * room)])
    with pytest.raises(TowerError, match="expected at most the 24 tokens the tower has"):
        tower.encode(["short", " ".join(["dog"] * (room + 1))])


def test_twice_the_room_and_more_is_still_too_long():
    for tokenizer in (tokenizer_for("vit"), WordTokenizer(begin=(), end=(), pad=0)):
        tower = OpenClipTextTower(small_model("siglip"), tokenizer)
        with pytest.raises(TowerError, match="expected at most the 24 tokens"):
            tower.encode([" ".join(["dog"] * 100)])


@pytest.mark.parametrize("pool", ["first", "last", "argmax", "eos"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_pooling(pool, causal):
    settings = {"pool_type": pool, "no_causal_mask": not causal, "eos_id": VOCABULARY_END}
    model = small_model("siglip", text_cfg=settings)
    tower = OpenClipTextTower(model, tokenizer_for("vit"))
    assert tower.path == ("prefix" if causal and pool in ("argmax", "eos") else "plain")
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    expected = model.encode_text(prompts.ids)
    got = tower.encode_context(words_of(tower, prompts), prompts)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.encode(SENTENCES), expected, rtol=1e-5, atol=1e-5)


def test_a_mask_that_is_not_causal_is_not_taken_for_one():
    model = small_model("vit_avg")
    model.text.attn_mask[0, 1] = 0.0  # the first token may look at the second
    tower = OpenClipTextTower(model, tokenizer_for("vit_avg"))
    assert tower.path == "plain"
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    got = tower.encode_context(words_of(tower, prompts), prompts)
    torch.testing.assert_close(got, model.encode_text(prompts.ids), rtol=1e-5, atol=1e-5)


def test_no_projection_leaves_the_tower_width():
    model = small_model("siglip", text_cfg={"proj_type": "none"})
    tower = OpenClipTextTower(model, tokenizer_for("siglip"))
    assert tower.dim == tower.width == 32
    expected = model.encode_text(tower.tokenizer(SENTENCES, context_length=24))
    torch.testing.assert_close(tower.encode(SENTENCES), expected, rtol=1e-5, atol=1e-5)


def test_the_tower_stays_frozen_and_in_evaluation_mode():
    _, tower = small("vit")
    outer = nn.Sequential(tower)
    outer.train()
    assert not any(module.training for module in tower.modules())
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_bfloat16_under_autocast_and_as_weights():
    _, tower = small("vit")
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    expected = tower.encode(SENTENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = tower.encode_context(words_of(tower, prompts), prompts)
    half = OpenClipTextTower(small_model("vit"), tokenizer_for("vit")).bfloat16()
    for got in (cast, half.encode_context(words_of(tower, prompts), prompts)):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


REFUSED_PROMPTS = {
    "no token": (["a dog"], "a", 0, "tokens: expected at least 1 context token, got 0"),
    "count": (["a photo of a dog."], WORDS, 5, "context 'a photo of a': expected 5 tokens, .* makes 4 of it"),
    "empty context": (["a dog"], "", 1, "context '': expected 1 tokens, .* makes 0 of it"),
    "other words": (
        ["a photo of a dog.", "the photo of a cat."],
        WORDS,
        4,
        "prompt 'the photo of a cat.': expected it to begin with the context 'a photo of a', token by",
    ),
    "too long": (
        ["a photo of a dog.", "a photo of a " + "zebra " * 19],
        WORDS,
        4,
        "prompt 'a photo of a zebra .*': expected at most the 24 tokens the tower has, got more",
    ),
    "too long for a context": (
        ["dog.", "zebra " * 19 + "zebra"],
        None,
        3,
        "prompt 'zebra .*': expected at most the 21 tokens that a context of 3 leaves, got more",
    ),
    "long, in short": (
        ["zebra " * 99_999],
        None,
        1,
        "^prompt '.{60,80}': expected at most the 23 tokens that a context of 1 leaves",
    ),
    "no room": (["dog"], None, 24, "tokens: expected fewer context tokens than the tower's 24, got 24"),
    "nothing before": ([], None, 4, "sentences: expected a sequence of at least one sentence, got \\[\\]"),
    "a string, nothing before": ("dog.", None, 4, "expected a sequence of at least one sentence, got 'dog.'"),
    "odd": (["\x1b[2J\n" + "zebra " * 30], None, 1, r"^prompt '\\x1b\[2J\\nzebra .*': expected at most the 23 tokens"),
    "odd, other words": (["a\x1b[2J dog"], WORDS, 4, r"^prompt 'a\\x1b\[2J dog': expected it to begin with"),
    "odd context": (["a dog"], "a\nb\x9b", 9, r"^context 'a\\nb\\x9b': expected 9 tokens"),
    "long context": (
        ["a dog"],
        "a" + " " * 999 + "b",
        5,
        "^context 'a .{70,80}b': expected 5 tokens, .* makes 2 of it",
    ),
    "nothing": ([], WORDS, 4, "sentences: expected a sequence of at least one sentence, got \\[\\]"),
    "a string": ("a photo of a dog.", WORDS, 4, "sentences: expected a sequence of at least one sentence, got 'a ph"),
}


@pytest.mark.parametrize("case", REFUSED_PROMPTS)
def test_refused_prompts(case):
    sentences, context, tokens, message = REFUSED_PROMPTS[case]
    with pytest.raises(TowerError, match=message):
        small("vit")[1].tokenize_prompts(sentences, context, tokens)


class _Dropping(WordTokenizer):
    """Tokenizer that makes nothing of what it does not know."""

    def __call__(self, texts, context_length):
        return super().__call__([text.replace("X", "") for text in texts], context_length)


class _Joining(WordTokenizer):
    """Tokenizer that makes one token of two words."""

    def __call__(self, texts, context_length):
        return super().__call__([text.replace("X dog", "Xdog") for text in texts], context_length)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Dropping, "context: expected words, since the tower's tokenizer makes no token of 'X'"),
        (_Joining, "prompt 'dog': expected it to begin with the context 'X', token by token"),
    ],
)
def test_a_tokenizer_that_leaves_no_place_before_a_sentence(kind, message):
    tower = OpenClipTextTower(small_model("siglip"), kind((2,), (3,), 0))
    with pytest.raises(TowerError, match=f"^{message}$"):
        tower.tokenize_prompts(["cat", "dog"], None, 4)


def test_half_a_letter_is_refused():
    with pytest.raises(TowerError, match=r"^prompt 'a \\ud800': expected letters, found half of one$"):
        small("vit")[1].encode(["a dog", "a \ud800"])


def test_a_prompt_without_the_token_it_is_pooled_at_is_refused():
    model = small_model("vit_avg", text_cfg={"eos_id": 3})
    tower = OpenClipTextTower(model, tokenizer_for("vit_avg"))
    with pytest.raises(TowerError, match="prompt 'a dog': expected the end-of-text token 3, found none"):
        tower.encode(["a dog"])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((5, 32), r"context: expected axes 'm w' with m=4, got shape \(5, 32\)"),
        ((4, 31), r"context: expected axes 'm w' with w=32, got shape \(4, 31\)"),
        ((2, 4, 32), r"context: expected axes 'c m w' with c=3, got shape \(2, 4, 32\)"),
        ((3, 3, 32), r"context: expected axes 'c m w' with m=4, got shape \(3, 3, 32\)"),
        ((4,), r"context: expected axes 'm w', got shape \(4,\)"),
    ],
)
def test_refused_contexts(shape, message):
    _, tower = small("vit")
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    with pytest.raises(ShapeError, match=message):
        tower.encode_context(torch.zeros(shape), prompts)


class _OtherText(nn.Module):
    pass


def _broken(change) -> nn.Module:
    model = small_model("siglip")
    change(model)
    return model


REFUSED_MODELS = {
    "class": (lambda: nn.Linear(1, 1), "expected an open_clip CLIP or CustomTextCLIP, got Linear"),
    "text class": (
        lambda: _broken(lambda model: setattr(model, "text", _OtherText())),
        "expected open_clip's TextTransformer, got _OtherText",
    ),
    "class token": (
        lambda: small_model("siglip", text_cfg={"embed_cls": True}),
        "a class token or a padding mask \\(CoCa\\) is not supported",
    ),
    "padding mask": (
        lambda: _broken(lambda model: setattr(model.text, "use_pad_mask", True)),
        "a class token or a padding mask \\(CoCa\\) is not supported",
    ),
    "positions": (
        lambda: _broken(lambda model: setattr(model.text, "context_length", 23)),
        "expected 23 positions, got 24",
    ),
    "pooling": (
        lambda: small_model("siglip", text_cfg={"pool_type": "none"}),
        "expected pooling argmax, eos, last or first, got 'none'",
    ),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_refused_models(case):
    build, message = REFUSED_MODELS[case]
    with pytest.raises(TowerError, match=f"^text tower: {message}"):
        OpenClipTextTower(build(), tokenizer_for("vit"))


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "RN50", "ViT-B-16-SigLIP"])
def test_at_real_size(name):
    # The text tower as published, with random weights; the image tower is not needed and kept small.
    config = open_clip.get_model_config(name) | {"vision_cfg": CONFIGS["vit"]["vision_cfg"]}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    model = perturb(kind(**config), seed=0).eval()
    length = config["text_cfg"]["context_length"]
    tower = OpenClipTextTower(model, tokenizer_for("siglip" if "SigLIP" in name else "vit", length))
    assert tower.path == ("plain" if "SigLIP" in name else "prefix")
    prompts = tower.tokenize_prompts(SENTENCES, WORDS, 4)
    with torch.no_grad():
        expected = model.encode_text(prompts.ids)
        got = tower.encode_context(words_of(tower, prompts), prompts)
    scale = float(expected.abs().max())  # random weights of this size make vectors of any length
    torch.testing.assert_close(got / scale, expected / scale, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower.encode(SENTENCES) / scale, expected / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.shared
def test_clip_token_ids(shared):
    golden = np.load(shared / "golden" / "tokens.npz")
    ids, sentences = torch.from_numpy(golden["ids"]).long(), [str(prompt) for prompt in golden["prompts"]]
    model = small_model("vit", text_cfg={"context_length": 77})
    tower = OpenClipTextTower(model, tokenizer_for("vit", 77))
    for words, tokens in ((None, 16), (WORDS, 4)):
        mine = [i for i, sentence in enumerate(sentences) if sentence.startswith("X") == (words is None)]
        # The file has a letter in the place of each token of the context.
        given = [sentences[i] if words else sentences[i].removeprefix("X " * tokens) for i in mine]
        prompts = tower.tokenize_prompts(given, words, tokens)
        assert len(mine) == 26
        assert torch.equal(prompts.ids, ids[mine])
        assert torch.equal(prompts.end, ids[mine].argmax(dim=1))
        assert (prompts.start, prompts.length) == (1, tokens)


@pytest.mark.shared
@pytest.mark.parametrize("work", ["coop", "dualcoop"])
def test_text_vectors_of_published_prompt_learners(shared, work):
    golden = np.load(shared / "golden" / f"head_{work}_cscFalse_C20.npz")
    arrays = {name: torch.from_numpy(golden[name]) for name in golden.files if golden[name].dtype.kind in "fi"}
    learner = "sd.prompt_learner."
    signs = [""] if work == "coop" else ["_neg", "_pos"]
    model = open_clip.CLIP(
        embed_dim=32,
        quick_gelu=True,
        vision_cfg=CONFIGS["vit"]["vision_cfg"],
        text_cfg=CONFIGS["vit"]["text_cfg"] | {"context_length": 77, "width": 64, "heads": 2, "layers": 2},
    )
    prefix = "sd.text_encoder."
    weights = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    assert not model.load_state_dict(weights, strict=False).unexpected_keys  # the image tower is not in the file
    tower = OpenClipTextTower(model, tokenizer_for("vit", 77))
    names = [str(name) for name in golden["classnames"]]
    prompts = tower.tokenize_prompts([f"{name}." for name in names], None, 16)
    got = []
    for sign in signs:
        # The files hold the embeddings of the tokens in use, not the table: put them back in their rows.
        for part, ids in (("prefix", prompts.ids[:, :1]), ("suffix", prompts.ids[:, 17:])):
            tower.token_embedding.weight[ids] = arrays[f"{learner}token_{part}{sign}"]
        got.append(tower.encode_context(arrays[f"{learner}ctx{sign}"], prompts))
    torch.testing.assert_close(torch.cat(got), arrays["text_features"], rtol=1e-5, atol=1e-5)
