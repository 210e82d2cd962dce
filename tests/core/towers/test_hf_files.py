"""Files of a tower that transformers reads: where they are found, what is refused, and how they are saved."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.hf_text_models import FAMILIES, write_hf_text, write_hf_tower
from helpers.tower_models import CONFIGS, SENTENCES, WordTokenizer, write_folder
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from pvlr.core.towers import TowerError, building, load_towers
from pvlr.core.towers.building import build_model
from pvlr.core.towers.files import hf_files, sources
from pvlr.core.towers.files.hf_files import find_text_config
from pvlr.core.towers.files.sources import TowerSource
from pvlr.core.towers.text.hugging_face import text_config_file
from pvlr.core.towers.text.tokenizers import make_tokenizer, tokenizer_files

BERT, MT5, NLLB = "sentence-transformers/all-MiniLM-L6-v2", "google/mt5-base", "facebook/nllb-200-distilled-600M"
LOCAL_CONFIG = (
    "If it is on this machine, put it into the folder of --tower.name local-dir:FOLDER, and '.' into "
    "text_cfg.hf_model_name."
)
TEXTS = [*SENTENCES, "", "猫 und Köter!", "X", "  two   spaces ", "A Photo, of a Dog"]


def change(path: Path, **entries: Any) -> None:
    """Overlay entries of a JSON file; one that is ``...`` is taken away."""
    told = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))


def change_text(folder: Path, **entries: Any) -> None:
    path = folder / "open_clip_config.json"
    model = json.loads(path.read_text())["model_cfg"]
    change(path, model_cfg=model | {"text_cfg": model["text_cfg"] | entries})


# ---------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_loaded_as_open_clip_loads_it(name, tmp_path, monkeypatch):
    write_hf_tower(tmp_path, name)
    towers = load_towers(f"local-dir:{tmp_path}")
    monkeypatch.chdir(tmp_path)  # open_clip takes the encoder's name from there
    model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(list(SENTENCES))
    with torch.no_grad():
        torch.testing.assert_close(towers.text.encode(SENTENCES), model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert towers.text.context_length == 24


def test_the_encoder_may_lie_in_a_folder_of_the_towers(tmp_path):
    expected = write_hf_tower(tmp_path, MT5).text
    (tmp_path / "text").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "text" / "config.json")
    change_text(tmp_path, hf_model_name="text")
    text = load_towers(f"local-dir:{tmp_path}").text
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in text.state_dict().items())


def test_the_working_directory_is_not_where_it_is_looked_for(tmp_path, monkeypatch):
    write_hf_tower(tmp_path / "tower", MT5)
    write_hf_text(tmp_path / "here" / "text", MT5)
    change_text(tmp_path / "tower", hf_model_name="text")
    monkeypatch.chdir(tmp_path / "here")
    _unreachable(monkeypatch)
    with pytest.raises(TowerError, match=r"(?s)^Could not fetch .*It comes from the repository text of the Hugging"):
        load_towers(f"local-dir:{tmp_path / 'tower'}", cache_dir=str(tmp_path / "cache"))


def test_an_encoder_of_half_precision_is_built_in_single(tmp_path):
    write_hf_tower(tmp_path, BERT)
    first = load_towers(f"local-dir:{tmp_path}")
    change(tmp_path / "config.json", dtype="float16", architectures=["BertModel"], transformers_version="4.1.0")
    second = load_towers(f"local-dir:{tmp_path}")
    assert all(value.dtype == torch.float32 for value in second.text.parameters())
    assert second.fingerprint == first.fingerprint


def test_the_fingerprint_sees_what_leaves_no_trace_in_the_weights(tmp_path):
    write_hf_tower(tmp_path, BERT)
    first = load_towers(f"local-dir:{tmp_path}").fingerprint
    change(tmp_path / "config.json", num_attention_heads=2)
    assert load_towers(f"local-dir:{tmp_path}").fingerprint != first


def test_the_outputs_open_clip_is_asked_for_make_no_difference(tmp_path):
    write_hf_tower(tmp_path, BERT)
    first = load_towers(f"local-dir:{tmp_path}").text.encode(SENTENCES)
    change_text(tmp_path, output_tokens=True)
    change(tmp_path / "config.json", output_hidden_states=True)
    torch.testing.assert_close(load_towers(f"local-dir:{tmp_path}").text.encode(SENTENCES), first)


@pytest.mark.parametrize("projection", ["none", ""])
def test_no_projection_by_any_name(projection, tmp_path):
    expected = write_hf_tower(tmp_path, BERT, embed_dim=32, hf_proj_type=None)
    change_text(tmp_path, hf_proj_type=projection)
    change(tmp_path / "open_clip_config.json", model_cfg=_with_dim(tmp_path, 32))
    text = load_towers(f"local-dir:{tmp_path}").text
    ids = text.tokenizer(list(SENTENCES), context_length=24)
    torch.testing.assert_close(text.encode(SENTENCES), expected.encode_text(ids), rtol=1e-5, atol=1e-5)


def _with_dim(folder: Path, dim: int) -> dict[str, Any]:
    return json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] | {"embed_dim": dim}


# ------------------------------------------------------------------------------------------------------------ Hub


@pytest.fixture
def registered(tmp_path_factory) -> str:
    """A small model in open_clip's own registry, whose encoder and tokenizer are a repository's."""
    folder = tmp_path_factory.mktemp("registry")
    text = {
        "context_length": 24,
        "hf_model_name": "some-one/some-encoder",
        "hf_tokenizer_name": "some-one/some-encoder",
    }
    config = {"embed_dim": 24, "vision_cfg": CONFIGS["vit"]["vision_cfg"], "text_cfg": text}
    (folder / "pvlr-test-hf-text.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return "pvlr-test-hf-text"


def _unreachable(monkeypatch) -> None:
    def dead(*_: Any, **__: Any) -> str:
        raise OSError("the line is dead")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", dead)
    monkeypatch.setattr(sources, "require_reachable", dead)


def _cache(folder: Path, repository: str) -> Path:
    """A repository as the Hub's client keeps it; returns the folder of its files."""
    place = folder / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    files = place / "snapshots" / ("0" * 40)
    files.mkdir(parents=True)
    return files


