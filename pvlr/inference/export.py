"""Export of trained models as programs for other engines: ``torch.export`` and ONNX, checked against the model."""

import copy
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_choice
from pvlr.core.models.baselines import BaselineModel
from pvlr.core.models.network import PVLR
from pvlr.core.models.output import LabelRows
from pvlr.core.protocols import join_regions
from pvlr.files import write_atomically

__all__ = [
    "FORMATS",
    "TOLERANCE",
    "ImageLogits",
    "Program",
    "ProgramError",
    "label_rows",
    "seconds_per_call",
    "write_label_vectors",
    "write_program",
]

FORMATS = {"torch": "program.pt2", "onnx": "program.onnx"}
"""Name of the file by kind of program."""
DESCRIPTION_NAME = "program.json"
VECTORS_NAME = "labels.npz"
TOLERANCE = 1e-4
"""Largest difference of a program's logits from the model's, absolute and relative."""
BATCHES = (1, 3)


class ProgramError(ValueError):
    """Error of a model that cannot be exported, or of a program whose logits differ."""


class ImageLogits(nn.Module):
    """Module from images to logits with precomputed label vectors, from which programs are exported.

    Args:
        model: A trained model; put into evaluation mode.
        labels: ``baked``: labels are constants of the program; ``input``: they are its second input, as rows of
            :class:`~pvlr.core.models.output.LabelRows`, so that other labels need no other program.

    Example:
        >>> from pvlr.core import LabelSet, PVLRConfig, load_towers
        >>> towers = load_towers("pvlr:scenes-clip")
        >>> model = PVLR(PVLRConfig(), LabelSet(("red circle",)), towers.text, towers.image)
        >>> ImageLogits(model, labels="input")(torch.zeros(2, 3, 128, 128), torch.ones(5, 259)).shape
        torch.Size([2, 5])
    """

    def __init__(self, model: PVLR, *, labels: Literal["baked", "input"] = "baked") -> None:
        super().__init__()
        require_choice("labels", labels, ("baked", "input"))
        model = model.eval()
        self.image_size, self.sees = model.image.image_size, model.sees
        self.compare, self.dim = model.comparison, model.text.dim
        # Only blocks that a program needs: label vectors replace the text tower. The comparison is no module, so its
        # blocks are registered here for tracing to find their weights.
        blocks = {"image": model.image, "mixture": model.mixture}
        if self.compare.learned is not None:
            blocks |= vars(self.compare.learned)
        self.blocks = nn.ModuleDict(cast(dict[str, nn.Module], blocks))
        self.register_buffer("anchors", self.compare.anchors)
        self.register_buffer("rows", label_rows(model) if labels == "baked" else None)

    rows: Tensor | None
    anchors: Tensor

    def forward(self, images: Float[Tensor, "b 3 s s"], labels: Float[Tensor, "c r"] | None = None) -> Tensor:
        """Compute logits ``b c``.

        Args:
            images: Normalised, of the tower's size.
            labels: Rows of labels; None: those of the model's own labels.
        """
        rows = LabelRows.split(cast(Tensor, self.rows if labels is None else labels), self.dim)
        regions = join_regions(self.blocks["image"](images), self.sees)
        return replace(self.compare, anchors=self.anchors)(regions, rows).logits


