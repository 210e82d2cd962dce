"""Rendering of the objects and the background of generated scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["COLOURS", "SHAPES", "TEXTURES", "Cover", "SceneObject", "render_scene"]

Array = NDArray[Any]
"""Float images: numpy's stubs widen float32 at every step, so the width is not part of the type."""

_PALETTE = {
    "red": (205, 45, 40),
    "green": (50, 160, 65),
    "blue": (45, 85, 205),
    "yellow": (225, 195, 50),
    "purple": (140, 60, 170),
}
COLOURS = tuple(_PALETTE)
TEXTURES = ("plain", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "ring")


@dataclass(frozen=True)
class SceneObject:
    """One object: its attributes, centre and radius in pixels, rotation in radians, and the seed of its details."""

    colour: str
    texture: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Cover:
    """The visible part of an object: the share of its pixels, and their box (1-based, inclusive) if there are any."""

    visible_share: float
    box: tuple[int, int, int, int] | None


def render_scene(
    width: int, height: int, objects: Sequence[SceneObject], seed: int
) -> tuple[NDArray[np.uint8], list[Cover]]:
    """Draw `objects` from back to front over clutter.

    Args:
        width: width of the picture in pixels.
        height: height of the picture in pixels.
        objects: the objects, back to front.
        seed: seed of the background and the camera.

    Returns:
        pixels `height width 3` and the cover of each object.

    Example:
        >>> item = SceneObject("red", "plain", "circle", x=30.0, y=20.0, radius=10.0, angle=0.0, seed=0)
        >>> pixels, covers = render_scene(60, 40, [item], seed=0)
        >>> pixels.shape, covers[0].visible_share
        ((40, 60, 3), 1.0)
    """
    rng = np.random.default_rng(seed)
    canvas = _background(width, height, rng)
    owner = np.full((height, width), -1, dtype=np.int16)
    areas = []
    for number, item in enumerate(objects):
        alpha, paint, (top, left) = _object(item, width, height)
        rows, columns = slice(top, top + alpha.shape[0]), slice(left, left + alpha.shape[1])
        window = canvas[rows, columns]
        window += alpha[..., None] * (paint - window)
        solid = alpha > 0.5
        owner[rows, columns][solid] = number
        areas.append(int(solid.sum()))
    covers = [_cover(owner == number, area) for number, area in enumerate(areas)]
    return _camera(canvas, rng), covers


def _background(width: int, height: int, rng: np.random.Generator) -> Array:
    coarse = rng.uniform(40, 215, size=(int(rng.integers(2, 7)), int(rng.integers(2, 7)), 3))
    grey = rng.uniform(0.3, 0.9)
    coarse = grey * coarse.mean(axis=2, keepdims=True) + (1 - grey) * coarse
    base = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.asarray(base, dtype=np.float32).copy()
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(rng.integers(4, 12)):
        colour = rng.uniform(20, 235, size=3).astype(np.float32)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle = rng.uniform(0, np.pi)
        along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
        across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
        # Strokes and specks with the edges and colours of objects.
        length, thickness = rng.uniform(4, 70), rng.uniform(0.8, 3.5)
        mask = (np.abs(along) < length) & (np.abs(across) < thickness)
        canvas[mask] += rng.uniform(0.4, 0.9) * (colour - canvas[mask])
    return canvas


def _object(item: SceneObject, width: int, height: int) -> tuple[Array, Array, tuple[int, int]]:
    rng = np.random.default_rng(item.seed)
    reach = item.radius + 1
    left, right = max(0, int(item.x - reach)), min(width, int(item.x + reach) + 2)
    top, bottom = max(0, int(item.y - reach)), min(height, int(item.y + reach) + 2)
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
    x, y = (columns - item.x) / item.radius, (rows - item.y) / item.radius
    u = x * np.cos(item.angle) + y * np.sin(item.angle)
    v = y * np.cos(item.angle) - x * np.sin(item.angle)
    alpha = np.clip(0.5 - _outside(item.shape, u, v) * item.radius, 0, 1).astype(np.float32)

    colour = np.array(_PALETTE[item.colour], dtype=np.float32) + rng.normal(0, 16, size=3).astype(np.float32)
    contrast = np.float32(235 if rng.random() < 0.5 else 25) + rng.normal(0, 12, size=3).astype(np.float32)
    light = np.float32(rng.uniform(0.75, 1.15)) * (1 - np.float32(rng.uniform(0, 0.25)) * (u[..., None] + 1) / 2)
    second = _second_tone(item.texture, u, v, item.radius, rng)[..., None]
    paint = light * (colour + second * (contrast - colour))
    return alpha, paint.astype(np.float32), (top, left)


def _outside(shape: str, u: Array, v: Array) -> Array:
    """The approximate signed distance to the outline in radii, negative inside."""
    radius = np.hypot(u, v)
    if shape == "circle":
        return radius - 0.92
    if shape == "ring":
        return np.abs(radius - 0.72) - 0.26
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.76
    if shape == "triangle":
        return np.maximum(v - 0.5, np.abs(u) * 0.866 - v * 0.5 - 0.5)
    # A star: its radius falls and rises linearly five times around.
    turn = np.abs((np.arctan2(v, u) * 5 / (2 * np.pi)) % 1 - 0.5) * 2
    return (radius - (0.4 + 0.6 * turn)) * 0.6


def _second_tone(texture: str, u: Array, v: Array, radius: float, rng: np.random.Generator) -> Array:
    """The mask of a texture's second tone: 0 or 1 per pixel. Its period in pixels does not depend on the radius."""
    period = rng.uniform(5.0, 8.0) / radius
    phase = rng.uniform(0, 1, size=2)
    across, along = u / period + phase[0], v / period + phase[1]
    tone: Array = np.zeros_like(u)
    if texture == "striped":
        tone = (across % 1) < 0.45
    elif texture == "dotted":
        tone = np.hypot(across % 1 - 0.5, along % 1 - 0.5) < 0.32
    elif texture == "checkered":
        tone = (np.floor(across * 1.3) + np.floor(along * 1.3)) % 2
    return tone.astype(np.float32, copy=False)


def _cover(visible: NDArray[np.bool_], area: int) -> Cover:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    if area == 0 or rows.size == 0:
        return Cover(0.0, None)
    box = (int(columns[0]) + 1, int(rows[0]) + 1, int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Cover(float(visible.sum()) / area, box)


def _camera(canvas: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply exposure, a colour cast and sensor noise."""
    cast = rng.uniform(0.88, 1.12, size=3).astype(np.float32)
    noise = rng.normal(0, rng.uniform(2, 12), size=canvas.shape[:2]).astype(np.float32)
    pixels: NDArray[np.uint8] = np.clip(canvas * cast + noise[..., None], 0, 255).astype(np.uint8)
    return pixels