def test_a_repository_that_is_fetched_is_named_first(registered, tmp_path, monkeypatch, caplog):
    _unreachable(monkeypatch)
    with pytest.raises(TowerError) as caught:
        load_towers(registered, cache_dir=str(tmp_path))
    assert str(caught.value) == (
        "Could not fetch the configuration of the text encoder of 'pvlr-test-hf-text': the line is dead\n"
        f"It comes from the repository some-one/some-encoder of the Hugging Face Hub.\n{LOCAL_CONFIG}"
    )
    assert caplog.messages == [
        "the configuration of the text encoder of 'pvlr-test-hf-text' is fetched from the repository "
        "some-one/some-encoder of the Hugging Face Hub"
    ]


def test_of_an_encoder_only_the_configuration_is_fetched(registered, tmp_path, monkeypatch):
    write_hf_text(tmp_path, MT5)
    asked: list[str] = []

    def fetched(record: dict[str, Any], cache_dir: str | None = None) -> str:
        asked.append(record["hf_hub"])
        return str(tmp_path / "config.json")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fetched)
    monkeypatch.setattr(sources, "require_reachable", lambda *_: True)
    monkeypatch.setattr("pvlr.core.towers.loading.make_tokenizer", lambda *_: HFTokenizer(str(tmp_path)))
    assert load_towers(registered, cache_dir=str(tmp_path)).text.width == 32
    assert asked == ["some-one/some-encoder/config.json"]


