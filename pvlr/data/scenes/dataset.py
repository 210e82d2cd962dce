"""Generated scenes in true Pascal VOC layout: the data set that needs no download.

A scene is a cluttered picture with a few objects, each a colour, a texture and a shape ("red striped circle").
Twenty of the hundred combinations are labels; the others are distractors that share attributes with them, so that
a label is identified only by all three of its words. Labels come in five themes whose members appear together, some
of them rarely. Everything is a function of (seed, split, index).
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from pvlr.core.labels import LabelSet
from pvlr.data.batch import DataError
from pvlr.data.scenes.rendering import COLOURS, SHAPES, TEXTURES, SceneObject, render_scene

__all__ = ["SCENE_LABELS", "Scene", "ScenesConfig", "caption", "draw_scene", "make_scene", "write_scenes"]

THEMES = 5
MEMBERS = 4
SPLITS = ("train", "val", "test", "pretrain")
SIZES = ((144, 144), (168, 126), (126, 168), (160, 136))
"""Width and height of the pictures in pixels; not all square, like photographs."""

MEMBER_PROBABILITY = (0.75, 0.25, 0.4, 0.3)
"""Probabilities of a theme's four labels; the last of the first three themes is rarer (`RARE_PROBABILITY`)."""
RARE_PROBABILITY = 0.06
COMPANION_PROBABILITY = 0.8
"""Probability of a theme's second label if its first is present: the strongest relation between labels."""
STRANGER_PROBABILITY = 0.02
"""Probability of each label of the other themes."""
SECOND_INSTANCE_PROBABILITY = 0.25
DISTRACTORS_PER_SCENE = (8, 13)
"""From, to (exclusive). Enough that one pooled vector cannot locate objects, while one vector per patch can."""
DIFFICULT_BELOW = 0.4
"""An object with a smaller visible share is `difficult`; below `DROPPED_BELOW` it is not annotated at all."""
DROPPED_BELOW = 0.1


def _label_attributes() -> tuple[tuple[str, str, str], ...]:
    # Every theme holds each of the first four shapes once; textures and colours rotate with different strides, so
    # that labels of different themes share attributes and no single attribute identifies a label.
    return tuple(
        (COLOURS[(member + 2 * theme) % len(COLOURS)], TEXTURES[(member + theme) % len(TEXTURES)], SHAPES[member])
        for theme in range(THEMES)
        for member in range(MEMBERS)
    )


