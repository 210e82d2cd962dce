"""Export of trained models as programs for other engines: ``torch.export`` and ONNX, checked against the model."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.arguments import require_choice, require_int
from pvlr.core.models.baselines import BaselineModel
from pvlr.core.models.network import PVLR
from pvlr.core.models.output import LabelRows
from pvlr.core.protocols import join_regions
from pvlr.files import write_atomically
from pvlr.inference.onnx_program import LEAST_OPSET, Precision, ProgramError, write_onnx

__all__ = [
    "FORMATS",
    "LIMITS",
    "TOLERANCE",
    "ImageLogits",
    "Program",
    "ProgramError",
    "label_rows",
    "model_digest",
    "require_no_options",
    "seconds_per_call",
    "write_label_vectors",
    "write_program",
]

FORMATS = {"torch": "program.pt2", "onnx": "program.onnx"}
"""Name of the file by kind of program."""
DESCRIPTION_NAME = "program.json"
VECTORS_NAME = "labels.npz"
TOLERANCE = 1e-4
"""Largest difference of a float32 program's logits from the model's, absolute and relative."""
LIMITS = {"float16": 0.02, "int8": 0.25}
"""Largest difference of other programs' probabilities from the model's: with a larger one a program is broken."""
BATCHES = (1, 3)


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
        probability_difference: The same of their sigmoids.
        batches: Batch sizes that were tested.
        batch: Number of images that it takes; None: any.
        labels: Whether labels are constants (``baked``) or an input.
        run: Function from images (and label vectors, if they are an input) to logits, by the program as read back.
    """

    path: Path
    difference: float
    probability_difference: float
    batches: tuple[int, ...]
    batch: int | None
    labels: Literal["baked", "input"]
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


def model_digest(model: nn.Module) -> str:
    """Return the sha256 of all weights of a model, its towers' among them; other labels do not change it.

    Example:
        >>> model_digest(nn.Identity())[:8], model_digest(nn.Linear(1, 1)) == model_digest(nn.Linear(1, 1))
        ('e3b0c442', False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(repr((name, value.dtype, tuple(value.shape))).encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_label_vectors(folder: Path, model: PVLR | BaselineModel, *, kind: Literal["torch", "onnx"]) -> Path:
    """Write ``labels.npz`` for a program in the same folder whose labels are an input.

    Its arrays are ``names``, ``vectors`` and ``model``, the :func:`model_digest` that ``program.json`` has too.

    Args:
        folder: Folder of the program.
        model: The model that the program was made of, with any labels.
        kind: Kind of the program.

    Raises:
        ProgramError: as :func:`label_rows`; if the folder's program is not of this model, or has labels of its own.
    """
    vectors, digest = label_rows(model), model_digest(model)
    _require_program_of(folder, digest, FORMATS[kind])
    return _write_vectors(folder, model.labels.names, vectors, digest)


def require_no_options(program: Path, **options: object) -> None:
    """Refuse options of a program where it is there already and only label vectors are written for it.

    Args:
        program: The file of the program.
        **options: The options; None where they are not given.

    Raises:
        ProgramError: naming those that are given.

    Example:
        >>> require_no_options(Path("program.onnx"), opset=None, batch=None)
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given:
        raise ProgramError(
            f"{', '.join(given)}: expected none with names, since {program} is there and only label vectors are "
            f"written for it, got {', '.join(map(str, given.values()))}; choose another folder for another program"
        )


def _require_program_of(folder: Path, digest: str, name: str) -> None:
    path = folder / DESCRIPTION_NAME
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        written = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    except OSError as err:
        raise ProgramError(f"{err.filename}: expected a program with its description, but {err.strerror}") from None
    except (ValueError, RecursionError):
        described = None
    fields = {"program", "inputs", "sha256", "model"}
    if not isinstance(described, dict) or not fields <= described.keys() or not isinstance(described["inputs"], dict):
        raise ProgramError(f"{path}: expected the description of a program, found another content; export it again")
    if described["program"] != name or described["sha256"] != written:
        raise ProgramError(f"{path}: expected the description of {name}, found that of another; export it again")
    if "labels" not in described["inputs"]:
        raise ProgramError(
            f"{path}: expected a program whose labels are an input, found one with labels of its own; export it with "
            "labels 'input'"
        )
    if described["model"] != digest:
        raise ProgramError(
            f"{path}: expected a program of this model, whose weights have the sha256 {digest[:12]}…, found one of "
            f"{str(described['model'])[:12]}…, which its label vectors would not fit; choose another folder"
        )