class _BaselineLogits(nn.Module):
    """Module from images to a baseline's logits with precomputed label vectors, without the text tower."""

    def __init__(self, model: BaselineModel) -> None:
        super().__init__()
        model = model.eval()
        self.image_size, self.sees = model.image.image_size, model.sees
        self.network = copy.copy(model)
        self.network._modules = {**model._modules, "text": None}
        with torch.no_grad():
            self.texts = nn.ParameterList(nn.Parameter(vectors, requires_grad=False) for vectors in model.label_texts())

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Tensor:
        regions = join_regions(self.network.image(images), self.sees)
        return self.network.forward_features(regions, texts=tuple(self.texts)).logits


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program that was written and checked.

    Attributes:
        path: File of the program.
        difference: Largest difference of its logits from the model's, over all batches that were tested.
        batches: Batch sizes that were tested.
        run: Function from images (and label vectors, if they are an input) to logits, by the program as read back.
    """

    path: Path
    difference: float
    batches: tuple[int, ...]
    run: Callable[..., Tensor]


@torch.no_grad()
def label_rows(model: PVLR | BaselineModel) -> Float[Tensor, "c r"]:
    """Return the rows that images are compared with, one for each of a model's labels, float32.

    They are the input of a program with ``labels="input"``; ``model.with_labels(…)`` gives a model for other labels.

    Raises:
        ProgramError: if it is a baseline, whose labels are constants of its program.
    """
    if not isinstance(model, PVLR):
        raise ProgramError(f"labels: expected 'baked' for a baseline, here '{model.config.kind}', got 'input'")
    return model.eval().label_rows().joined().float()


def write_label_vectors(folder: Path, model: PVLR | BaselineModel) -> Path:
    """Write ``labels.npz`` (arrays ``names``, ``vectors``) for a program whose labels are an input.

    Raises:
        ProgramError: as :func:`label_rows`.
    """
    return _write_vectors(folder, model.labels.names, label_rows(model))


def _write_vectors(folder: Path, names: Sequence[str], vectors: Tensor) -> Path:
    import numpy as np

    path, rows = folder / VECTORS_NAME, vectors.cpu().numpy()
    write_atomically(path, lambda file: np.savez(file, names=np.array(names), vectors=rows))
    return path


@torch.no_grad()
def write_program(
    folder: Path,
    model: PVLR | BaselineModel,
    *,
    kind: Literal["torch", "onnx"],
    labels: Literal["baked", "input"] = "baked",
    preprocess: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Program:
    """Write a program that takes any number of images, read it back, and compare its logits with the model's.

    Beside it, ``program.json`` lists names and order of the labels, the preprocessing of images, the shapes of inputs
    and output, and the difference found; ``labels.npz`` holds the label vectors if they are an input.

    Args:
        folder: Target folder, created if absent.
        model: A trained model of any kind on the CPU.
        kind: ``torch`` (``torch.export``, read by ``torch.export.load``) or ``onnx`` (extra ``onnx``).
        labels: See :class:`ImageLogits`; ``baked`` for a baseline.
        preprocess: Preprocessing of images, for ``program.json``.
        extra: Further fields of ``program.json``, such as thresholds.

    Raises:
        ProgramError: if the model cannot be exported, a package is missing, or the logits differ by more than
            :data:`TOLERANCE`; then no file is left at the program's path.
    """
    require_choice("kind", kind, tuple(FORMATS))
    require_choice("labels", labels, ("baked", "input"))
    vectors = label_rows(model) if labels == "input" else None
    network = ImageLogits(model, labels=labels) if isinstance(model, PVLR) else _BaselineLogits(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FORMATS[kind]
    partial = path.with_name(f"partial-{path.name}")
    try:
        run = (_write_torch if kind == "torch" else _write_onnx)(partial, network, vectors)
        difference = _largest_difference(model, run, vectors)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if vectors is not None:
        _write_vectors(folder, model.labels.names, vectors)
    size, count = model.image.image_size, len(model.labels)
    described = {
        "program": path.name,
        "labels": list(model.labels.names),
        "readable": list(model.labels.texts),
        "inputs": {
            "images": ["any", 3, size, size],
            **({} if vectors is None else {"labels": ["any", vectors.shape[1]]}),
        },
        "output": {"logits": ["images", count if vectors is None else "labels"]},
        "preprocess": preprocess,
        "largest_difference": difference,
        **(extra or {}),
    }
    write_atomically(folder / DESCRIPTION_NAME, f"{json.dumps(described, indent=1)}\n".encode())
    return Program(path=path, difference=difference, batches=BATCHES, run=run)


def seconds_per_call(run: Callable[[], object], *, repeat: int = 5) -> float:
    """Return the time of the fastest of several calls, after an untimed one: other load only adds time."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _example(image_size: int, batch: int, vectors: Tensor | None, *, seed: int = 0) -> tuple[Tensor, ...]:
    """Return noise as images, and the label vectors if they are an input."""
    images = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(seed))
    return (images,) if vectors is None else (images, vectors)


def _write_torch(path: Path, network: ImageLogits | _BaselineLogits, vectors: Tensor | None) -> Callable[..., Tensor]:
    program = _exported(network, vectors)
    # A file and not a path: torch.export.save requires the extension .pt2 of paths.
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        loaded: Callable[..., Tensor] = torch.export.load(file).module()
    return loaded


def _write_onnx(path: Path, network: ImageLogits | _BaselineLogits, vectors: Tensor | None) -> Callable[..., Tensor]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # Used by torch to write ONNX.
    except ImportError as err:
        raise ProgramError(f"kind: 'onnx' needs the package {err.name}: pip install 'pvlr[onnx]'") from None
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # It logs constants that it did not fold.
    names = ["images"] if vectors is None else ["images", "labels"]
    program = torch.onnx.export(
        _exported(network, vectors), (), input_names=names, output_names=["logits"], dynamo=True, verbose=False
    )
    if program is None:  # Only if a file is given, which would be written in two parts.
        raise ProgramError("kind: expected an ONNX program of this torch, got none")
    onnx.save_model(program.model_proto, str(path))
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["logits"], fed)[0])

    return run


def _exported(network: ImageLogits | _BaselineLogits, vectors: Tensor | None) -> torch.export.ExportedProgram:
    # Two of each: an axis of 1 would be treated as one that broadcasts.
    twice = None if vectors is None else torch.cat([vectors, vectors])[: max(2, len(vectors))]
    inputs = _example(network.image_size, 2, twice)
    dynamic = tuple({0: torch.export.Dim(axis)} for axis in ("b", "c")[: len(inputs)])
    try:
        return torch.export.export(network, inputs, dynamic_shapes=dynamic)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ProgramError(f"model: expected one that torch.export can follow, but {reason}") from err


def _largest_difference(model: PVLR | BaselineModel, run: Callable[..., Tensor], vectors: Tensor | None) -> float:
    """Return the largest difference from the model's logits over several batch sizes and numbers of labels."""
    largest = 0.0
    for images, *labels in _trials(model.image.image_size, vectors):
        # By the model itself: the exported module must not be its own reference.
        if isinstance(model, PVLR) and labels:
            wanted = model.forward_features(model.regions(images), labels=labels[0]).logits
        else:
            wanted = model(images).logits
        found = run(images, *labels)
        difference = (found - wanted).abs()
        if found.shape != wanted.shape or not bool((difference <= TOLERANCE * (1 + wanted.abs())).all()):
            raise ProgramError(
                f"program: expected the model's logits within {TOLERANCE:g}, found shape {tuple(found.shape)} and a "
                f"difference of {difference.max().item():.2g}"
            )
        largest = max(largest, difference.max().item())
    return largest


def _trials(image_size: int, vectors: Tensor | None) -> Iterable[Sequence[Tensor]]:
    for seed, batch in enumerate(BATCHES):
        yield _example(image_size, batch, vectors, seed=seed)
        if vectors is not None:
            other = torch.cat([vectors, vectors.flip(0)[:1]])
            yield _example(image_size, batch, other, seed=seed)
