"""Reader of files of weights in common formats, as tensors by name; no code that comes with one is run."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvlr.core.towers.errors import read_json, reason, shown
from pvlr.core.towers.files.archives import EXTRAS, is_script, read_script, script_entries

__all__ = ["FLOATS", "INDEX_ENDING", "is_openai", "plain_names", "read_state", "shard_names"]

INDEX_ENDING = ".index.json"
WHERE = ("state_dict", "model", "model_state_dict", "module")
"""Keys of the weights in a training checkpoint: of open_clip, Lightning, timm, DeepSpeed."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Objects in checkpoints beside the weights: numbers of numpy's, the options of the training, paths.
BESIDE = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "argparse.Namespace",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)


class _Unread:
    """Placeholder of an object beside the weights, so that nothing of its library is called."""

    def __new__(cls, *_: object) -> "_Unread":
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the weights of a file, by their names in it.

    safetensors, files of ``torch.save`` (read with ``weights_only``, numbers of numpy's beside the weights skipped),
    TorchScript archives (:mod:`pvlr.core.towers.files.archives`), and an index of several such files. The format is
    determined by the content and not by the file's ending.

    Args:
        path: The file; of one in several parts the index, ``….index.json``.

    Raises:
        ValueError: where it is none of them, contains other objects than weights, or expands beyond its size.
    """
    if path.name.endswith(INDEX_ENDING):
        return _read_parts(path)
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        state = _read_zip(path)
    elif head.startswith(b"\x80"):
        state = _of_checkpoint(_unpickled(path, mapped=False))
    elif head[8:9] == b"{":
        state = _read_safetensors(path)
    elif head.startswith(b"version https://git-lfs"):
        raise ValueError("a pointer of Git LFS, which stands for the file ('git lfs pull' fetches it)")
    else:
        raise ValueError("neither safetensors nor a file of torch.save")
    for name, value in state.items():
        _require_plain(name, value)
    return state


def shard_names(index: Path) -> list[str]:
    """Return the names of the files in an index, which are in its folder.

    Raises:
        TowerError: where the index is not JSON or too large.
        ValueError: where it names no files, or one outside of its folder.
    """
    data = read_json(index, "an index of weights")
    table = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(table, dict) or not table:
        raise ValueError("an index without an entry 'weight_map'")
    for part in table.values():
        beside = isinstance(part, str) and Path(part).name == part and "\\" not in part and part.isprintable()
        if not beside or not part.endswith((".safetensors", ".bin")):
            raise ValueError(f"an index that names {shown(part)} where a file beside it is meant")
    return sorted(set(table.values()))


def plain_names(state: Mapping[str, Tensor], known: Collection[str]) -> dict[str, Tensor]:
    """Return weights without the prefixes of wrappers: ``module.``, ``_orig_mod.``, ``model.``, …

    Args:
        state: Weights by name.
        known: First parts of the names that the model has.

    Raises:
        ValueError: where two weights would have the same name.

    Example:
        >>> list(plain_names({"module._orig_mod.visual.proj": torch.ones(1)}, {"visual"}))
        ['visual.proj']
    """
    # torch.compile adds its prefix before the compiled part, which may be further in.
    parts = {name: [part for part in name.split(".") if part != "_orig_mod"] for name in state}
    while parts:
        first = {part[0] if len(part) > 1 else None for part in parts.values()}
        if len(first) > 1 or None in first or first <= set(known):
            break
        parts = {name: part[1:] for name, part in parts.items()}
    names = {name: ".".join(part) for name, part in parts.items()}
    if len(set(names.values())) < len(names):
        raise ValueError("weights of the same name, with and without '_orig_mod'")
    return {names[name]: value for name, value in state.items()}


def is_openai(path: Path) -> bool:
    """Return whether a file is an archive as OpenAI publishes CLIP, all of which compute QuickGELU.

    Raises:
        ValueError: where it is an archive that cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return is_script(archive) and set(EXTRAS) <= script_entries(archive).keys()


def _read_parts(index: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in shard_names(index):
        part = index.parent / name
        if not part.is_file():
            raise ValueError(f"an index that names '{name}', which is not beside it")
        for key, value in read_state(part).items():
            if key in state:
                raise ValueError(f"'{key}' in two of its parts")
            state[key] = value
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state: dict[str, Tensor] = load_file(path)
    return state


def _read_zip(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            if is_script(archive):
                return read_script(path)
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError):
        raise ValueError("a zip file that is cut short or damaged") from None
    # torch.save never compresses, so that a compressed file is not one of its files and is not read.
    compressed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise ValueError(f"a zip file whose {shown(compressed[0])} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("a zip file whose parts are larger than itself")
    # torch derives the format from the ending, and this file is not of safetensors.
    return _of_checkpoint(_unpickled(path, mapped=path.suffix != ".safetensors"))


def _unpickled(path: Path, *, mapped: bool) -> Any:
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([(_Unread, name) for name in BESIDE]),
            path.open("rb") as file,
        ):
            warnings.simplefilter("ignore")  # About types that later versions will not support.
            # Mapped, so that an optimiser's tensors beside the weights are never read; that takes a path.
            return torch.load(str(path) if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as err:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(err))
        if foreign is None:
            raise ValueError("a pickle that is cut short or damaged") from err
        raise ValueError(
            f"the pickled object '{foreign[1]}', which is not loaded, for it could run code (a file of "
            "torch.save(model.state_dict(), …) has weights alone)"
        ) from err
    except (AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError) as err:
        raise ValueError(f"a pickle that is cut short or damaged: {reason(err)}") from err


def _of_checkpoint(loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, dict):
        raise ValueError(f"no weights by name, but an object of the class {type(loaded).__name__}")
    state = next((loaded[key] for key in WHERE if isinstance(loaded.get(key), dict)), loaded)
    invalid = [name for name, value in state.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if invalid and state is loaded:
        found = ", ".join(shown(key) for key in list(loaded)[:8])
        raise ValueError(f"weights neither at the top nor under {', '.join(WHERE)}, but the entries {found}")
    if invalid:
        raise ValueError(f"{shown(invalid[0])} among the weights, which is no tensor")
    if not state:
        raise ValueError("no weights")
    return dict(state)


def _require_plain(name: str, value: Tensor) -> None:
    if value.layout != torch.strided:
        raise ValueError(f"'{name}' stored sparsely, where all numbers are meant to be there")
    if value.dtype not in (*FLOATS, torch.int64, torch.int32, torch.bool, torch.uint8):
        raise ValueError(f"'{name}' of the type {value.dtype}, where float16, bfloat16, float32 or float64 is read")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"'{name}' of shape {tuple(value.shape)}, which is more than the file holds of it")
