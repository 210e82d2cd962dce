"""Small stand-ins for what training is made of: a model, batches, a Pascal VOC tree, a tower, a command line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from pvlr.data.batch import Batch

LABELS = ("red", "green", "blue")

# What is this small is only slowed down by threads that wait for each other; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


class Output(NamedTuple):
    logits: Tensor


class ToyContext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(2, 3))


class ToyImage(nn.Module):
    """A tower of one trained and one frozen layer and a running statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.first.requires_grad_(False)

    def trained_state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith("first")}

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.last(torch.tanh(self.first(images.flatten(1)))))


class ToyModel(nn.Module):
    """Images `b 3 2 2` to 3 logits, with every kind of parameter that groups tell apart."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image, self.context = ToyImage(), ToyContext()
            self.text = nn.Linear(3, 3).requires_grad_(False)
            self.layer, self.norm = nn.Linear(8, 3), nn.LayerNorm(8)
            self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor) -> Output:
        return Output(self.scale * self.layer(self.norm(self.image(images))) + self.context.context.sum(dim=0))


class LinearModel(nn.Module):
    """No statistics over a batch, so that a batch is the sum of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linspace(-1, 1, 36).view(3, 12))
            self.layer.bias.zero_()

    def forward(self, images: Tensor) -> Output:
        return Output(self.layer(images.flatten(1)))


def toy_batch(count: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn(count, 3, 2, 2, generator=g),
        torch.randint(2, (count, 3), generator=g).float(),
        torch.rand(count, 3, generator=g) < 0.7,
        torch.arange(count) + 100 * seed,
    )


class ToyBatches:
    """Five batches an epoch of unequal size; a function of the epoch."""

    sizes = (4, 4, 3, 4, 2)

    @property
    def batches_per_epoch(self) -> int:
        return len(self.sizes)

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number, size in list(enumerate(self.sizes))[start:]:
            yield toy_batch(size, seed=10 * epoch + number)


def write_voc(root: Path, *, train: int = 10, test: int = 4, size: int = 16) -> Path:
    """Pictures of one or two colours in the layout of Pascal VOC 2007, with a `labels.json`; returns its folder."""
    folder = root / "VOCdevkit" / "VOC2007"
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(train + test)]
    for number, name in enumerate(names):
        shown = sorted({number % 3, number // 3 % 3})
        picture = Image.new("RGB", (size, size))
        for half, colour in enumerate((shown[0], shown[-1])):
            value = tuple(255 - number if channel == colour else number for channel in range(3))
            picture.paste(value, (0, half * size // 2, size, size))
        picture.save(folder / "JPEGImages" / f"{name}.jpg")
        objects = "".join(f"<object><name>{LABELS[colour]}</name></object>" for colour in shown)
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, part in (("trainval", names[:train]), ("test", names[train:])):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    (folder / "labels.json").write_text(json.dumps({"names": list(LABELS)}))
    return folder


def tiny_options(data: Path, tower: Path, run: Path, **more: object) -> list[str]:
    """Options of a run of a second or two; `more` has `__` for the dots."""
    options = {
        "data.root": data,
        "data.workers": 0,
        "tower.name": f"local-dir:{tower}",
        # A feed-forward that is to a width of 24 what its default is to those of real towers. Baselines read neither.
        **({} if "baseline__kind" in more else {"model.heads": 4, "model.feedforward": 16, "model.adapter_width": 16}),
        "loop.epochs": 2,
        "loop.batch_size": 4,
        "loop.device": "cpu",
        "run.folder": run,
        "run.tensorboard": "false",
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    return [f"--{name}={value}" for name, value in options.items()]


def events_of(folder: Path) -> list[tuple[str, int]]:
    """Tag and step of everything in TensorBoard's files, in their order, nothing purged."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    records = [record for path in sorted(folder.glob("events.*")) for record in RawEventFileLoader(str(path)).Load()]
    return [(value.tag, event.step) for event in map(Event.FromString, records) for value in event.summary.value]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Rows that a run wrote about its steps, but for its speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
