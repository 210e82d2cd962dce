"""Files of weights that want to run, to expand, to be elsewhere, or are cut short; most are refused."""

import io
import json
import os
import pickle
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from attack import Act, Attack
from helpers.tower_models import small_model, write_folder
from helpers.weight_files import change_json, hf_config, write_archive, write_epoch, write_transformers

from pvlr.core.towers import load_towers

Spoil = Callable[[Path], object]
RUN = "which is not loaded, for it could run code"


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raise another error if code is run or a file fetched, also where the library would have refused in a sentence."""
    asked: list[Any] = []

    def connect(_: socket.socket, address: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    with mock.patch.object(socket.socket, "connect", connect):
        try:
            yield
        finally:
            if asked:
                raise RuntimeError(f"asked for {asked[0]}")
            if (folder / "ran").exists():
                raise RuntimeError("code that came with weights was run")


def look(folder: Path) -> str:
    with watched(folder):
        return f"{load_towers(f'local-dir:{folder}').image.dim} numbers"


def weights(name: str, write: Spoil, outcome: str) -> Attack:
    """A good tower, whose weights are written anew to ``w.pt``."""

    def make(folder: Path) -> Act:
        write_folder(folder, "vit")
        (folder / "open_clip_model.safetensors").unlink()
        write(folder / "w.pt")
        return lambda: look(folder)

    return Attack(f"weights: {name}", make, outcome)


def theirs(name: str, spoil: Spoil, outcome: str, kind: str = "clip") -> Attack:
    """A good folder of transformers', spoilt."""

    def make(folder: Path) -> Act:
        write_transformers(folder, hf_config(kind))
        spoil(folder)
        return lambda: look(folder)

    return Attack(f"transformers' folder: {name}", make, outcome)


class Runs:
    """Object that writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.folder}/ran",)


def state(**more: Any) -> dict[str, Any]:
    return {**small_model("vit").state_dict(), **more}


def cut(write: Spoil, keep: float) -> Spoil:
    def spoil(path: Path) -> None:
        write(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return spoil


def good_archive(path: Path) -> None:
    write_archive(path, small_model("vit"))


def zipped(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def bomb(path: Path) -> None:
    """Write 200 MB of zeros in the place of a storage."""
    torch.save(state(), path)
    files = contents(path)
    name = next(name for name in files if name.endswith("/data/0"))
    zipped(path, {**files, name: bytes(200_000_000)}, zipfile.ZIP_DEFLATED)


def bomb_of_a_tree(path: Path) -> None:
    good_archive(path)
    files = contents(path)
    name = next(name for name in files if name.endswith("/data.pkl"))
    zipped(path, {**files, name: bytes(200_000_000)}, zipfile.ZIP_DEFLATED)


def bomb_of_numbers(path: Path) -> None:
    """An archive that describes 50 million numbers, which are zeros and packed."""
    length = b"J" + struct.pack("<i", 50_000_000)
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + length + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + length + b"\x85K\x01\x85\x89}tR"
    tree = b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00x" + tensor + b"sb."
    files = {"m/data.pkl": tree, "m/constants.pkl": b"", "m/data/0": bytes(200_000_000)}
    zipped(path, files, zipfile.ZIP_DEFLATED)


def overlaid(path: Path) -> None:
    """A thousand names for the same bytes."""
    zipped(path, {"a/data.pkl": b"\x80\x02}.", "a/data/0": bytes(100_000)})
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    last = content.rindex(b"PK\x01\x02")
    entry = content[last:end]
    directory = content[struct.unpack("<I", content[end + 16 : end + 20])[0] : last] + entry * 1_000
    begin = len(content[: content.index(b"PK\x01\x02")])
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1_001, 1_001, len(directory), begin, 0)
    path.write_bytes(content[:begin] + directory + tail)


class Acts(torch.nn.Module):
    """Module that writes a file by TorchScript's own means when it is loaded."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.target, self.training

    @torch.jit.export
    def __setstate__(self, told: tuple[str, bool]) -> None:
        self.target = told[0]
        self.training = told[1]
        torch.save(torch.zeros(1), self.target)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.target)
        return x


def acting(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Acts(str(path.parent / "ran"))), str(path))


def with_call(path: Path) -> None:
    """An archive whose tree of modules calls the shell."""
    good_archive(path)
    files = contents(path)
    name = next(name for name in files if name.endswith("/data.pkl"))
    command = f"touch {path.parent}/ran"
    zipped(path, {**files, name: b"\x80\x02cposix\nsystem\n(V" + command.encode() + b"\ntR."})


def with_code(path: Path) -> None:
    """An archive of good weights, and of code that would write a file when it runs."""
    good_archive(path)
    files = contents(path)
    prefix = next(iter(files)).split("/")[0]
    zipped(path, {**files, f"{prefix}/code/__torch__/Evil.py": f"torch.save(0, '{path.parent}/ran')\n".encode()})


def header(length: int, text: bytes) -> Spoil:
    return lambda path: path.write_bytes(length.to_bytes(8, "little") + text)


