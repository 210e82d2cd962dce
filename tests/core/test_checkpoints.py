"""Files of weights as people have them: read to the same tower, or refused in one sentence; nothing of them is run."""

import json
import logging
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tower_models import CONFIGS, register, small_model, write_folder
from weight_files import hf_config, write_archive, write_epoch, write_transformers

from pvlr.core.towers import TowerError, TowerSpec, load_towers, weights_fingerprint
from pvlr.core.towers.archives import is_script, read_script, script_entries
from pvlr.core.towers.naming import names_of, names_of_file
from pvlr.core.towers.sources import find_source
from pvlr.core.towers.states import plain_names, read_state, shard_names

PLAIN, QUICK = "pvlr-twin", "pvlr-twin-quickgelu"


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("configs")
    for name, quick_gelu in ((PLAIN, False), (QUICK, True)):
        (folder / f"{name}.json").write_text(json.dumps({**CONFIGS["vit"], "quick_gelu": quick_gelu}))
    register(folder)


def fingerprint(model: Any, kind: str = "vit") -> str:
    return weights_fingerprint(model.state_dict(), architecture=CONFIGS[kind])


# -------------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@torch.no_grad()
def test_an_archive_of_openai_s_is_the_tower_it_was_made_of(kind, tmp_path):
    model = small_model(kind).half().float()  # whose numbers survive the halves of the archive
    path = tmp_path / "ViT-B-16.pt"
    write_archive(path, model, of_openai=kind == "vit")  # for OpenAI's have QuickGELU, and the other has not
    state = read_script(path)
    assert state.keys() == model.state_dict().keys()
    assert {value.dtype for value in state.values()} <= {torch.float16, torch.int64}
    towers = load_towers(f"pvlr-test-{kind}", weights=path)
    expected = {"quick_gelu": False, **CONFIGS[kind]}
    assert towers.fingerprint == weights_fingerprint(model.state_dict(), architecture=expected)
    assert all(value.dtype == torch.float32 for value in towers.image.parameters())


def test_an_archive_is_the_only_file_of_a_folder(tmp_path):
    model = write_folder(tmp_path, "vit").half().float()
    (tmp_path / "open_clip_model.safetensors").unlink()
    write_archive(tmp_path / "any.pt", model)
    assert load_towers(f"local-dir:{tmp_path}").fingerprint == fingerprint(model)


def test_what_an_archive_holds_is_what_torch_reads_from_it(tmp_path):
    path = tmp_path / "a.pt"
    write_archive(path, small_model("resnet"))
    with pytest.warns(FutureWarning) if torch.__version__ >= "2.14" else pytest.MonkeyPatch.context():
        theirs = torch.jit.load(str(path)).state_dict()
    ours = read_script(path)
    assert theirs.keys() - ours.keys() == {"attn_mask", "input_resolution", "context_length", "vocab_size"}
    for name, value in ours.items():
        assert torch.equal(value, theirs[name])
        assert value.shape == theirs[name].shape


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], packed: str = "") -> None:
    """The same zip file with other contents."""
    with zipfile.ZipFile(path) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files:
            other = change(name, content)
            if other is not None:
                kind = zipfile.ZIP_DEFLATED if packed and name.endswith(packed) else zipfile.ZIP_STORED
                archive.writestr(name, other, kind)


def _pickled(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return content
        assert old in content
        return content.replace(old, new, 1)

    return change


CALL = b"ctorch._utils\n_rebuild_tensor_v2\n"
ODD_ARCHIVES: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "another function": (
        _pickled(CALL, b"cposix\nsystem\n"),
        "a call of 'posix system', which no archive of weights needs",
    ),
    "numbers of another type": (_pickled(b"HalfStorage", b"ByteStorage"), "numbers of the type 'torch ByteStorage'"),
    "another instruction": (_pickled(b"\x80\x02", b"\x80\x02I1\n"), "the pickled instruction INT, which no archive .*"),
    "no tree": (lambda name, content: None if name.endswith("/data.pkl") else content, ".* with 0 files data.pkl"),
    "a large tree": (
        lambda name, content: content + bytes(5_000_000) if name.endswith("/data.pkl") else content,
        "a TorchScript archive whose data.pkl has 5,.* bytes, at most 4,000,000 are read",
    ),
    "numbers too few": (
        lambda name, content: content[:-2] if "/data/" in name and len(content) > 8 else content,
        "'.*/data/.*' of .* bytes for .* numbers of torch.float16",
    ),
    "a file of numbers missing": (
        lambda name, content: None if name.endswith("/data/0") else content,
        ".*There is no item named '.*/data/0' in the archive.*",
    ),
    "pickle cut short": (
        lambda name, content: content[:300] if name.endswith("/data.pkl") else content,
        ".+",
    ),
    "no module": (
        lambda name, content: b"\x80\x02K\x01." if name.endswith("/data.pkl") else content,
        "a TorchScript archive without a module",
    ),
    "keys that are no names": (
        lambda name, content: b"\x80\x02}))s." if name.endswith("/data.pkl") else content,
        "a dictionary whose keys are no names",
    ),
    "describes nothing": (
        lambda name, content: b"\x80\x02K\x01K\x01b." if name.endswith("/data.pkl") else content,
        "an object that is no module",
    ),
    "takes from nothing": (
        lambda name, content: b"\x80\x02R." if name.endswith("/data.pkl") else content,
        "a data.pkl that describes nothing: pop from empty list",
    ),
}


