"""A study: methods and switches, each over several seeds on the same features; every finished cell is a file."""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pvlr.core.arguments import require_int
from pvlr.core.baselines import BaselineConfig, BaselineModel
from pvlr.core.bootstrap import bootstrap_map
from pvlr.core.files import write_atomically
from pvlr.core.labels import LabelSet
from pvlr.core.metrics import average_precision, mean_average_precision
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.model_texts import text_sources
from pvlr.core.towers import build_towers
from pvlr.data.batch import DataError
from pvlr.train.baseline_files import load_baseline
from pvlr.train.cli import is_refusal
from pvlr.train.config import (
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
    config_to_json,
    section,
)
from pvlr.train.data_config import DataConfig
from pvlr.train.features import cache_features
from pvlr.train.feed import transform_config
from pvlr.train.monitor import say
from pvlr.train.run import train
from pvlr.train.study_report import write_report

__all__ = ["StudyConfig", "study"]

Sections = dict[str, Any]
RESAMPLES = 500
DEFAULTS = PVLRConfig()


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What is compared.

    Args:
        folder: Where cells, table and figure are written.
        rows: Group to row to what the row changes, by section and field (``model.dma: none``). A row of no changes is
            the base.
        seeds: Each row is trained once for each; a cell's ``loop.seed``.
        only: Groups or rows to train now; null for all. The report is on all cells that are there.
        processes: Cells that are trained at once, each by one thread.
    """

    folder: str = "runs/study"
    rows: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    only: tuple[str, ...] | None = None
    processes: int = 2

    def __post_init__(self) -> None:
        with section("study"):
            require_int("processes", self.processes, least=1)
            if not self.seeds or len(set(self.seeds)) != len(self.seeds):
                raise ValueError(f"seeds: expected one or more, each once, got {list(self.seeds)}")
            names = [name for group, rows in self.rows.items() for name in (group, *rows)]
            for name in self.only or ():
                if name not in names:
                    raise ValueError(f"only: expected groups or rows of the study, got {name!r}")


def study(
    *,
    data: DataConfig,
    tower: TowerConfig,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    loop: LoopConfig,
    study: StudyConfig,
    model: PVLRConfig = DEFAULTS,
) -> Path:
    """Train every row over every seed, and write ``report.md`` and ``report.png``.

    All runs share one cache of features. A cell that is there, of the same configuration, is not trained again; what
    was not finished when a study was stopped is.

    Args:
        data: The pictures.
        tower: The frozen towers.
        loss: What is minimised.
        optimizer: How a gradient becomes a step.
        schedule: The learning rate's way.
        loop: How long, and how much at once; its seed is the cell's.
        study: What is compared.
        model: The model of the base.

    Returns:
        The report's file.

    Raises:
        ConfigError: naming the row whose changes are no fields, or are out of range.
        DataError: where the data cannot be read.
        TowerError: where the towers cannot be loaded.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("study: expected the package matplotlib for its figure, found none; pip install 'pvlr[plot]'")
    folder = Path(study.folder)
    tower = replace(tower, features="cache", feature_folder=tower.feature_folder or str(folder / "features"))
    base: Sections = {"data": data, "tower": tower, "model": model, "loss": loss, "optimizer": optimizer}
    base |= {"schedule": schedule, "loop": loop, "baseline": BaselineConfig()}
    cells = [
        _Cell(folder, group, row, seed, _changed(base, row, changes, seed)) for group, row, changes, seed in _all(study)
    ]
    wanted = set(study.only or ())
    todo = [cell for cell in cells if not wanted or {cell.group, cell.row} & wanted]
    todo = [cell for cell in todo if cell.found() is None]
    say(f"{len(cells)} cells, {len(todo)} to train")
    for cell in todo:
        text_sources(cell.sections["model"])  # Files that are not there are told of before anything is trained.
    if todo:  # The first makes what all others share: the data, the features, the list of pictures that were looked at.
        say(_train(todo[0]))
    if study.processes == 1:
        for cell in todo[1:]:
            say(_train(cell))
    elif len(todo) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(study.processes, mp_context=context) as pool:
            try:
                for done in as_completed([pool.submit(_train_apart, cell) for cell in todo[1:]]):
                    say(done.result())
            except BaseException as err:
                pool.shutdown(cancel_futures=True)  # What is being trained ends; what waits is for the next call.
                if isinstance(err, _Refused):
                    raise ConfigError(str(err)) from None
                raise
    finished = [found for cell in cells if (found := cell.found()) is not None]
    return write_report(folder, finished)


@dataclass(frozen=True)
class _Cell:
    """A row at a seed: where its result is, and what it is trained with."""

    folder: Path
    group: str
    row: str
    seed: int
    sections: Sections

    @property
    def digest(self) -> str:
        told = {name: config_to_json(part) for name, part in self.sections.items()}
        told["data"].pop("root", None)  # Where it lies.
        told["tower"].pop("feature_folder", None)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.group}\n{self.row}\n{self.seed}".encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        return self.folder / "cells" / f"{self.name}.json"

    def found(self) -> dict[str, Any] | None:
        """What is in its file, if that is of this configuration."""
        try:
            told: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return told if told.get("digest") == self.digest else None


