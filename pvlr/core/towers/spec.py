"""Description of a model's towers, sufficient to load them again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pvlr.core.arguments import require_choice, require_int
from pvlr.core.towers.files.choices import Activation, usual_activation
from pvlr.core.towers.files.sources import (
    BUNDLED_PREFIX,
    FOLDER_PREFIX,
    HUB_PREFIX,
    TowerError,
    TowerSource,
    find_source,
)
from pvlr.core.towers.image.blocks import PatchFeatures

__all__ = ["RANDOM", "TowerSpec", "spec_of"]

RANDOM = "random"
OWN_WEIGHTS = (BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX)
LATER = {"activation", "mean", "std"}  # fields added after the first version


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """The pre-trained towers of a model.

    Args:
        name: ``pvlr:photos`` (with the extra ``photos``), an open_clip model name,
            ``hf-hub:ORGANISATION/REPOSITORY``, ``local-dir:FOLDER`` or ``pvlr:scenes-clip``, for generated scenes.
        weights: For an open_clip model name, and required with it: a tag such as ``openai``, a local file, or
            ``random`` (untrained weights, the same each time, for tests and measurements). The other names have their
            own: null.
        image_size: Side of the images in pixels, a multiple of the patch size; null for the tower's own.
        patch_features: ``value`` (the last block's value path, aligned with text) or ``final`` (its output).
        train: The trained part of the image tower: ``frozen``, ``all`` or a number of last blocks.
        activation: Activation the weights were trained with, ``gelu`` or ``quick_gelu``; null where name or file
            determine it. A file does not, where open_clip has its architecture with either.
        mean: Means of red, green and blue in the images the weights were trained on, on the scale from 0 to 1; null for
            those of the weights. Required with a file where published weights of its architecture differ.
        std: Standard deviations, like ``mean``.
        cache_dir: Folder for downloads; null for the usual cache.

    Raises:
        ValueError: naming the field, what it may be and what was given.
    """

    name: str = "ViT-B-16-quickgelu"
    weights: str | None = None
    image_size: int | None = None
    patch_features: PatchFeatures = "value"
    train: Literal["frozen", "all"] | int = "frozen"
    activation: Activation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name in ("name", "weights", "cache_dir"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and (name == "name" or value is not None):
                raise ValueError(f"{name}: expected a text that is not empty, got {value!r}")
        if self.image_size is not None:
            require_int("image_size", self.image_size, least=1)
        require_choice("patch_features", self.patch_features, get_args(PatchFeatures))
        if self.train not in ("frozen", "all"):
            require_int("train", self.train, least=1)
        if self.activation is not None:
            require_choice("activation", self.activation, get_args(Activation))
        for name, least in (("mean", 0.0), ("std", 1e-6)):
            values = getattr(self, name)
            if values is not None and not (
                isinstance(values, tuple)
                and len(values) == 3
                and all(type(x) in (int, float) and least <= x <= 1 for x in values)
            ):
                raise ValueError(f"{name}: expected three numbers from {least:g} to 1, got {values!r}")

    @property
    def is_random(self) -> bool:
        """True where the weights are untrained ones."""
        return self.weights == RANDOM and not self.name.startswith(OWN_WEIGHTS)

    @property
    def is_local(self) -> bool:
        """True where the weights are a file or folder of this machine, not available elsewhere."""
        if self.name.startswith(FOLDER_PREFIX):
            return True
        return self.weights is not None and not self.is_random and self.source().tag is None

    @property
    def names_weights(self) -> bool:
        """True where the weights are named, so that the same ones can be loaded again."""
        return self.weights is not None or self.name.startswith(OWN_WEIGHTS)

    def source(self) -> TowerSource:
        """Find the source of the towers, see :func:`~pvlr.core.towers.files.sources.find_source`.

        Raises:
            TowerError: naming what is unknown or missing.
        """
        return find_source(
            self.name,
            None if self.is_random else self.weights,
            self.cache_dir,
            activation=self.activation,
            mean=self.mean,
            std=self.std,
        )

    def absolute(self) -> "TowerSpec":
        """Return the same towers with absolute paths of this machine, independent of the working folder."""
        if self.name.startswith(FOLDER_PREFIX):
            return replace(self, name=f"{FOLDER_PREFIX}{Path(self.name.removeprefix(FOLDER_PREFIX)).absolute()}")
        if self.weights is not None and self.is_local:
            return replace(self, weights=str(Path(self.weights).absolute()))
        return self

    def at(self, place: str) -> "TowerSpec":
        """Return the same towers at another place.

        Args:
            place: A folder; a file of weights, where the towers have a name of open_clip's; or another name.

        Raises:
            TowerError: where a file of weights is given for towers that are a folder or have their own.

        Example:
            >>> TowerSpec(name="local-dir:/gone", train=1).at("hf-hub:some/where").name
            'hf-hub:some/where'
        """
        if Path(place).is_file():
            if self.name.startswith(OWN_WEIGHTS):
                raise TowerError(f"tower: expected the folder that '{self.name}' lies in now, got the file {place}")
            return replace(self, weights=place)
        found = spec_of(place)
        return replace(self, name=found.name, weights=found.weights)

    def require_weights(self) -> None:
        """Require weights with an open_clip model's name.

        Raises:
            TowerError: naming the possible values; or the name, where it is unknown.
        """
        if not self.names_weights:
            self.source()
            raise TowerError(
                f"tower.weights: expected a tag such as 'openai', a local file or '{RANDOM}' with the name "
                f"'{self.name}', got none"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the fields but ``cache_dir``, which is this machine's, in the form of :meth:`from_json`.

        Example:
            >>> TowerSpec.from_json(TowerSpec(name="pvlr:scenes-clip").to_json()).name
            'pvlr:scenes-clip'
        """
        return {entry.name: getattr(self, entry.name) for entry in fields(TowerSpec) if entry.name != "cache_dir"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, cache_dir: str | None = None) -> "TowerSpec":
        """Return the description that :meth:`to_json` wrote.

        Args:
            data: Its fields: all of them, except those that an earlier version did not have.
            cache_dir: Folder for downloads; None for the usual cache.

        Raises:
            ValueError: naming a field that is missing, unknown or out of range.
        """
        expected = asdict(cls()).keys() - {"cache_dir"}
        if not isinstance(data, Mapping) or not expected - LATER <= data.keys() <= expected:
            raise ValueError(f"tower: expected the fields {', '.join(sorted(expected))}, got {data!r}")
        values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in data.items()}
        spec = cls(**values, cache_dir=cache_dir)
        if "activation" in data or spec.weights is None or spec.name.startswith(OWN_WEIGHTS):
            return spec
        return replace(spec, activation=usual_activation(spec.name))  # which earlier versions did not require


