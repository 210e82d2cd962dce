"""Towers by name: which are refused, and in which words; what is fetched, and what is said where it cannot be."""

import json
import re
import time
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.tower_models import CONFIGS, WordTokenizer, register, small_model, write_folder
from safetensors.torch import load_file, save_file

from pvlr.core.towers import TowerError, load_towers, weights_fingerprint
from pvlr.core.towers.files import hf_files, sources
from pvlr.core.towers.text import tokenizers

LOCAL_COPY = "If it is on this machine, name it: --tower.weights PATH, or --tower.name local-dir:FOLDER."
LOCAL_FOLDER = "If it is on this machine, name its folder: --tower.name local-dir:FOLDER."


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory) -> None:
    register(tmp_path_factory.mktemp("configs"))


# ------------------------------------------------------------------------------------------------------- refusals


def _no_download(monkeypatch) -> None:
    def never(*_: Any, **__: Any) -> str:
        raise AssertionError("a download was started")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", never)
    monkeypatch.setattr(sources, "require_reachable", never)


REFUSED_NAMES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown name": (
        {"name": "ViT-B-61"},
        "name: no tower is called 'ViT-B-61'; the nearest are ViT-B-16, .*",
    ),
    "unknown tag": (
        {"name": "ViT-B-16", "weights": "opnai"},
        "weights: 'opnai' is neither a file nor known for 'ViT-B-16'; the nearest is openai",
    ),
    "far tag": (
        {"name": "RN50", "weights": "zzz"},
        "weights: 'zzz' is neither a file nor known for 'RN50'; known are openai, yfcc15m, cc12m",
    ),
    "no tags": (
        {"name": "pvlr-test-vit", "weights": "nowhere.pt"},
        "weights: 'nowhere.pt' is neither a file nor known for 'pvlr-test-vit'; none is known",
    ),
    "activation": (
        {"name": "ViT-B-16", "weights": "openai"},
        "weights: 'openai' was trained with QuickGELU, but 'ViT-B-16' computes GELU; ask for 'ViT-B-16-quickgelu'",
    ),
    "activation, slash": (
        {"name": "ViT-B/16", "weights": "openai"},
        "weights: 'openai' was trained with QuickGELU, but 'ViT-B-16' computes GELU; ask for 'ViT-B-16-quickgelu'",
    ),
    "weights with a folder": (
        {"name": "local-dir:somewhere", "weights": "openai"},
        "weights: expected none with the name 'local-dir:somewhere', which brings its own, got 'openai'",
    ),
    "no folder": (
        {"name": "local-dir:nowhere"},
        "name: expected a folder after 'local-dir:', found none at 'nowhere'",
    ),
    "not bundled": ({"name": "pvlr:scene-clip"}, "name: no tower called 'pvlr:scene-clip' comes with pvlr; .*"),
    "outside the bundle": ({"name": "pvlr:../core"}, "name: no tower called 'pvlr:../core' comes with pvlr; .*"),
    "CoCa": (
        {"name": "coca_ViT-B-32"},
        "name: 'coca_ViT-B-32' is a CoCa model, which is not supported: both of its halves are pooled by tokens of "
        "their own",
    ),
    "not a model": (
        {"name": "pvlr-test-bad"},
        "name: the configuration of 'pvlr-test-bad' does not describe a model: .*'colour'",
    ),
    "two widths": (
        {"name": "pvlr-test-uneven"},
        "name: 'pvlr-test-uneven' has text vectors of width 32 and image vectors of width 24",
    ),
    "image size": (
        {"name": "pvlr-test-resnet", "image_size": 100},
        "image_size: expected a positive multiple of 32, the patch size, got 100",
    ),
    "no value path": (
        {"name": "pvlr-test-custom_blocks"},
        "patch_features: 'value' needs blocks of the class ResidualAttentionBlock, got CustomResidualAttentionBlock",
    ),
}


@pytest.mark.parametrize("case", REFUSED_NAMES)
def test_refused_names(case, monkeypatch):
    _no_download(monkeypatch)
    arguments, message = REFUSED_NAMES[case]
    with pytest.raises(TowerError) as caught:
        load_towers(**arguments)
    assert re.fullmatch(message, str(caught.value)), str(caught.value)


def _folder(tmp_path: Path, config: str | None, *files: str) -> str:
    if config is not None:
        (tmp_path / "open_clip_config.json").write_text(config)
    for file in files:
        (tmp_path / file).write_bytes(b"")
    return f"local-dir:{tmp_path}"


