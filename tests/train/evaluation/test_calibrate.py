"""Calibration after training: the fit, and the picture of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.strategies import Draw, perturb
from helpers.tower_models import write_folder
from helpers.training_toys import tiny_options, write_voc
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvlr.cli.command import command
from pvlr.core.labels import LabelSet
from pvlr.core.metrics.calibration import fit_temperature, fit_thresholds, reliability
from pvlr.core.metrics.report import multilabel_report
from pvlr.core.mixture import Mixture
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.towers import load_towers
from pvlr.data.batch import Batch, DataError
from pvlr.data.readers.voc import read_voc
from pvlr.data.sampling import EpochSampler
from pvlr.inference.decision import Decision
from pvlr.train import Recognizer, train
from pvlr.train.config import CalibrationConfig
from pvlr.train.data_config import VOCData
from pvlr.train.dataloaders import load_batches
from pvlr.train.evaluation.calibration import SHRINKAGES, calibrate, draw_reliability
from pvlr.train.evaluation.predictions import Predictions, predict_logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated")
    write_folder(folder / "tower", "vit")
    voc = write_voc(folder / "voc", train=24, test=6)
    names = [f"{number:06d}" for number in range(24)]
    for split, part in (("train", names[:12]), ("val", names[12:])):
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    return folder


def run(folder: Path, name: str, **more: object) -> Path:
    options = tiny_options(folder / "voc", folder / "tower", folder / name, loop__epochs=1, **more)
    assert command(train, options, data=VOCData) == 0
    return folder / name


def test_a_validation_split_is_what_temperature_and_thresholds_are_fitted_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(folder, "split", data__train_split="train", data__val_split="val", run__tensorboard="true")
    said = capsys.readouterr().out
    assert "VOC2007 val: 12 images" in said
    assert "thresholds: highest F1, on 12 pictures of VOC2007 val; what was learned of a label weighs half at " in said
    recognizer = Recognizer.from_pretrained(done)
    model, decision = recognizer.model, recognizer.decision
    pictures = read_voc(str(folder / "voc"), year="2007", split="val", labels=model.labels, train=False).with_transform(
        recognizer.transform
    )
    found = predict_logits(model, load_batches(pictures, EpochSampler(12, 12)))
    temperature = fit_temperature(found.logits, found.target, found.known)
    assert decision.temperature == pytest.approx(temperature, rel=1e-4)
    expected = fit_thresholds((found.logits / temperature).sigmoid(), found.target, found.known)
    assert decision.for_labels(model.labels) == pytest.approx(expected.tolist(), abs=1e-4)
    assert decision.fitted_on == "12 pictures of VOC2007 val"
    board = EventAccumulator(str(done / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert "calibration/reliability" in board.Tags()["images"]
    assert board.Scalars("calibration/temperature")[0].value == pytest.approx(temperature, rel=1e-4)
    card = (done / "README.md").read_text()
    assert "Thresholds: highest F1; temperature" in card


def test_the_same_training_without_calibration_has_the_same_weights(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_it = run(folder, "with", data__train_split="train", data__val_split="val", calibration__by="precision")
    without = run(folder, "without", data__train_split="train")
    assert "thresholds: 0.5 for every label, not calibrated" in capsys.readouterr().out
    one, other = (load_file(done / "model.safetensors") for done in (with_it, without))
    assert other.pop("mixture.shrinkage") == PVLRConfig().shrinkage, "nothing chose another"
    assert one.pop("mixture.shrinkage") in (PVLRConfig().shrinkage, *SHRINKAGES)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert Recognizer.from_pretrained(with_it).decision.rule == "precision 0.9"
    uncalibrated = Recognizer.from_pretrained(without)
    assert uncalibrated.decision.for_labels(uncalibrated.labels) == (0.5,) * 3


@pytest.mark.parametrize("seed", range(3))
def test_what_was_learned_counts_as_far_as_serves_validation(folder: Path, seed: int) -> None:
    towers = load_towers(f"local-dir:{folder / 'tower'}")
    labels = LabelSet(("red", "green", "blue"))
    model = PVLR.from_towers(PVLRConfig(heads=4, adapter_width=4, feedforward=4), labels, towers)
    model.set_known_positives(torch.tensor([1.0, 9.0, 60.0]))
    draw = Draw(seed, torch.float32)
    for part in (model.residual, model.adapter, model.attention, model.semantic, model.head):
        perturb(part, draw)
    pictures = read_voc(str(folder / "voc"), year="2007", split="val", labels=labels, train=False).with_transform(
        Recognizer(model.eval()).transform
    )

    def batches() -> Iterator[Batch]:
        return load_batches(pictures, EpochSampler(12, 5))

    def measured(shrinkage: float) -> tuple[float, float]:
        model.mixture.shrinkage.fill_(shrinkage)
        found = predict_logits(model, batches())
        right = (found.logits / fit_temperature(found.logits, found.target, found.known)).double().sigmoid()
        likelihood = torch.where(found.target > 0, right, 1 - right)[found.known]
        report = multilabel_report(found.logits.sigmoid(), found.target, found.known, labels, scores=found.logits)
        return -likelihood.log().mean().item(), report.mAP

    reached = {shrinkage: measured(shrinkage) for shrinkage in (10.0, *SHRINKAGES)}
    allowed = {shrinkage: mAP for shrinkage, (loss, mAP) in reached.items() if loss <= reached[10.0][0] + 1e-7}
    model.mixture.shrinkage.fill_(10.0)
    found = calibrate(model, batches(), CalibrationConfig(), fitted_on="x")
    assert model.mixture.shrinkage.item() == found.shrinkage
    assert allowed[found.shrinkage] == max(allowed.values())
    if reached[10.0][1] == max(allowed.values()):
        assert found.shrinkage == 10.0, "it stays where no other is better"
    # The rest is fitted to the model as it is then.
    again = predict_logits(model, batches())
    assert found.decision.temperature == pytest.approx(
        fit_temperature(again.logits, again.target, again.known), rel=1e-4
    )


@pytest.mark.parametrize("switches", [{"learn": False}, {"fusion": "context"}])
def test_where_half_of_the_mixture_is_missing_its_shrinkage_stays(folder: Path, switches: dict[str, Any]) -> None:
    towers = load_towers(f"local-dir:{folder / 'tower'}")
    labels = LabelSet(("red", "green", "blue"))
    model = PVLR.from_towers(PVLRConfig(heads=4, shrinkage=3.0, **switches), labels, towers).eval()
    pictures = read_voc(str(folder / "voc"), year="2007", split="val", labels=labels, train=False).with_transform(
        Recognizer(model).transform
    )
    found = calibrate(model, load_batches(pictures, EpochSampler(12, 5)), CalibrationConfig(), fitted_on="x")
    assert found.shrinkage == model.mixture.shrinkage.item() == 3.0


def test_a_share_is_taken_from_the_training_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(folder, "share", data__val_share=0.3)
    said = capsys.readouterr().out
    told = json.loads((done / "model.json").read_text())["decision"]["fitted_on"]
    counts = [int(word.split(" ")[0]) for word in (told, said.split("trainval: ")[1])]
    assert sum(counts) == 24
    assert 0 < counts[0] < 12


def test_other_splits_are_named_in_the_refusal(folder: Path) -> None:
    data = VOCData(root=str(folder / "voc"), val_split="nowhere")
    with pytest.raises(DataError, match="nowhere"):
        data.splits(0)


def test_the_diagram_shows_points_where_they_are() -> None:
    probabilities = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.9, 0.9]])
    target = torch.tensor([[0, 0, 0, 1, 1, 1]])
    found = reliability(probabilities, target, bins=10)
    before = reliability(torch.full((1, 6), 0.7), target, bins=10)
    picture = np.asarray(draw_reliability(before, found))
    blue, grey = ((picture == colour).all(axis=-1) for colour in ((0x1F, 0x5F, 0xA8), (0x99, 0x99, 0x99)))
    side, margin = 360, 36
    for x, y, shown in ((0.2, 0.25, blue), (0.9, 1.0, blue), (0.7, 0.5, grey)):
        assert shown[round(margin + side * (1 - y)), round(margin + side * x)]
    assert not blue[margin + side // 2, margin + 10]


def fitted_on(names: tuple[str, ...], logits: torch.Tensor, target: torch.Tensor, known: torch.Tensor) -> Decision:
    """What is decided of a model that has these logits."""

    class Model:
        labels, config = LabelSet(names), PVLRConfig(learn=False)
        mixture = Mixture(parts=3)

    found = Predictions(logits, target, known, torch.arange(len(logits)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pvlr.train.evaluation.calibration.predict_logits", lambda *_, **__: found)
        return calibrate(Model(), [], CalibrationConfig(), fitted_on="x").decision


@pytest.mark.usefixtures("unchecked")
def test_labels_with_one_or_two_positives_share_a_threshold() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator)
    target = torch.zeros(60, 4)
    target[:, 0] = (logits[:, 0] + torch.randn(60, generator=generator) > 0).float()
    target[7, 1], target[[3, 9], 2] = 1.0, 1.0
    target[[1, 2, 3], 3] = 1.0
    known = torch.ones(60, 4, dtype=torch.bool)

    decision = fitted_on(("many", "one", "two", "three"), logits, target, known)
    scaled = (logits / decision.temperature).sigmoid()
    own = fit_thresholds(scaled, target)
    together = fit_thresholds(scaled[:, 1:3].reshape(-1, 1), target[:, 1:3].reshape(-1, 1)).item()
    assert [decision.threshold(name) for name in ("many", "three")] == pytest.approx([own[0].item(), own[3].item()])
    assert decision.threshold("one") == decision.threshold("two") == pytest.approx(together)
    assert together not in (own[1].item(), own[2].item())


@pytest.mark.usefixtures("unchecked")
def test_labels_without_both_answers_decide_nothing() -> None:
    """Every picture is a positive of the second label: any threshold would do, and the lowest temperature is best."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 3, generator=generator)
    target = (logits + torch.randn(40, 3, generator=generator) > 0).float()
    target[:, 1] = 1.0
    known = torch.ones(40, 3, dtype=torch.bool)
    known[:, 2] = False

    names = ("a", "b", "c")
    decision = fitted_on(names, logits, target, known)
    alone = torch.zeros_like(known)
    alone[:, 0] = True
    assert decision.temperature == fit_temperature(logits, target, alone)
    assert set(decision.thresholds) == {"a"}
    nothing = fitted_on(names, logits, torch.ones(40, 3), known)
    assert (nothing.temperature, nothing.thresholds) == (1.0, {})
