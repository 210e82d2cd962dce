"""``pvlr export``: a trained model as a program for torch.export or ONNX, whose logits are compared with the model's.

With ``--labels input`` label vectors are a second input of the program; ``--names`` then writes those of other names,
for the existing program of the same model. ``--data`` tells what a precision costs in mAP.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from pvlr.cli.help import Usage
from pvlr.cli.progress import progress
from pvlr.cli.recipes import find_config
from pvlr.inference.export import (
    FORMATS,
    label_rows,
    require_no_options,
    seconds_per_call,
    write_label_vectors,
    write_program,
)
from pvlr.inference.onnx_program import Precision
from pvlr.inference.recognizer import Recognizer
from pvlr.train.evaluation.evaluate_program import evaluate_program, require_data
from pvlr.train.evaluation.evaluate_run import DataKind

__all__ = ["USAGE", "export"]

USAGE = Usage(
    name="",
    examples=(
        "--run runs/quickstart --out exported",
        '--run runs/quickstart --out exported --labels input --names "zebra, fire truck"',
        "--run runs/voc --out small --precision int8 --data runs/voc/config.yaml",
    ),
)


def export(
    *,
    out: str,
    run: str | None = None,
    tower: str | None = None,
    kind: Literal["onnx", "torch"] = "onnx",
    labels: Literal["baked", "input"] = "baked",
    names: str | None = None,
    opset: int | None = None,
    batch: int | None = None,
    precision: Precision = "float32",
    data: str | None = None,
    data_kind: DataKind | None = None,
    split: str | None = None,
    benchmark: bool = False,
) -> None:
    """Write a trained model as a program, with a description beside it.

    Args:
        out: Folder to write to.
        run: Folder of a finished run or a saved model, or hf-hub:ORGANISATION/REPOSITORY.
        tower: With a run: the current place of its towers, if changed. Without: towers that tag without training.
        kind: onnx (program.onnx) or torch (program.pt2, read by torch.export.load).
        labels: Whether label vectors are constants of the program (baked) or its second input (labels.npz holds them).
        names: Other labels than the model's own: separated by commas, @FILE with one per line, voc, coco or imagenet.
            With labels=input and a program in the folder, only their vectors are written.
        opset: Version of ONNX's operators, at least 18; null: that which torch writes by itself.
        batch: Number of images that the program takes; null: any.
        precision: Of an ONNX program: float32; float16 (half the size); int8 (the weights of the image tower's matrix
            products, without calibration).
        data: Configuration file, or a recipe's name: the mAP of model and program on its data is told.
        data_kind: Kind of these data, where the fields do not say it.
        split: Split of these data; null: the configuration's test split.
        benchmark: Time the program and the model.
    """
    require_data(data, split=split, data_kind=data_kind)
    recognizer = Recognizer.open(run, tower, labels=names)
    folder = Path(out)
    if names is not None and labels == "input" and (folder / FORMATS[kind]).is_file():
        changed = None if precision == "float32" else precision
        require_no_options(folder / FORMATS[kind], opset=opset, batch=batch, precision=changed, data=data)
        path = write_label_vectors(folder, recognizer.model, kind=kind)
        print(f"{path}: vectors of {len(recognizer.labels)} labels")
        return
    origin = recognizer.model.origin
    program = write_program(
        folder,
        recognizer.model,
        kind=kind,
        labels=labels,
        opset=opset,
        batch=batch,
        precision=precision,
        preprocess=None if origin is None else dict(origin.preprocess),
        extra={"decision": recognizer.decision.to_json()},
    )
    tried = " and ".join(map(str, program.batches))
    print(
        f"{program.path}: {program.path.stat().st_size / 1e6:.1f} MB, largest difference from the model's logits "
        f"{program.difference:.1e}, of probabilities {program.probability_difference:.1e}, over batches of {tried} "
        "images"
    )
    if data is not None:
        found = evaluate_program(
            program, recognizer, find_config(data, "--data"), kind=data_kind, split=split, watch=progress
        )
        print(f"mAP {100 * found.model:.1f} -> {100 * found.program:.1f} of the program, on {found.pictures} pictures")
    if benchmark:
        print(_timed(recognizer, program.run, labels, program.batches if batch else (1, 8)))


def _timed(
    recognizer: Recognizer, run: Callable[..., torch.Tensor], labels: str, batches: tuple[int, ...] = (1, 8)
) -> str:
    """Return a table of milliseconds per image of program and model, the ratio first."""
    size, rows = recognizer.transform.side, ["batch  program is    program     model"]
    vectors = () if labels == "baked" else (label_rows(recognizer.model),)
    with torch.no_grad():
        for batch in batches:
            images = torch.randn(batch, 3, size, size)
            program = seconds_per_call(partial(run, images, *vectors))
            model = seconds_per_call(partial(recognizer.model, images))
            each = f"{1e3 * program / batch:>5.1f} ms  {1e3 * model / batch:>5.1f} ms"
            rows.append(f"{batch:>5}  {model / program:>5.2f}× faster  {each}")
    return "\n".join([*rows, f"per image, {torch.get_num_threads()} threads"])
