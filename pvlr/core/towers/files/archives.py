"""Reader of the tensors of TorchScript archives, as OpenAI publishes CLIP, without running their code.

Such an archive is a zip file: code in ``code/``, the tree of modules pickled in ``data.pkl``, the numbers in ``data/``.
The pickle is interpreted instruction by instruction, and only those that describe data are supported: no class is
looked up and nothing is called.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pvlr.core.towers.errors import reason, shown

__all__ = ["is_script", "read_script", "script_entries"]

MAX_TREE_BYTES, MAX_DEPTH, MAX_TENSORS, MAX_AXES = 4_000_000, 64, 100_000, 8
EXTRAS = ("input_resolution", "context_length", "vocab_size")  # numbers about the model that OpenAI stores as tensors
MASK = "attn_mask"  # not read, since it is computed from the context length

DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class ScriptEntry(NamedTuple):
    """A tensor as an archive describes it.

    Attributes:
        dtype: Dtype of its elements.
        record: Name of the file in the archive that contains them.
        length: Number of elements of that file.
        offset: Position of its first element.
        shape: Its sizes.
        stride: Step along each axis, in elements.
    """

    dtype: torch.dtype
    record: str
    length: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Name(str):
    """The name of a class or function, which is not looked up."""


class _Module:
    """A module: its values by name."""

    def __init__(self) -> None:
        self.holds: Mapping[str, Any] = {}


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    length: int


def is_script(archive: zipfile.ZipFile) -> bool:
    """Return whether a zip file is a TorchScript archive and not one of ``torch.save``."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def script_entries(archive: zipfile.ZipFile) -> dict[str, ScriptEntry]:
    """Return the descriptions of a TorchScript archive's tensors, by their names; no number is read.

    Raises:
        ValueError: where its tree of modules contains anything but modules, tensors and plain values.
    """
    trees = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(trees) != 1:
        raise ValueError(f"a TorchScript archive with {len(trees)} files data.pkl")
    size = archive.getinfo(trees[0]).file_size
    if size > MAX_TREE_BYTES:
        raise ValueError(
            f"a TorchScript archive whose data.pkl has {size:,} bytes, at most {MAX_TREE_BYTES:,} are read"
        )
    root = _Tree(trees[0].removesuffix(".pkl")).run(archive.read(trees[0]))
    if not isinstance(root, _Module):
        raise ValueError("a TorchScript archive without a module")
    entries: dict[str, ScriptEntry] = {}
    for name, entry in _tensors(root, ()):
        entries[name] = entry
        if len(entries) > MAX_TENSORS:
            raise ValueError(f"a TorchScript archive of more than {MAX_TENSORS:,} tensors")
    return entries


def read_script(path: Path) -> dict[str, Tensor]:
    """Read the weights of a TorchScript archive, by their names.

    Args:
        path: The archive.

    Raises:
        ValueError: where it contains anything but modules, tensors and plain values, or a tensor's numbers are missing.
    """
    weights: dict[str, Tensor] = {}
    files: dict[str, Tensor] = {}
    with zipfile.ZipFile(path) as archive:
        remaining = path.stat().st_size
        for name, entry in script_entries(archive).items():
            if name in EXTRAS or name.split(".")[-1] == MASK:
                continue
            if entry.record not in files:
                remaining -= archive.getinfo(entry.record).file_size
                if remaining < 0:
                    raise ValueError(f"an archive whose files are larger than itself, such as {entry.record!r}")
                files[entry.record] = _numbers(archive, entry)
            weights[name] = torch.as_strided(files[entry.record], entry.shape, entry.stride, entry.offset)
    return weights


def _numbers(archive: zipfile.ZipFile, entry: ScriptEntry) -> Tensor:
    size = archive.getinfo(entry.record).file_size
    if size != entry.length * entry.dtype.itemsize:
        raise ValueError(f"{entry.record!r} of {size:,} bytes for {entry.length:,} numbers of {entry.dtype}")
    content = bytearray(archive.read(entry.record))
    return torch.frombuffer(content, dtype=entry.dtype) if content else torch.empty(0, dtype=entry.dtype)


def _tensors(module: _Module, above: tuple[str, ...]) -> Iterator[tuple[str, ScriptEntry]]:
    if len(above) > MAX_DEPTH:
        raise ValueError(f"modules more than {MAX_DEPTH} deep")
    for name, value in module.holds.items():
        if isinstance(value, ScriptEntry):
            yield ".".join((*above, name)), value
        elif isinstance(value, _Module):
            yield from _tensors(value, (*above, name))