def _all(study: StudyConfig) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Seeds outermost: a study that is stopped has all rows of its first seeds."""
    for seed in study.seeds:
        for group, rows in study.rows.items():
            for row, changes in rows.items():
                yield group, row, changes, seed


def _changed(base: Sections, row: str, changes: Mapping[str, Any], seed: int) -> Sections:
    parts: dict[str, dict[str, Any]] = {"loop": {"seed": seed}}
    for name, value in changes.items():
        part, _, name_in_part = name.partition(".")
        known = {entry.name for entry in dataclasses.fields(base[part])} if part in base else set()
        if name_in_part not in known:
            raise ConfigError(f"study.rows: {row}: expected a field of a section, such as 'model.dma', got {name!r}")
        parts.setdefault(part, {})[name_in_part] = tuple(value) if isinstance(value, list) else value
    try:
        return base | {part: replace(base[part], **fields) for part, fields in parts.items()}
    except ValueError as err:
        raise ConfigError(f"study.rows: {row}: {err}") from None


class _Refused(Exception):
    """What a process of its own refused, on its way to the one that asked."""


def _train_apart(cell: _Cell) -> str:
    """Train in a process of its own, from which a refusal comes back as one: its traceback does not."""
    try:
        return _train(cell)
    except ValueError as err:
        if is_refusal(err):
            raise _Refused(f"{cell.row}, seed {cell.seed}: {err}") from None
        raise


def _train(cell: _Cell) -> str:
    """Train a cell and write its file; one line about it."""
    torch.set_num_threads(1)
    (cell.folder / "cells").mkdir(parents=True, exist_ok=True)
    run, scanned = cell.folder / "running" / cell.name, cell.folder / "scanned.jsonl"
    run.mkdir(parents=True, exist_ok=True)
    if scanned.exists():  # Every picture is looked at once.
        shutil.copy(scanned, run / scanned.name)
    said = RunConfig(folder=str(run), tensorboard=False)
    with redirect_stdout(io.StringIO()):
        results = train(**cell.sections, run=said)
        if not scanned.exists():
            write_atomically(scanned, (run / scanned.name).read_bytes())
        built: PVLR | BaselineModel
        baseline = cell.sections["baseline"].kind != "none"
        built = load_baseline(run) if baseline else PVLR.from_pretrained(run)
        told = {
            "group": cell.group,
            "row": cell.row,
            "seed": cell.seed,
            "digest": cell.digest,
            "mAP": results.report.mAP,
            "CF1": results.report.CF1,
            "OF1": results.report.OF1,
            "parameters": sum(x.numel() for x in built.parameters() if x.requires_grad),
            "seconds": results.seconds,
            **_measured(built, cell.sections),
        }
    write_atomically(cell.path, f"{json.dumps(told, indent=1)}\n".encode())
    shutil.rmtree(run)
    return f"{cell.row}, seed {cell.seed}: mAP {100 * results.report.mAP:.2f} in {results.seconds:.0f} s"


@torch.no_grad()
def _measured(model: PVLR | BaselineModel, sections: Sections) -> dict[str, Any]:
    """Time per image after the tower; mAP on test pictures drawn again; what is made of labels left out of training.

    Every row of a study draws the same pictures, so that the values of two rows can be compared one by one.
    """
    data, regions = sections["data"], _regions(model, sections)
    count = min(100, len(regions[0]))
    times = []
    for _ in range(7):
        started = time.perf_counter()
        model.forward_features(regions[0][:count])
        times.append((time.perf_counter() - started) / count)
    found: dict[str, Any] = {"inference": sorted(times)[3]}
    labels, target, known = regions[1:]
    asked = model.with_labels(labels).eval() if data.unseen else model
    batches = DataLoader(TensorDataset(regions[0]), batch_size=100)
    logits = torch.cat([asked.forward_features(batch).logits for (batch,) in batches])

    def drawn(part: Tensor) -> Tensor:
        return bootstrap_map(logits[:, part], target[:, part], known[:, part], resamples=RESAMPLES)

    if not data.unseen:
        return {**found, "drawn": _rounded(drawn(torch.ones(len(labels), dtype=torch.bool)))}
    ap = average_precision(logits, target, known)
    new = torch.tensor([name in data.unseen for name in labels])
    seen, unseen = (mean_average_precision(ap[part]) for part in (~new, new))
    found |= {"seen": seen.item(), "unseen": unseen.item(), "harmonic": _harmonic(seen, unseen).item()}
    return {**found, "drawn": _rounded(_harmonic(drawn(~new), drawn(new)))}


def _harmonic(a: Tensor, b: Tensor) -> Tensor:
    return 2 * a * b / (a + b).clamp_min(1e-12)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _regions(model: PVLR | BaselineModel, sections: Sections) -> tuple[Tensor, LabelSet, Tensor, Tensor]:
    """What the model reads of every test picture, and what is known about all labels."""
    tower, data = sections["tower"], replace(sections["data"], unseen=None)
    towers = build_towers(tower)
    test = data.splits(sections["loop"].seed).test
    place, transform = Path(tower.feature_folder) / "test", transform_config(towers.preprocess, data)
    shared = {"dtype": tower.feature_dtype, "precision": sections["loop"].precision}
    cached = cache_features(test, towers.image, place, fingerprint=towers.fingerprint, transform=transform, **shared)
    shown = cached.with_regions(model.sees)
    if len(shown) == 0:
        raise DataError(f"{place}: expected features of the test pictures, found none")
    return torch.stack([shown[row].image for row in range(len(shown))]), test.labels, test.target, test.known
