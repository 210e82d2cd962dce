"""Everything with side effects: configuration, training, evaluation, checkpoints, monitoring, prediction."""

from pvlr.train.config import (
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
)
from pvlr.train.data_config import DataConfig, VOCData
from pvlr.train.predict import TrainedRun, load_run, tag
from pvlr.train.run import Results, train

__all__ = [
    "ConfigError",
    "DataConfig",
    "LoopConfig",
    "LossConfig",
    "OptimizerConfig",
    "Results",
    "RunConfig",
    "ScheduleConfig",
    "TowerConfig",
    "TrainedRun",
    "VOCData",
    "load_run",
    "tag",
    "train",
]