def _config(part: str | None = None, preprocess: Any = None, **changes: Any) -> str:
    """A configuration, with other entries in one part of the model's; ``be`` takes the place of the whole part."""
    model = json.loads(json.dumps(CONFIGS["vit"]))
    if part is not None:
        model[part] = changes["be"] if "be" in changes else model[part] | changes
    return json.dumps({"model_cfg": model, "preprocess_cfg": preprocess})


def _preprocess(**record: Any) -> str:
    return _config(preprocess={"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], **record})


GOOD = _config()
NAME = "to be a name without ':', got"
MEAN = "expected preprocess_cfg.mean to be three numbers in \\[0, 1\\], got"
STD = "expected preprocess_cfg.std to be three numbers above 0, at most 1, got"
REFUSED_FOLDERS = {
    "no configuration": (
        None,
        (),
        "expected the tower's configuration, open_clip_config.json or config.json, found neither",
    ),
    "no JSON": ("{", (), "expected the tower's configuration as JSON, got Expecting property name"),
    "no entry": ("{}", (), "expected an entry 'model_cfg' with embed_dim, vision_cfg and text_cfg, found none"),
    "a list": ("[]", (), "expected an entry 'model_cfg' with embed_dim, vision_cfg and text_cfg, found none"),
    "deep": ("[" * 100_000, (), "expected the tower's configuration as JSON, got maximum recursion depth exceeded"),
    "images no object": (_config("vision_cfg", be=3), (), "expected vision_cfg to be an object, got 3"),
    "texts no object": (_config("text_cfg", be=["a"]), (), "expected text_cfg to be an object, got \\['a'\\]"),
    "tokenizer's no object": (
        _config("text_cfg", tokenizer_kwargs=3),
        (),
        "expected text_cfg.tokenizer_kwargs to be an object, got 3",
    ),
    "preprocessing no object": (_config(preprocess=[1]), (), "expected preprocess_cfg to be an object, got \\[1\\]"),
    "mean a text": (_preprocess(mean="abc"), (), f"{MEAN} 'abc'"),
    "mean a number": (_preprocess(mean=3), (), f"{MEAN} 3"),
    "mean of none": (_preprocess(mean=[]), (), f"{MEAN} \\[\\]"),
    "mean of four": (_preprocess(mean=[0.5] * 4), (), f"{MEAN} \\[0.5, 0.5, 0.5, 0.5\\]"),
    "mean of bytes": (_preprocess(mean=[0, 0, 127]), (), f"{MEAN} \\[0, 0, 127\\]"),
    "mean not a number": (_preprocess(mean=[0, 0, float("nan")]), (), f"{MEAN} \\[0, 0, nan\\]"),
    "mean of truths": (_preprocess(mean=[True] * 3), (), f"{MEAN} \\[True, True, True\\]"),
    "mean of texts": (_preprocess(mean=["0.5"] * 3), (), f"{MEAN} \\['0.5', '0.5', '0.5'\\]"),
    "std of zeros": (_preprocess(std=[0, 0.5, 0.5]), (), f"{STD} \\[0, 0.5, 0.5\\]"),
    "std infinite": (_preprocess(std=[1, 1, float("inf")]), (), f"{STD} \\[1, 1, inf\\]"),
    "interpolation": (_preprocess(interpolation=2), (), "expected preprocess_cfg.interpolation to be a text, got 2"),
    "timm from the Hub": (
        _config("vision_cfg", timm_model_name="hf-hub:evil/other"),
        (),
        f"expected vision_cfg.timm_model_name {NAME} 'hf-hub:evil/other'",
    ),
    "timm no text": (_config("vision_cfg", timm_model_name=[]), (), f"vision_cfg.timm_model_name {NAME} \\[\\]"),
    "text model": (_config("text_cfg", hf_model_name="a:b"), (), f"expected text_cfg.hf_model_name {NAME} 'a:b'"),
    "tokenizer": (_config("text_cfg", hf_tokenizer_name="a:b"), (), f"text_cfg.hf_tokenizer_name {NAME} 'a:b'"),
    "tokenizer, odd": (
        _config("text_cfg", hf_tokenizer_name="\x1b[2J" + "x" * 999),
        (),
        f"text_cfg.hf_tokenizer_name {NAME} '{re.escape(chr(92))}x1b.{{,80}}$",
    ),
    "no weights": (GOOD, (), "expected one file of weights, such as open_clip_model.safetensors, found none"),
    "two files": (GOOD, ("b.pt", "a.bin"), "expected one file of weights, .*, found a.bin, b.pt"),
    "empty file": (GOOD, ("any.safetensors",), "any.safetensors: expected the weights of 'local-dir:.*', got .+"),
}


@pytest.mark.parametrize("case", REFUSED_FOLDERS)
def test_refused_folders(case, tmp_path):
    config, files, message = REFUSED_FOLDERS[case]
    with pytest.raises(TowerError, match=f"^{re.escape(str(tmp_path))}.*{message}") as caught:
        load_towers(_folder(tmp_path, config, *files))
    assert "\n" not in str(caught.value)


UNDESCRIBED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no blocks": ("vision_cfg", {"layers": 0}, "index -1 is out of range"),
    "blocks of text": ("vision_cfg", {"layers": "three"}, ".+"),
    "heads": ("text_cfg", {"heads": 5}, "embed_dim must be divisible by num_heads"),
    "no heads": ("text_cfg", {"heads": 0}, ".+"),
    "no patches": ("vision_cfg", {"patch_size": 0}, ".+"),
    "three sides": ("vision_cfg", {"image_size": [32, 32, 32]}, "too many values to unpack .*"),
    "size": ("vision_cfg", {"image_size": None}, ".+"),
    "width": ("text_cfg", {"width": -4}, ".+"),
    "unknown, odd": ("text_cfg", {"\x1b[2J": 1}, ".* unexpected keyword argument '\\\\x1b\\[2J'"),
    "unknown to timm": ("vision_cfg", {"timm_model_name": "no_such"}, ".*no_such.*"),
    "width of the joint space": ("embed_dim", {"be": "wide"}, ".+"),
}


@pytest.mark.parametrize("case", UNDESCRIBED)
def test_a_configuration_that_describes_no_model(case, tmp_path):
    part, changes, message = UNDESCRIBED[case]
    name = _folder(tmp_path, _config(part, **changes), "any.safetensors")
    with pytest.raises(TowerError) as caught:
        load_towers(name)
    start = f"name: the configuration of '{name}' does not describe a model: "
    assert str(caught.value).startswith(start)
    assert re.fullmatch(message, str(caught.value).removeprefix(start)), str(caught.value)


def test_what_a_configuration_leaves_out_is_as_usual(tmp_path):
    write_folder(tmp_path, "vit")
    for record in (None, {}, {"mean": None, "std": None, "interpolation": None}):
        towers = load_towers(_folder(tmp_path, _config(preprocess=record)))
        assert towers.preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN
        assert towers.preprocess["std"] == open_clip.OPENAI_DATASET_STD
        assert towers.preprocess["interpolation"] == "bicubic"


OTHER_TABLES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "images": ("vit", "vision_cfg", {"image_size": 64}, "'visual.positional_embedding' of shape (17, 32) {} (65, 32)"),
    "texts": ("vit", "text_cfg", {"context_length": 40}, "'positional_embedding' of shape (24, 32) {} (40, 32)"),
    "texts apart": (
        "siglip_projected",
        "text_cfg",
        {"context_length": 20},
        "'text.positional_embedding' of shape (24, 32) {} (20, 32)",
    ),
}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("case", OTHER_TABLES)
def test_positions_of_another_size_are_refused_and_not_interpolated(case, ending, tmp_path):
    kind, part, changes, message = OTHER_TABLES[case]
    weights = write_folder(tmp_path, kind).state_dict()
    path = tmp_path / "open_clip_model.safetensors"
    if ending == "pt":
        path.unlink()
        path = tmp_path / "weights.pt"
        torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, path)
    model = json.loads(json.dumps(CONFIGS[kind]))
    model[part] |= changes
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    with pytest.raises(TowerError) as caught:
        load_towers(f"local-dir:{tmp_path}")
    got = message.format("where the model has")
    assert str(caught.value) == f"{path}: expected the weights of 'local-dir:{tmp_path}', got {got}"


