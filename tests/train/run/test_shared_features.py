"""Features that several processes compute together: the files of one process, whatever happens to the others."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import on_ranks
from helpers.training_toys import tiny_options, toy_batch, write_voc
from torch import Tensor

from pvlr.cli.command import command
from pvlr.core.protocols import ImageFeatures
from pvlr.core.towers import load_towers
from pvlr.data.batch import Batch, DataError
from pvlr.data.readers.voc import read_voc
from pvlr.train import train
from pvlr.train.data_config import VOCData
from pvlr.train.dataloaders import transform_config
from pvlr.train.distributed import EndedElsewhere, ProcessLost, World
from pvlr.train.evaluation.baselines import PooledFeatures, pooled_features
from pvlr.train.features import FeatureSettings, cache_features
from pvlr.train.stop import Interrupted

PICTURES = 26


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    write_voc(folder, train=PICTURES, test=4)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}  # Locks are a folder.


Watch = Callable[[Iterator[Batch]], Iterator[Batch]]


def cached(world: World, voc: Path, tower: Path, folder: Path, fate: str = "", size: int = 4) -> tuple[list[int], int]:
    """Cache two views; return the pictures that this rank encoded, and the number of cached ones that it sees.

    `fate` is what happens to the second rank at its second batch, or to all of them in a signal's case.
    """
    towers, seen = load_towers(f"local-dir:{tower}"), []
    settings = FeatureSettings(views=2, batch_size=size, seed=3)

    def watch(batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            if number == 1 and fate == "stop":
                raise Interrupted("stopped", signal.SIGTERM)
            if number == 1 and world.rank == 1 and fate == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 1 and world.rank == 1 and fate == "refuses":
                raise DataError("000001.jpg: expected a picture, found something else")
            seen.extend(batch.index.tolist())
            yield batch

    found = cache_features(
        read_voc(voc, train=True),
        towers.image.eval(),
        folder,
        fingerprint=towers.fingerprint,
        transform=transform_config(towers.preprocess, VOCData(cutout=0.5)),
        settings=settings,
        watch=watch,
        world=world,
    )
    return seen, sum(torch.isfinite(found[index].image).all().item() for index in range(len(found)))


def end_of(world: World, *arguments: Any) -> type[Exception] | None:
    """Return the error that the features end with on this rank."""
    try:
        cached(world, *arguments)
    except Exception as err:
        return type(err)
    return None


@pytest.mark.parametrize(("size", "batch"), [(2, 4), (3, 4), (3, 20)], ids=["two", "three", "more ranks than batches"])
def test_features_of_several_processes_are_those_of_one_byte_for_byte(
    voc: Path, tower: Path, tmp_path: Path, size: int, batch: int
) -> None:
    cached(World(), voc, tower, tmp_path / "one", size=batch)
    found = on_ranks(size, cached, voc, tower, tmp_path / "all", "", batch)
    assert files_of(tmp_path / "all") == files_of(tmp_path / "one")
    shares = [seen for seen, _ in found]
    assert sorted(index for seen in shares for index in seen) == sorted([*range(PICTURES)] * 2), (
        "each picture is encoded once a view"
    )
    assert max(map(len, shares)) - min(map(len, shares)) <= 2 * batch
    assert [there for _, there in found] == [PICTURES] * size


@pytest.mark.parametrize(
    ("fate", "before", "after"), [("stop", 2, 3), ("dies", 2, 1), ("dies", 3, 2), ("refuses", 3, 2)]
)
def test_what_ended_in_the_middle_goes_on_with_another_number_of_processes(
    voc: Path, tower: Path, tmp_path: Path, fate: str, before: int, after: int
) -> None:
    cached(World(), voc, tower, tmp_path / "one")
    wanted = {
        "stop": [Interrupted] * before,
        "dies": [ProcessLost, None, ProcessLost][:before],
        "refuses": [EndedElsewhere, DataError, EndedElsewhere][:before],
    }
    assert on_ranks(before, end_of, voc, tower, tmp_path / "all", fate) == wanted[fate]
    # A batch of each rank is there.
    found = on_ranks(after, cached, voc, tower, tmp_path / "all")
    assert sum(len(seen) for seen, _ in found) == 2 * PICTURES - before * 4
    assert files_of(tmp_path / "all") == files_of(tmp_path / "one")


def pooled(world: World, batches: int) -> PooledFeatures:
    def tower(images: Tensor) -> ImageFeatures:
        vectors = images.flatten(1)
        return ImageFeatures(vectors[:, None], vectors)

    mine = [toy_batch(3, seed=number) for number in range(batches)][world.rank :: world.size]
    return pooled_features(tower, mine, compare=lambda features: features.pooled[:, :5], world=world)


@pytest.mark.parametrize("batches", [5, 2])
def test_features_of_baselines_are_those_of_one_process(batches: int) -> None:
    wanted = pooled(World(), batches)
    for found in on_ranks(3, pooled, batches):
        assert len(found.vectors) == 3 * batches
        assert all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True))


def ran(world: World, options: list[str]) -> int:
    return command(train, options, data=VOCData)


@pytest.mark.parametrize("features", ["cache", "compute"])
def test_baselines_of_two_processes_are_those_of_one(voc: Path, tower: Path, tmp_path: Path, features: str) -> None:
    few = {"loop__epochs": 1, "loop__eval_batch_size": 3, "run__baselines": "true", "tower__features": features}
    options = {name: tiny_options(voc, tower, tmp_path / name, **few) for name in ("one", "two")}
    assert ran(World(), options["one"]) == 0
    assert on_ranks(2, ran, options["two"]) == [0, 0]
    one, two = (json.loads((tmp_path / name / "run.json").read_text())["results"] for name in ("one", "two"))
    for method in ("linear probe", "zero-shot"):
        for run in (one, two):
            run[method].pop("seconds", None)
        assert one[method] == two[method]
