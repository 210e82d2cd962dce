"""Training: configuration, data loaders, the training loop, evaluation, checkpoints and monitoring."""

from pvlr.packages import TRAIN, require_packages

# Before the imports below, whose error would name a module but not the extra to install.
require_packages("pvlr.train", "train", TRAIN)

from pvlr.inference.recognizer import Recognizer, Tag
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
from pvlr.train.results import Results
from pvlr.train.run import train

__all__ = [
    "CalibrationConfig",
    "ConfigError",
    "DataConfig",
    "LoopConfig",
    "LossConfig",
    "OptimizerConfig",
    "Recognizer",
    "Results",
    "RunConfig",
    "ScheduleConfig",
    "Tag",
    "TowerConfig",
    "VOCData",
    "train",
]
