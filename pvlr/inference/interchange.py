"""Tags as files of programs that people label pictures with: tasks of Label Studio, labels of FiftyOne."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pvlr.core.labels import LabelSet
from pvlr.files import write_atomically
from pvlr.inference.tags import Tag

__all__ = ["FiftyOneFile", "LabelStudioFile", "labelling_config"]


class _Entries:
    """One document of JSON, an entry per picture, written when the context is left without an error."""

    before, after = b"[", b"\n]\n"

    def __init__(self, path: Path) -> None:
        self.path, self._count = path, 0
        self._parts: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed on leaving

    def _put(self, entry: str) -> None:
        self._parts.write(f"{',' if self._count else ''}\n{entry}".encode())
        self._count += 1

    def __enter__(self) -> "_Entries":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._parts:
            if kind is None:
                write_atomically(self.path, self._write)

    def _write(self, file: IO[bytes]) -> None:
        file.write(self.before)
        self._parts.seek(0)
        shutil.copyfileobj(self._parts, file)
        file.write(self.after)


class LabelStudioFile(_Entries):
    """Tasks with predictions for Label Studio, which people then correct.

    Each task has the picture as ``image``, a prediction with all its labels as choices, whose score is the lowest of
    their probabilities, and each probability under ``meta``. Beside ``tasks.json``, ``tasks.json.config.xml`` is the
    labelling configuration that fits.

    Args:
        path: The file.
        labels: The labels that were looked for.
        model: Name of the model, shown as the version of the predictions.
        prefix: Text in front of each path, such as ``/data/local-files/?d=`` for files that Label Studio serves; the
            path is then quoted as in addresses. Empty: the path as given.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tasks.json")
        ...     with LabelStudioFile(path, LabelSet(("cat",)), model="mine") as file:
        ...         file.add("a.jpg", [Tag("cat", 0.75, None)])
        ...     (task,) = json.loads(path.read_text())
        >>> task["data"], task["predictions"][0]["score"], task["predictions"][0]["result"][0]["value"]
        ({'image': 'a.jpg'}, 0.75, {'choices': ['cat']})
    """

    def __init__(self, path: Path, labels: LabelSet, *, model: str, prefix: str = "") -> None:
        super().__init__(path)
        self.labels, self.model, self.prefix = labels, model, prefix

    def add(self, path: str, tags: Sequence[Tag]) -> None:
        """Add a picture."""
        prediction: dict[str, Any] = {"model_version": self.model, "result": []}
        if tags:
            choices = {"choices": [tag.name for tag in tags]}
            prediction["score"] = min(round(tag.probability, 4) for tag in tags)
            prediction["result"] = [{"from_name": "labels", "to_name": "image", "type": "choices", "value": choices}]
        place = self.prefix + quote(os.fsencode(path)) if self.prefix else path
        probabilities = {tag.name: round(tag.probability, 4) for tag in tags}
        task = {"data": {"image": place}, "predictions": [prediction], "meta": {"probabilities": probabilities}}
        self._put(json.dumps(task))

    def __enter__(self) -> "LabelStudioFile":
        return self

    def _write(self, file: IO[bytes]) -> None:
        super()._write(file)
        write_atomically(self.path.with_name(f"{self.path.name}.config.xml"), labelling_config(self.labels).encode())


def labelling_config(labels: LabelSet) -> str:
    """Return Label Studio's configuration of a project in which any number of these labels is chosen per picture.

    Example:
        >>> print(labelling_config(LabelSet(("cat",))))
        <View>
          <Image name="image" value="$image"/>
          <Choices name="labels" toName="image" choice="multiple">
            <Choice value="cat"/>
          </Choices>
        </View>
    """
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in labels)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="labels" toName="image" choice="multiple">\n'
        f"{choices}  </Choices>\n</View>\n"
    )


class FiftyOneFile(_Entries):
    """Classifications with confidences for FiftyOne, as ``labels.json`` of its ``FiftyOneImageClassificationDataset``.

    Pictures are named by their absolute paths, and stay where they are.

    Args:
        path: The file.
        labels: The labels that were looked for.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.json")
        ...     with FiftyOneFile(path, LabelSet(("cat", "dog"))) as file:
        ...         file.add("/a.jpg", [Tag("cat", 0.75, None)])
        ...     json.loads(path.read_text())
        {'classes': ['cat', 'dog'], 'labels': {'/a.jpg': [{'label': 'cat', 'confidence': 0.75}]}}
    """

    after = b"\n}}\n"

    def __init__(self, path: Path, labels: LabelSet) -> None:
        super().__init__(path)
        self.before = f'{{"classes": {json.dumps(list(labels))}, "labels": {{'.encode()

    def add(self, path: str, tags: Sequence[Tag]) -> None:
        """Add a picture."""
        found = [{"label": tag.name, "confidence": round(tag.probability, 4)} for tag in tags]
        self._put(f"{json.dumps(os.path.abspath(path))}: {json.dumps(found)}")

    def __enter__(self) -> "FiftyOneFile":
        return self
