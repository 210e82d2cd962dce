"""TensorBoard event files of a run: one value per tag and step, also if the run was stopped and resumed."""

import io
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard import summary as untyped

from pvlr.files import write_atomically

__all__ = ["Board"]

summary: Any = untyped  # Its functions' arguments have no types.

EVALUATED = ("test/", "validation/", "ap/", "precision_recall/", "pictures/", "relations/", "gates/")
"""Prefixes of the tags that an evaluation writes."""
ABOUT = ("run/", "calibration/", "_hparams_/", "custom_scalars__config__")
"""Prefixes of the tags of the run as a whole, rewritten by every process that resumes it."""


class Board:
    """Writer of TensorBoard event files.

    Events after the checkpoint that a run is resumed from are first removed from the files, so that no step is written
    twice; those up to it stay.

    Args:
        folder: Folder of the files; created if absent.
        step: Number of steps done.
        evaluated: Steps whose evaluation was written completely.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     board = Board(Path(folder))
        ...     board.scalars({"train/loss": 0.5}, step=1)
        ...     board.close()
    """

    def __init__(self, folder: Path, *, step: int = 0, evaluated: Collection[int] = ()) -> None:
        self.folder = folder
        for path in sorted(folder.glob("events.out.tfevents.*")):
            _remove_events(path, step, evaluated)
        self._writer: Any = FileWriter(str(folder), max_queue=100, flush_secs=30)
        if step:  # Makes an open TensorBoard discard the removed events.
            self._writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), step + 1)

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Write numbers, by tag; NaN are left out."""
        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if not math.isnan(value)]
        if entries:
            self._writer.add_summary(Summary(value=entries), step)

    def picture(self, tag: str, picture: Image.Image, *, step: int, kind: Literal["png", "jpeg"] = "png") -> None:
        """Write a picture: drawings as ``png``, without artefacts, photographs as ``jpeg``, a tenth as large."""
        file = io.BytesIO()
        picture.save(file, kind, quality=90)
        shown = Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=file.getvalue()
        )
        self._writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)

    def histogram(self, tag: str, values: Tensor, *, step: int) -> None:
        """Write a histogram of values, with 30 bins of equal width."""
        self._writer.add_summary(summary.histogram(tag, values.detach().float().cpu().numpy(), 30), step)

    def curves(
        self,
        group: str,
        names: Sequence[str],
        probabilities: Float[Tensor, "n c"],
        target: Float[Tensor, "n c"],
        known: Bool[Tensor, "n c"],
        *,
        step: int,
    ) -> None:
        """Write a precision-recall curve over the known images for every label that has a known positive."""
        columns = [part.double().cpu().numpy() for part in (target, probabilities, known)]
        for name, truth, scores, counts in zip(names, *(column.T for column in columns), strict=True):
            if (truth * counts).any():
                curve = summary.pr_curve(f"{group}/{name}", truth, np.ascontiguousarray(scores), weights=counts)
                self._writer.add_summary(curve, step)

    def about(self, texts: Mapping[str, str], settings: Mapping[str, Any], results: Sequence[str]) -> None:
        """Write the description of the run: texts (Markdown), hyperparameters, and the tags of its result metrics."""
        plain = {
            name: value if isinstance(value, int | float) and not isinstance(value, bool) else json.dumps(value)
            for name, value in settings.items()
        }
        experiment, start, self._end = summary.hparams(plain, dict.fromkeys(results, 0.0))
        for one in (experiment, start, *(summary.text(f"run/{name}", text) for name, text in texts.items())):
            self._writer.add_summary(one, 0)

    def finished(self, step: int) -> None:
        """Mark the run described by :meth:`about` as finished."""
        self._writer.add_summary(self._end, step)

    def charts(self, layout: Mapping[str, Mapping[str, str]]) -> None:
        """Group curves into shared charts: a mapping of category to title to a pattern of tags."""
        charts = {
            category: {title: ["Multiline", [pattern]] for title, pattern in parts.items()}
            for category, parts in layout.items()
        }
        self._writer.add_summary(summary.custom_scalars(charts), 0)

    def vectors(self, names: Sequence[str], sets: Mapping[str, Float[Tensor, "c d"]]) -> None:
        """Write sets of vectors with the same names for the projector, replacing earlier ones."""
        config = []
        write_atomically(self.folder / "names.tsv", "".join(f"{' '.join(name.split())}\n" for name in names).encode())
        for number, (title, vectors) in enumerate(sets.items()):
            rows = ("\t".join(f"{value:.6g}" for value in row) for row in vectors.detach().float().cpu().tolist())
            file = f"vectors-{number}.tsv"
            write_atomically(self.folder / file, "".join(f"{row}\n" for row in rows).encode())
            fields = {"tensor_name": title, "tensor_path": file, "metadata_path": "names.tsv"}
            config.append(
                f"embeddings {{ {' '.join(f'{name}: {json.dumps(text)}' for name, text in fields.items())} }}\n"
            )
        write_atomically(self.folder / "projector_config.pbtxt", "".join(config).encode())

    def flush(self) -> None:
        """Flush pending events to the files."""
        self._writer.flush()

    def close(self) -> None:
        """Flush pending events and close the files."""
        self._writer.close()


def _remove_events(path: Path, step: int, evaluated: Collection[int]) -> None:
    if step == 0:
        path.unlink()
        return
    remaining = io.BytesIO()
    writer = RecordWriter(remaining)
    for record in RawEventFileLoader(str(path)).Load():  # Stops at a record that a killed run left incomplete.
        event = Event.FromString(record)
        tag = event.summary.value[0].tag if event.summary.value else ""
        late = event.step not in evaluated if tag.startswith(EVALUATED) else event.step > step
        if not late and not tag.startswith(ABOUT) and not event.HasField("session_log"):
            writer.write(record)
    write_atomically(path, remaining.getvalue())
