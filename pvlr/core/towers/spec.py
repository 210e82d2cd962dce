"""Which towers a model is built upon: all that it takes to load them again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from pvlr.core.arguments import require_choice, require_int
from pvlr.core.towers.sources import BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX, TowerError, find_source

__all__ = ["RANDOM", "TowerSpec"]

RANDOM = "random"
OWN_WEIGHTS = (BUNDLED_PREFIX, FOLDER_PREFIX, HUB_PREFIX)


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
        cache_dir: Folder for what is downloaded; null for the usual cache.

    Raises:
        ValueError: naming the field, what it may be and what was given.
    """

    name: str = "ViT-B-16-quickgelu"
    weights: str | None = None
    image_size: int | None = None
    patch_features: Literal["value", "final"] = "value"
    train: Literal["frozen", "all"] | int = "frozen"
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

    @property
    def is_random(self) -> bool:
        """Whether the weights are untrained ones."""
        return self.weights == RANDOM and not self.name.startswith(OWN_WEIGHTS)

    @property
    def is_local(self) -> bool:
        """Whether the weights are a file or folder of this machine, which nobody else has."""
        if self.name.startswith(FOLDER_PREFIX):
            return True
        return (
            self.weights is not None and not self.is_random and find_source(self.name, self.weights, None).tag is None
        )

    @property
    def names_weights(self) -> bool:
        """Whether it says which weights are meant, so that the same ones can be loaded again."""
        return self.weights is not None or self.name.startswith(OWN_WEIGHTS)

    def require_weights(self) -> None:
        """Refuse an open_clip model's name without weights.

        Raises:
            TowerError: naming what can be given; or the name, where it is unknown.
        """
        if not self.names_weights:
            find_source(self.name, None, self.cache_dir)
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
            data: Its fields, all of them.
            cache_dir: Folder for what is downloaded; None for the usual cache.

        Raises:
            ValueError: naming a field that is missing, unknown or out of range.
        """
        expected = asdict(cls()).keys() - {"cache_dir"}
        if not isinstance(data, Mapping) or data.keys() != expected:
            raise ValueError(f"tower: expected the fields {', '.join(sorted(expected))}, got {data!r}")
        return cls(**data, cache_dir=cache_dir)
