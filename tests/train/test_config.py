"""Ranges, round trips and what a resumed run may change."""

import dataclasses
import json
from typing import Any

import pytest

from pvlr.train import config as configs
from pvlr.train.config import (
    CalibrationConfig,
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
    config_differences,
    config_from_json,
    config_to_json,
)
from pvlr.train.data_config import COCOData, NUSWideData, TableData, VOCData

ALL = (
    VOCData,
    COCOData,
    NUSWideData,
    TableData,
    TowerConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    LoopConfig,
    CalibrationConfig,
    RunConfig,
)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (VOCData, "crop", 1.5, r"data\.crop: expected a finite number > 0 and < 1, got 1\.5"),
        (VOCData, "cutout", 1.0, r"data\.cutout: expected a finite number >= 0 and < 1, got 1\.0"),
        (TableData, "test_share", 1.0, r"data\.test_share: expected a finite number > 0 and < 1, got 1\.0"),
        (COCOData, "images", "", r"data\.images: expected a non-empty text, got ''"),
        (NUSWideData, "lists", "all", r"data\.lists: expected one of 'official', 'labelled', 'asl', got 'all'"),
        (VOCData, "on_bad_image", "skip", r"data\.on_bad_image: expected one of 'raise', 'drop', got 'skip'"),
        (VOCData, "keep_labels", 0.0, r"data\.keep_labels: expected a finite number > 0 and < 1, got 0\.0"),
        (VOCData, "workers", -1, r"data\.workers: expected a whole number of at least 0, got -1"),
        (VOCData, "root", "", r"data\.root: expected a non-empty text, got ''"),
        (VOCData, "val_share", 1.0, r"data\.val_share: expected a finite number > 0 and < 1, got 1\.0"),
        (
            CalibrationConfig,
            "precision",
            1.0,
            r"calibration\.precision: expected a finite number > 0 and < 1, got 1\.0",
        ),
        (CalibrationConfig, "by", "none", r"calibration\.by: expected one of 'f1', 'precision', got 'none'"),
        (TowerConfig, "train", 0, r"tower\.train: expected a whole number of at least 1, got 0"),
        (TowerConfig, "lr_factor", 0.0, r"tower\.lr_factor: expected a finite number > 0, got 0\.0"),
        (TowerConfig, "layer_decay", 1.1, r"tower\.layer_decay: expected a number in \(0, 1\], got 1\.1"),
        (TowerConfig, "layer_decay", 0.0, r"tower\.layer_decay: expected a finite number > 0, got 0\.0"),
        (TowerConfig, "layer_decay", 0.9, r"tower\.layer_decay: is for a tower that is trained, but tower\.train is"),
        (TowerConfig, "gradient_checkpointing", True, r"tower\.gradient_checkpointing: is for a tower that is trained"),
        (TowerConfig, "image_size", 0, r"tower\.image_size: expected a whole number of at least 1, got 0"),
        (LossConfig, "clip", 1.0, r"loss\.clip: expected a finite number >= 0 and < 1, got 1\.0"),
        (LossConfig, "unknown", "positive", r"loss\.unknown: expected one of 'ignore', 'negative', got 'positive'"),
        (LossConfig, "gamma_neg", float("nan"), r"loss\.gamma_neg: expected a finite number >= 0, got nan"),
        (OptimizerConfig, "lr", 0.0, r"optimizer\.lr: expected a finite number > 0, got 0\.0"),
        (OptimizerConfig, "betas", (0.9, 1.0), r"optimizer\.betas: expected a finite number >= 0 and < 1, got 1\.0"),
        (ScheduleConfig, "warmup", 1.0, r"schedule\.warmup: expected a finite number >= 0 and < 1, got 1\.0"),
        (LoopConfig, "epochs", 0, r"loop\.epochs: expected a whole number of at least 1, got 0"),
        (LoopConfig, "evaluate_every_steps", -1, r"loop\.evaluate_every_steps: expected a whole number of at least 0"),
        (LoopConfig, "patience", -1, r"loop\.patience: expected a whole number of at least 0, got -1"),
        (LoopConfig, "ema", 1.0, r"loop\.ema: expected a finite number >= 0 and < 1, got 1\.0"),
        (RunConfig, "folder", "", r"run\.folder: expected a non-empty path, got ''"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_values_out_of_range_are_refused_by_name(kind: Any, field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**{field: value})


def test_patience_without_evaluations_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loop\.patience: expected evaluations to look at, but evaluate_every is 0"):
        LoopConfig(patience=1, evaluate_every=0)
    assert LoopConfig(patience=1, evaluate_every=0, evaluate_every_steps=5).patience == 1


@pytest.mark.parametrize("kind", ALL)
def test_every_field_is_explained(kind: Any) -> None:
    # A field is explained where it is declared, which may be in a class above.
    lines = [line.strip() for part in kind.__mro__ for line in (part.__doc__ or "").splitlines()]
    for field in dataclasses.fields(kind):
        assert any(line.startswith(f"{field.name}: ") for line in lines), field.name


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (COCOData, {"cutout": 0.25, "unseen": ("cat",)}),
        (NUSWideData, {"lists": "asl"}),
        (TableData, {"test_share": 0.5, "unseen": ("cat", "dog")}),
        (TowerConfig, {"train": 2, "layer_decay": 0.5}),
        (LossConfig, {"gamma_pos": 0.5}),
        (OptimizerConfig, {"lr": 0.5, "betas": (0.1, 0.2)}),
        (ScheduleConfig, {"kind": "cosine"}),
        (LoopConfig, {"epochs": 3, "compile": True}),
        (CalibrationConfig, {"by": "precision"}),
        (RunConfig, {"keep": 5}),
    ],
)
def test_json_round_trip(kind: Any, changes: dict[str, Any]) -> None:
    changed = kind(**changes)
    assert changed != kind()
    assert config_from_json(kind, json.loads(json.dumps(config_to_json(changed)))) == changed