def test_weights_from_before_custom_texts_are_read_and_compared(tmp_path):
    model = write_folder(tmp_path, "vit")
    old = {"model_cfg": {**CONFIGS["vit"], "custom_text": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(old))
    towers = load_towers(f"local-dir:{tmp_path}")
    assert torch.equal(towers.text.positional_embedding, model.positional_embedding)
    old["model_cfg"]["text_cfg"] = CONFIGS["vit"]["text_cfg"] | {"context_length": 40}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(old))
    with pytest.raises(TowerError, match=r"got 'text.positional_embedding' of shape \(24, 32\) where the model has"):
        load_towers(f"local-dir:{tmp_path}")


def test_a_scale_of_one_entry_is_a_number(tmp_path):
    weights = write_folder(tmp_path, "vit").state_dict()
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    assert load_towers(f"local-dir:{tmp_path}").logit_scale == pytest.approx(float(weights["logit_scale"].exp()))


class _Harmful:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _other_model(path: Path) -> None:
    save_file(small_model("resnet").state_dict(), path)


def _one_missing(path: Path) -> None:
    weights = load_file(path)
    del weights["ln_final.bias"]
    save_file(weights, path)


def _text(path: Path) -> None:
    path.write_text("<html>not found</html>")


REFUSED_FILES = {
    "truncated safetensors": ("w.safetensors", _truncated, ".+"),
    "truncated pickle": ("w.pt", _truncated, ".+"),
    "other model": (
        "w.safetensors",
        _other_model,
        "'.*' of shape \\(.*\\) where the model has \\(.*\\); its shapes are those of pvlr-test-resnet",
    ),
    "one weight missing": ("w.safetensors", _one_missing, "no weight 'ln_final.bias'"),
    "text": ("w.bin", _text, "neither safetensors nor a file of torch.save"),
    "harmful": (
        "w.pt",
        lambda path: torch.save({"state_dict": _Harmful()}, path),
        "the pickled object 'print', which is not loaded, for it could run code .*",
    ),
    "a list": ("w.pt", lambda path: torch.save([1, 2], path), "no weights by name, but an object of the class list"),
    "nothing in it": ("w.pt", lambda path: torch.save({}, path), "no weights"),
}