def _write_vectors(folder: Path, names: Sequence[str], vectors: Tensor, digest: str) -> Path:
    import numpy as np

    path, rows = folder / VECTORS_NAME, vectors.cpu().numpy()
    write_atomically(path, lambda file: np.savez(file, names=np.array(names), vectors=rows, model=np.array(digest)))
    return path


@torch.no_grad()
def write_program(
    folder: Path,
    model: PVLR | BaselineModel,
    *,
    kind: Literal["torch", "onnx"],
    labels: Literal["baked", "input"] = "baked",
    opset: int | None = None,
    batch: int | None = None,
    precision: Precision = "float32",
    preprocess: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Program:
    """Write a program, read it back, and compare its logits with the model's.

    Beside it, ``program.json`` lists names and order of the labels, the preprocessing of images, the shapes of inputs
    and output, the differences found, and digests of program and model; ``labels.npz`` holds the label vectors if they
    are an input.

    Args:
        folder: Target folder, created if absent.
        model: A trained model of any kind on the CPU.
        kind: ``torch`` (``torch.export``, read by ``torch.export.load``) or ``onnx`` (extra ``onnx``).
        labels: See :class:`ImageLogits`; ``baked`` for a baseline.
        opset: Version of ONNX's operators, at least 18; None: that which torch writes by itself.
        batch: Number of images that it takes; None: any.
        precision: Of an ONNX program, see :func:`~pvlr.inference.onnx_program.write_onnx`.
        preprocess: Preprocessing of images, for ``program.json``.
        extra: Further fields of ``program.json``, such as thresholds.

    Raises:
        ProgramError: if the model cannot be exported, a package is missing, or the logits differ by more than
            :data:`TOLERANCE`, the probabilities of another precision by more than :data:`LIMITS`; then the program's
            path is as it was.
        ValueError: if an option is out of range, or belongs to the other kind.
    """
    require_choice("labels", labels, ("baked", "input"))
    _require_options(kind, opset, batch, precision)
    vectors = label_rows(model) if labels == "input" else None
    network = ImageLogits(model, labels=labels) if isinstance(model, PVLR) else _BaselineLogits(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FORMATS[kind]
    partial = path.with_name(f"partial-{path.name}")
    batches = BATCHES if batch is None else (batch,)
    try:
        exported = _exported(network, vectors, batch)
        if kind == "torch":
            run = _write_torch(partial, exported)
        else:
            inputs = ["images"] if vectors is None else ["images", "labels"]
            run = write_onnx(partial, exported, inputs=inputs, opset=opset, precision=precision)
        difference, of_probabilities = _largest_difference(model, run, vectors, batches, precision)
        written = hashlib.sha256(partial.read_bytes()).hexdigest()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    digest = model_digest(model)
    if vectors is not None:
        _write_vectors(folder, model.labels.names, vectors, digest)
    size, count = model.image.image_size, len(model.labels)
    described = {
        "program": path.name,
        "sha256": written,
        "model": digest,
        "precision": precision,
        "labels": list(model.labels.names),
        "readable": list(model.labels.texts),
        "inputs": {
            "images": ["any" if batch is None else batch, 3, size, size],
            **({} if vectors is None else {"labels": ["any", vectors.shape[1]]}),
        },
        "output": {"logits": ["images", count if vectors is None else "labels"]},
        "preprocess": preprocess,
        "largest_difference": difference,
        "largest_difference_of_probabilities": of_probabilities,
        **(extra or {}),
    }
    write_atomically(folder / DESCRIPTION_NAME, f"{json.dumps(described, indent=1)}\n".encode())
    return Program(
        path=path,
        difference=difference,
        probability_difference=of_probabilities,
        batches=batches,
        batch=batch,
        labels=labels,
        run=run,
    )


def _require_options(kind: str, opset: int | None, batch: int | None, precision: str) -> None:
    require_choice("kind", kind, tuple(FORMATS))
    require_choice("precision", precision, ("float32", *LIMITS))
    if batch is not None:
        require_int("batch", batch, least=1)
    if opset is not None:
        require_int("opset", opset, least=LEAST_OPSET)
    if kind == "torch" and opset is not None:
        raise ValueError(f"opset: expected none for kind 'torch', which has no such version, got {opset}")
    if kind == "torch" and precision != "float32":
        raise ValueError(f"precision: expected 'float32' for kind 'torch', got '{precision}'")


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


def _write_torch(path: Path, program: torch.export.ExportedProgram) -> Callable[..., Tensor]:
    # A file and not a path: torch.export.save requires the extension .pt2 of paths.
    with path.open("wb") as file:
        torch.export.save(program, file)
    with path.open("rb") as file:
        loaded: Callable[..., Tensor] = torch.export.load(file).module()
    return loaded


def _exported(
    network: ImageLogits | _BaselineLogits, vectors: Tensor | None, batch: int | None
) -> torch.export.ExportedProgram:
    # Two of each: an axis of 1 would be treated as one that broadcasts.
    twice = None if vectors is None else torch.cat([vectors, vectors])[: max(2, len(vectors))]
    inputs = _example(network.image_size, 2 if batch is None else batch, twice)
    axes = [None if batch is not None else {0: torch.export.Dim("batch")}, {0: torch.export.Dim("labels")}]
    dynamic = tuple(axes[: len(inputs)])
    try:
        return torch.export.export(network, inputs, dynamic_shapes=dynamic)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as err:
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ProgramError(f"model: expected one that torch.export can follow, but {reason}") from err


def _largest_difference(
    model: PVLR | BaselineModel,
    run: Callable[..., Tensor],
    vectors: Tensor | None,
    batches: Sequence[int],
    precision: Precision,
) -> tuple[float, float]:
    """Return the largest differences from the model's logits and probabilities over several inputs."""
    largest, largest_of_probabilities = 0.0, 0.0
    for images, *labels in _trials(model.image.image_size, vectors, batches):
        # By the model itself: the exported module must not be its own reference.
        if isinstance(model, PVLR) and labels:
            wanted = model.forward_features(model.regions(images), labels=labels[0]).logits
        else:
            wanted = model(images).logits
        found = run(images, *labels)
        if found.shape != wanted.shape:
            raise ProgramError(f"program: expected logits of shape {tuple(wanted.shape)}, found {tuple(found.shape)}")
        difference = (found - wanted).abs()
        of_probabilities = (found.sigmoid() - wanted.sigmoid()).abs()
        if precision == "float32" and not bool((difference <= TOLERANCE * (1 + wanted.abs())).all()):
            raise ProgramError(
                f"program: expected the model's logits within {TOLERANCE:g}, found a difference of "
                f"{difference.max().item():.2g}"
            )
        if precision != "float32" and not bool((of_probabilities <= LIMITS[precision]).all()):
            raise ProgramError(
                f"precision: expected the model's probabilities within {LIMITS[precision]:g} for '{precision}', found "
                f"a difference of {of_probabilities.max().item():.2g}; 'float32' has none"
            )
        largest = max(largest, difference.max().item())
        largest_of_probabilities = max(largest_of_probabilities, of_probabilities.max().item())
    return largest, largest_of_probabilities


def _trials(image_size: int, vectors: Tensor | None, batches: Sequence[int]) -> Iterable[Sequence[Tensor]]:
    for seed, batch in enumerate(batches):
        yield _example(image_size, batch, vectors, seed=seed)
        if vectors is not None:
            other = torch.cat([vectors, vectors.flip(0)[:1]])
            yield _example(image_size, batch, other, seed=seed)
