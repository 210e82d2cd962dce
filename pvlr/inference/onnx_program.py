"""ONNX programs: named axes, the version of the operators, and an image tower of half precision or 8-bit weights."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["AXES", "LEAST_OPSET", "Precision", "ProgramError", "write_onnx"]

Precision = Literal["float32", "float16", "int8"]
LEAST_OPSET = 18
"""Lowest version of ONNX's operators that torch writes; it only tries to convert programs to earlier ones."""
AXES = {"images": "batch", "labels": "labels"}
"""Name of the first axis by input."""
TOWERS = ("blocks.image", "network.image")
"""Names of the image tower in the modules that programs are exported from."""
MATRICES = ["MatMul", "Gemm"]


class ProgramError(ValueError):
    """Error of a model that cannot be exported, or of a program whose logits differ or that is not the model's."""


def write_onnx(
    path: Path,
    program: torch.export.ExportedProgram,
    *,
    inputs: Sequence[str],
    opset: int | None = None,
    precision: Precision = "float32",
) -> Callable[..., Tensor]:
    """Write a program as ONNX and return the function of its session.

    Inputs and output are float32 in every precision. ``float16`` is that of the whole program; ``int8`` that of the
    weights of the image tower's matrix products, whose other operands are quantised as they come. The tower's
    convolutions, which are slower with it on a CPU, and the comparison with labels, which is small, stay float32.

    Args:
        path: The file.
        program: The exported program; its only output is the logits.
        inputs: Names of its inputs: some of :data:`AXES`.
        opset: Version of ONNX's operators; None: that which torch writes by itself.
        precision: Numbers that it computes with.

    Raises:
        ProgramError: if a package is missing, or the program cannot be written or run with this opset or precision.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # Used by torch to write ONNX.
    except ImportError as err:
        raise ProgramError(f"kind: 'onnx' needs the package {err.name}: pip install 'pvlr[onnx]'") from None
    model = _model_of(program, inputs, opset)
    if precision == "float16":
        model = _halved(model)
    elif precision == "int8":
        model = _quantised(model, path.parent)
    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as err:  # Its classes of errors have no common base.
        raise ProgramError(
            f"opset: expected one that onnxruntime {onnxruntime.__version__} runs with precision '{precision}', got "
            f"{opset}: {_line(err)}"
        ) from None

    def run(*given: Tensor) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(inputs, given, strict=True)}
        return torch.from_numpy(session.run(["logits"], fed)[0])

    return run


def _model_of(program: torch.export.ExportedProgram, inputs: Sequence[str], opset: int | None) -> Any:
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # It logs constants that it did not fold.
    try:
        written = torch.onnx.export(
            program,
            (),
            input_names=list(inputs),
            output_names=["logits"],
            opset_version=opset,
            dynamic_shapes=tuple({0: AXES[name]} for name in inputs),
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as err:
        raise ProgramError(f"opset: expected one that this torch can write, got {opset}: {_line(err)}") from None
    if written is None:  # Only if a file is given, which would be written in two parts.
        raise ProgramError("kind: expected an ONNX program of this torch, got none")
    model: Any = written.model_proto
    (found,) = [entry.version for entry in model.opset_import if not entry.domain]
    if opset not in (None, found):
        raise ProgramError(f"opset: expected one that this torch can write, such as {found}, got {opset}")
    return model


def _halved(model: Any) -> Any:
    """Convert to float16 all but inputs and output."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # It warns of each constant near zero; the comparison with the model tells what matters.
        warnings.simplefilter("ignore")
        halved = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
    halved.topological_sort()  # The casts of the inputs come last.
    return halved.model


def _quantised(model: Any, folder: Path) -> Any:
    """Quantise the weights of the image tower's matrix products to 8 bits, a scale per output."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    nodes = [node for node in model.graph.node if node.op_type in MATRICES]
    others = [node.name for node in nodes if not _is_of_tower(node)]
    with TemporaryDirectory(prefix="partial-", dir=folder) as place:
        before, after = Path(place, "before.onnx"), Path(place, "after.onnx")
        quant_pre_process(model, before, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=MATRICES,
            per_channel=True,
            reduce_range=True,  # 7 bits: with 8, sums overflow on CPUs that have no instructions for such products.
            nodes_to_exclude=others,
        )
        quantised = onnx.load(after)
    if not any("Integer" in node.op_type or "Quantize" in node.op_type for node in quantised.graph.node):
        raise ProgramError(
            "precision: expected 'float32' or 'float16' for this image tower, which has no matrix product to quantise, "
            "got 'int8'"
        )
    return quantised


def _is_of_tower(node: Any) -> bool:
    """Return True if torch says that a node comes from the image tower."""
    return any(tower in entry.value for entry in node.metadata_props if "namespace" in entry.key for tower in TOWERS)


def _line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
