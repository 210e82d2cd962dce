"""A study: methods and settings, each over several seeds on the same features; every finished cell is a file."""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pvlr.console import is_refusal, say
from pvlr.core.arguments import require_int
from pvlr.core.labels import LabelSet
from pvlr.core.metrics.bootstrap import bootstrap_map
from pvlr.core.metrics.ranking import average_precision, mean_average_precision
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.models.texts import text_sources
from pvlr.core.protocols import Regions
from pvlr.core.towers import build_towers
from pvlr.data.batch import DataError
from pvlr.files import write_atomically
from pvlr.inference.recognizer import Recognizer
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
from pvlr.train.dataloaders import transform_config
from pvlr.train.evaluation.study_report import write_report
from pvlr.train.features import FeatureSettings, cache_features, feature_folder
from pvlr.train.run import train
from pvlr.train.stop import Interrupted, StopRequest

__all__ = ["StudyConfig", "study"]

Sections = dict[str, Any]
RESAMPLES = 500
LOOK_EVERY = 0.2
"""Seconds between two looks for a signal."""
GRACE = 5.0
"""Seconds that a process has to save its state before it is killed."""
DEFAULTS = PVLRConfig()


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Rows, seeds and output of a study.

    Args:
        folder: Folder of the cells, the table and the figure.
        rows: Mapping of group to row to the row's changes, by section and field (``model.direction: none``). A row
            without changes is the base.
        seeds: Values of ``loop.seed``; each row is trained once with each.
        only: Groups or rows to train now; null for all. The report includes all finished cells.
        processes: Number of cells that are trained at the same time, each by one thread.
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
    """Train every row over every seed, and write the report: ``report.md`` and its figures.

    All runs share one cache of features. A finished cell of the same configuration is not trained again; one that was
    not finished when a study was stopped is. Rows of the same configuration are trained once.

    Args:
        data: The pictures.
        tower: The frozen towers.
        loss: Settings of the loss.
        optimizer: Settings of the optimiser.
        schedule: Learning rate schedule.
        loop: Epochs, batch sizes and evaluations; its seed is replaced by the cell's.
        study: Rows, seeds and output.
        model: The model of the base.

    Returns:
        The report's file.

    Raises:
        ConfigError: if a row changes fields that do not exist, or to values out of range, naming the row.
        DataError: if the data cannot be read.
        TowerError: if the towers cannot be loaded.
        Interrupted: if SIGINT or SIGTERM requested a stop; the same command goes on.
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
    asked = [cell for cell in cells if not wanted or {cell.group, cell.row} & wanted]
    _share(cells, asked)
    first: dict[str, _Cell] = {}
    for cell in asked:
        if cell.found() is None:
            first.setdefault(cell.digest, cell)
    todo = list(first.values())
    say(f"{len(cells)} cells, {len(todo)} to train")
    for cell in todo:
        text_sources(cell.sections["model"])  # Raises an error for missing files before anything is trained.
    if todo:  # The first creates the shared files: the data, the features, the list of scanned pictures.
        say(_train(todo[0]))
    if study.processes == 1:
        for cell in todo[1:]:
            say(_train(cell))
    elif len(todo) > 1:
        _train_in_processes(todo[1:], study.processes)
    _share(cells, asked)
    finished = [found for cell in cells if (found := cell.found()) is not None]
    return write_report(folder, finished)


@dataclass(frozen=True)
class _Cell:
    """A row at a seed: the file of its result, and its configuration."""

    folder: Path
    group: str
    row: str
    seed: int
    sections: Sections

    @property
    def digest(self) -> str:
        values = {name: config_to_json(part) for name, part in self.sections.items()}
        values["data"].pop("root", None)  # Paths do not affect the result.
        values["tower"].pop("feature_folder", None)
        if values["baseline"]["patches"] == "joint":  # As cells had no choice of them that were finished before.
            del values["baseline"]["patches"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        return hashlib.sha256(f"{self.group}\n{self.row}\n{self.seed}".encode()).hexdigest()[:16]

    @property
    def path(self) -> Path:
        return self.folder / "cells" / f"{self.name}.json"

    def found(self) -> dict[str, Any] | None:
        """Return the content of its file, or None if there is none of this configuration."""
        try:
            content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if content.get("digest") == self.digest else None

    def write(self, values: Mapping[str, Any]) -> None:
        """Write its file: what was measured of its configuration, under its own names."""
        named = {"group": self.group, "row": self.row, "seed": self.seed, "digest": self.digest}
        write_atomically(self.path, f"{json.dumps({**values, **named}, indent=1)}\n".encode())


def _all(study: StudyConfig) -> Iterator[tuple[str, str, dict[str, Any], int]]:
    """Seeds outermost: a study that is stopped has all rows of its first seeds."""
    for seed in study.seeds:
        for group, rows in study.rows.items():
            for row, changes in rows.items():
                yield group, row, changes, seed


def _share(cells: Sequence[_Cell], asked: Sequence[_Cell]) -> None:
    """Write the file of each cell asked for whose configuration another cell has been trained with."""
    finished = {cell.digest: found for cell in cells if (found := cell.found()) is not None}
    for cell in asked:
        if cell.digest in finished and cell.found() is None:
            cell.write(finished[cell.digest])


def _changed(base: Sections, row: str, changes: Mapping[str, Any], seed: int) -> Sections:
    parts: dict[str, dict[str, Any]] = {"loop": {"seed": seed}}
    for name, value in changes.items():
        part, _, name_in_part = name.partition(".")
        known = {entry.name for entry in dataclasses.fields(base[part])} if part in base else set()
        if name_in_part not in known:
            raise ConfigError(
                f"study.rows: {row}: expected a field of a section, such as 'model.direction', got {name!r}"
            )
        parts.setdefault(part, {})[name_in_part] = tuple(value) if isinstance(value, list) else value
    try:
        return base | {part: replace(base[part], **fields) for part, fields in parts.items()}
    except ValueError as err:
        raise ConfigError(f"study.rows: {row}: {err}") from None


def _train_in_processes(cells: Sequence[_Cell], processes: int) -> None:
    """Train cells in processes of their own, which end with this one, however it ends.

    Raises:
        ConfigError: if a cell is refused; the cells that are being trained are finished first.
        Interrupted: if a signal requests a stop, after the processes have been ended.
    """
    context = multiprocessing.get_context("spawn")
    before = multiprocessing.active_children()
    with StopRequest() as stop, ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        left: set[Future[str]] = {pool.submit(_train_apart, cell) for cell in cells}
        try:
            while left:
                done, left = wait(left, timeout=LOOK_EVERY, return_when=FIRST_COMPLETED)
                if stop.requested is not None:
                    _end([child for child in multiprocessing.active_children() if child not in before])
                    found = sum(cell.found() is not None for cell in cells)
                    raise Interrupted(
                        f"with {len(cells) - found} of {len(cells)} cells to train; those that are finished stay",
                        stop.requested,
                    )
                for one in done:
                    say(one.result())
        except BaseException as err:
            pool.shutdown(cancel_futures=True)  # Running cells end; pending ones are left to the next call.
            if isinstance(err, _Refused):
                raise ConfigError(str(err)) from None
            if isinstance(err, BrokenProcessPool):
                raise ConfigError(
                    "study.processes: expected processes that train to their end, found one that was killed, as for "
                    "lack of memory; finished cells stay, and with fewer processes less memory is needed"
                ) from None
            raise


def _end(processes: Sequence[BaseProcess]) -> None:
    """End processes: at first by SIGTERM, for which a run saves its state; by force those that take too long."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, such as by SIGKILL."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Refused(Exception):
    """Error for the user raised in a worker process, passed to the main process."""