@pytest.mark.parametrize("case", ODD_ARCHIVES)
def test_refused_archives(case, tmp_path):
    change, message = ODD_ARCHIVES[case]
    path = tmp_path / "a.pt"
    write_archive(path, small_model("vit"), of_openai=False)
    rewritten(path, change)
    with pytest.raises(TowerError) as caught:
        load_towers("pvlr-test-vit", weights=path)
    start = f"{path}: expected the weights of 'pvlr-test-vit', got "
    assert str(caught.value).startswith(start)
    assert re.fullmatch(message, str(caught.value).removeprefix(start)), str(caught.value)


def _tree(*instructions: bytes) -> bytes:
    """A module that holds one thing, ``x``."""
    return b"".join((b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00x", *instructions, b"sb."))


def _tensor(length: int, offset: bytes, shape: bytes, stride: bytes) -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK" + bytes(
        [length]
    )
    return CALL + b"(" + storage + b"tQ" + offset + shape + stride + b"\x89}tR"


TREES = {
    "a view": (_tensor(6, b"K\x01", b"K\x02K\x02\x86", b"K\x01K\x03\x86"), None),
    "no numbers": (_tensor(0, b"K\x00", b"K\x00\x85", b"K\x01\x85"), None),
    "a list of numbers": (b"ctorch.jit._pickle\nbuild_intlist\n](K\x03K\x04e\x85R", None),
    "an ordered dictionary": (b"ccollections\nOrderedDict\n)R", None),
    "negative": (_tensor(6, b"J\xff\xff\xff\xff", b"K\x02\x85", b"K\x01\x85"), "not described by a few numbers"),
    "many axes": (_tensor(6, b"K\x00", b"(" + b"K\x01" * 20 + b"t", b"(" + b"K\x01" * 20 + b"t"), "by a few numbers"),
    "larger than its file": (_tensor(6, b"K\x00", b"K\x07\x85", b"K\x00\x85"), "of shape \\(7,\\) in a file of 6"),
    "behind its file": (_tensor(6, b"K\x05", b"K\x02\x85", b"K\x01\x85"), "out of bounds"),
    "itself": (b"c__torch__\nM\n)\x81q\x01}X\x01\x00\x00\x00yh\x01sb", "modules more than 64 deep"),
}


@pytest.mark.parametrize("case", TREES)
def test_trees_that_describe_tensors(case, tmp_path):
    held, message = TREES[case]
    path = tmp_path / "a.pt"
    numbers = torch.arange(6.0)[: 0 if case == "no numbers" else 6].numpy().tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", _tree(held)), ("constants.pkl", b""), ("data/0", numbers)):
            archive.writestr(f"m/{name}", content)
    if message is not None:
        with pytest.raises((ValueError, RuntimeError), match=message):
            read_script(path)
        return
    found = read_script(path)
    if case == "a view":
        assert torch.equal(found["x"], torch.arange(6.0).as_strided((2, 2), (1, 3), 1))
    elif case == "no numbers":
        assert found["x"].shape == (0,)
    else:
        assert found == {}
    with zipfile.ZipFile(path) as archive:
        assert is_script(archive)
        assert script_entries(archive).keys() == found.keys()


# ----------------------------------------------------------------------------------------------------- checkpoints


def _inside(name: str) -> str:
    return name.replace("visual.", "visual._orig_mod.")


WRAPPED: dict[str, Callable[[str], str]] = {
    "plain": lambda name: name,
    "distributed": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "the other way round": lambda name: f"_orig_mod.module.{name}",
    "a part compiled": _inside,
    "a part of a distributed one": lambda name: f"module.{_inside(name)}",
    "Lightning": lambda name: f"model.{name}",
    "Lightning, compiled": lambda name: f"net._orig_mod.{name}",
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", WRAPPED)
def test_a_checkpoint_of_a_training_is_the_tower_in_it(case, zipped, tmp_path):
    model, path = small_model("vit"), tmp_path / "epoch_1.pt"
    write_epoch(path, {WRAPPED[case](name): value for name, value in model.state_dict().items()}, zipped=zipped)
    assert load_towers("pvlr-test-vit", weights=path).fingerprint == fingerprint(model)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "module"])
