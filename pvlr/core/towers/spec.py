"""Which towers a model is built upon: all that it takes to load them again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pvlr.core.arguments import require_choice, require_int
from pvlr.core.towers.choices import usual_activation
from pvlr.core.towers.sources import BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX, TowerError, TowerSource, find_source

__all__ = ["RANDOM", "TowerSpec", "spec_of"]

RANDOM = "random"
OWN_WEIGHTS = (BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX)
LATER = {"activation", "mean", "std"}  # fields that came after the first version


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """Which pre-trained towers are built upon.

    Args:
        name: An open_clip model name, ``hf-hub:ORGANISATION/REPOSITORY``, ``local-dir:FOLDER`` or
            ``pvlr:scenes-clip``, which comes with pvlr.
        weights: For an open_clip model name, and required with it: a tag such as ``openai``, a local file, or
            ``random`` (untrained weights, the same each time, for tests and measurements). The other names bring their
            own: null.
        image_size: Side of the images in pixels, a multiple of the patch size; null for the tower's own.
        patch_features: ``value`` (the last block's value path, aligned with text) or ``final`` (its output).
        train: What of the image tower is trained: ``frozen``, ``all`` or a number, the last blocks.
        activation: With which the weights were trained, ``gelu`` or ``quick_gelu``; null where name or file say it. A
            file does not, where open_clip has its architecture with either.
        mean: Of red, green and blue in the images that the weights were trained on, on the scale from 0 to 1; null for
            what goes with the weights. A file does not say it where published weights of its architecture differ.
        std: The same of the standard deviations.
        cache_dir: Folder for what is downloaded; null for the usual cache.

    Raises:
        ValueError: naming the field, what it may be and what was given.
    """

    name: str = "ViT-B-16-quickgelu"
    weights: str | None = None
    image_size: int | None = None
    patch_features: Literal["value", "final"] = "value"
    train: Literal["frozen", "all"] | int = "frozen"
    activation: Literal["gelu", "quick_gelu"] | None = None
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
        require_choice("patch_features", self.patch_features, ("value", "final"))
        if self.train not in ("frozen", "all"):
            require_int("train", self.train, least=1)
        if self.activation is not None:
            require_choice("activation", self.activation, ("gelu", "quick_gelu"))
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
        """Whether the weights are untrained ones."""
        return self.weights == RANDOM and not self.name.startswith(OWN_WEIGHTS)

    @property
    def is_local(self) -> bool:
        """Whether the weights are a file or folder of this machine, which nobody else has."""
        if self.name.startswith(FOLDER_PREFIX):
            return True
        return self.weights is not None and not self.is_random and self.source().tag is None

    @property
    def names_weights(self) -> bool:
        """Whether it says which weights are meant, so that the same ones can be loaded again."""
        return self.weights is not None or self.name.startswith(OWN_WEIGHTS)

    def source(self) -> TowerSource:
        """Where they come from, see :func:`~pvlr.core.towers.sources.find_source`.

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
        """The same towers, whatever folder they are asked for from: paths of this machine from its root on."""
        if self.name.startswith(FOLDER_PREFIX):
            return replace(self, name=f"{FOLDER_PREFIX}{Path(self.name.removeprefix(FOLDER_PREFIX)).absolute()}")
        if self.weights is not None and self.is_local:
            return replace(self, weights=str(Path(self.weights).absolute()))
        return self

    def at(self, place: str) -> "TowerSpec":
        """The same towers where they are now.

        Args:
            place: A folder; a file of weights, where the towers have a name of open_clip's; or another name.

        Raises:
            TowerError: where a file of weights is given for towers that are a folder or bring their own.

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
        """Refuse an open_clip model's name without weights.

        Raises:
            TowerError: naming what can be given; or the name, where it is unknown.
        """
        if not self.names_weights:
            self.source()
            raise TowerError(
                f"tower.weights: expected a tag such as 'openai', a local file or '{RANDOM}' with the name "
                f"'{self.name}', got none"
            )

    def to_json(self) -> dict[str, Any]:
        """The fields but for ``cache_dir``, which is this machine's, as :meth:`from_json` takes them.

        Example:
            >>> TowerSpec.from_json(TowerSpec(name="pvlr:scenes-clip").to_json()).name
            'pvlr:scenes-clip'
        """
        return {entry.name: getattr(self, entry.name) for entry in fields(TowerSpec) if entry.name != "cache_dir"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, cache_dir: str | None = None) -> "TowerSpec":
        """The description that :meth:`to_json` wrote.

        Args:
            data: Its fields: all of them, but for those that an earlier version did not know.
            cache_dir: Folder for what is downloaded; None for the usual cache.

        Raises:
            ValueError: naming a field that is missing, unknown or out of range.
        """
        expected = asdict(cls()).keys() - {"cache_dir"}
        if not isinstance(data, Mapping) or not expected - LATER <= data.keys() <= expected:
            raise ValueError(f"tower: expected the fields {', '.join(sorted(expected))}, got {data!r}")
        told: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        spec = cls(**told, cache_dir=cache_dir)
        if "activation" in data or spec.weights is None or spec.name.startswith(OWN_WEIGHTS):
            return spec
        return replace(spec, activation=usual_activation(spec.name))  # which nobody was asked for then


def spec_of(place: str, weights: str | None = None) -> TowerSpec:
    """Towers as a command line names them.

    Args:
        place: A folder, or a name as :class:`TowerSpec` takes it.
        weights: A tag or file for a name of open_clip's; where it has published weights under one tag alone, they are
            meant without it.

    Raises:
        TowerError: where the name is unknown, or several weights could be meant.

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

    find_source(place, None, None)  # Which refuses a name that is not known.
    tags = open_clip.list_pretrained_tags_by_model(place)
    if len(tags) == 1:
        return replace(spec, weights=tags[0])
    shown = f"{', '.join(tags[:4])}{', …' if len(tags) > 4 else ''}"
    known = f"one of those of '{place}' ({shown}), " if tags else ""
    raise TowerError(f"weights: expected {known}a file or '{RANDOM}', got none{'' if tags else ': none are published'}")
