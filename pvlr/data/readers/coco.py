"""Reader of COCO: labels of pictures from the boxes of an ``instances`` file, or of any file in that format."""

import json
import math
import os
from pathlib import Path
from typing import Any

from pvlr.core.labels import LabelError, LabelSet
from pvlr.data.batch import DataError
from pvlr.data.dataset import LabelledImages, Transform
from pvlr.data.readers.entries import (
    Entry,
    assemble,
    inside,
    read_text,
    repeated,
    require_files,
    require_name,
    shown,
    shown_keys,
)

__all__ = ["COCO_LABELS", "MAX_JSON_BYTES", "read_coco"]

COCO_LABELS = LabelSet(
    (
        "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
        "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
        "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis",
        "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
        "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
        "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed",
        "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
        "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
        "toothbrush",
    )
)  # fmt: skip
"""The 80 labels, in the order of their category ids (1 to 90, ten of which are not used)."""

MAX_JSON_BYTES = 2_000_000_000
"""Largest annotation file; that of train2014 has about 330 MB."""


def read_coco(
    images: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    name: str | None = None,
    labels: LabelSet | None = None,
    keep_unlabelled: bool = False,
    check_files: bool = True,
    transform: Transform | None = None,
) -> LabelledImages:
    """Read an annotation file of COCO, or of a data set in its format; each file is a split.

    A label is present if at least one object of it is annotated, including crowds and boxes without area (COCO has a
    few). The rest of the file is ignored: outlines, licences, numbers of the annotations.

    Of train2014 and val2014, 82,081 and 40,137 pictures have a label, of 82,783 and 40,504. Most publications evaluate
    on those with a label.

    Args:
        images: The folder of the pictures, to which each ``file_name`` is appended.
        annotations: An ``instances_*.json`` of at most `MAX_JSON_BYTES`: an object with the lists ``images`` (``id``,
            ``file_name``), ``categories`` (``id``, ``name``) and ``annotations`` (``image_id``, ``category_id``;
            ``bbox`` and ``iscrowd`` are checked if given).
        name: Name of the data set; None: that of the annotation file without its extension.
        labels: The columns of the target: names of categories in the file, in any order. They must include every
            category that an object has. None: all of the file's categories, by id.
        keep_unlabelled: Keep the pictures without a label. Either way the summary states their number.
        check_files: Check that every picture in the result exists. Otherwise a missing one is found when its sample is
            read; for statistics of labels, and for slow disks.
        transform: Transform of the pictures, see `LabelledImages`.

    Returns:
        The pictures in the order of the file, named by their ``file_name``.

    Raises:
        DataError: naming the file and its defect, or the picture that is missing.

    Example:
        >>> import tempfile
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        ...     "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
        ...     "annotations": [{"image_id": 8, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 0}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for image in ("a.jpg", "b.jpg"):
        ...         Path(folder, image).touch()
        ...     path = Path(folder, "instances_mine.json")
        ...     _ = path.write_text(json.dumps(content))
        ...     data = read_coco(folder, path)
        >>> data.labels.names, data.identifiers, data.target.tolist()
        (('cat', 'dog'), ('b.jpg',), [[0.0, 1.0]])
        >>> data.summary()
        'instances_mine: 1 images, 2 labels, 1.00 positives per image, 0 unknown labels (1 without a label left out)'
    """
    path = Path(annotations)
    content = _load(path)
    categories = _categories(path, content)
    labels = _labels(path, categories) if labels is None else _require_known(path, categories, labels)
    files = _files(path, content, Path(images))
    present = _present(path, content, files, categories)
    entries = [
        Entry(f"{path}: image {number}", file, source, sorted(present[number]))
        for number, (file, source) in files.items()
        if keep_unlabelled or present[number]
    ]
    if check_files:
        require_files(entries, Path(images))
    without = sum(not names for names in present.values())
    note = f"{without:,} without a label {'kept' if keep_unlabelled else 'left out'}"
    return assemble(name or path.stem, entries, labels, note=note, transform=transform)


