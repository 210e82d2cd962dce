"""Everything with side effects: configuration, training, evaluation, checkpoints, monitoring, prediction."""

from pvlr.packages import require_packages

# Before the imports below, which would tell of a module and not of what to do.
require_packages(
    "pvlr.train",
    "train",
    ("PIL", "torchvision", "open_clip", "safetensors", "huggingface_hub", "jsonargparse", "tensorboard", "tqdm"),
)

from pvlr.train.config import (
    CalibrationConfig,
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
)
from pvlr.train.data_config import DataConfig, VOCData
from pvlr.train.predict import Tag, Tagger
from pvlr.train.results import Results
from pvlr.train.run import train

__all__ = [
    "CalibrationConfig",
    "ConfigError",
    "DataConfig",
    "LoopConfig",
    "LossConfig",
    "OptimizerConfig",
    "Results",
    "RunConfig",
    "ScheduleConfig",
    "Tag",
    "Tagger",
    "TowerConfig",
    "VOCData",
    "train",
]