@pytest.mark.parametrize("case", REFUSED_FILES)
def test_refused_files(case, tmp_path, capsys):
    file, spoil, message = REFUSED_FILES[case]
    path = tmp_path / file
    (save_file if file.endswith("safetensors") else torch.save)(small_model("vit").state_dict(), path)
    spoil(path)
    with pytest.raises(TowerError) as caught:
        load_towers("pvlr-test-vit", weights=path)
    start = f"{path}: expected the weights of 'pvlr-test-vit', got "
    assert str(caught.value).startswith(start)
    assert re.fullmatch(message, str(caught.value).removeprefix(start)), str(caught.value)
    assert "never be printed" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- downloads

CLIP_REPOSITORY = "timm/vit_base_patch16_clip_224.openai"
FAILED_DOWNLOADS = {
    "a tag": (
        {"name": "ViT-B-16-quickgelu", "weights": "openai"},
        "Could not fetch the weights 'openai' of 'ViT-B-16-quickgelu': the line is dead\n"
        f"It comes from the repository {CLIP_REPOSITORY} of the Hugging Face Hub.\n{LOCAL_COPY}",
    ),
    "a hub name": (
        {"name": "hf-hub:some/where"},
        "Could not fetch the tower 'hf-hub:some/where': the line is dead\n"
        f"It comes from the repository some/where of the Hugging Face Hub.\n{LOCAL_FOLDER}",
    ),
}


@pytest.mark.parametrize("reachable", [True, False], ids=["fails while downloading", "fails at once"])
@pytest.mark.parametrize("case", FAILED_DOWNLOADS)
def test_a_failed_download_says_three_things(case, reachable, monkeypatch):
    def dead(*_: Any, **__: Any) -> str:
        raise OSError("the line is dead\n\n")

    _small_stands_in(monkeypatch)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", dead)
    monkeypatch.setattr(sources, "require_reachable", (lambda *_: True) if reachable else dead)
    arguments, message = FAILED_DOWNLOADS[case]
    with pytest.raises(TowerError) as caught:
        load_towers(**arguments)
    assert str(caught.value) == message
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["no such/repository/at all", "../../etc", ""])
def test_a_name_that_no_repository_can_have(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TowerError, match=f"^Could not fetch the tower 'hf-hub:{name}': Repo id must ") as caught:
        load_towers(f"hf-hub:{name}")
    assert len(str(caught.value).splitlines()) == 3


def _small_stands_in(monkeypatch) -> None:
    """Build a small model under whatever name, to be quick."""
    monkeypatch.setattr("pvlr.core.towers.loading.build_model", lambda *_: small_model("vit"))


def test_a_download_of_open_clips_own_address_names_its_host(monkeypatch):
    def dead(*_: Any, **__: Any) -> str:
        raise OSError("x" * 500)

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", dead)
    with pytest.raises(TowerError) as caught:
        sources.fetch({"url": "https://models.example.org/a/b.pt"}, "the weights", None)
    lines = str(caught.value).splitlines()
    assert lines[1:] == ["It comes from models.example.org.", LOCAL_COPY]
    assert len(lines[0]) < 280


def test_a_download_of_nothing_is_refused(monkeypatch):
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda *_, **__: "")
    with pytest.raises(TowerError, match="Could not fetch the weights: nothing was downloaded\n"):
        sources.fetch({"url": "https://models.example.org/a/b.pt"}, "the weights", None)