def _load(path: Path) -> dict[str, Any]:
    text = read_text(path, "annotations", MAX_JSON_BYTES)

    def without_outline(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        item = dict(pairs)
        if len(item) != len(pairs):
            twice = shown(repeated(key for key, _ in pairs))
            raise DataError(f"{path}: expected every key of an object once, found {twice} twice")
        # Outlines are nine tenths of COCO's files: each is discarded as soon as it is parsed.
        item.pop("segmentation", None)
        return item

    try:
        content = json.loads(text, object_pairs_hook=without_outline)
    except DataError:
        raise
    except RecursionError:
        raise DataError(f"{path}: expected annotations as JSON, found far too many brackets within brackets") from None
    except ValueError as err:
        raise DataError(f"{path}: expected annotations as JSON, but {err}") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: expected an object with 'images', 'categories', 'annotations', found {shown(content)}"
        )
    for key in ("images", "categories", "annotations"):
        if key not in content:
            raise DataError(f"{path}: expected the key {key!r}, found {shown_keys(content)}")
        if not isinstance(content[key], list):
            raise DataError(f"{path}: expected {key!r} to be a list, found {shown(content[key])}")
        for number, item in enumerate(content[key]):
            if not isinstance(item, dict):
                raise DataError(f"{path}: {key}[{number}]: expected an object, found {shown(item)}")
    return content


def _integer(place: str, item: dict[str, Any], key: str) -> int:
    value = _field(place, item, key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{place}: expected {key!r} to be an integer, found {shown(value)}")
    return value


def _field(place: str, item: dict[str, Any], key: str) -> object:
    if key not in item:
        raise DataError(f"{place}: expected the key {key!r}, found {shown_keys(item)}")
    value: object = item[key]
    return value


def _categories(path: Path, content: dict[str, Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for position, item in enumerate(content["categories"]):
        place = f"{path}: categories[{position}]"
        number = _integer(place, item, "id")
        if number in categories:
            raise DataError(f"{place}: expected every category once, found the id {shown(number)} again")
        categories[number] = require_name(place, "a category", _field(place, item, "name"))
    return categories


def _labels(path: Path, categories: dict[int, str]) -> LabelSet:
    try:
        return LabelSet(tuple(categories[number] for number in sorted(categories)))
    except LabelError as err:
        raise DataError(f"{path}: categories: {err}") from None


def _require_known(path: Path, categories: dict[int, str], labels: LabelSet) -> LabelSet:
    # A label that is no category cannot be marked as absent.
    known = _labels(path, categories)
    for name in labels:
        try:
            known.index(name)
        except LabelError as err:
            raise DataError(f"{path}: categories: {err}") from None
    return labels


def _files(path: Path, content: dict[str, Any], folder: Path) -> dict[int, tuple[str, Path]]:
    files: dict[int, tuple[str, Path]] = {}
    seen: set[str] = set()
    for position, item in enumerate(content["images"]):
        place = f"{path}: images[{position}]"
        number = _integer(place, item, "id")
        if number in files:
            raise DataError(f"{place}: expected every image once, found the id {shown(number)} again")
        file, source = inside(folder, _field(place, item, "file_name"), place)
        if file in seen:
            raise DataError(f"{place}: expected every file once, found {file!r} again")
        seen.add(file)
        files[number] = file, source
    return files


def _present(
    path: Path, content: dict[str, Any], files: dict[int, tuple[str, Path]], categories: dict[int, str]
) -> dict[int, set[str]]:
    present: dict[int, set[str]] = {number: set() for number in files}
    for position, item in enumerate(content["annotations"]):
        place = f"{path}: annotations[{position}]"
        image, category = _integer(place, item, "image_id"), _integer(place, item, "category_id")
        if image not in present:
            raise DataError(f"{place}: expected the id of one of the images, found {shown(image)}")
        if category not in categories:
            raise DataError(f"{place}: expected the id of one of the categories, found {shown(category)}")
        if "bbox" in item:
            _require_box(place, item["bbox"])
        crowd = item.get("iscrowd", 0)
        if isinstance(crowd, bool) or crowd not in (0, 1):
            raise DataError(f"{place}: expected 'iscrowd' to be 0 or 1, found {shown(crowd)}")
        present[image].add(categories[category])
    return present


def _require_box(place: str, box: object) -> None:
    if (
        not isinstance(box, list)
        or len(box) != 4
        or any(isinstance(number, bool) or not isinstance(number, int | float) for number in box)
        or any(isinstance(number, float) and not math.isfinite(number) for number in box)
    ):
        found = json.dumps(box) if isinstance(box, list) and len(box) <= 4 else shown(box)
        raise DataError(f"{place}: expected 'bbox' to be four finite numbers, found {found[:60]}")
    if box[2] < 0 or box[3] < 0:
        raise DataError(f"{place}: expected 'bbox' to have no negative size, found {box[2]} x {box[3]}"[:300])
