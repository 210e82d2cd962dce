"""Towers of vision-language models: found by name, safely read, and used through one interface."""

from pvlr.core.towers.files.sources import TowerError
from pvlr.core.towers.loading import Towers, build_towers, load_towers
from pvlr.core.towers.saving import TowerOrigin, save_towers, weights_fingerprint
from pvlr.core.towers.spec import TowerSpec, spec_of

__all__ = [
    "TowerError",
    "TowerOrigin",
    "TowerSpec",
    "Towers",
    "build_towers",
    "load_towers",
    "save_towers",
    "spec_of",
    "weights_fingerprint",
]
