"""Other methods in PVLR's place: the same trainer, the same files, the same predictions from them."""

import json
from pathlib import Path

import pytest
import torch
from helpers.strategies import Draw, perturb
from helpers.training_toys import tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.core.labels import LabelSet
from pvlr.core.models.baselines import BaselineConfig, BaselineModel, DualPrompter
from pvlr.core.towers import load_towers
from pvlr.data.readers.voc import read_voc
from pvlr.inference.saving import PretrainedError, _digest_of
from pvlr.train import Recognizer, train
from pvlr.train.config import OptimizerConfig
from pvlr.train.data_config import VOCData
from pvlr.train.optim import parameter_groups

KINDS = ("linear_probe", "coop", "dualcoop", "query2label", "ml_decoder")
SMALL = {"baseline__width": 8, "baseline__heads": 2, "baseline__hidden": 8, "baseline__context_tokens": 2}


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, train=8, test=4)
    return folder


@pytest.mark.parametrize(
    "method",
    [
        *({"baseline__kind": kind, **SMALL} for kind in KINDS),
        *({"baseline__kind": kind, **SMALL, "baseline__base": "true"} for kind in KINDS),
        {"model__learn": "false", "model__base": "[pooled, best]"},
    ],
    ids=lambda method: "".join(
        (method.get("baseline__kind", "zero-shot"), " with base" * ("baseline__base" in method))
    ),
)
def test_trained_saved_loaded_and_the_same_from_cached_features(
    method: dict[str, object], voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = {"data__flip": "false", "data__rand_augment": "false", "data__cutout": 0.0, "loop__epochs": 1}
    cache = {"tower__features": "cache", "tower__feature_dtype": "float32"}
    for name, options in (("pictures", {}), ("features", cache)):
        args = tiny_options(voc, tower, tmp_path / name, **plain, **options, **method)
        assert command(train, args, data=VOCData) == 0
    assert "tag yours" in capsys.readouterr().out
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models = [Recognizer.from_pretrained(tmp_path / name).model for name in ("pictures", "features")]
    with torch.no_grad():
        logits = [model(images).logits for model in models]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    assert logits[0].std() > 0
    counts = read_voc(voc, train=True).target.sum(dim=0)
    assert all(torch.equal(model.known_positives, counts) for model in models)
    if "baseline__base" in method:
        with torch.no_grad():
            models[0].set_known_positives(torch.zeros(3))
            alone = models[0](images).logits
            torch.manual_seed(0)
            for parameter in models[0].head.parameters():
                parameter.normal_()
            # Where no positive is known, the base is all there is.
            torch.testing.assert_close(models[0](images).logits, alone, rtol=0, atol=0)
        assert not torch.allclose(alone, logits[0])


def test_files_of_a_baseline_are_checked(voc: Path, tower: Path, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="expected a trained model in this folder, found no such file"):
        Recognizer.from_pretrained(tmp_path)
    towers = load_towers(f"local-dir:{tower}")
    config, labels = BaselineConfig(kind="linear_probe"), LabelSet(("cat", "dog"))
    model = BaselineModel.from_towers(config, labels, towers)
    perturb(model.head, Draw(0, torch.float32))
    Recognizer(model).save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path).model
    assert isinstance(loaded, BaselineModel)
    torch.testing.assert_close(loaded.head.state_dict(), model.head.state_dict())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(PretrainedError, match=r"model\.safetensors: checksum mismatch: expected [0-9a-f]{64}, got"):
        Recognizer.from_pretrained(tmp_path)
    Recognizer(model).save_pretrained(tmp_path)
    description = tmp_path / "model.json"
    changed = json.loads(description.read_text()) | {"tower_fingerprint": "another"}
    description.write_text(json.dumps(changed | {"sha256": _digest_of(changed)}))
    with pytest.raises(PretrainedError, match="trained on other weights of the tower"):
        Recognizer.from_pretrained(tmp_path)
    description.write_text("{}")
    with pytest.raises(PretrainedError, match=r"model\.json: expected the description of a model"):
        Recognizer.from_pretrained(tmp_path)


def test_both_sections_at_once_are_refused(
    voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (
            {"baseline__kind": "dualcoop", "model__heads": 4},
            "error: model: expected its defaults with baseline.kind 'dualcoop'",
        ),
        ({"baseline__groups": 3}, "error: baseline.kind: expected a method where the section is set, got 'none'"),
    ):
        args = tiny_options(voc, tower, tmp_path / "run", **options)
        assert command(train, args, data=VOCData) == 2
        assert message in capsys.readouterr().err


def test_prompts_of_both_signs_have_the_learning_rate_of_prompts() -> None:
    groups = parameter_groups(DualPrompter(width=6, dim=8), OptimizerConfig(lr=1.0, prompt_lr_factor=0.5))
    assert [(group["name"], len(group["params"]), group["base_lr"]) for group in groups] == [("prompts", 2, 0.5)]
    assert torch.is_tensor(groups[0]["params"][0])