def test_what_is_in_the_cache_is_taken_without_a_word(registered, tmp_path, monkeypatch, caplog):
    write_hf_text(_cache(tmp_path, "some-one/some-encoder"), NLLB)
    _unreachable(monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    towers = load_towers(registered, cache_dir=str(tmp_path))
    assert towers.text.tokenize_prompts(["dog"], None, 2).start == 1
    assert caplog.messages == ["tower 'pvlr-test-hf-text' has random weights, since none were named"]


def test_a_dot_is_the_repository_itself(tmp_path, monkeypatch, caplog):
    write_hf_text(_cache(tmp_path, "some/where"), BERT)
    config = {"text_cfg": {"hf_model_name": ".", "hf_tokenizer_name": "."}}
    source = TowerSource(name="hf-hub:some/where", tokenizer_name="hf-hub:some/where", config=config)
    assert find_text_config(source, str(tmp_path)).entries["model_type"] == "bert"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert make_tokenizer(source, str(tmp_path))(["dog"]).shape == (1, 77)
    _unreachable(monkeypatch)
    with pytest.raises(
        TowerError, match=r"(?s)'hf-hub:some/where': the line is dead.*the repository some/where of the"
    ):
        find_text_config(source, str(tmp_path / "empty"))
    assert not caplog.messages  # this repository was asked for


def test_a_model_is_never_built_with_an_encoder_nobody_looked_at(registered):
    with pytest.raises(TowerError, match=r"^text_cfg.hf_model_name: expected the configuration of 'some-one/some-enc"):
        build_model(open_clip.get_model_config(registered))


def test_without_transformers_one_sentence_says_what_to_install(registered, monkeypatch):
    monkeypatch.setattr(hf_files, "find_spec", lambda name: None)
    with pytest.raises(TowerError) as caught:
        load_towers(registered)
    assert str(caught.value) == (
        "the configuration of the text encoder of 'pvlr-test-hf-text' needs the package transformers, which is not "
        "installed (pip install 'pvlr[hf]')"
    )


# ------------------------------------------------------------------------------------------------------- refusals

Spoil = Callable[[Path], object]


def config(**entries: Any) -> Spoil:
    return lambda folder: change(folder / "config.json", **entries)


def settings(**entries: Any) -> Spoil:
    return lambda folder: change(folder / "tokenizer_config.json", **entries)


def text(**entries: Any) -> Spoil:
    return lambda folder: change_text(folder, **entries)


def written(name: str, content: str) -> Spoil:
    return lambda folder: (folder / name).write_text(content)


def gone(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def large(name: str, mebibytes: int) -> Spoil:
    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(mebibytes * 2**20 + 200_000)

    return write


CODE = "expected no entry '{}': no code that comes with a tower is run$"
TEXT, KWARGS = "has text_cfg.", "has text_cfg.tokenizer_kwargs with "
FILES = "expected the files of the tokenizer of '.*', "
REFUSED_FOLDERS: dict[str, tuple[Spoil, str]] = {
    "encoder's code": (config(auto_map={"AutoModel": "evil.M"}), "config.json: " + CODE.format("auto_map")),
    "encoder's trust": (config(trust_remote_code=True), "config.json: " + CODE.format("trust_remote_code")),
    "encoder's address": (config(_name_or_path="https://x.org/y"), "expected no address, .*, got 'https://x.org/y'$"),
    "encoder's attention": (config(attn_implementation="a/b"), "attn_implementation to be 'eager' or 'sdpa', got"),
    "encoder's inner attention": (config(_attn_implementation="a/b"), "expected _attn_implementation to be 'eager' or"),
    "encoder of no type": (config(model_type=...), "expected model_type to be one of roberta, .*, got None$"),
    "encoder of another type": (config(model_type="gpt2"), "expected model_type to be one of roberta, .*, got 'gpt2'$"),
    "encoder of an odd type": (config(model_type=["a"]), "expected model_type to be one of .*, got \\['a'\\]$"),
    "no configuration": (gone("config.json"), "config.json: expected a configuration of transformers', found no"),
    "configuration no JSON": (written("config.json", "{"), "config.json: expected a configuration .* as JSON, got Exp"),
    "configuration a list": (written("config.json", "[]"), "config.json: expected a JSON object, got \\[\\]$"),
    "configuration too large": (large("config.json", 4), "config.json: expected a file of at most 4 MiB, got 4.2 MiB$"),
    "encoder's heads": (config(num_attention_heads=5), "does not describe a model: .+"),
    "encoder's activation": (config(hidden_act="evil"), "does not describe a model: .*evil.*"),
    "encoder's outputs": (config(return_dict=False), "does not describe a model: .+"),
    "encoder and decoder": (config(is_encoder_decoder=True), "text tower: expected the transformer to be one of Bert"),
    "encoder without padding": (config(pad_token_id=None), "encoder's pad_token_id to be a number, got None$"),
    "projection": (text(hf_proj_type="cubic"), TEXT + "hf_proj_type 'cubic', expected one of none, linear, mlp$"),
    "no projection": (text(hf_proj_type=None), "vectors are 32 wide and those of the joint space 24; set text_cfg"),
    "pooler": (text(hf_pooler_type="max_pooler"), TEXT + "hf_pooler_type 'max_pooler', expected one of mean_pooler"),
    "length": (text(context_length="77"), TEXT + "context_length '77', expected a whole number of at least 1$"),
    "no length": (text(context_length=0), TEXT + "context_length 0, expected a whole number of at least 1$"),
    "too long": (text(context_length=513), "context_length to be at most the 512 positions of the encoder, got 513$"),
    "encoder's place": (text(hf_model_name="http://x"), "expected text_cfg.hf_model_name to be a name without ':', go"),
    "tokenizer's code": (settings(auto_map=["a.B", None]), "tokenizer_config.json: " + CODE.format("auto_map")),
    "tokenizer's module": (settings(tokenizer_class="os.system"), "tokenizer_class to be the name of a class alone,"),
    "tokenizer's address": (settings(tokenizer_file="http://x/y"), "expected no address, .*, got 'http://x/y'$"),
    "tokenizer's other files": (settings(fast_tokenizer_files=["../x"]), CODE.format("fast_tokenizer_files")),
    "tokenizer of no padding": (settings(pad_token=None), FILES + "got Asking to pad but"),
    "tokenizer too large": (large("tokenizer.json", 1024), "a file of at most 128 MiB, got 1,024.2 MiB$"),
    "words too large": (large("vocab.txt", 128), "vocab.txt: expected a file of at most 128 MiB, got 128.2 MiB$"),
    "settings too large": (large("tokenizer_config.json", 4), "tokenizer_config.json: expected a file of at most 4 M"),
    "names too large": (large("special_tokens_map.json", 4), "special_tokens_map.json: expected a file of at most 4 M"),
    "template too large": (large("chat_template.jinja", 128), "chat_template.jinja: expected a file of at most 128 M"),
    "no tokenizer": (gone("tokenizer.json"), FILES + "such as tokenizer.json, found none; "),
    "tokenizer no JSON": (written("tokenizer.json", "{"), FILES + "got Expecting"),
    "settings no JSON": (written("tokenizer_config.json", "]"), "tokenizer_config.json: expected .* as JSON, got Exp"),
    "option": (text(tokenizer_kwargs={"tokenizer_file": "/x"}), KWARGS + "'tokenizer_file', expected none but clean,"),
    "option that trusts": (text(tokenizer_kwargs={"trust_remote_code": True}), KWARGS + "'trust_remote_code', expect"),
    "cleaning": (text(tokenizer_kwargs={"clean": "soap"}), KWARGS + "clean 'soap', expected one of whitespace, lower"),
    "separator": (text(tokenizer_kwargs={"strip_sep_token": 1}), KWARGS + "strip_sep_token 1, expected true or false"),
    "language": (text(tokenizer_kwargs={"language": 3}), KWARGS + "language 3, expected a text$"),
    "no languages": (text(tokenizer_kwargs={"language": "dog"}), FILES + "got no language 'dog' in its vocabulary$"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_refused_folders(case, tmp_path, monkeypatch):
    spoil, message = REFUSED_FOLDERS[case]
    write_hf_tower(tmp_path, BERT)
    _unreachable(monkeypatch)
    spoil(tmp_path)
    with pytest.raises(TowerError) as caught:
        load_towers(f"local-dir:{tmp_path}")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_special_tokens_alone_is_refused(tmp_path):
    write_hf_tower(tmp_path, BERT)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(
        TowerError, match=r"^/.*: expected the files of the tokenizer of .*, got a vocabulary of special"
    ):
        load_towers(f"local-dir:{tmp_path}")


def test_a_sentencepiece_vocabulary_needs_its_package(tmp_path, monkeypatch):
    write_hf_tower(tmp_path, MT5)
    (tmp_path / "tokenizer.json").rename(tmp_path / "spiece.model")
    monkeypatch.setattr(hf_files, "find_spec", lambda name: None if name == "sentencepiece" else object())
    with pytest.raises(
        TowerError, match=r"the package sentencepiece, which is not installed \(pip install 'pvlr\[hf\]'\)"
    ):
        load_towers(f"local-dir:{tmp_path}")


def test_the_projections_and_poolers_are_open_clips():
    from open_clip.hf_model import _POOLERS

    assert {*filter(None, building.POOLERS)} == _POOLERS.keys() - {"max_pooler"}


# --------------------------------------------------------------------------------------------------------- saving


def test_open_clips_own_tokenizer_needs_no_files():
    assert tokenizer_files(SimpleTokenizer()) == {}
    with pytest.raises(TowerError, match=r"^tokenizer: expected one of open_clip's to be saved, got WordTokenizer$"):
        tokenizer_files(WordTokenizer((), (), 0))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_text_tower_is_found_again(name, tmp_path):
    write_hf_tower(tmp_path / "first", name)
    first = load_towers(f"local-dir:{tmp_path / 'first'}")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "second" / file).unlink()
    first.text.encode(SENTENCES)
    saved = tokenizer_files(first.text.tokenizer) | {"config.json": text_config_file(first.text)}
    for file, content in saved.items():
        (tmp_path / "second" / file).write_bytes(content)
        assert str(tmp_path).encode() not in content
        assert b"local" not in content  # nothing of where it lay
    second = load_towers(f"local-dir:{tmp_path / 'second'}")
    for length in (24, 48):
        ids = [towers.text.tokenizer(TEXTS, context_length=length) for towers in (first, second)]
        assert torch.equal(*ids)
    assert torch.equal(first.text.encode(SENTENCES), second.text.encode(SENTENCES))
    assert first.fingerprint == second.fingerprint
    assert tokenizer_files(second.text.tokenizer) == tokenizer_files(first.text.tokenizer)
    assert text_config_file(second.text) == text_config_file(first.text)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (MT5, {"clean": "canonicalize"}),
        (BERT, {"strip_sep_token": True}),
        (NLLB, {"language": "deu_Latn"}),
    ],
    ids=["SigLIP", "CLIPA", "NLLB"],
)
def test_a_saved_tokenizer_keeps_what_the_configuration_says_of_it(name, options, tmp_path):
    write_folder(tmp_path, "vit")
    write_hf_text(tmp_path, name)
    (tmp_path / "config.json").unlink()
    change_text(tmp_path, hf_tokenizer_name=name, tokenizer_kwargs=options)
    first = load_towers(f"local-dir:{tmp_path}").text
    plain = HFTokenizer(str(tmp_path))
    for file, content in tokenizer_files(first.tokenizer).items():
        (tmp_path / file).write_bytes(content)
    second = load_towers(f"local-dir:{tmp_path}").text
    ids = [tokenizer(TEXTS, context_length=24) for tokenizer in (first.tokenizer, second.tokenizer, plain)]
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])
