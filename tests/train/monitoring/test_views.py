"""Views of a model: the right pictures with the right words, and the same whether a run was stopped or not."""

import re
from pathlib import Path

import pytest
import torch
from helpers.tower_models import write_folder
from helpers.training_toys import LABELS, events_of, tiny_options, write_voc

from pvlr.cli.command import command
from pvlr.core.labels import LabelSet
from pvlr.train import train
from pvlr.train.data_config import VOCData
from pvlr.train.monitoring.views import verdicts


def test_verdicts_tell_right_wrong_missed_and_unknown_apart() -> None:
    labels = LabelSet(("right", "wrong", "missed", "rightly_not_said", "unknown_said", "unknown_not_said"))
    said = torch.tensor([0.9, 0.8, 0.3, 0.2, 0.7, 0.1])
    target = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    known = torch.tensor([True, True, True, True, False, False])
    lines = verdicts(said, target, known, labels)
    told = ["right 0.90", "wrong: wrong 0.80", "not known: unknown said 0.70", "missed: missed 0.30"]
    assert [line.text for line in lines] == told
    assert len({line.colour for line in lines}) == 4


def test_long_verdicts_are_cut() -> None:
    count = 20
    labels = LabelSet(tuple(f"label_{number}" for number in range(count)))
    lines = verdicts(torch.full((count,), 0.9), torch.ones(count), torch.ones(count, dtype=torch.bool), labels)
    assert len(lines) == 6
    assert lines[-1].text == "and 15 more"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("made")
    write_folder(root, "vit")
    write_voc(root / "voc", train=12, test=6)
    return root / "voc", root


ALWAYS = {
    "start/inputs", "pictures/predictions", "train/loss", "train/loss_positive", "train/loss_negative", "test/mAP",
    "test/CF1", "test/OF1", "gradient/head", "model/scale", "model/bias", "lr/layers", "speed/images_per_second",
    "speed/waiting_percent", "memory/process_MiB", "run/configuration/text_summary", "run/record/text_summary",
    *(f"{group}/{label}" for group in ("ap", "precision_recall") for label in LABELS),
}  # fmt: skip
BASE = {"base/competition", "base/focused", "base/pooled"}
OF_LAYERS = {"model/scale", "gradient/head", "lr/layers"}
MAPS = {"relations/M_ka", "relations/M_ca"}
GATED = {f"fusion/mix_head_{number}" for number in range(4)} | {"gates/share_of_knowledge", "relations/mix_of_both"}


@pytest.mark.parametrize(
    ("options", "more", "less"),
    [
        ({}, {"pictures/attention", *BASE, *MAPS, *GATED}, set()),
        ({"tower__features": "cache", "tower__feature_views": 2}, {"pictures/attention", *GATED}, set()),
        ({"tower__train": "all", "model__direction": "patches"}, {"pictures/attention", "gradient/image"}, set()),
        (
            {"model__direction": "none", "model__fusion": "context"},
            {"relations/M_ca"},
            {"pictures/attention", *BASE, *GATED},
        ),
        ({"model__relation": "none"}, {"gates/share_of_knowledge"}, {*MAPS, "fusion/mix_head_0"}),
        ({"model__base": "[best]"}, {"pictures/attention", "base/best", *MAPS, *GATED}, BASE),
        ({"model__learn": "false"}, BASE, {"pictures/attention", *OF_LAYERS, *MAPS, *GATED}),
    ],
)  # fmt: skip
def test_every_configuration_is_shown(
    made: tuple[Path, Path], tmp_path: Path, options: dict[str, str], more: set[str], less: set[str]
) -> None:
    data, tower = made
    chosen = {"loop__epochs": 1, "run__tensorboard": "true", "loop__evaluate_every": 0} | options
    assert command(train, tiny_options(data, tower, tmp_path / "run", **chosen), data=VOCData) == 0
    told = events_of(tmp_path / "run" / "tensorboard")
    tags = {tag for tag, _ in told}
    assert tags >= ALWAYS - less | more
    assert not tags & less
    assert len(set(told)) == len(told)
    names = (tmp_path / "run" / "tensorboard" / "names.tsv").read_text().splitlines()
    assert names == list(LABELS)
    for number in (0, 1):
        assert len((tmp_path / "run" / "tensorboard" / f"vectors-{number}.tsv").read_text().splitlines()) == len(LABELS)


def test_watching_changes_no_result(made: tuple[Path, Path], tmp_path: Path) -> None:
    data, tower = made
    for name, watched in (("seen", "true"), ("unseen", "false")):
        options = tiny_options(data, tower, tmp_path / name, run__tensorboard=watched, run__log_every=1)
        assert command(train, options, data=VOCData) == 0
    files = [tmp_path / name / "model.safetensors" for name in ("seen", "unseen")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_finished_run_that_is_started_again_shows_nothing_twice(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, tower = made
    options = tiny_options(data, tower, tmp_path / "run", run__tensorboard="true", run__log_every=2)
    found = []
    for _ in range(2):
        assert command(train, options, data=VOCData) == 0
        found.append(sorted(events_of(tmp_path / "run" / "tensorboard")))
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("label     AP") == 2
    assert any(re.match(r"look:       \S*tensorboard --logdir ", line) for line in lines)
