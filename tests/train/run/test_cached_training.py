"""Training from cached features: the same outcome, whatever interrupted their making."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tower_models import write_folder
from helpers.training_toys import tiny_options, write_voc
from safetensors.torch import load_file

from pvlr.cli.command import command
from pvlr.core.towers import load_towers
from pvlr.data.batch import DataError
from pvlr.data.readers.voc import read_voc
from pvlr.data.sampling import Draw, derive_seed
from pvlr.data.transforms import ImageTransform
from pvlr.inference.export import label_rows, write_program
from pvlr.train import Recognizer, train
from pvlr.train.data_config import VOCData
from pvlr.train.dataloaders import transform_config
from pvlr.train.features import FeatureSettings, cache_features


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, train=10, test=4)
    return folder


PLAIN = {"data__flip": "false", "data__rand_augment": "false", "data__cutout": 0.0}
CACHE = {"tower__features": "cache", "tower__feature_dtype": "float32"}


def weights_of(voc: Path, tower: Path, run: Path, **options: object) -> dict[str, torch.Tensor]:
    assert command(train, tiny_options(voc, tower, run, **options), data=VOCData) == 0
    return load_file(run / "model.safetensors")


def test_training_from_the_cache_is_training_without_it(
    voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines = {"run__baselines": "true"}
    without = weights_of(voc, tower, tmp_path / "without", **PLAIN, **baselines)
    table = capsys.readouterr().out.split("method")[1].split("run folder")[0]
    shared = {**PLAIN, **CACHE, **baselines, "tower__feature_folder": tmp_path / "features"}
    cached = weights_of(voc, tower, tmp_path / "cached", **shared)
    said = capsys.readouterr().out
    assert said.count("computing the features of ") == 2
    assert cached.keys() == without.keys()
    for name, value in without.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-5, atol=1e-5, msg=name)
    # The methods' figures are the same to the digits shown; their seconds are not.
    figures = [
        [line.split()[:-1] for line in text.splitlines() if "." in line] for text in (table, said.split("method")[1])
    ]
    assert figures[0] == figures[1][: len(figures[0])]
    again = weights_of(voc, tower, tmp_path / "again", **shared)
    assert "computing" not in capsys.readouterr().out, "another run may share them"
    assert all(torch.equal(again[name], value) for name, value in cached.items())


@pytest.mark.usefixtures("unchecked")
def test_what_pooled_vectors_were_made_of_is_cached_trained_on_gone_on_with_and_exported(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A small tower that tells it, as those of pvlr:photos do.
    monkeypatch.setattr("pvlr.core.towers.image.timm_family._source_dim", lambda visual: visual.trunk.num_features)
    tower = tmp_path / "tower"
    write_folder(tower, "efficientnet")
    image = load_towers(f"local-dir:{tower}").image
    wide = image.source_dim
    assert wide > image.dim
    without = weights_of(voc, tower, tmp_path / "without", **PLAIN)
    shared = {**PLAIN, **CACHE, "tower__feature_folder": tmp_path / "features"}
    cached = weights_of(voc, tower, tmp_path / "cached", **shared)
    assert sorted(path.stat().st_size for path in (tmp_path / "features").rglob("source.bin")) == [
        4 * count * wide for count in (4, 10)
    ]
    assert cached.keys() == without.keys()
    assert cached["residual.source"].shape == (3, wide)
    assert cached["residual.source"].abs().max() > 0
    for name, value in without.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-5, atol=1e-5, msg=name)
    capsys.readouterr()
    more = weights_of(voc, tower, tmp_path / "cached", **shared, loop__epochs=3, run__resume="require")
    said = capsys.readouterr().out
    assert "going on from step 6" in said
    assert "computing" not in said
    assert not torch.equal(more["residual.source"], cached["residual.source"])
    model = Recognizer.from_pretrained(tmp_path / "cached").model
    for labels in ("baked", "input"):
        program = write_program(tmp_path / labels, model, kind="torch", labels=labels)
        assert program.difference < 1e-4
    assert label_rows(model).shape == (3, 2 * image.dim + wide + 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("base", ["true", "false"])
def test_features_of_patches_are_cached_for_the_decoders_that_ask_and_beside_the_others(
    base: str, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = tmp_path / "tower"
    write_folder(tower, "efficientnet")
    image = load_towers(f"local-dir:{tower}").image
    small = {"baseline__kind": "ml_decoder", "baseline__width": 8, "baseline__heads": 2, "baseline__hidden": 8}
    own = {**PLAIN, **small, "baseline__base": base, "baseline__patches": "own"}
    without = weights_of(voc, tower, tmp_path / "without", **own)
    assert without["head.projection.weight"].shape == (8, image.own_dim)
    assert image.own_dim > image.dim
    shared = {**CACHE, "tower__feature_folder": tmp_path / "features"}
    joint = weights_of(voc, tower, tmp_path / "joint", **(own | shared | {"baseline__patches": "joint"}))
    assert joint["head.projection.weight"].shape == (8, image.dim)
    assert not list((tmp_path / "features").rglob("own.bin"))
    cached = weights_of(voc, tower, tmp_path / "cached", **own, **shared)
    said = capsys.readouterr().out
    assert "computed anew" not in said
    assert said.count("computing the features of ") == 4
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["test", "test-own", "train", "train-own"]
    assert (tmp_path / "features/test-own/own.bin").stat().st_size == 4 * 4 * image.grid**2 * image.own_dim
    for name, value in without.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-5, atol=1e-5, msg=name)
    again = weights_of(voc, tower, tmp_path / "again", **own, **shared)
    assert "computing" not in capsys.readouterr().out
    assert all(torch.equal(again[name], value) for name, value in cached.items())
    loaded = Recognizer.from_pretrained(tmp_path / "cached").model
    program = write_program(tmp_path / "program", loaded, kind="torch")
    assert program.difference < 1e-4


def test_patches_that_a_tower_does_not_have_are_refused_before_any_is_cached(
    voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"baseline__kind": "ml_decoder", "baseline__patches": "own", "tower__name": "pvlr:scenes-clip"}
    given = tiny_options(voc, tmp_path, tmp_path / "run", **CACHE, **options)
    assert command(train, given, data=VOCData) == 2
    assert "error: patches: expected 'joint' for this image tower" in capsys.readouterr().err
    assert not (tmp_path / "run" / "features").exists()


def arguments(voc: Path, tower: Path) -> dict[str, Any]:
    towers = load_towers(f"local-dir:{tower}")
    return {
        "data": read_voc(voc, train=True),
        "tower": towers.image.eval(),
        "fingerprint": towers.fingerprint,
        "transform": transform_config(towers.preprocess, VOCData(cutout=0.5)),
        "settings": FeatureSettings(batch_size=4, dtype="float32"),
    }


def with_settings(given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return given | {"settings": replace(given["settings"], **changes)}


def test_views_are_functions_of_seed_view_and_index(voc: Path, tower: Path, tmp_path: Path) -> None:
    given = arguments(voc, tower)
    cached = cache_features(folder=tmp_path / "f", **with_settings(given, views=3, seed=5))
    for view in range(3):
        transform = ImageTransform(given["transform"], train=view > 0)
        for index in (0, 7, 9):
            picture = given["data"].with_transform(transform)[Draw(index, derive_seed(5, view, index))].image
            with torch.no_grad():
                wanted = given["tower"](picture[None]).patches[0]
            assert torch.allclose(cached[Draw(index, view)].image, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size_after", [4, 3])
def test_an_interrupted_cache_goes_on_where_it_was(voc: Path, tower: Path, tmp_path: Path, size_after: int) -> None:
    given = with_settings(arguments(voc, tower), views=2)
    whole = cache_features(folder=tmp_path / "whole", **given)

    class Stop(Exception):
        pass

    def stopped(batches: Any) -> Any:
        for number, batch in enumerate(batches):
            if number == 2:
                raise Stop
            yield batch

    for _ in range(2):
        with pytest.raises(Stop):
            cache_features(folder=tmp_path / "parts", watch=stopped, **given)
    seen: list[int] = []

    def watched(batches: Any) -> Any:
        for batch in batches:
            seen.extend(batch.index.tolist())
            yield batch

    after = with_settings(given, batch_size=size_after)
    parts = cache_features(folder=tmp_path / "parts", watch=watched, **after)
    assert 0 < len(seen) < 20, "what was there was not computed again"
    for row in range(20):
        for a, b in zip(parts.store.read(row), whole.store.read(row), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_features_of_something_else_are_computed_anew_with_a_message(
    voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(voc, tower)
    cache_features(folder=tmp_path / "f", **given)
    assert re.search(r" pictures into .*: 0\.\d MB", capsys.readouterr().out)
    cache_features(folder=tmp_path / "f", **given)
    assert capsys.readouterr().out == ""
    for changed in (
        given | {"fingerprint": "other"},
        given | {"data": read_voc(voc, split="test", train=False)},
        with_settings(given, precision="bf16"),
    ):
        cache_features(folder=tmp_path / "f", **changed)
        assert "computed anew" in capsys.readouterr().out
        cache_features(folder=tmp_path / "f", **given)  # Back again, so that the next is the only change.
        capsys.readouterr()
    first = given["data"].paths[0]
    other = tmp_path / "other"
    shutil.copytree(voc, other)
    data = read_voc(other, train=True)
    cache_features(folder=tmp_path / "f", **(given | {"data": data}))
    capsys.readouterr()
    data.paths[0].write_bytes(first.read_bytes() + b"0")  # Under the same name.
    cache_features(folder=tmp_path / "f", **(given | {"data": data}))
    assert "computed anew" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_ends_it_by_name(voc: Path, tower: Path, tmp_path: Path) -> None:
    write_voc(tmp_path, train=10, test=4)
    given = arguments(tmp_path, tower)
    given["data"].paths[6].write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"000006\.jpg: expected a picture"):
        cache_features(folder=tmp_path / "f", **given)


def test_a_tower_that_is_trained_has_no_cache(
    voc: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_options(voc, tower, tmp_path / "run", tower__features="cache", tower__train="all")
    assert command(train, options, data=VOCData) == 2
    assert "tower.features: 'cache' is for a frozen tower, but tower.train is 'all'" in capsys.readouterr().err
