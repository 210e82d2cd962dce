"""CLIP and SigLIP as transformers keeps them: the vectors are transformers' own; what is not taken is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers.tower_models import SENTENCES
from helpers.weight_files import change_json, hf_config, same_vectors, write_transformers
from safetensors.torch import load_file, save_file

from pvlr.core.towers import TowerError, load_towers
from pvlr.core.towers.building import build_model
from pvlr.core.towers.files import sources
from pvlr.core.towers.files.transformers_models import convert, describe, has_their_names

transformers = pytest.importorskip("transformers")
NAME = "local-dir:{}"
SOME_SENTENCES = ("a photo of a dog.", "a traffic light", "TV monitor seen from a dog")


# ------------------------------------------------------------------------------------------------------ definition


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("end", [2, 49407])
def test_clip_s_vectors_are_transformers_own(act, end, tmp_path):
    config = hf_config("clip", {"hidden_act": act, "eos_token_id": end}, hidden_act=act, layer_norm_eps=1e-4)
    model = write_transformers(tmp_path, config)
    towers = load_towers(NAME.format(tmp_path))
    same_vectors(towers, model, SENTENCES, 24)
    assert towers.text.path == "prefix"
    assert towers.logit_bias == 0.0


SIZES: dict[str, dict[str, Any]] = {
    "small": {},
    "as one of timm's": {"hidden_size": 64, "intermediate_size": 256, "image_size": 64, "patch_size": 16},
    "patches that leave a rest": {"hidden_size": 72, "intermediate_size": 269, "image_size": 45, "patch_size": 14},
}


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("size", SIZES)
def test_siglip_s_vectors_are_transformers_own(act, size, tmp_path):
    model = write_transformers(tmp_path, hf_config("siglip", {"hidden_act": act}, hidden_act=act, **SIZES[size]))
    towers = load_towers(NAME.format(tmp_path))
    same_vectors(towers, model, SOME_SENTENCES, 16)
    assert towers.text.path == "plain"
    assert towers.logit_bias == pytest.approx(float(model.logit_bias.detach()), rel=1e-6)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs(list(SOME_SENTENCES), padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert torch.equal(towers.text.tokenizer(list(SOME_SENTENCES), context_length=16), ids)


def test_the_approximated_gelu_is_no_other(tmp_path):
    """The tests above would not see a wrong activation whose vectors are the same."""
    write_transformers(tmp_path, hf_config("siglip"))
    towers = load_towers(NAME.format(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    approximated = towers.image(images).pooled
    trunk: Any = towers.image.visual.trunk
    for block in (*trunk.blocks, trunk.attn_pool):
        block.mlp.act = torch.nn.GELU()
    exact = towers.image(images).pooled
    assert float((exact - approximated).abs().max() / exact.abs().max()) > 1e-4


FORMS: dict[str, dict[str, Any]] = {
    "one file": {},
    "several": {"max_shard_size": "50KB"},
}


@pytest.mark.parametrize("form", [*FORMS, "pickled", "pickled, several", "halves"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_form_of_a_folder_is_the_same_tower(kind, form, tmp_path):
    config = hf_config(kind, {"vocab_size": 49408} if kind == "clip" else None)
    model = write_transformers(tmp_path, config, **FORMS.get(form, {}))
    state = {name: value.half() if form == "halves" else value for name, value in model.state_dict().items()}
    whole = tmp_path / "model.safetensors"
    if form == "halves":
        save_file(state, whole)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    if form.startswith("pickled"):
        whole.unlink()
        torch.save(state, tmp_path / "pytorch_model.bin")
    if form == "pickled, several":
        (tmp_path / "pytorch_model.bin").unlink()
        names = list(state)
        for number in (0, 1):
            torch.save({name: state[name] for name in names[number::2]}, tmp_path / f"part{number}.bin")
        table = {name: f"part{number % 2}.bin" for number, name in enumerate(names)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": table}))
    assert whole.exists() is (form in ("one file", "halves"))
    same_vectors(load_towers(NAME.format(tmp_path)), model, SOME_SENTENCES, 24 if kind == "clip" else 16)


def test_names_may_have_something_before_them_and_positions_after(tmp_path):
    model = write_transformers(tmp_path, hf_config("clip"))
    first = load_towers(NAME.format(tmp_path)).fingerprint
    state = {f"clip.{name}": value for name, value in model.state_dict().items()}
    for part in ("text_model", "vision_model"):
        state[f"clip.{part}.embeddings.position_ids"] = torch.arange(9)[None]
    save_file(state, tmp_path / "model.safetensors")
    assert load_towers(NAME.format(tmp_path)).fingerprint == first


def test_their_file_is_read_under_a_name_of_open_clip_s(tmp_path):
    model = write_transformers(tmp_path, hf_config("clip"))
    told = {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 12, "mlp_ratio": 100.5 / 48}
    text = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2, "mlp_ratio": 2.5}
    folder = tmp_path / "configs"
    folder.mkdir()
    named = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": told, "text_cfg": text}
    (folder / "pvlr-their-clip.json").write_text(json.dumps(named))
    open_clip.add_model_config(folder)
    same_vectors(load_towers("pvlr-their-clip", weights=tmp_path / "model.safetensors"), model, SENTENCES, 24)


_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
PUBLISHED: dict[str, dict[str, Any]] = {
    "ViT-B-32-quickgelu": {"model_type": "clip"},
    "ViT-B-16-SigLIP": {"model_type": "siglip"},
    "ViT-SO400M-14-SigLIP-384": {
        "model_type": "siglip",
        "text_config": _SO400M,
        "vision_config": {**_SO400M, "image_size": 384, "patch_size": 14},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_weights_that_open_clip_has(name):
    with torch.device("meta"):
        ours = build_model(describe(PUBLISHED[name], Path("config.json"))).state_dict()
        theirs = build_model(open_clip.get_model_config(name)).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_folder_in_open_clip_s_form_says_everything(kind, tmp_path):
    """Test that a model is saved with this configuration and these weights."""
    model = write_transformers(tmp_path / "theirs", hf_config(kind))
    towers = load_towers(NAME.format(tmp_path / "theirs"))
    source = sources.find_source(NAME.format(tmp_path / "theirs"), None, None)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "open_clip_config.json").write_text(json.dumps({"model_cfg": source.config}))
    state = {**towers.image.state_dict(), **towers.rest}
    prefix = "text." if kind == "siglip" else ""
    state |= {f"{prefix}{name}": value for name, value in towers.text.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, saved / "open_clip_model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json") if kind == "siglip" else ():
        shutil.copy(tmp_path / "theirs" / name, saved)
    again = load_towers(NAME.format(saved))
    assert again.fingerprint == towers.fingerprint
    same_vectors(again, model, SOME_SENTENCES, 24 if kind == "clip" else 16)
    larger = load_towers(NAME.format(saved), image_size=64)
    assert larger.image(torch.zeros(1, 3, 64, 64)).patches.shape[1] == 64


# -------------------------------------------------------------------------------------------------------- refusals

CONFIG = "^{folder}/config.json: expected "
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another type": ("clip", {"model_type": "blip"}, "the model_type 'clip' or 'siglip', found 'blip'$"),
    "half a model": ("clip", {"model_type": "clip_vision_model"}, "the model_type .*, found 'clip_vision_model'$"),
    "no type": ("clip", {"model_type": ["clip"]}, "the model_type 'clip' or 'siglip', found \\['clip'\\]$"),
    "NaFlex": (
        "siglip",
        {"model_type": "siglip2"},
        "the model_type 'clip' or 'siglip', found 'siglip2' \\(NaFlex\\), whose number of patches differs from image "
        "to image; SigLIP 2 of one size has the type 'siglip'$",
    ),
    "code": (
        "clip",
        {"auto_map": {"AutoModel": "modeling.Model"}},
        "a model of transformers' own, this one brings code \\(auto_map\\)$",
    ),
    "code of a half": ("clip", {"text_config": {"auto_map": {}}}, "a model of .* brings code \\(auto_map\\)$"),
    "quantised": ("clip", {"quantization_config": {}}, "weights in floating point, found a quantization_config$"),
    "joint width": ("clip", {"projection_dim": "wide"}, "projection_dim to be a positive integer, got 'wide'$"),
    "half of no object": ("clip", {"vision_config": [1]}, "vision_config to be an object, got \\[1\\]$"),
}

POSITIVE = "a positive integer"
# Of one half: the kind of model, the half, the entry, what it says, and what it may be.
REFUSED_ENTRIES: list[tuple[str, str, str, Any, str]] = [
    ("clip", "text", "hidden_act", "gelu", "'quick_gelu' as in vision_config"),
    ("siglip", "vision", "hidden_act", "relu", "'gelu' or 'gelu_pytorch_tanh' or 'gelu_new'"),
    ("siglip", "text", "hidden_act", 3, "'gelu' or 'gelu_pytorch_tanh' or 'gelu_new'"),
    ("clip", "vision", "hidden_size", -4, POSITIVE),
    ("clip", "text", "num_hidden_layers", True, POSITIVE),
    ("clip", "text", "vocab_size", 10**9, POSITIVE),
    ("clip", "vision", "image_size", [32, 48], POSITIVE),
    ("siglip", "vision", "num_attention_heads", 5, "a divisor of the width 48"),
    ("clip", "text", "num_attention_heads", 5, "a divisor of the width 32"),
    ("clip", "vision", "num_channels", 1, "3"),
    ("siglip", "vision", "vision_use_head", False, "True"),
    ("siglip", "vision", "layer_norm_eps", 1e-5, "1e-06"),
    ("clip", "text", "layer_norm_eps", 0, "a number above 0"),
    ("siglip", "text", "projection_size", 32, "48, the width of images"),
    ("clip", "text", "eos_token_id", 50000, "a token of the vocabulary of 49,408"),
    ("clip", "text", "eos_token_id", [1, 2], "a token of the vocabulary of 49,408"),
]


@pytest.mark.parametrize(("kind", "half", "entry", "value", "expected"), REFUSED_ENTRIES)
def test_refused_entries_of_a_half(kind, half, entry, value, expected, tmp_path):
    write_transformers(tmp_path, hf_config(kind))
    change_json(tmp_path / "config.json", **{f"{half}_config": {entry: value}})
    with pytest.raises(TowerError) as caught:
        load_towers(NAME.format(tmp_path))
    start = f"{tmp_path}/config.json: expected {half}_config.{entry} to be "
    assert str(caught.value) == f"{start}{expected}, got {value!r}"


@pytest.mark.parametrize("case", REFUSED)
def test_refused_configurations(case, tmp_path):
    kind, changes, message = REFUSED[case]
    write_transformers(tmp_path, hf_config(kind))
    change_json(tmp_path / "config.json", **changes)
    with pytest.raises(TowerError, match=CONFIG.format(folder=tmp_path) + message) as caught:
        load_towers(NAME.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_object(tmp_path):
    with pytest.raises(TowerError, match=r"^config.json: expected the configuration of a model, got \[1\]$"):
        describe([1], Path("config.json"))


def test_what_configurations_leave_out_is_as_in_transformers():
    for kind, config_class in (("clip", transformers.CLIPConfig), ("siglip", transformers.SiglipConfig)):
        sparse = describe({"model_type": kind}, Path("config.json"))
        full = config_class()
        told = {
            "model_type": kind,
            **{part: getattr(full, part).to_dict() for part in ("vision_config", "text_config")},
        }
        assert sparse == describe(told, Path("config.json"))


def test_an_older_entry_goes_before_the_newer_one():
    told = {"model_type": "clip", "text_config": {"hidden_size": 64}, "text_config_dict": {"hidden_size": 128}}
    theirs = transformers.CLIPConfig.from_dict(told).text_config
    ours = describe(told, Path("config.json"))["text_cfg"]
    assert (ours["width"], ours["layers"]) == (theirs.hidden_size, theirs.num_hidden_layers) == (128, 12)


@pytest.mark.parametrize(
    ("width", "hidden"), [(1152, 4304), (72, 269), (1536, 6144), (1408, 6144), (112, 976), (22, 30)]
)
def test_a_hidden_width_of_any_size_is_told_as_a_ratio(width, hidden):
    vision = {"hidden_size": width, "intermediate_size": hidden, "num_attention_heads": 1}
    config = describe({"model_type": "clip", "vision_config": vision}, Path("config.json"))
    assert int(width * config["vision_cfg"]["mlp_ratio"]) == hidden


MISSING = {
    "a key": (lambda state: state.pop("text_model.encoder.layers.0.self_attn.k_proj.bias"), "no weight '.*k_proj.*'"),
    "a norm": (lambda state: state.pop("text_model.final_layer_norm.bias"), "no weight 'ln_final.bias'"),
    "one too many": (
        lambda state: state.__setitem__("text_model.new.weight", torch.ones(1)),
        "a weight too many: 'text_model.new.weight'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_every_weight_is_there_and_no_other(case, tmp_path):
    change, message = MISSING[case]
    write_transformers(tmp_path, hf_config("clip"))
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(TowerError, match=f"model.safetensors: expected the weights of '.*', got {message}$"):
        load_towers(NAME.format(tmp_path))


def test_other_weights_keep_their_names():
    state = {"visual.proj": torch.ones(2, 3)}
    assert not has_their_names(state)
    assert convert(state).keys() == state.keys()


# ------------------------------------------------------------------------------------------------- sizes of a trunk

TRUNK = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2.1, "act_layer": "gelu"}
ODD_TRUNKS: dict[str, tuple[Any, str]] = {
    "no object": (3, "expected vision_cfg.timm_model_kwargs to be an object, got 3"),
    "weights of its own": ({**TRUNK, "pretrained": True}, "got 'pretrained': True"),
    "a file of weights": ({**TRUNK, "checkpoint_path": "x.pt"}, "got 'checkpoint_path': 'x.pt'"),
    "a layer by name": ({**TRUNK, "norm_layer": "os.system"}, "got 'norm_layer': 'os.system'"),
    "another activation": ({**TRUNK, "act_layer": "relu"}, "got 'act_layer': 'relu'"),
    "a number of another kind": ({**TRUNK, "drop_path_rate": 0.5}, "got 'drop_path_rate': 0.5"),
    "a truth": ({**TRUNK, "depth": True}, "got 'depth': True"),
}


@pytest.mark.parametrize("case", ODD_TRUNKS)
def test_what_timm_may_be_told(case, tmp_path):
    told, message = ODD_TRUNKS[case]
    write_transformers(tmp_path, hf_config("siglip"))
    config = sources.find_source(NAME.format(tmp_path), None, None).config
    config["vision_cfg"]["timm_model_kwargs"] = told
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(
        TowerError, match=f"^{tmp_path}/open_clip_config.json: expected vision_cfg.* {message}$|{message}$"
    ):
        load_towers(NAME.format(tmp_path))


def test_sizes_go_with_siglip_s_pool(tmp_path):
    write_transformers(tmp_path, hf_config("siglip"))
    config = sources.find_source(NAME.format(tmp_path), None, None).config
    config["vision_cfg"]["timm_pool"] = "avg"
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(TowerError, match=r"expected timm_pool 'map' and timm_proj 'none' with it$"):
        load_towers(NAME.format(tmp_path))
