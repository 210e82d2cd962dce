"""`pvlr study`: its configurations, and a study in small on generated scenes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pvlr
from pvlr.cli.command import command
from pvlr.core import PVLRConfig
from pvlr.core.models.baselines import BaselineConfig
from pvlr.train.config import ConfigError, LoopConfig, LossConfig, OptimizerConfig, ScheduleConfig, TowerConfig
from pvlr.train.data_config import COCOData, VOCData
from pvlr.train.evaluation.study import StudyConfig, _all, _changed, study

RECIPES = Path(pvlr.__file__).parent / "recipes"
CONFIGS = sorted(RECIPES.glob("ablation_*.yaml"))
STUDY = RECIPES / "ablation_scenes.yaml"


def small_study(folder: Path, **more: object) -> subprocess.CompletedProcess[str]:
    """Run the study of the scenes, of few pictures and one epoch, in a folder."""
    options = {
        "data.root": folder / "scenes",
        "data.scenes.train": 24,
        "data.scenes.val": 4,
        "data.scenes.test": 12,
        "loop.epochs": 1,
        "study.folder": folder / "study",
        "study.seeds": "[0]",
        "study.processes": 1,
        **more,
    }
    call = [sys.executable, "-m", "pvlr", "study", "--config", "ablation_scenes"]
    words = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.run([*call, *words], capture_output=True, text=True, check=False)


def test_configurations_are_found() -> None:
    assert {path.name for path in CONFIGS} == {f"ablation_{name}.yaml" for name in ("scenes", "voc", "coco")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_parse_and_begin_with_their_command(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = path.read_text().splitlines()[0]
    kind: Any = COCOData if " study coco " in first else VOCData
    assert first.removesuffix(" --data.root FOLDER").replace(" coco ", " voc ") == (
        f"# pvlr study voc --config {path.stem}"
    )
    with pytest.raises(SystemExit) as end:
        command(study, ["--config", str(path), "--print_config"], data=kind)
    assert end.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    for section, fields in yaml.safe_load(path.read_text()).items():
        for name, value in fields.items():
            assert resolved[section][name] == value, f"{section}.{name}"


@pytest.mark.parametrize("data", ["scenes", "voc"])
def test_the_choice_of_settings_is_the_study_on_validation_with_other_seeds(
    data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    study_of, choice = (RECIPES / f"{name}_{data}.yaml" for name in ("ablation", "choice"))
    first = choice.read_text().splitlines()[0]
    assert first.startswith(f"# pvlr study voc --config ablation_{data} --config choice_{data}")

    def resolved(*paths: Path) -> dict[str, Any]:
        given = [part for path in paths for part in ("--config", str(path))]
        with pytest.raises(SystemExit) as end:
            command(study, [*given, "--print_config"], data=VOCData)
        assert end.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    chosen, reported = resolved(study_of, choice), resolved(study_of)
    assert chosen["data"]["test_split"] == "val" != reported["data"]["test_split"]
    assert not set(chosen["study"]["seeds"]) & set(reported["study"]["seeds"])
    for section in ("optimizer", "loop", "schedule"):
        assert chosen[section] == reported[section]


@pytest.mark.parametrize("name", ["ablation_scenes", "ablation_voc", "ablation_coco", "choice_scenes", "choice_voc"])
def test_every_row_of_a_shipped_study_changes_fields_that_there_are(name: str) -> None:
    rows = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["study"]["rows"]
    base = {
        "data": VOCData(),
        "tower": TowerConfig(name="pvlr:scenes-clip"),
        "model": PVLRConfig(),
        "loss": LossConfig(),
        "optimizer": OptimizerConfig(),
        "schedule": ScheduleConfig(),
        "loop": LoopConfig(),
        "baseline": BaselineConfig(),
    }
    given = list(_all(StudyConfig(folder="x", rows=rows, seeds=(0,))))
    assert len(given) >= 10
    for _, row, changes, seed in given:
        assert _changed(base, row, changes, seed) is not None
    with pytest.raises(ConfigError, match="wrong"):
        _changed(base, "wrong", {"model.dna": "none"}, 0)


def test_a_file_that_a_row_needs_is_asked_for_before_anything_is_trained(tmp_path: Path) -> None:
    done = small_study(tmp_path, **{"study.rows": "{a: {b: {}, c: {model.knowledge: none.npz}}}"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: model.knowledge: expected a file at none.npz")
    assert not (tmp_path / "study").exists()


def test_a_refusal_in_another_process_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "vectors.npz").write_bytes(b"no archive")
    rows = {"a": {"b": {}, "c": {"model.knowledge": str(tmp_path / "vectors.npz")}, "d": {"optimizer.lr": 0.02}}}
    done = small_study(tmp_path, **{"study.rows": json.dumps(rows), "study.processes": 2})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert re.match(r"error: c, seed 0: .*knowledge\.npz: expected a readable \.npz file", done.stderr), done.stderr


def test_a_study_in_small_compares_every_kind_of_method(tmp_path: Path) -> None:
    done = small_study(tmp_path, **{"study.only": "[all labels]"})
    assert done.returncode == 0, done.stderr
    rows = yaml.safe_load(STUDY.read_text())["study"]["rows"]["all labels"]
    table = (tmp_path / "study" / "report.md").read_text()
    assert all(f"\n| {row} |" in table for row in rows)
    found = [json.loads(path.read_text()) for path in (tmp_path / "study" / "cells").iterdir()]
    assert len(found) == len(rows)
    assert (tmp_path / "study" / "report.png").stat().st_size > 10_000
