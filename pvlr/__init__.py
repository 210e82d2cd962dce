"""Prompt-driven visual-linguistic representation learning for multi-label image recognition.

The names below are imported when they are first used: importing the package imports none of its subpackages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pvlr.core.labels import LabelSet
    from pvlr.core.models.config import PVLRConfig
    from pvlr.core.models.network import PVLR
    from pvlr.core.towers import load_towers
    from pvlr.data.readers.coco import read_coco
    from pvlr.data.readers.folders import read_folders
    from pvlr.data.readers.nuswide import read_nuswide
    from pvlr.data.readers.rows import read_rows
    from pvlr.data.readers.shards import read_shards
    from pvlr.data.readers.table import read_table
    from pvlr.data.readers.voc import read_voc
    from pvlr.inference.recognizer import Recognizer

__all__ = [
    "PVLR",
    "LabelSet",
    "PVLRConfig",
    "Recognizer",
    "load_towers",
    "read_coco",
    "read_folders",
    "read_nuswide",
    "read_rows",
    "read_shards",
    "read_table",
    "read_voc",
]

_MODULES = {
    "PVLR": "core.models.network",
    "LabelSet": "core.labels",
    "PVLRConfig": "core.models.config",
    "Recognizer": "inference.recognizer",
    "load_towers": "core.towers",
    **{name: f"data.readers.{name.removeprefix('read_')}" for name in __all__ if name.startswith("read_")},
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pvlr' has no attribute {name!r}")
    return getattr(import_module(f"pvlr.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