def test_unknown_field_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ScheduleConfig: expected the fields kind, warmup, got 'warm'"):
        config_from_json(ScheduleConfig, {"warm": 0.1})


def test_differences_name_fields_both_ways_and_leave_out_what_may_change() -> None:
    def sections(**changes: Any) -> dict[str, Any]:
        parts = {"loop": LoopConfig(), "run": RunConfig(), "optimizer": OptimizerConfig(lr=0.1), "data": VOCData()}
        return {name: config_to_json(part) | changes.get(name, {}) for name, part in parts.items()}

    assert config_differences(sections(), sections()) == []
    free = {"loop": {"epochs": 99, "device": "cuda"}, "run": {"folder": "x", "baselines": True}}
    assert config_differences(sections(), sections(**free, data={"workers": 9, "root": "y"})) == []
    found = config_differences(sections(), sections(optimizer={"lr": 0.5, "betas": [0.1, 0.2]}, data={"scenes": {}}))
    assert found[:2] == ["data.scenes.seed: 2007, now absent", "data.scenes.test: 1000, now absent"]
    assert found[-2:] == ["optimizer.betas: [0.9, 0.999], now [0.1, 0.2]", "optimizer.lr: 0.1, now 0.5"]


def test_a_field_that_an_earlier_version_did_not_know_was_its_default() -> None:
    now, defaults = {"loop": {"seed": 0, "new": 3}}, {"loop": {"seed": 5, "new": 3}}
    assert config_differences({"loop": {"seed": 0}}, now, defaults=defaults) == []
    now["loop"]["new"] = 4
    assert config_differences({"loop": {"seed": 0}}, now, defaults=defaults) == ["loop.new: 3, now 4"]
    assert config_differences({}, {"loop": {"seed": 0, "new": 3}}, defaults=defaults) == ["loop.seed: 5, now 0"]


def test_fields_that_may_change_exist() -> None:
    parts = {"data": (VOCData, TableData), "loop": (LoopConfig,), "tower": (TowerConfig,), "run": (RunConfig,)}
    for name in configs.MAY_CHANGE:
        section, field = name.split(".")
        assert not field or field in {entry.name for part in parts[section] for entry in dataclasses.fields(part)}