def shards(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        table = {f"weight{number}": name for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return spoil


def huge(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(10**9)

    return spoil


def huge_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    huge("model.safetensors.index.json")(folder)


def piped(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def claims(count: int) -> Spoil:
    """A tensor of which the file holds a hundred bytes."""

    def spoil(path: Path) -> None:
        text = json.dumps({"visual.proj": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(100))

    return spoil


def legacy_call(path: Path) -> None:
    torch.save({"state_dict": state(), "x": Runs(path.parent)}, path, _use_new_zipfile_serialization=False)


def plain_call(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Runs(path.parent)}, protocol=4))


def deep(path: Path) -> None:
    """A pickle of lists, each in the next."""
    buffer = io.BytesIO()
    buffer.write(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    good_archive(path)
    files = contents(path)
    name = next(name for name in files if name.endswith("/data.pkl"))
    zipped(path, {**files, name: buffer.getvalue()})


WEIGHTS = (
    weights("a good checkpoint", lambda path: write_epoch(path, state()), "read: 24 numbers"),
    weights("a good archive of OpenAI's", good_archive, "read: 24 numbers"),
    weights(
        "a zip cut short", cut(lambda path: torch.save(state(), path), 0.7), "a zip file that is cut short or damaged"
    ),
    weights("an archive cut short", cut(good_archive, 0.9), "a zip file that is cut short or damaged"),
    weights("a zip bomb", bomb, "/data.pkl' is compressed, which torch.save never does"),
    weights("a zip bomb in an archive", bomb_of_a_tree, "data.pkl has 200,000,000 bytes, at most 4,000,000 are read"),
    weights("a zip bomb of an archive's numbers", bomb_of_numbers, "larger than itself, such as 'm/data/0'"),
    weights("a thousand names for the same bytes", overlaid, "a zip file whose parts are larger than itself"),
    weights(
        "a pickle that calls the shell",
        lambda path: torch.save({"state_dict": state(), "x": Runs(path.parent)}, path),
        f"the pickled object 'posix.system', {RUN}",
    ),
    weights("an old pickle that calls the shell", legacy_call, f"the pickled object 'posix.system', {RUN}"),
    weights("a pickle of no torch that calls the shell", plain_call, "got a pickle that is cut short or damaged"),
    weights("an archive that writes a file as it is loaded", acting, "got an object that is no module"),
    weights("an archive whose tree calls the shell", with_call, "the pickled instruction UNICODE, which no archive"),
    weights("an archive with code of its own", with_code, "read: 24 numbers"),
    weights("an archive of 100,000 lists, each in the next", deep, "got a TorchScript archive without a module"),
    weights("a header of 2^63 bytes", header(2**63, b"{" + b"x" * 60), "header too large"),
    weights("a header that is no JSON", header(60, b"{" + b"x" * 60), "invalid JSON in header"),
    weights("a tensor larger than its file", claims(10**12), "incomplete metadata, file not fully covered"),
    weights("a web page", lambda path: path.write_text("<html>"), "neither safetensors nor a file of torch.save"),
    weights(
        "a pipe", lambda path: os.mkfifo(path), "expected one file of weights, such as open_clip_model.safetensors"
    ),
    theirs("a good one", lambda folder: None, "read: 24 numbers"),
    theirs(
        "brings code", lambda folder: change_json(folder / "config.json", auto_map={"AutoModel": "x.M"}), "brings code"
    ),
    theirs(
        "names an address as its type",
        lambda folder: change_json(folder / "config.json", model_type="https://models.example.org/clip"),
        "expected the model_type 'clip' or 'siglip', found 'https://models.example.org/clip'",
    ),
    theirs(
        "names an address as where it came from",
        lambda folder: change_json(folder / "config.json", _name_or_path="https://models.example.org/clip"),
        "read: 24 numbers",
    ),
    theirs(
        "names a module as an activation",
        lambda folder: change_json(folder / "config.json", vision_config={"hidden_act": "os.system"}),
        "expected vision_config.hidden_act to be",
    ),
    theirs("a part above the folder", shards("../x.safetensors"), "names '../x.safetensors' where a file beside it is"),
    theirs(
        "a part from the root", shards("/etc/passwd.bin"), "names '/etc/passwd.bin' where a file beside it is meant"
    ),
    theirs(
        "a part by an address", shards("https://x/y.bin"), "names 'https://x/y.bin' where a file beside it is meant"
    ),
    theirs("a part that is not there", shards("x.safetensors"), "an index that names 'x.safetensors', which is not"),
    theirs("an index of 1 GB", huge_index, "expected a file of at most 4 MiB, got 953.7 MiB"),
    theirs(
        "a configuration of 1 GB", huge("config.json"), "config.json: expected a file of at most 4 MiB, got 953.7 MiB"
    ),
    theirs(
        "a vocabulary of 1 GB", huge("tokenizer.json"), "tokenizer.json: expected a file of at most 128 MiB, got 953.7"
    ),
    theirs(
        "preprocessing of 1 GB", huge("preprocessor_config.json"), "expected a file of at most 4 MiB, got 953.7 MiB"
    ),
    theirs(
        "a configuration that is a pipe", piped("config.json"), "config.json: expected the tower's configuration, found"
    ),
    theirs("a vocabulary that is a list", lambda folder: (folder / "vocab.json").write_text("[1]"), "refused: "),
    theirs(
        "100,000 brackets", lambda folder: (folder / "config.json").write_text("[" * 100_000), "maximum recursion depth"
    ),
)
