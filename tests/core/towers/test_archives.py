"""TorchScript archives of weights: read to the same tower without their code, or refused in one sentence."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tower_models import CONFIGS, register, small_model, write_folder
from helpers.weight_files import write_archive

from pvlr.core.towers import TowerError, load_towers, weights_fingerprint
from pvlr.core.towers.files.archives import is_script, read_script, script_entries


@pytest.fixture(scope="module", autouse=True)
def _names(tmp_path_factory) -> None:
    register(tmp_path_factory.mktemp("configs"))


def fingerprint(model: Any) -> str:
    return weights_fingerprint(model.state_dict(), architecture=CONFIGS["vit"])


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