def _train_apart(cell: _Cell) -> str:
    """Train a cell in a worker process, with errors for the user as ``_Refused``, since their traceback is lost."""
    try:
        return _train(cell)
    except ValueError as err:
        if is_refusal(err):
            raise _Refused(f"{cell.row}, seed {cell.seed}: {err}") from None
        raise
    except Interrupted as stop:
        raise _Refused(f"{cell.row}, seed {cell.seed}: interrupted {stop}") from None


def _train(cell: _Cell) -> str:
    """Train a cell and write its file; return a line about it."""
    torch.set_num_threads(1)
    (cell.folder / "cells").mkdir(parents=True, exist_ok=True)
    run, scanned = cell.folder / "running" / cell.name, cell.folder / "scanned.jsonl"
    run.mkdir(parents=True, exist_ok=True)
    if scanned.exists():  # Pictures are scanned once.
        shutil.copy(scanned, run / scanned.name)
    output = RunConfig(folder=str(run), tensorboard=False)
    with redirect_stdout(io.StringIO()):
        results = train(**cell.sections, run=output)
        if not scanned.exists():
            write_atomically(scanned, (run / scanned.name).read_bytes())
        built = Recognizer.from_pretrained(run).model
        values = {
            "mAP": results.report.mAP,
            "CF1": results.report.CF1,
            "OF1": results.report.OF1,
            "parameters": sum(x.numel() for x in built.parameters() if x.requires_grad),
            "seconds": results.seconds,
            **_measured(built, cell.sections),
        }
    cell.write(values)
    shutil.rmtree(run)
    return f"{cell.row}, seed {cell.seed}: mAP {100 * results.report.mAP:.2f} in {results.seconds:.0f} s"


