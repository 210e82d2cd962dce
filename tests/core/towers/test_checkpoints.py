"""Files of weights as people have them: read to the same tower, or refused in one sentence; nothing of them is run."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tower_models import CONFIGS, register, small_model, write_folder
from helpers.weight_files import write_epoch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pvlr.core.towers import TowerError, load_towers, weights_fingerprint
from pvlr.core.towers.files.states import plain_names, read_state, shard_names


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory) -> None:
    register(tmp_path_factory.mktemp("configs"))


def fingerprint(model: Any) -> str:
    return weights_fingerprint(model.state_dict(), architecture=CONFIGS["vit"])


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
    """Object that would write a file, if it were made."""

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