def test_without_a_network_the_refusal_is_quick(monkeypatch, tmp_path):
    # Nothing listens there, so every request is refused: the real download, and the real error.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", UNREACHABLE, raising=False)
    _small_stands_in(monkeypatch)
    start = time.monotonic()
    with pytest.raises(TowerError) as caught:
        load_towers("ViT-B-16-quickgelu", weights="openai", cache_dir=str(tmp_path))
    assert time.monotonic() - start < 20  # open_clip alone retries for 46 s
    assert len(str(caught.value).splitlines()) == 3


UNREACHABLE = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"


def test_what_is_fetched_is_loaded(monkeypatch, tmp_path):
    model = write_folder(tmp_path, "vit")
    asked: list[dict[str, Any]] = []

    def fetched(record: dict[str, Any], cache_dir: str | None = None) -> str:
        asked.append(record)
        assert cache_dir == "some cache"
        known = {"open_clip_config.json"} & {Path(record["hf_hub"]).name}
        return str(tmp_path / (known.pop() if known else "open_clip_model.safetensors"))

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", fetched)
    monkeypatch.setattr(sources, "require_reachable", lambda *_: True)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: WordTokenizer((1,), (49407,), 0))
    towers = load_towers("hf-hub:some/where", cache_dir="some cache")
    assert towers.fingerprint == weights_fingerprint(model.state_dict(), architecture=CONFIGS["vit"])
    assert towers.preprocess["mean"] == (0.1, 0.2, 0.3)
    assert [record["hf_hub"] for record in asked] == ["some/where/open_clip_config.json", "some/where/"]

    published = {**open_clip.get_pretrained_cfg("ViT-B-16-quickgelu", "openai"), "std": (0.1, 0.1, 0.1)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: published)
    towers = load_towers("pvlr-test-vit", weights="openai", cache_dir="some cache")
    assert towers.fingerprint == weights_fingerprint(model.state_dict(), architecture=CONFIGS["vit"])
    assert towers.preprocess["std"] == (0.1, 0.1, 0.1)


def test_what_is_in_the_cache_needs_no_network(monkeypatch, tmp_path):
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: asked.append(url))
    snapshot = tmp_path / "models--some--where" / "snapshots" / ("0" * 40)
    sources.require_reachable("some/where", ("a.safetensors", "b.bin"), str(tmp_path))
    assert len(asked) == 1
    assert "a.safetensors" in asked[0]
    snapshot.mkdir(parents=True)
    (snapshot / "b.bin").write_bytes(b"")
    (tmp_path / "models--some--where" / "refs").mkdir()
    (tmp_path / "models--some--where" / "refs" / "main").write_text("0" * 40)
    sources.require_reachable("some/where", ("a.safetensors", "b.bin"), str(tmp_path))
    assert len(asked) == 1


# ------------------------------------------------------------------------------------------------------ tokenizers


def test_a_tokenizer_that_needs_a_package(monkeypatch):
    monkeypatch.setattr(hf_files, "find_spec", lambda name: None)
    with pytest.raises(TowerError) as caught:
        load_towers("pvlr-test-hub-tokenizer")
    assert str(caught.value) == (
        "the tokenizer of 'pvlr-test-hub-tokenizer' needs the package transformers, "
        "which is not installed (pip install 'pvlr[hf]')"
    )


def test_a_tokenizer_whose_own_needs_are_not_met(monkeypatch):
    def lacking(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'sentencepiece'", name="sentencepiece")

    monkeypatch.setattr(open_clip, "get_tokenizer", lacking)
    with pytest.raises(TowerError, match="the tokenizer of 'pvlr-test-vit' needs the package sentencepiece, which is"):
        load_towers("pvlr-test-vit")


def test_a_tokenizer_that_cannot_be_fetched(monkeypatch):
    def dead(repository: str, *_: Any) -> None:
        assert repository == "some-organisation/some-tokenizer"
        raise OSError("the line is dead")

    monkeypatch.setattr(hf_files, "find_spec", lambda name: object())
    monkeypatch.setattr(tokenizers, "require_reachable", dead)
    with pytest.raises(TowerError) as caught:
        load_towers("pvlr-test-hub-tokenizer")
    assert str(caught.value) == (
        "Could not fetch the tokenizer of 'pvlr-test-hub-tokenizer': the line is dead\n"
        f"It comes from the repository some-organisation/some-tokenizer of the Hugging Face Hub.\n{LOCAL_FOLDER}"
    )
