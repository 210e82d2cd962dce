"""`pvlr evaluate`: a run again, files of scores, other data, and every mistake in one line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.tower_models import write_folder
from helpers.training_toys import LABELS, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.cli.main import main
from pvlr.core.metrics.bootstrap import bootstrap_map, percentile_interval
from pvlr.core.metrics.report import multilabel_report
from pvlr.inference.decision import Decision
from pvlr.train import Recognizer, train
from pvlr.train.config import ConfigError
from pvlr.train.data_config import COCOData, TableData, VOCData
from pvlr.train.evaluation.evaluate_run import read_data_config


def evaluate(words: list[str]) -> int:
    return main(["evaluate", *words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    write_folder(folder / "tower", "vit")
    write_voc(folder / "voc", train=8, test=6)
    options = tiny_options(folder / "voc", folder / "tower", folder / "run", run__baselines="false")
    assert command(train, options, data=VOCData) == 0
    return folder / "run"


def test_a_run_is_worth_what_it_said_at_its_end(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [f"--json={tmp_path / 'report.json'}", f"--csv={tmp_path / 'report.csv'}"]
    assert evaluate([f"--run={finished}", "--resamples=20", *files]) == 0
    told = json.loads((tmp_path / "report.json").read_text())
    wanted = json.loads((finished / "run.json").read_text())["results"]["PVLR"]
    for name in ("mAP", "CF1", "OF1", "ap", "top3", "ranking_ap"):
        assert told[name] == pytest.approx(wanted[name], abs=1e-6), name
    assert (told["images"], told["mAP_interval"]["resamples"]) == (6, 20)
    assert told["mAP_interval"]["low"] <= told["mAP_interval"]["high"]
    rows = list(csv.DictReader((tmp_path / "report.csv").read_text().splitlines()))
    assert {row["label"] for row in rows if row["metric"] == "ap"} == set(LABELS)
    by_name = {row["metric"]: row["value"] for row in rows if not row["label"]}
    assert float(by_name["mAP"]) == told["mAP"]
    assert float(by_name["top3.OF1"]) == told["top3"]["OF1"]
    assert f"{100 * told['mAP']:.2f}   95 % interval [" in capsys.readouterr().out


def test_a_fitted_model_is_also_decided_by_its_thresholds(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([f"--run={finished}", "--resamples=0"]) == 0
    assert "at its thresholds" not in capsys.readouterr().out, "none were fitted"
    shutil.copytree(finished, tmp_path / "run")
    decision = Decision(thresholds=dict.fromkeys(LABELS, 0.0), rule="all", fitted_on="nothing")
    Recognizer(Recognizer.from_pretrained(finished).model, decision=decision).save_pretrained(tmp_path / "run")
    assert evaluate([f"--run={tmp_path / 'run'}", "--resamples=0", f"--json={tmp_path / 'r.json'}"]) == 0
    out, told = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())["at_thresholds"]
    assert told["CR"] == told["OR"] == 1.0, "every label of every picture is predicted"
    (line,) = (line for line in out.splitlines() if line.startswith("at its thresholds"))
    values = [told[name] for name in ("CP", "CR", "CF1", "mean_F1", "OP", "OR", "OF1")]
    assert [float(word) for word in line.split()[3:]] == pytest.approx([100 * value for value in values], abs=0.006)


def test_other_data_have_their_own_labels(finished: Path, tmp_path: Path) -> None:
    pictures = finished.parent / "voc" / "VOCdevkit" / "VOC2007" / "JPEGImages"
    (tmp_path / "table.csv").write_text(f"file,labels,split\n000000.jpg,{LABELS[0]};zebra,test\n000001.jpg,,test\n")
    data = {"images": str(pictures), "table": str(tmp_path / "table.csv"), "labels": ["zebra", LABELS[0]], "workers": 0}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": data}))
    options = [f"--data={tmp_path / 'other.yaml'}", "--split=test", "--resamples=0", f"--json={tmp_path / 'r.json'}"]
    assert evaluate([f"--run={finished}", *options]) == 0
    told = json.loads((tmp_path / "r.json").read_text())
    assert list(told["ap"]) == ["zebra", LABELS[0]]
    assert (told["images"], told["mAP_interval"]) == (2, None)


def test_a_file_of_logits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = 5 * torch.randn(30, 3, generator=generator), torch.rand(30, 3, generator=generator) < 0.4
    np.savez(tmp_path / "scores.npz", scores=logits.numpy(), targets=target.numpy())
    options = [
        f"--scores={tmp_path / 'scores.npz'}",
        "--kind=logits",
        "--threshold=0.3",
        f"--json={tmp_path / 'r.json'}",
    ]
    assert evaluate([*options, "--resamples=50", "--seed=7"]) == 0
    told = json.loads((tmp_path / "r.json").read_text())
    wanted = multilabel_report(logits.sigmoid(), target, threshold=0.3, scores=logits).to_json()
    low, high = percentile_interval(bootstrap_map(logits, target, resamples=50, seed=7))
    assert told == {**wanted, "mAP_interval": {"low": low, "high": high, "resamples": 50, "seed": 7, "level": 0.95}}
    assert "at 0.3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run=nowhere"], "nowhere"),
        (["--scores=nowhere.npz"], "nowhere.npz: expected a file of scores, found no such file"),
        (["--scores={path}"], "scores.npz: expected a readable .npz file of scores"),
        (["--run={run}", "--data={path}"], "expected a configuration with a section 'data'"),
        (["--run={run}", "--split=nothing"], "nothing"),
        (["--run={run}", "--device=abacus"], "abacus"),
    ],
)
def test_mistakes_are_one_line(
    finished: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "scores.npz").write_bytes(b"\x80\x04no archive")
    assert evaluate([part.format(path=tmp_path / "scores.npz", run=finished) for part in options]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --run, --scores, or --tower with --data"),
        (["--run=a", "--scores=b.npz"], "--scores: expected no --run with it, got both"),
        (["--scores=b.npz", "--threshold=2"], "--threshold: expected a probability in [0, 1], got 2"),
        (["--scores=b.npz", "--resamples=-1"], "--resamples: expected a whole number of at least 0, got -1"),
        (["--scores=b.npz", "--json=/nowhere/a.json"], "--json: expected a file in a folder that is there"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_the_kind_of_data_is_the_one_its_fields_belong_to(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for section, kind, made in (
        ({"year": "2012"}, None, VOCData(year="2012")),
        ({"annotations": "a.json", "root": "x"}, None, COCOData(annotations="a.json", root="x")),
        ({"table": "a.csv"}, None, TableData(table="a.csv")),
        ({"root": "x"}, "coco", COCOData(root="x")),
    ):
        path.write_text(yaml.safe_dump({"data": section, "loop": {"seed": 3}}))
        assert read_data_config(path, kind) == (made, 3)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (
            "data: {root: x}",
            None,
            "of one kind of data, its fields fit voc or coco or nuswide",
        ),
        ("data: {colour: x}", None, "its fields fit none of voc, coco, nuswide, table"),
        ("data: {table: x}", "voc", "its fields fit not voc"),
        ("data: {table: x, workers: many}", None, "workers"),
        ("data: {table: x, workers: -1}", None, "data.workers: expected a whole number of at least 0, got -1"),
        ("data: [", None, "expected a configuration with a section 'data'"),
        ("loop: {}", None, "expected a configuration with a section 'data'"),
        ("!!python/object/apply:print [executed]", None, "expected a configuration with a section 'data'"),
    ],
)
def test_configurations_are_refused_in_one_line(content: str, kind: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as found:
        read_data_config(path, kind)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