@torch.no_grad()
def _measured(model: PVLR | BaselineModel, sections: Sections) -> dict[str, Any]:
    """Measure time per image after the tower, bootstrap values of mAP, and mAP on labels left out of training.

    Every row of a study resamples the same pictures, so that the values of two rows can be compared one by one.
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
    extended = model.with_labels(labels).eval() if data.unseen else model
    batches = DataLoader(TensorDataset(regions[0]), batch_size=100)
    logits = torch.cat([extended.forward_features(batch).logits for (batch,) in batches])

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


_Seen = tuple[Tensor, LabelSet, Tensor, Tensor]
_KEPT: dict[str, _Seen] = {}
"""What the last two kinds of models have seen: most rows differ in training alone, and reading costs as much again."""


def _regions(model: PVLR | BaselineModel, sections: Sections) -> _Seen:
    """Return the model's inputs for every test picture, and names, targets and known mask of all labels."""
    tower, loop, own = sections["tower"], sections["loop"], sections["baseline"].patches == "own"
    # What is hidden in training changes no test picture.
    data = replace(sections["data"], unseen=None, shots=None, keep_labels=None)
    key = repr((data, tower, loop.seed, loop.precision, model.sees, own))
    if key not in _KEPT:
        if len(_KEPT) > 1:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = _read_regions(data, tower, loop, model.sees, own)
    return _KEPT[key]


def _read_regions(data: DataConfig, tower: TowerConfig, loop: LoopConfig, sees: Regions, own: bool) -> _Seen:
    towers = build_towers(tower)
    test = data.splits(loop.seed).test
    folder = feature_folder(Path(str(tower.feature_folder)), "test", own=own)  # A study always has one.
    transform = transform_config(towers.preprocess, data)
    settings = FeatureSettings(dtype=tower.feature_dtype, precision=loop.precision, own=own)
    cached = cache_features(
        test, towers.image, folder, fingerprint=towers.fingerprint, transform=transform, settings=settings
    )
    shown = cached.with_regions(sees)
    if len(shown) == 0:
        raise DataError(f"{folder}: expected features of the test pictures, found none")
    return torch.stack([shown[row].image for row in range(len(shown))]), test.labels, test.target, test.known