LABEL_ATTRIBUTES = _label_attributes()
SCENE_LABELS = LabelSet(tuple("_".join(attributes) for attributes in LABEL_ATTRIBUTES))
"""The 20 labels, as `colour_texture_shape`; their readable names have spaces."""
ALL_ATTRIBUTES = tuple((c, t, s) for c in COLOURS for t in TEXTURES for s in SHAPES)
DISTRACTORS = tuple(a for a in ALL_ATTRIBUTES if a not in LABEL_ATTRIBUTES)


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Configuration of a generated data set.

    Args:
        seed: seed of every picture.
        train: number of training pictures.
        val: number of validation pictures.
        test: number of test pictures.
    """

    seed: int = 2007
    train: int = 3000
    val: int = 500
    test: int = 1000

    def __post_init__(self) -> None:
        for name in ("train", "val", "test"):
            if getattr(self, name) < 1:
                raise DataError(f"scenes.{name}: expected at least 1 picture, got {getattr(self, name)}")
        if self.seed < 0:
            raise DataError(f"scenes.seed: expected a number of at least 0, got {self.seed}")


@dataclass(frozen=True)
class Scene:
    """The plan of one picture: size in pixels, objects from back to front, and the seed of its background."""

    width: int
    height: int
    objects: tuple[SceneObject, ...]
    seed: int


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Plan one picture; a function of its arguments alone.

    Args:
        seed: seed of the data set, at least 0.
        split: `train`, `val`, `test` (labels by theme, with distractors) or `pretrain` (all combinations equally
            likely, no themes: a tower pre-trained on these learns the words but not which labels appear together).
        index: number of the picture within the split.

    Example:
        >>> scene = make_scene(0, "train", 3)
        >>> scene == make_scene(0, "train", 3), scene == make_scene(1, "train", 3)
        (True, False)
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    width, height = SIZES[rng.integers(len(SIZES))]
    if split == "pretrain":
        kinds = [ALL_ATTRIBUTES[i] for i in rng.choice(len(ALL_ATTRIBUTES), size=rng.integers(1, 7))]
    else:
        kinds = [LABEL_ATTRIBUTES[i] for i in _draw_labels(rng)]
        kinds += [kind for kind in kinds if rng.random() < SECOND_INSTANCE_PROBABILITY]
        kinds += [DISTRACTORS[i] for i in rng.choice(len(DISTRACTORS), size=rng.integers(*DISTRACTORS_PER_SCENE))]
    rng.shuffle(kinds)
    objects = tuple(_place(kind, width, height, rng) for kind in map(tuple, kinds))
    return Scene(width, height, objects, int(rng.integers(2**31)))


def _draw_labels(rng: np.random.Generator) -> list[int]:
    theme = int(rng.integers(THEMES))
    present = rng.random(THEMES * MEMBERS) < STRANGER_PROBABILITY
    own = np.array(MEMBER_PROBABILITY)
    if theme < 3:
        own[-1] = RARE_PROBABILITY
    draws = rng.random(MEMBERS)
    first = theme * MEMBERS
    members = draws < own
    if members[0]:
        members[1] = draws[1] < COMPANION_PROBABILITY
    present[first : first + MEMBERS] |= members
    if not present.any():
        present[first] = True
    return [int(i) for i in np.flatnonzero(present)]


def _place(kind: tuple[str, str, str], width: int, height: int, rng: np.random.Generator) -> SceneObject:
    radius = float(min(width, height) * rng.uniform(0.08, 0.21))
    return SceneObject(
        colour=kind[0],
        texture=kind[1],
        shape=kind[2],
        x=float(rng.uniform(0.6 * radius, width - 0.6 * radius)),
        y=float(rng.uniform(0.6 * radius, height - 0.6 * radius)),
        radius=radius,
        angle=float(rng.uniform(0, 2 * np.pi)),
        seed=int(rng.integers(2**31)),
    )


@dataclass(frozen=True)
class DrawnObject:
    """An annotation: an object's name, its box in pixels (1-based, inclusive, as in VOC), and VOC's two flags."""

    name: str
    box: tuple[int, int, int, int]
    difficult: bool
    truncated: bool


def draw_scene(scene: Scene) -> tuple[Image.Image, tuple[DrawnObject, ...]]:
    """Render a scene and annotate the visible part of each object, back to front.

    Returns:
        the picture (RGB) and its visible objects; those hidden by more than `1 - DROPPED_BELOW` are left out.
    """
    pixels, covers = render_scene(scene.width, scene.height, scene.objects, scene.seed)
    drawn = []
    for item, cover in zip(scene.objects, covers, strict=True):
        if cover.visible_share < DROPPED_BELOW or cover.box is None:
            continue
        drawn.append(
            DrawnObject(
                name="_".join((item.colour, item.texture, item.shape)),
                box=cover.box,
                difficult=cover.visible_share < DIFFICULT_BELOW,
                truncated=cover.visible_share < 0.95,
            )
        )
    return Image.fromarray(pixels), tuple(drawn)


def caption(scene: Scene, drawn: tuple[DrawnObject, ...], rng: np.random.Generator) -> str:
    """Describe a scene in words: all its visible objects, or some of them, in any order.

    Example:
        >>> scene = make_scene(0, "pretrain", 0)
        >>> caption(scene, draw_scene(scene)[1], np.random.default_rng(0)).startswith("a ")
        True
    """
    names = list(dict.fromkeys(item.name.replace("_", " ") for item in drawn if not item.difficult))
    if not names:
        return "a photo of a cluttered background."
    rng.shuffle(names)
    if rng.random() < 0.3:
        names = names[: rng.integers(1, len(names) + 1)]
    *head, last = [f"a {name}" for name in names]
    listing = f"{', '.join(head)} and {last}" if head else last
    return f"{('a photo of ', 'a picture with ', 'a scene with ', '')[rng.integers(4)]}{listing}."


def write_scenes(root: str | os.PathLike[str], config: ScenesConfig) -> Path:
    """Write a data set of scenes below `root` in the layout of Pascal VOC 2007, unless it is there already.

    Writes `VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}` with the lists of every split and every
    class, `labels.json` (the label set) and `scenes.json` (the configuration) beside them. The folder appears whole
    or not at all.

    Returns:
        the folder `root/VOCdevkit/VOC2007`.

    Raises:
        DataError: if the folder holds anything but the scenes of this configuration.
    """
    folder = Path(root) / "VOCdevkit" / "VOC2007"
    stamp = json.dumps({"generator": GENERATOR_VERSION, **asdict(config)}, indent=1) + "\n"
    if folder.exists():
        return _of_stamp(folder, stamp)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".scenes-", dir=folder.parent))
    try:
        _write_devkit(partial, config)
        (partial / "labels.json").write_text(json.dumps(SCENE_LABELS.to_json(), indent=1) + "\n")
        (partial / "scenes.json").write_text(stamp)
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException as err:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(err, OSError) and err.errno in (errno.EEXIST, errno.ENOTEMPTY):  # Another process wrote it first.
            return _of_stamp(folder, stamp)
        raise
    return folder


def _of_stamp(folder: Path, stamp: str) -> Path:
    found = folder / "scenes.json"
    if found.is_file() and found.read_text() == stamp:
        return folder
    raise DataError(
        f"{folder}: expected no folder or the scenes of this configuration, found another data set; "
        "choose another data.root or remove the folder"
    )


GENERATOR_VERSION = 1
"""Incremented whenever the same configuration would generate other pictures."""


def _write_devkit(folder: Path, config: ScenesConfig) -> None:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    states: dict[str, dict[str, dict[str, int]]] = {}
    number = 0
    for split, count in (("train", config.train), ("val", config.val), ("test", config.test)):
        states[split] = {}
        for index in range(count):
            number += 1
            identifier = f"{number:06d}"
            scene = make_scene(config.seed, split, index)
            image, drawn = draw_scene(scene)
            labelled = tuple(item for item in drawn if item.name in SCENE_LABELS)
            image.save(folder / "JPEGImages" / f"{identifier}.jpg", quality=60 + scene.seed % 31)
            (folder / "Annotations" / f"{identifier}.xml").write_text(_annotation(identifier, scene, labelled))
            states[split][identifier] = _label_states(labelled)
    states["trainval"] = states["train"] | states["val"]
    for split, images in states.items():
        for name, lines in _split_lists(images):
            file_name = f"{name}_{split}.txt" if name else f"{split}.txt"
            (folder / "ImageSets" / "Main" / file_name).write_text(lines)


def _label_states(drawn: tuple[DrawnObject, ...]) -> dict[str, int]:
    """Return VOC's marks for the labels of a picture: 1 if any object is not difficult, 0 if all are."""
    states: dict[str, int] = {}
    for item in drawn:
        states[item.name] = max(states.get(item.name, 0), int(not item.difficult))
    return states


def _split_lists(images: dict[str, dict[str, int]]) -> Iterator[tuple[str, str]]:
    yield "", "".join(f"{identifier}\n" for identifier in images)
    for name in SCENE_LABELS:
        yield name, "".join(f"{identifier} {states.get(name, -1):2d}\n" for identifier, states in images.items())


def _annotation(identifier: str, scene: Scene, drawn: tuple[DrawnObject, ...]) -> str:
    objects = "".join(
        f"\t<object>\n\t\t<name>{escape(item.name)}</name>\n\t\t<pose>Unspecified</pose>\n"
        f"\t\t<truncated>{int(item.truncated)}</truncated>\n\t\t<difficult>{int(item.difficult)}</difficult>\n"
        "\t\t<bndbox>"
        + "".join(
            f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)
        )
        + "</bndbox>\n\t</object>\n"
        for item in drawn
    )
    return (
        f"<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>{identifier}.jpg</filename>\n"
        "\t<source><database>pvlr scenes</database></source>\n"
        f"\t<size><width>{scene.width}</width><height>{scene.height}</height><depth>3</depth></size>\n"
        f"\t<segmented>0</segmented>\n{objects}</annotation>\n"
    )