def test_the_weights_are_at_the_top_or_below_one_key(key, tmp_path):
    model, path = small_model("vit"), tmp_path / "w.pt"
    state = model.state_dict()
    torch.save(state if key is None else {"step": 3, key: state}, path)
    assert load_towers("pvlr-test-vit", weights=path).fingerprint == fingerprint(model)


@given(st.lists(st.sampled_from(["module", "_orig_mod", "model", "net"]), max_size=4), st.integers(0, 2))
def test_whatever_wraps_a_model_leaves_its_names(wrappers, place):
    names = ["visual.proj", "visual.transformer.resblocks.0.ln_1.weight", "token_embedding.weight", "logit_scale"]

    def wrapped(name: str) -> str:
        parts = name.split(".")
        return ".".join([*wrappers, *parts[:place], "_orig_mod", *parts[place:]])

    state = {wrapped(name): torch.ones(()) for name in names}
    assert [*plain_names(state, {"visual", "token_embedding", "logit_scale"})] == names


def test_a_part_of_a_model_keeps_its_name():
    state = {"visual.proj": torch.ones(()), "visual.class_embedding": torch.ones(())}
    assert plain_names(state, {"visual"}) == state
    with pytest.raises(ValueError, match="weights of the same name, with and without '_orig_mod'"):
        plain_names({"a.b": torch.ones(()), "a._orig_mod.b": torch.ones(())}, {"a"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_width_are_read_as_float32(dtype, tmp_path):
    model = small_model("vit").to(torch.float16).to(torch.bfloat16).to(torch.float32)
    path = tmp_path / "w.safetensors"
    save_file({name: value.to(dtype) for name, value in model.state_dict().items()}, path)
    towers = load_towers("pvlr-test-vit", weights=path)
    assert towers.fingerprint == fingerprint(model)


@pytest.mark.parametrize("ending", ["pt", "bin", "safetensors", "ckpt"])
def test_what_a_file_is_follows_from_its_content(ending, tmp_path):
    model, path = small_model("vit"), tmp_path / f"w.{ending}"
    for save in (save_file, torch.save):
        save(model.state_dict(), path)
        assert load_towers("pvlr-test-vit", weights=path).fingerprint == fingerprint(model)


def test_numbers_of_numpy_are_passed_over_and_not_made(tmp_path, monkeypatch):
    path = tmp_path / "epoch_1.pt"
    write_epoch(path, {"a": torch.ones(2)})
    torch.save({"state_dict": {"a": torch.ones(2)}, "best": np.float32(1), "all": np.ones(9)}, tmp_path / "b.pt")
    for file in (path, tmp_path / "b.pt"):
        assert [*read_state(file)] == ["a"]


class _Written:
    """Would write a file, if it were made."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "this ran")


def _state(**changes: Any) -> dict[str, Any]:
    return {**small_model("vit").state_dict(), **changes}


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a whole model": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "the pickled object 'torch.nn.modules.linear.Linear', which is not loaded, for it could run code "
        "\\(a file of torch.save\\(model.state_dict\\(\\), …\\) has weights alone\\)",
    ),
    "neither weights nor a key": (
        lambda path: torch.save({"epoch": 3, "weights": {"a": torch.ones(1)}}, path),
        "weights neither at the top nor under state_dict, model, model_state_dict, module, but the entries 'epoch', .*",
    ),
    "an object among the weights": (
        lambda path: torch.save({"state_dict": _state(version=3)}, path),
        "'version' among the weights, which is no tensor",
    ),
    "one too many": (
        lambda path: torch.save(_state(**{"loss.weight": torch.ones(1), "loss.bias": torch.ones(1)}), path),
        "a weight too many: 'loss.bias' \\(and 1 more\\)",
    ),
    "whole numbers": (
        lambda path: torch.save(_state(logit_scale=torch.tensor(3)), path),
        "'logit_scale' of the type torch.int64, where a floating point number is meant",
    ),
    "eighths": (
        lambda path: torch.save(_state(logit_scale=torch.ones(()).to(torch.float8_e4m3fn)), path),
        "'logit_scale' of the type torch.float8_e4m3fn, where float16, bfloat16, float32 or float64 is read",
    ),
    "sparse": (
        lambda path: torch.save(_state(**{"ln_final.bias": torch.ones(32).to_sparse()}), path),
        "'ln_final.bias' stored sparsely, where all numbers are meant to be there",
    ),
    "more than the file holds": (
        lambda path: torch.save(_state(**{"ln_final.bias": torch.ones(1).expand(32)}), path),
        "'ln_final.bias' of shape \\(32,\\), which is more than the file holds of it",
    ),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 350000000\n"),
        "a pointer of Git LFS, which stands for the file \\('git lfs pull' fetches it\\)",
    ),
    "nothing": (lambda path: path.write_bytes(b""), "neither safetensors nor a file of torch.save"),
    "an old pickle cut short": (
        lambda path: (
            torch.save(_state(), path, _use_new_zipfile_serialization=False),
            path.write_bytes(path.read_bytes()[:-999]),
        ),
        "a pickle that is cut short or damaged: .+",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_files(case, tmp_path):
    make, message = REFUSED[case]
    path = tmp_path / "w.pt"
    make(path)
    with pytest.raises(TowerError) as caught:
        load_towers("pvlr-test-vit", weights=path)
    start = f"{path}: expected the weights of 'pvlr-test-vit', got "
    assert str(caught.value).startswith(start)
    assert re.fullmatch(message, str(caught.value).removeprefix(start)), str(caught.value)


def test_arrays_that_expand_are_not_read(tmp_path):
    path = tmp_path / "w.npz"
    np.savez_compressed(path, a=np.zeros(20_000_000, dtype=np.float32))
    assert path.stat().st_size < 100_000
    with pytest.raises(TowerError, match=r"got arrays of 80,000,128 bytes, more than four times those of the model$"):
        load_towers("pvlr-test-vit", weights=path)


def test_nothing_of_a_file_is_run(tmp_path):
    path, proof = tmp_path / "w.pt", tmp_path / "proof"
    for zipped in (True, False):
        torch.save({"state_dict": _state(), "x": _Written(proof)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(TowerError, match="which is not loaded, for it could run code"):
            load_towers("pvlr-test-vit", weights=path)
    assert not proof.exists()


# ---------------------------------------------------------------------------------------------------------- shards


def test_weights_in_several_parts(tmp_path):
    model = write_folder(tmp_path, "vit")
    (tmp_path / "open_clip_model.safetensors").unlink()
    names, parts = list(model.state_dict()), ("model-1.safetensors", "model-2.safetensors")
    for number, part in enumerate(parts):
        save_file({name: model.state_dict()[name] for name in names[number::2]}, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: parts[i % 2] for i, name in enumerate(names)}}))
    assert shard_names(index) == list(parts)
    assert load_towers(f"local-dir:{tmp_path}").fingerprint == fingerprint(model)
    save_file({names[0]: model.state_dict()[names[0]]}, tmp_path / parts[1])
    with pytest.raises(TowerError, match=f"got '{re.escape(names[0])}' in two of its parts"):
        load_towers(f"local-dir:{tmp_path}")
    (tmp_path / parts[0]).unlink()
    with pytest.raises(TowerError, match=r"got an index that names 'model-1.safetensors', which is not beside it"):
        load_towers(f"local-dir:{tmp_path}")


INDICES = {
    "no table": ([], "an index without an entry 'weight_map'"),
    "an empty table": ({"weight_map": {}}, "an index without an entry 'weight_map'"),
    "above": ({"weight_map": {"a": "../x.bin"}}, "an index that names '../x.bin' where a file beside it is meant"),
    "elsewhere": ({"weight_map": {"a": "/x.bin"}}, "an index that names '/x.bin' where a file beside it is meant"),
    "a number": ({"weight_map": {"a": 3}}, "an index that names 3 where a file beside it is meant"),
    "another kind": ({"weight_map": {"a": "x.py"}}, "an index that names 'x.py' where a file beside it is meant"),
    "itself": ({"weight_map": {"a": "x.index.json"}}, "an index that names 'x.index.json' where a file .*"),
}


@pytest.mark.parametrize("case", INDICES)
def test_refused_indices(case, tmp_path):
    told, message = INDICES[case]
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_state(path)


# ------------------------------------------------------------------------------------- what a file does not say


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "w.safetensors"
    save_file(small_model("vit").state_dict(), path)
    return path


def test_an_activation_that_a_file_leaves_open_has_to_be_told(weights):
    asked = (
        f"activation: the file '{weights}' does not say with which it was trained, expected 'quick_gelu' with the name "
        f"'{QUICK}' (as OpenAI, MetaCLIP, DFN) or 'gelu' with '{PLAIN}' (as LAION, DataComp): --tower.activation"
    )
    for name in (PLAIN, QUICK):
        with pytest.raises(TowerError) as caught:
            load_towers(name, weights=weights)
        assert str(caught.value) == asked
    plain, quick = (
        load_towers(name, weights=weights, activation=told) for name, told in ((PLAIN, "gelu"), (QUICK, "quick_gelu"))
    )
    assert plain.fingerprint != quick.fingerprint
    assert (plain.spec.activation, quick.spec.activation) == ("gelu", "quick_gelu")
    assert load_towers("pvlr-test-vit", weights=weights).spec.activation is None  # of which there is one alone


@pytest.mark.usefixtures("unchecked")
def test_an_activation_that_is_told_is_that_of_the_name(weights, tmp_path):
    for name, told, has, other in ((PLAIN, "quick_gelu", "GELU", QUICK), (QUICK, "gelu", "QuickGELU", PLAIN)):
        with pytest.raises(TowerError) as caught:
            load_towers(name, weights=weights, activation=told)
        expected = f"activation: '{told}' is told, but '{name}' computes {has}; ask for '{other}'"
        assert str(caught.value) == expected
    write_folder(tmp_path / "tower", "vit")
    with pytest.raises(TowerError, match=r"^activation: 'gelu' is told, but 'local-dir:.*' computes QuickGELU$"):
        load_towers(f"local-dir:{tmp_path / 'tower'}", activation="gelu")
    with pytest.raises(ValueError, match="activation: expected one of 'gelu', 'quick_gelu', got 'relu'"):
        TowerSpec(activation="relu")  # type: ignore[arg-type]


def test_a_configuration_beside_a_file_is_pointed_at(weights):
    (weights.parent / "open_clip_config.json").write_text("{}")
    with pytest.raises(TowerError, match=r"--tower.activation \(or name its folder, whose open_clip_config.json says"):
        load_towers(PLAIN, weights=weights)


def test_an_archive_of_openai_s_says_its_activation(tmp_path):
    path = tmp_path / "a.pt"
    write_archive(path, small_model("vit"))
    assert load_towers(QUICK, weights=path).spec.activation is None
    with pytest.raises(TowerError) as caught:
        load_towers(PLAIN, weights=path)
    assert str(caught.value) == (
        f"weights: '{path}' is one of OpenAI's, trained with QuickGELU, but '{PLAIN}' computes GELU; ask for '{QUICK}'"
    )
    write_archive(path, small_model("vit"), of_openai=False)
    with pytest.raises(TowerError, match="does not say with which it was trained"):
        load_towers(QUICK, weights=path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TowerError, match=r"expected the weights of 'pvlr-twin', got a zip file that is cut short"):
        load_towers(PLAIN, weights=path, activation="gelu")


def test_a_mean_that_published_weights_do_not_agree_on_has_to_be_told(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(TowerError) as caught:
        find_source("ViT-L-14", path, None, activation="gelu", mean=(0.5, 0.5, 0.5))
    assert str(caught.value) == (
        f"mean, std: the file '{path}' does not say how images are normalised, and the published weights of 'ViT-L-14' "
        "differ, expected [0.48145466, 0.4578275, 0.40821073] and [0.26862954, 0.26130258, 0.27577711] (as "
        "'laion400m_e31') or [0.5, 0.5, 0.5] and [0.5, 0.5, 0.5] (as 'laion2b_s32b_b82k'): --tower.mean and --tower.std"
    )
    half = (0.5, 0.5, 0.5)
    source = find_source("ViT-L-14", path, None, activation="gelu", mean=half, std=half)
    assert source.preprocess == {"mean": [0.5] * 3, "std": [0.5] * 3}
    # With QuickGELU all of them are as OpenAI's.
    source = find_source("ViT-L-14-quickgelu", path, None, activation="quick_gelu")
    assert source.preprocess["mean"] == open_clip.OPENAI_DATASET_MEAN
    assert find_source("ViT-L-14", None, None).preprocess == {}


@pytest.mark.usefixtures("unchecked")
def test_a_mean_that_is_told_takes_the_place_of_any_other(weights, tmp_path):
    write_folder(tmp_path / "tower", "vit")
    towers = load_towers(f"local-dir:{tmp_path / 'tower'}", mean=(0.0, 0.25, 1.0))
    assert towers.preprocess["mean"] == (0.0, 0.25, 1.0)
    assert towers.preprocess["std"] == (0.4, 0.5, 0.6)
    towers = load_towers("pvlr-test-vit", weights=weights, std=[0.1, 0.2, 0.3])
    assert towers.preprocess["std"] == (0.1, 0.2, 0.3)
    assert towers.spec.std == (0.1, 0.2, 0.3)
    for field, value in (
        ("mean", (0.5, 0.5)),
        ("mean", (0.5, 0.5, 2)),
        ("std", (0.0, 0.5, 0.5)),
        ("std", (1, 1, True)),
    ):
        with pytest.raises(ValueError, match=f"{field}: expected three numbers from .* to 1, got"):
            TowerSpec(**{field: value})


def test_what_is_told_goes_with_the_spec(weights):
    spec = TowerSpec(name=PLAIN, weights=str(weights), activation="gelu", mean=(0.1, 0.2, 0.3))
    assert TowerSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.is_local
    # Of an earlier version, which asked nobody and took the name's word.
    older = {key: value for key, value in spec.to_json().items() if key not in ("activation", "mean", "std")}
    assert TowerSpec.from_json(older).activation == "gelu"
    assert TowerSpec.from_json({**older, "name": QUICK}).activation == "quick_gelu"
    assert TowerSpec.from_json({**older, "name": "local-dir:x", "weights": None}).activation is None
    assert TowerSpec.from_json({**older, "name": "gone"}).activation is None


# ---------------------------------------------------------------------------------------------------------- naming


def test_weights_without_a_configuration_are_told_their_name(tmp_path):
    write_archive(tmp_path / "ViT-B-16.pt", small_model("vit"))
    with pytest.raises(TowerError) as caught:
        load_towers(f"local-dir:{tmp_path}")
    found = re.fullmatch(
        f"{tmp_path}: expected the tower's configuration, open_clip_config.json or config.json, found neither; weights "
        f"alone are named with their architecture: --tower.name (.*) --tower.weights {tmp_path}/ViT-B-16.pt",
        str(caught.value),
    )
    assert found is not None, str(caught.value)
    assert {PLAIN, QUICK, "pvlr-test-vit"} <= set(found[1].split(" or "))
    (tmp_path / "ViT-B-16.pt").write_text("no weights")
    with pytest.raises(TowerError, match=r"--tower.name NAME, such as ViT-B-16, --tower.weights"):
        load_towers(f"local-dir:{tmp_path}")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(
        TowerError, match=f"weights: expected a file, '{tmp_path}' is a folder: --tower.name local-dir:"
    ):
        load_towers("pvlr-test-vit", weights=tmp_path)


NAMED = ("ViT-B-32", "RN50", "ViT-B-32-256", "ViT-S-16-alt")


@pytest.mark.parametrize("name", NAMED)
def test_published_architectures_are_told_by_their_shapes(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    found = names_of(model.state_dict())
    assert name in found
    assert all(open_clip.get_model_config(other)["vision_cfg"] == config["vision_cfg"] for other in found)


def test_files_that_are_of_no_architecture(tmp_path):
    assert names_of({"a": torch.ones(1)}) == []
    assert names_of(small_model("siglip").state_dict()) == []
    assert names_of_file(tmp_path / "nowhere") == []
    write_transformers(tmp_path, hf_config("clip", {"max_position_embeddings": 21}))
    assert names_of_file(tmp_path / "model.safetensors") == []


def test_random_weights_need_nothing_told(caplog):
    with caplog.at_level(logging.WARNING, logger="pvlr.core.towers.checkpoints"):
        load_towers(PLAIN)
    assert caplog.messages == [f"tower '{PLAIN}' has random weights, since none were named"]