def spec_of(place: str, weights: str | None = None) -> TowerSpec:
    """Return the description of towers named on a command line.

    Args:
        place: A folder, or a name as in :class:`TowerSpec`.
        weights: A tag or file for a name of open_clip's; None: its published weights, where there is one tag alone.

    Raises:
        TowerError: where the name is unknown, or there are several published weights.

    Example:
        >>> spec_of("ViT-B-16-SigLIP2").weights
        'webli'
        >>> spec_of("ViT-B-16")
        Traceback (most recent call last):
            ...
        pvlr.core.towers.errors.TowerError: weights: expected one of those of 'ViT-B-16' (openai, laion400m_e31,
        laion400m_e32, laion2b_s34b_b88k, …), a file or 'random', got none
    """
    if Path(place).is_dir():
        place = f"{FOLDER_PREFIX}{place}"
    spec = TowerSpec(name=place, weights=weights)
    if spec.names_weights:
        return spec
    import open_clip

    find_source(place, None, None)  # Raises an error for an unknown name.
    tags = open_clip.list_pretrained_tags_by_model(place)
    if len(tags) == 1:
        return replace(spec, weights=tags[0])
    shown = f"{', '.join(tags[:4])}{', …' if len(tags) > 4 else ''}"
    known = f"one of those of '{place}' ({shown}), " if tags else ""
    raise TowerError(f"weights: expected {known}a file or '{RANDOM}', got none{'' if tags else ': none are published'}")
