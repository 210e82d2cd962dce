"""Reader of files of scores of any model, which are checked and never executed."""

import csv
import zipfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError

__all__ = ["Scored", "read_scores"]


class Scored(NamedTuple):
    """Predictions of a set of images, and their targets.

    Attributes:
        labels: Names of the columns.
        probabilities: ``n c``, 0 wherever unknown.
        scores: ``n c``, scores of the ranking, without the rounding of a sigmoid where they are logits.
        target: ``n c``, 0 or 1.
        known: ``n c``, True where the target is known.
        thresholds: ``c``, the least probabilities that the model was fitted; None: it was not.
    """

    labels: LabelSet
    probabilities: Float[Tensor, "n c"]
    scores: Float[Tensor, "n c"]
    target: Float[Tensor, "n c"]
    known: Bool[Tensor, "n c"]
    thresholds: Float[Tensor, " c"] | None = None


def read_scores(path: Path, kind: Literal["probabilities", "logits"] = "probabilities") -> Scored:
    """Read a ``.npz`` or ``.csv`` file of scores and targets.

    A ``.npz`` file contains the arrays ``scores`` (floats, ``n c``), ``targets`` (0 or 1, ``n c``) and, optionally,
    ``known`` (true or false, ``n c``) and ``names`` (strings, ``c``). A ``.csv`` file has a row per image and label,
    with the columns ``image``, ``label``, ``score`` and ``target`` (0, 1, or empty if unknown); a label without a row
    is unknown.

    Args:
        path: The file.
        kind: Kind of the scores; a sigmoid is applied to logits.

    Raises:
        DataError: naming the file and its defect.
    """
    if path.suffix not in (".npz", ".csv"):
        raise DataError(f"{path}: expected a file of scores that ends in .npz or .csv")
    if not path.is_file():
        raise DataError(f"{path}: expected a file of scores, found no such file")
    held = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    scores, target, known = (torch.from_numpy(held[name]) for name in ("scores", "targets", "known"))
    odd = known & (target != 0) & (target != 1)
    if bool(odd.any()):
        raise DataError(f"{path}: expected targets 0 or 1 wherever known, got {target[odd][0].item():g}")
    if not bool(scores[known].isfinite().all()):
        raise DataError(f"{path}: expected finite scores wherever known, got {_first(scores, known)}")
    if kind == "probabilities" and not bool(((scores >= 0) & (scores <= 1))[known].all()):
        found = scores[known & ~((scores >= 0) & (scores <= 1))][0].item()
        raise DataError(f"{path}: expected probabilities in [0, 1], got {found:g}: are these logits?")
    try:
        labels = LabelSet(tuple(held["names"].tolist()))
    except LabelError as err:
        raise DataError(f"{path}: {err}") from None
    scores, target = scores.masked_fill(~known, 0.0), target.masked_fill(~known, 0).float()
    return Scored(labels, scores.sigmoid() if kind == "logits" else scores, scores, target, known)


def _first(scores: Tensor, known: Tensor) -> str:
    return f"{scores[known & ~scores.isfinite()][0].item():g}"


def _read_npz(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.removesuffix(".npy"): name for name in archive.namelist()}
            for name in ("scores", "targets", "known", "names"):
                if name in inside:
                    held[name] = _read_array(archive, inside[name])
    except Exception as err:  # zipfile, zlib and numpy each raise their own for a damaged or hostile file.
        raise DataError(f"{path}: expected a readable .npz file of scores, {' '.join(str(err).split())}") from None
    for name in ("scores", "targets"):
        if name not in held:
            raise DataError(f"{path}: expected the arrays 'scores' and 'targets', found no {name!r}")
    shape = held["scores"].shape
    if len(shape) != 2 or held["scores"].dtype.kind != "f" or 0 in shape:
        raise DataError(f"{path}: expected 'scores' to be rows of floats, got {held['scores'].dtype} {shape}")
    held.setdefault("known", np.ones(shape, dtype=bool))
    held.setdefault("names", np.array([str(number) for number in range(shape[1])]))
    wanted = {
        "targets": ("numbers", "biuf", shape),
        "known": ("true or false", "b", shape),
        "names": ("texts", "U", shape[1:]),
    }
    for name, (what, kinds, size) in wanted.items():
        array = held[name]
        if array.shape != size or array.dtype.kind not in kinds:
            raise DataError(f"{path}: expected {name!r} to be {what} {size}, got {array.dtype} {array.shape}")
    held["targets"] = held["targets"].astype(np.float32)
    if held["scores"].dtype.itemsize > 8:
        held["scores"] = held["scores"].astype(np.float64)
    # Converted to the byte order of this machine.
    return {name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")) for name, array in held.items()}


def _read_array(archive: zipfile.ZipFile, name: str) -> Any:
    """Read an array; raise an error for pickles, and for a header that claims more bytes than the file has."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        # numpy allocates the memory that the header claims before it reads any number.
        size = dtype.itemsize
        for axis in shape:
            size *= axis
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are never loaded")
        if size > archive.getinfo(name).file_size:
            raise ValueError(f"{name} says to hold {size} bytes and has {archive.getinfo(name).file_size}")
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read_csv(path: Path) -> dict[str, Any]:
    images: dict[str, int] = {}
    names: dict[str, int] = {}
    cells: dict[tuple[int, int], tuple[float, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = {"image", "label", "score", "target"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}: expected the columns image, label, score, target, found no {min(missing)!r}")
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if any(row[name] is None for name in ("image", "label", "score", "target")):
                    raise DataError(f"{place}: expected an image, a label, a score and a target, found fewer cells")
                cell = images.setdefault(row["image"], len(images)), names.setdefault(row["label"], len(names))
                if cell in cells:
                    raise DataError(f"{place}: expected each label of an image once, found {row['label']!r} again")
                if row["target"] not in ("0", "1", ""):
                    raise DataError(f"{place}: expected a target 0, 1 or nothing, got {row['target']!r}")
                try:
                    cells[cell] = float(row["score"]), row["target"]
                except ValueError:
                    raise DataError(f"{place}: expected a number as score, got {row['score']!r}") from None
    except (UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: expected a CSV file in UTF-8, {err}") from None
    if not cells:
        raise DataError(f"{path}: expected at least one row of scores, found none")
    shape = len(images), len(names)
    scores, targets, known = np.zeros(shape), np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
    for cell, (score, target) in cells.items():
        scores[cell], targets[cell], known[cell] = score, target == "1", target != ""
    return {"scores": scores, "targets": targets, "known": known, "names": np.array(list(names))}
