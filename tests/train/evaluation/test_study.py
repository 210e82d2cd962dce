"""A study: each cell trained once, on shared features, with a table and a figure of what was found."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.messages import pinned
from helpers.model_toys import Switches, build
from helpers.tower_models import write_folder
from helpers.training_toys import write_voc
from PIL import Image
from torch import Tensor

from pvlr.cli.command import command
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.models.baselines import BaselineConfig
from pvlr.core.models.network import PVLRConfig
from pvlr.core.towers import load_towers
from pvlr.data.readers.voc import read_voc
from pvlr.train.config import (
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TowerConfig,
    config_to_json,
)
from pvlr.train.data_config import VOCData
from pvlr.train.evaluation import study as study_module
from pvlr.train.evaluation.study import RESAMPLES, StudyConfig, _Cell, study
from pvlr.train.evaluation.study_report import learning_curve, regime_table, study_table, write_report

ROWS: dict[str, dict[str, dict[str, Any]]] = {
    # What one epoch over nine pictures has learned is to be seen in the result.
    "methods": {"PVLR": {"model.shrinkage": 1e-3}, "probe": {"baseline.kind": "linear_probe"}},
    "unseen": {
        "two": {"data.unseen": ["blue"], "model.direction": "none"},
        "dual": {"baseline.kind": "dualcoop", "data.unseen": ["blue"]},
    },
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_folder(tmp_path / "tower", "vit")
    write_voc(tmp_path / "voc", train=9, test=6)
    told = {
        "data": {"root": str(tmp_path / "voc"), "workers": 0},
        "tower": {"name": f"local-dir:{tmp_path / 'tower'}"},
        "loss": {},
        "optimizer": {"lr": 0.01},
        "schedule": {},
        "loop": {"epochs": 1, "batch_size": 4, "evaluate_every": 0, "device": "cpu"},
        "study": {"folder": str(tmp_path / "study"), "rows": ROWS, "seeds": [0, 1], "processes": 1},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


def cells(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "cells").iterdir()]
    return {(cell["row"], cell["seed"]): cell for cell in found}


def test_each_cell_is_trained_once_and_reported(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    call = [f"--config={config}"]
    assert command(study, [*call, "--study.only=[methods]"], data=VOCData) == 0
    assert "8 cells, 4 to train" in capsys.readouterr().out
    assert command(study, [*call, "--study.processes=2"], data=VOCData) == 0
    assert "8 cells, 4 to train" in capsys.readouterr().out
    found = cells(folder)
    assert found.keys() == {(row, seed) for rows in ROWS.values() for row in rows for seed in (0, 1)}
    assert found["probe", 0]["parameters"] == 3 * 24 + 3
    assert found["PVLR", 0]["mAP"] != found["PVLR", 1]["mAP"] or found["PVLR", 0]["CF1"] != found["PVLR", 1]["CF1"]
    for row in ("two", "dual"):
        cell = found[row, 0]
        assert cell["seen"] == pytest.approx(cell["mAP"], abs=1e-6) or row == "two"
        assert cell["harmonic"] == pytest.approx(2 / (1 / cell["seen"] + 1 / cell["unseen"]))
    # Every cell has its test pictures drawn again, the same for all: around what was measured, and not it.
    for cell in found.values():
        low, high = min(cell["drawn"]), max(cell["drawn"])
        assert len(cell["drawn"]) == RESAMPLES
        assert low <= cell.get("harmonic", cell["mAP"]) <= high
        assert low < high
    assert list((folder / "running").iterdir()) == []

    # What is there stays; what was lost, or is of another configuration, is trained again.
    next(path for path in (folder / "cells").iterdir() if '"probe"' in path.read_text()).unlink()
    assert command(study, call, data=VOCData) == 0
    assert "8 cells, 1 to train" in capsys.readouterr().out
    assert cells(folder).keys() == found.keys()
    assert (
        command(study, [*call, "--optimizer.lr=0.02", "--study.seeds=[0]", "--study.only=[probe]"], data=VOCData) == 0
    )
    assert "4 cells, 1 to train" in capsys.readouterr().out

    table = (folder / "report.md").read_text()
    assert table.count("\n| probe |") == 1
    with Image.open(folder / "report.png") as figure:
        assert figure.width > 1000
    assert not (folder / "curve.svg").exists()


def test_rows_of_one_configuration_are_trained_once(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = {"baseline.kind": "linear_probe"}
    rows = {"methods": {"probe": probe}, "parts": {"complete": dict(probe), "other": {**probe, "optimizer.lr": 0.1}}}
    told = yaml.safe_load(config.read_text())
    told["study"] |= {"rows": rows, "seeds": [0]}
    config.write_text(yaml.safe_dump(told))
    for only, to_train in (("[complete]", 1), ("[probe]", 0), ("null", 1)):
        assert command(study, [f"--config={config}", f"--study.only={only}"], data=VOCData) == 0
        assert f"3 cells, {to_train} to train" in capsys.readouterr().out
    found = cells(tmp_path / "study")
    assert {name: cell["group"] for (name, _), cell in found.items()} == {
        "probe": "methods", "complete": "parts", "other": "parts",
    }  # fmt: skip
    named = ("group", "row")
    probe, complete, other = (
        {name: value for name, value in found[row, 0].items() if name not in named}
        for row in ("probe", "complete", "other")
    )
    assert probe == complete
    assert probe["digest"] != other["digest"]


def test_equal_rows_of_one_call_are_trained_once(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = yaml.safe_load(config.read_text())
    told["study"] |= {"rows": {"a": {"one": {}}, "b": {"two": {}, "three": {}}}, "seeds": [0]}
    config.write_text(yaml.safe_dump(told))
    assert command(study, [f"--config={config}"], data=VOCData) == 0
    out = capsys.readouterr().out
    assert "3 cells, 1 to train" in out
    assert "one, seed 0" in out
    assert len({cell["mAP"] for cell in cells(tmp_path / "study").values()}) == 1
    assert len(cells(tmp_path / "study")) == 3


def test_groups_of_few_positives_are_a_learning_curve(tmp_path: Path) -> None:
    told = {"CF1": 0.5, "OF1": 0.5, "parameters": 10, "seconds": 1.0, "inference": 1e-3, "drawn": [0.4, 0.6]}
    groups = ("all labels", "16 positives", "1 positive", "10 %")
    found: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        before = "" if group == "all labels" else f"{group}, "
        found += [
            {**told, "group": group, "row": f"{before}PVLR", "seed": seed, "mAP": 0.6 - 0.1 * number + 0.01 * seed}
            for seed in (0, 1)
        ]
        found.append({**told, "group": group, "row": f"{before}zero-shot", "seed": 0, "mAP": 0.3})
    found.append({**told, "group": "all labels", "row": "CoOp", "seed": 0, "mAP": 0.4})
    curve = learning_curve(found)
    assert list(curve) == ["PVLR", "zero-shot"]  # One number of positives is no curve.
    assert list(curve["PVLR"]) == [1, 16, math.inf]
    assert curve["PVLR"][16] == pytest.approx([0.5, 0.51])
    write_report(tmp_path, found)
    drawn = (tmp_path / "curve.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("PVLR", "zero-shot", "16", "all"))
    assert "CoOp" not in drawn
    (tmp_path / "again").mkdir()
    write_report(tmp_path / "again", found)
    assert (tmp_path / "again" / "curve.svg").read_text() == drawn
    ahead = (tmp_path / "ahead.svg").read_text()
    titles = ("all labels: PVLR is ahead of", "16 positives: PVLR is ahead of", "10 %: PVLR is ahead of")
    assert all(f"<!-- {text} -->" in ahead for text in (*titles, "zero-shot", "CoOp"))
    assert (tmp_path / "again" / "ahead.svg").read_text() == ahead


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.dna": "none"},
            "study.rows: bad: expected a field of a section, such as 'model.direction', got 'model.dna'",
        ),
        ({"fusion": "sum"}, "study.rows: bad: expected a field of a section, such as 'model.direction', got 'fusion'"),
        (
            {"model.direction": "all"},
            "study.rows: bad: direction: expected one of 'both', 'labels', 'patches', 'none', got 'all'",
        ),
    ],
)
def test_rows_that_change_nothing_there_is_are_refused(
    changes: dict[str, Any], message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = yaml.safe_load(config.read_text())
    told["study"]["rows"] = {"all": {"bad": changes}}
    config.write_text(yaml.safe_dump(told))
    assert command(study, [f"--config={config}"], data=VOCData) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"processes": 0}, "study.processes: expected a whole number of at least 1, got 0"),
        ({"seeds": ()}, "study.seeds: expected one or more, each once, got []"),
        ({"seeds": (1, 1)}, "study.seeds: expected one or more, each once, got [1, 1]"),
        ({"rows": ROWS, "only": ("prob",)}, "study.only: expected groups or rows of the study, got 'prob'"),
    ],
)
def test_a_wrong_study_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{pinned(message)}$"):
        StudyConfig(**wrong)


def test_labels_left_out_are_in_neither_split(tmp_path: Path) -> None:
    write_voc(tmp_path)
    whole = read_voc(tmp_path, train=True)
    train, test, _ = VOCData(root=str(tmp_path), unseen=("green",)).splits(seed=0)
    assert train.labels.names == test.labels.names == ("red", "blue")
    assert torch.equal(train.target, whole.target[:, [0, 2]])
    assert train.identifiers == whole.identifiers
    with pytest.raises(LabelError, match="unknown label 'gren', the nearest known one is 'green'"):
        VOCData(root=str(tmp_path), unseen=("gren",)).splits(seed=0)


def test_a_table_tells_the_mean_and_the_deviation_of_a_sample() -> None:
    cell = {"group": "g", "row": "r", "CF1": 0.4, "OF1": 0.3, "parameters": 10, "seconds": 1.0, "inference": 0.001}
    lines = study_table([{**cell, "mAP": value} for value in (0.1, 0.2, 0.6)]).splitlines()
    assert lines[4] == "| r | 30.0 ± 26.5 | | 40.0 ± 0.0 | 30.0 ± 0.0 | 10 | 1.0 | 1.00 | 3 |"


def test_a_row_is_compared_with_the_first_on_the_seeds_that_both_have() -> None:
    cell = {"group": "g", "CF1": 0.4, "OF1": 0.3, "parameters": 10, "seconds": 1.0, "inference": 0.001}
    drawn = [0.5 + step / 500 for step in range(101)]
    found = [
        {**cell, "row": "first", "seed": 0, "mAP": 0.56, "drawn": drawn},
        {**cell, "row": "first", "seed": 1, "mAP": 0.9, "drawn": [0.9] * 101},
        {**cell, "row": "other", "seed": 2, "mAP": 0.1, "drawn": [0.1] * 101},
        {**cell, "row": "other", "seed": 0, "mAP": 0.52, "drawn": [0.5] * 101},
        {**cell, "row": "none", "seed": 3, "mAP": 0.5, "drawn": [0.5] * 101},
    ]
    lines = [line.split(" | ")[:3] for line in study_table(found).splitlines()[4:]]
    # Of seed 0 alone: 4 points, and of differences from 0 to 20 points in equal steps the middle 95 %.
    assert lines[1][2] == "4.0 [0.5, 19.5]"
    assert lines[2] == ["| none", "50.0", "–"]
    # With the harmonic mean of seen and unseen names it is that one which is compared.
    new = [{**one, "seen": 0.5, "unseen": 0.5, "harmonic": one["mAP"] / 2} for one in found]
    assert study_table(new).splitlines()[5].split(" | ")[2] == "2.0 [0.5, 19.5]"


def test_regimes_are_compared_method_by_method_on_the_seeds_that_both_have() -> None:
    def cell(group: str, row: str, seed: int, value: float) -> dict[str, object]:
        return {"group": group, "row": row, "seed": seed, "mAP": value, "drawn": [value, value]}

    found = [cell("all labels", "ours", seed, 0.6) for seed in (0, 1)] + [cell("all labels", "theirs", 1, 0.5)]
    found += [cell("10 %", "10 %, ours", 0, 0.4), cell("10 %", "10 %, theirs", 0, 0.45)]
    found += [cell("10 %", "10 %, b", 0, 0.3), cell("all labels", "alone", 0, 0.1), cell("parts", "ours", 0, 0.6)]
    assert regime_table(found).splitlines() == [
        "| labels known | seeds | ours | ahead of theirs |",  # Of `alone` and `b` there is one regime, of parts none.
        "|---|---|---|---|",
        "| all | 2 | 60.0 ± 0.0 | 10.0 [10.0, 10.0] (1) |",
        "| 10 % | 1 | 40.0 | -5.0 [-5.0, -5.0] |",
    ]
    assert regime_table(found[:3]) == regime_table(found[3:5]) == ""


def test_a_row_without_average_precision_has_a_dash(tmp_path: Path) -> None:
    cell = {"group": "g", "row": "r", "CF1": 0.5, "OF1": 0.5, "parameters": 1, "seconds": 2.0, "inference": 1e-5}
    cells = [{**cell, "mAP": math.nan, "seed": seed} for seed in (0, 1)]
    assert "| r | – | | 50.0 ± 0.0 |" in write_report(tmp_path, cells).read_text()
    assert (tmp_path / "report.png").is_file()


def test_the_package_of_the_figure_is_asked_for_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pvlr.train.evaluation.study.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"expected the package matplotlib .*; pip install 'pvlr\[plot\]'$"):
        study(
            data=VOCData(root=str(tmp_path)), tower=TowerConfig(name="pvlr:scenes-clip"), loss=LossConfig(),
            optimizer=OptimizerConfig(), schedule=ScheduleConfig(), loop=LoopConfig(),
            study=StudyConfig(folder=str(tmp_path / "s"), rows={"a": {"b": {}}}),
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


def test_a_cell_finished_before_decoders_chose_their_patches_stays_finished(tmp_path: Path) -> None:
    base = {"data": VOCData(root="a"), "tower": TowerConfig(), "model": PVLRConfig(), "baseline": BaselineConfig()}
    earlier = {name: config_to_json(part) for name, part in base.items()}
    del earlier["data"]["root"], earlier["tower"]["feature_folder"], earlier["baseline"]["patches"]
    digest = hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()
    assert _Cell(tmp_path, "methods", "PVLR", 0, base).digest == digest
    own = BaselineConfig(kind="ml_decoder", patches="own")
    assert _Cell(tmp_path, "methods", "PVLR", 0, base | {"baseline": own}).digest != digest


def test_a_row_may_read_the_patches_own_features(config: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "tower", "efficientnet")
    image = load_towers(f"local-dir:{tmp_path / 'tower'}").image
    small = {"baseline.kind": "ml_decoder", "baseline.width": 8, "baseline.heads": 2, "baseline.hidden": 8}
    told = yaml.safe_load(config.read_text())
    told["study"] |= {"rows": {"methods": {"joint": small, "own": small | {"baseline.patches": "own"}}}, "seeds": [0]}
    config.write_text(yaml.safe_dump(told))
    assert command(study, [f"--config={config}"], data=VOCData) == 0
    found = cells(tmp_path / "study")
    assert found["own", 0]["parameters"] - found["joint", 0]["parameters"] == 8 * (image.own_dim - image.dim) > 0


def test_test_pictures_are_read_once_for_the_rows_that_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[Any, ...]] = []

    def read_regions(*of: Any) -> tuple[Tensor, LabelSet, Tensor, Tensor]:
        read.append(of)
        return torch.tensor(len(read)), LabelSet(("red",)), torch.zeros(1), torch.ones(1)

    monkeypatch.setattr(study_module, "_KEPT", {})
    monkeypatch.setattr(study_module, "_read_regions", read_regions)
    model = build(Switches())
    data, tower, loop = VOCData(root="voc"), TowerConfig(feature_folder="features"), LoopConfig()
    sections: dict[str, Any] = {"data": data, "tower": tower, "loop": loop, "baseline": BaselineConfig()}

    def found(**changed: Any) -> int:
        return int(study_module._regions(model, sections | changed)[0])

    assert found() == 1
    for of_training in ({"keep_labels": 0.5}, {"shots": 4}, {"unseen": ("red",)}):
        assert found(data=replace(data, **of_training)) == 1
    assert found(loop=replace(loop, seed=1)) == 2  # Test pictures may be drawn by the seed.
    assert found() == 1, "two are kept"
    assert found(baseline=BaselineConfig(kind="ml_decoder", patches="own")) == 3
    assert found(loop=replace(loop, seed=1)) == 2
    assert found() == 4, "of three the first is forgotten"
    model = build(Switches(learn=False, base=("pooled",)))  # Reads the pooled vectors alone.
    assert found() == 5
    assert found(data=replace(data, difficult="A")) == 6
