"""Batches for the loop: the same whoever reads them, also when the readers are told to end; what identifies data."""

import multiprocessing
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.processes import CONTEXT
from helpers.training_toys import write_voc
from torch.utils.data import Dataset

from pvlr.data.batch import Batch, Sample
from pvlr.data.sampling import Draw
from pvlr.data.transforms import TransformConfig
from pvlr.train.config import LoopConfig
from pvlr.train.data_config import VOCData
from pvlr.train.dataloaders import Dataloaders, SplitDataloaders

TRANSFORM = TransformConfig(size=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


class Noise(Dataset[Sample]):
    """Pictures that are the seed of their draw, so that the loaders' seeds can be compared."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, draw: Draw) -> Sample:
        image = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(draw.seed))
        return Sample(image, torch.zeros(2), torch.ones(2, dtype=torch.bool), draw.index)


def loaders(n: int, workers: int = 0) -> Dataloaders:
    loop = LoopConfig(batch_size=3, eval_batch_size=2, seed=4)
    return Dataloaders(Noise(n), Noise(n), Noise(n), loop=loop, workers=workers)


def assert_same(ones: list[Batch], others: list[Batch]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_batches_are_the_same_whatever_the_workers_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    alone = list(loaders(8).training(2))
    assert [len(batch.index) for batch in alone] == [3, 3, 2]
    assert_same(alone, list(loaders(8, workers=2).training(2)))
    assert_same(alone[2:], list(loaders(8).training(2, start=2)))
    assert not torch.equal(alone[0].image, next(loaders(8).training(3)).image)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_picture_is_tested_once_in_order() -> None:
    assert [batch.index.tolist() for batch in loaders(5).testing()] == [[0, 1], [2, 3], [4]]


def test_workers_end_when_the_training_process_says_so_and_at_nobody_elses_word() -> None:
    alone = list(loaders(90).training(0))
    before = set(multiprocessing.active_children())
    batches = loaders(90, workers=2).training(0)
    found = [next(batches)]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    found += batches
    assert_same(alone, found)
    batches = loaders(90, workers=2).training(0)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    try:
        for worker in workers:
            worker.terminate()
            worker.join(timeout=60)
            assert worker.exitcode == 0
    finally:
        batches.close()  # type: ignore[attr-defined]


def read_for_ever(workers: "multiprocessing.Queue[int]") -> None:
    multiprocessing.set_start_method("forkserver", force=True)  # Under which workers are children of somebody else.
    multiprocessing.set_forkserver_preload([])
    batches = loaders(90, workers=1).training(0)
    next(batches)
    for worker in multiprocessing.active_children():
        workers.put(worker.pid or 0)
    time.sleep(600)


def test_workers_end_when_the_training_process_is_killed() -> None:
    queue = CONTEXT.Queue()
    trainer = CONTEXT.Process(target=read_for_ever, args=(queue,))
    trainer.start()
    worker = Path(f"/proc/{queue.get(timeout=120)}")
    assert worker.exists()
    trainer.kill()
    trainer.join()
    end = time.monotonic() + 60
    while time.monotonic() < end and worker.exists():
        time.sleep(0.1)
    assert not worker.exists()


def test_the_same_processes_read_epoch_after_epoch_also_after_one_that_was_left_early() -> None:
    before, reads = set(multiprocessing.active_children()), loaders(90, workers=2)
    first = list(reads.training(0))
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    left = reads.training(1)
    next(left)
    assert_same(list(reads.training(2, start=3)), list(loaders(90).training(2, start=3)))
    assert_same(list(reads.training(0)), first)
    assert set(multiprocessing.active_children()) - before == workers
    del reads, left
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("split", ["trainval", "test"])
@pytest.mark.parametrize("what", ["pictures", "labels"])
def test_the_digest_is_of_names_and_labels_of_both_splits(tmp_path: Path, split: str, what: str) -> None:
    def digest() -> str:
        data, loop = VOCData(root=str(tmp_path)), LoopConfig()
        return SplitDataloaders(data.splits(loop.seed), data, loop=loop, transform=TRANSFORM).digest

    folder = write_voc(tmp_path)
    before = digest()
    assert digest() == before
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    names = listed.read_text().split()
    if what == "pictures":
        listed.write_text("".join(f"{name}\n" for name in names[:-1]))
    else:
        annotation = folder / "Annotations" / f"{names[0]}.xml"
        objects = "".join(f"<object><name>{name}</name></object>" for name in ("red", "green", "blue"))
        annotation.write_text(f"<annotation>{objects}</annotation>")
    assert digest() != before