class _Tree:
    """Interpreter of a pickle that describes modules, tensors and plain values."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> Any:
        """Return the object that a pickle describes."""
        try:
            for instruction, argument, _ in pickletools.genops(pickled):
                self.follow(instruction.name, argument)
            return self.stack.pop()
        except (AttributeError, IndexError, KeyError, TypeError) as err:
            raise ValueError(f"a data.pkl that describes nothing: {reason(err)}") from err

    def follow(self, instruction: str, argument: Any) -> None:
        """Run one instruction of the pickle."""
        if instruction in PLAIN:
            self.stack.append(PLAIN[instruction](argument))
        elif instruction in ACTS:
            ACTS[instruction](self, argument)
        elif instruction not in ("PROTO", "STOP", "FRAME"):
            raise ValueError(f"the pickled instruction {instruction}, which no archive of weights needs")

    def above_mark(self) -> list[Any]:
        """Remove the values on the stack above the last mark, and return them."""
        begin = self.marks.pop()
        taken = self.stack[begin:]
        del self.stack[begin:]
        return taken

    def tuple_of(self, count: int) -> None:
        """Replace the last values by a tuple of them."""
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(taken)

    def set_items(self, flat: list[Any]) -> None:
        """Add keys and values to the dictionary on top of the stack."""
        # Computing the hash of other keys may not end, or overflow the C stack.
        if not all(isinstance(key, str | int) for key in flat[::2]):
            raise ValueError("a dictionary whose keys are no names")
        self.stack[-1].update(zip(flat[::2], flat[1::2], strict=True))

    def make(self, _: object) -> None:
        """Push a new object: a module, of whatever class."""
        del self.stack[-2:]
        self.stack.append(_Module())

    def build(self, _: object) -> None:
        """Set the values of an object."""
        holds = self.stack.pop()
        if not isinstance(self.stack[-1], _Module) or not isinstance(holds, dict):
            raise ValueError("an object that is no module")
        self.stack[-1].holds = {name: value for name, value in holds.items() if isinstance(name, str)}

    def call(self, _: object) -> None:
        """Replace a call by its result: a tensor, or a list with its type."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if name == "torch._utils _rebuild_tensor_v2":
            self.stack.append(_tensor(self.folder, *arguments[:4]))
        elif name in LISTS:
            self.stack.append(arguments[0])
        elif name == "collections OrderedDict" and arguments == ():
            self.stack.append({})
        else:
            raise ValueError(f"a call of {shown(str(name))}, which no archive of weights needs")

    def storage(self, _: object) -> None:
        """Push a file of numbers."""
        kind, name, key, _location, count = self.stack.pop()
        dtype = DTYPES.get(str(name).removeprefix("torch "))
        if kind != "storage" or dtype is None or not isinstance(key, str) or not isinstance(count, int):
            raise ValueError(f"numbers of the type {shown(str(name))}")
        self.stack.append(_Storage(dtype, key, count))


def _tensor(folder: str, storage: Any, offset: Any, shape: Any, stride: Any) -> ScriptEntry:
    numbers = [offset, *shape, *stride]
    known = isinstance(storage, _Storage) and len(numbers) <= 1 + 2 * MAX_AXES
    if not known or not all(type(x) is int and x >= 0 for x in numbers):
        raise ValueError("a tensor that is not described by a few numbers")
    if math.prod(shape) > storage.length:
        raise ValueError(f"a tensor of shape {shape} in a file of {storage.length:,} numbers")
    return ScriptEntry(storage.dtype, f"{folder}/{storage.key}", storage.length, offset, tuple(shape), tuple(stride))


# Lists that TorchScript marks with the type of their elements.
LISTS = (
    "torch.jit._pickle build_intlist",
    "torch.jit._pickle build_doublelist",
    "torch.jit._pickle build_boollist",
    "torch.jit._pickle build_tensorlist",
    "torch.jit._pickle restore_type_tag",
)
PLAIN: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"), lambda x: x
    ),
    "GLOBAL": _Name,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
}
ACTS: dict[str, Callable[[_Tree, Any], object]] = {
    "MARK": lambda tree, _: tree.marks.append(len(tree.stack)),
    "BINPUT": lambda tree, key: tree.memo.__setitem__(key, tree.stack[-1]),
    "LONG_BINPUT": lambda tree, key: tree.memo.__setitem__(key, tree.stack[-1]),
    "BINGET": lambda tree, key: tree.stack.append(tree.memo[key]),
    "LONG_BINGET": lambda tree, key: tree.stack.append(tree.memo[key]),
    "TUPLE": lambda tree, _: tree.stack.append(tuple(tree.above_mark())),
    "TUPLE1": lambda tree, _: tree.tuple_of(1),
    "TUPLE2": lambda tree, _: tree.tuple_of(2),
    "TUPLE3": lambda tree, _: tree.tuple_of(3),
    "APPEND": lambda tree, _: tree.stack[-2].append(tree.stack.pop()),
    "APPENDS": lambda tree, _: _extend(tree, tree.above_mark()),
    "SETITEM": lambda tree, _: tree.set_items([tree.stack.pop(-2), tree.stack.pop()]),
    "SETITEMS": lambda tree, _: tree.set_items(tree.above_mark()),
    "NEWOBJ": _Tree.make,
    "BUILD": _Tree.build,
    "REDUCE": _Tree.call,
    "BINPERSID": _Tree.storage,
}


def _extend(tree: _Tree, more: list[Any]) -> None:
    tree.stack[-1].extend(more)
