"""A run from configuration to results: data, towers, model, loop, calibration, baselines, files."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from pvlr.console import say
from pvlr.core.arguments import ConfigError
from pvlr.core.metrics.report import MultiLabelReport
from pvlr.core.models.baselines import BaselineConfig, BaselineModel, patch_dim
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.models.state import trained_state
from pvlr.core.models.texts import text_sources, with_copies
from pvlr.core.models.zero_shot import zero_shot_cosines, zero_shot_regions
from pvlr.core.prompts import PromptBank, encode_knowledge
from pvlr.core.protocols import ImageFeatures, encode_images
from pvlr.core.towers import build_towers
from pvlr.core.towers.text.sentence_encoders import SENTENCE_TRANSFORMERS, require_sentence_transformers
from pvlr.data.batch import Batch, DataError
from pvlr.data.dataset import LabelledImages
from pvlr.data.features import CachedFeatures
from pvlr.data.label_check import MOST_ROWS, check_labels
from pvlr.data.sampling import EpochSampler, Share, derive_seed
from pvlr.data.scan import REFUSED_NAME, without_bad_images
from pvlr.files import remove_leftovers, write_atomically
from pvlr.inference.recognizer import Recognizer
from pvlr.inference.saving import require_same_vectors, texts_of
from pvlr.runs import hold_run, state_of_run
from pvlr.train.batch_norm import training_batch_norms
from pvlr.train.checkpoint import Checkpoints
from pvlr.train.config import (
    CalibrationConfig,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
    config_to_json,
    flat,
)
from pvlr.train.data_config import DataConfig, Splits
from pvlr.train.dataloaders import SplitDataloaders, load_batches, transform_config
from pvlr.train.device import compile_model, determinism, one_core_free, require_compiler
from pvlr.train.distributed import World, join_world
from pvlr.train.evaluation.baselines import Baseline, PooledFeatures, linear_probe, pooled_features, zero_shot
from pvlr.train.evaluation.calibration import calibrate_on
from pvlr.train.evaluation.predictions import Predictions, evaluate
from pvlr.train.features import FeatureSettings, cache_splits
from pvlr.train.loop import FitConfig, fit
from pvlr.train.monitoring.monitor import Monitor, scan_progress
from pvlr.train.monitoring.record import started, write_config, write_record
from pvlr.train.monitoring.trackers import Tracker, named_trackers, require_trackers
from pvlr.train.monitoring.views import Views, shown_inputs
from pvlr.train.optim import build_optimizer
from pvlr.train.results import Results, card_of, show
from pvlr.train.resume import report_other_length, require_same, saved_state
from pvlr.train.state import TrainingState, WeightAverage
from pvlr.train.stop import Interrupted, StopRequest

__all__ = ["Results", "TrainConfig", "train"]

LABELS_NAME = "labels.csv"
"""File in a run's folder with the positives of each label in each split."""
BY_F1 = CalibrationConfig()

PVLR_ITSELF = BaselineConfig()


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The configuration of a run, section by section; see :func:`train`."""

    data: DataConfig
    tower: TowerConfig
    model: PVLRConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    loop: LoopConfig
    run: RunConfig
    calibration: CalibrationConfig = BY_F1
    baseline: BaselineConfig = PVLR_ITSELF

    def to_json(self, *, defaults: bool = False) -> dict[str, Any]:
        """Return plain values by section; ``defaults``: the default values of each section."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: config_to_json(type(part)() if defaults else part) for name, part in parts.items()}

    def require_possible(self, world: World) -> None:
        """Check folder, batch size and validation split before anything is downloaded.

        Raises:
            ConfigError: naming the field.
        """
        if Path(self.run.folder).exists() and not Path(self.run.folder).is_dir():
            raise ConfigError(f"run.folder: expected a folder, or a place for one, found a file at {self.run.folder}")
        require_trackers(self.run.trackers)
        if self.loop.batch_size < world.size:
            raise ConfigError(
                f"loop.batch_size: expected an image for each of {world.size} processes, got {self.loop.batch_size}"
            )
        if self.loop.patience and self.data.val_split is None and self.data.val_share is None:
            raise ConfigError(
                "loop.patience: expected a validation split with it (data.val_split or data.val_share): the test split "
                "may not decide when training ends"
            )

    def require_choice(self) -> None:
        """Check that no sections exclude each other, and that the source of knowledge can be configured.

        Raises:
            ConfigError: naming the field.
            SentenceEncoderError: if the sentence encoder cannot be loaded.
        """
        model, baseline = self.model, self.baseline
        if baseline.kind == "none" and baseline != PVLR_ITSELF:
            raise ConfigError("baseline.kind: expected a method where the section is set, got 'none'")
        if baseline.kind != "none" and model != PVLRConfig():
            raise ConfigError(
                f"model: expected its defaults with baseline.kind '{baseline.kind}', which does not read it"
            )
        if model.knowledge == "encoder":
            raise ConfigError(
                "model.knowledge: 'encoder' is a function, which a configuration cannot hold; name a model "
                f"('{SENTENCE_TRANSFORMERS}NAME') or a .npz file, or build the model in Python"
            )
        if model.knowledge.startswith(SENTENCE_TRANSFORMERS):
            require_sentence_transformers(model.knowledge.removeprefix(SENTENCE_TRANSFORMERS))


def train(
    *,
    data: DataConfig,
    tower: TowerConfig,
    model: PVLRConfig,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    loop: LoopConfig,
    run: RunConfig,
    calibration: CalibrationConfig = BY_F1,
    baseline: BaselineConfig = PVLR_ITSELF,
    trackers: Sequence[Tracker] = (),
) -> Results:
    """Train PVLR, or a baseline in its place, on a data set, and evaluate it on the test split.

    The result is that of the averaged weights after the final epoch (with ``loop.patience``: after the best evaluation
    on the validation split; the test split chooses nothing). A stopped run is resumed with the same outcome, unless
    ``loop.epochs`` is changed (see :class:`~pvlr.train.config.LoopConfig`). Ranks started by torchrun train together,
    to the same result except for rounding; rank 0 writes and prints.

    Args:
        data: The pictures, their splits and augmentation.
        tower: The pre-trained towers.
        model: The model on top of them.
        loss: Settings of the loss.
        optimizer: Settings of the optimiser.
        schedule: Learning rate schedule.
        loop: Epochs, batch sizes, evaluations, device and precision.
        run: Output of the run and how it is resumed.
        calibration: Calibration after training, if there are validation pictures.
        baseline: A published method, trained in the place of PVLR; ``model`` is then left at its defaults.
        trackers: Trackers of your own, in addition to those of ``run``; from Python only.

    Raises:
        ConfigError: if the folder contains a run of another configuration, or its content conflicts with
            ``run.resume``, or the device is missing or cannot compile, or ``model.knowledge`` is a function, or both
            ``model`` and ``baseline`` are configured, or ``loop.patience`` has no validation split.
        DataError: if the data cannot be read.
        TowerError: if the towers cannot be loaded, or are an open_clip model without weights.
        SentenceEncoderError: if the sentence encoder cannot be loaded.
        PretrainedError: if a file of texts cannot be read, or the sentence encoder returns other vectors than at the
            start of the run.
        TrainingError: if loss or gradient is not finite.
        Interrupted: if SIGINT or SIGTERM requested a stop, after saving.
        EndedElsewhere: if another rank has raised an error.
        ProcessLost: if another rank has ended without an error message.
    """
    config = TrainConfig(
        data=data,
        tower=tower,
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        loop=loop,
        run=run,
        calibration=calibration,
        baseline=baseline,
    )
    world = join_world()
    device = world.device(loop.device, field="loop.device")
    # What is cached is read by this process itself, so that there is nothing to leave a core to.
    free = nullcontext() if tower.features == "cache" else one_core_free(device)
    with determinism(loop.deterministic), free:
        return _Run(config, world, device, trackers).train()


class _Run:
    """One run, stage by stage: open its folder, prepare the data, build the model, resume, fit, report.

    It implements the callbacks of the loop (:class:`~pvlr.train.loop.Hooks`).
    """

    def __init__(
        self, config: TrainConfig, world: World, device: torch.device, trackers: Sequence[Tracker] = ()
    ) -> None:
        self.config, self.world, self.device, self.trackers = config, world, device, trackers
        self.loop, self.folder = config.loop, Path(config.run.folder)
        self.sections = config.to_json()
        self.checkpoints = Checkpoints(self.folder / "checkpoints", keep=config.run.keep)
        self.cached: list[CachedFeatures] | None = None
        self.views: Views | None = None
        self.lock: FileLock | None = None
        self.last: str | None = None
        self.record: dict[str, Any] = {}

    def train(self) -> Results:
        """Run all stages and return the results; the record says how it ended, unless the process is killed."""
        try:
            return self._train()
        except BaseException as err:
            self._record_end("stopped" if isinstance(err, Interrupted | KeyboardInterrupt) else "failed")
            raise
        finally:
            if self.lock is not None:
                self.lock.release(force=True)

    def _train(self) -> Results:
        self._open()
        self._prepare()
        self._build()
        self._start()
        with StopRequest(patient=self.world.size > 1) as self.stop:
            finished = False
            try:
                report, steps, of = self._fit()
                report = self._calibrate(report, steps)
                finished = True
            finally:
                self.monitor.close(finished=finished)
            self.world.on_rank_zero(lambda: self._save_model(report))
            baselines = self._baselines() if self.config.run.baselines else {}
        return self._report(
            Results(
                report=report,
                of=of,
                baselines=baselines,
                folder=self.folder,
                seconds=self.seconds,
                untrained=_untrained(self.splits),
            ),
            steps,
        )

    # --- before training

    def _open(self) -> None:
        """Check the configuration, and load the checkpoint to resume from, if any."""
        config, world = self.config, self.world
        config.require_possible(world)
        world.on_rank_zero(self._remove_leftovers)
        defaults = config.to_json(defaults=True)
        self.saved = world.on_all_ranks(lambda: saved_state(self.checkpoints, config.run, self.sections, defaults))
        if len(set(world.all_gather_int(-1 if self.saved is None else self.saved["step"]))) > 1:
            raise ConfigError(
                f"run.folder: expected a folder that all processes see, {self.folder} holds other files for some"
            )
        self.sources = text_sources(config.model)
        config.require_choice()
        config.tower.require_weights()
        if self.loop.compile:
            world.on_all_ranks(lambda: require_compiler(self.device))

    def _remove_leftovers(self) -> None:
        if not self.folder.is_dir():
            return  # Nothing is created before the configuration and the data have been checked.
        self.last = state_of_run(self.folder)
        self._hold()
        remove_leftovers(self.folder)
        self.checkpoints.remove_leftovers()

    def _hold(self) -> None:
        """Hold the folder's lock, by which others know that this process is alive."""
        if self.lock is None:
            self.lock = hold_run(self.folder)

    def _prepare(self) -> None:
        """Load the towers, read the data, and compute the features if they are cached."""
        config, world = self.config, self.world
        world.on_rank_zero(config.data.prepare)
        self.towers = world.rank_zero_first(lambda: build_towers(config.tower))
        self.towers.image.set_gradient_checkpointing(config.tower.gradient_checkpointing)
        self.splits = world.on_rank_zero(self._scanned_splits)
        patch_dim(config.baseline, self.towers.image)  # A refusal, before features are computed.
        self.transform = transform_config(self.towers.preprocess, config.data)
        rows = _labelled_rows(self.splits.train, config.loss)
        shown = self.splits if rows is None else self.splits._replace(train=self.splits.train.select(rows))
        self._set_epochs(len(shown.train))
        self.loaders = SplitDataloaders(
            shown,
            config.data,
            loop=self.loop,
            transform=self.transform,
            pin_memory=self.device.type == "cuda",
            world=world,
        )
        texts = b"".join(hashlib.sha256(content).digest() for content in self.sources.values())
        self.identity = {
            "tower": self.towers.fingerprint,
            "data": self.loaders.digest,
            "texts": hashlib.sha256(texts).hexdigest(),
        }
        if self.saved is not None:
            require_same(self.identity, self.saved)
        for line in self.loaders.summaries:
            say(line)
        if config.tower.features == "cache":
            self.cached = self._cache()
            if rows is not None:
                self.cached[0] = self.cached[0].select(rows)

    def _scanned_splits(self) -> Splits:
        """Return the splits of the data, after a check of every picture and of the labels."""
        data = self.config.data
        parts = [part for part in data.splits(self.loop.seed) if part is not None]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        found = without_bad_images(
            parts, data.on_bad_image, folder=self.folder, workers=data.workers, watch=scan_progress
        )
        if left_out := sum(map(len, parts)) - sum(map(len, found)):
            say(f"{left_out:,} picture{'s' if left_out > 1 else ''} left out, listed in {self.folder / REFUSED_NAME}")
        splits = Splits(*found)
        _check_labels(splits, data, self.folder)
        _check_validation(splits, self.loop.patience)
        return splits

    def _set_epochs(self, pictures: int) -> None:
        """Resolve the number of epochs from that of the pictures, in the present and in the saved configuration."""
        loop = self.loop
        was = loop if self.saved is None else replace(loop, epochs=self.saved["config"]["loop"]["epochs"])
        self.was, self.loop = was.for_pictures(pictures), loop.for_pictures(pictures)

    def _cache(self) -> list[CachedFeatures]:
        config, tower = self.config, self.config.tower
        self.towers.image.to(self.device).eval()
        folder = self.folder / "features" if tower.feature_folder is None else Path(tower.feature_folder)
        own = config.baseline.patches == "own"
        settings = FeatureSettings.of(tower, self.loop, workers=config.data.workers, device=self.device, own=own)
        with StopRequest(patient=self.world.size > 1) as stop:
            return cache_splits(
                self.splits,
                self.towers,
                folder,
                transform=self.transform,
                settings=settings,
                watch=lambda batches: stop.watch(batches, "the features"),
                world=self.world,
            )

    def _build(self) -> None:
        """Build the model, set its prior, and load the saved state, if there is one."""
        config, tower = self.config, self.config.tower
        self.world.on_rank_zero(
            lambda: [write_atomically(self.folder / name, content) for name, content in self.sources.items()]
        )
        torch.manual_seed(derive_seed(self.loop.seed))
        self.built: PVLR | BaselineModel
        if config.baseline == PVLR_ITSELF:
            model = with_copies(config.model, self.folder)
            self.built = PVLR.from_towers(model, self.loaders.labels, self.towers).to(self.device)
        else:
            self.built = BaselineModel.from_towers(config.baseline, self.loaders.labels, self.towers).to(self.device)
        self.recognizer = Recognizer(self.built)
        if self.cached is not None:
            self.loaders = self.loaders.from_features(*self.cached, regions=self.built.sees)
        self.built.set_known_positives(_known_positives(self.splits.train))
        if self.saved is None:
            self._set_prior()
        self.world.broadcast(trained_state(self.built).values())
        # The average starts as a copy of the weights.
        rates = {"tower_lr_factor": tower.lr_factor, "tower_layer_decay": tower.layer_decay}
        optimizer = build_optimizer(self.built, config.optimizer, **rates)
        self.state = TrainingState(self.built, optimizer, WeightAverage(self.built, self.loop.ema))
        if self.saved is not None:
            if isinstance(self.built, PVLR):
                require_same_vectors(self.folder, self.built)
            self.state.load(self.saved)
            lost = ", whose last process was lost" if self.last == "lost" else ""
            say(f"going on from step {self.state.step} of the run in {self.folder}{lost}")
            report_other_length(self.was, self.loop)
        if self.loop.compile:
            if self.world.size > 1 and training_batch_norms(self.built.train()):
                raise ConfigError(
                    f"loop.compile: expected false with {self.world.size} processes and a trained tower with batch "
                    "norm, whose statistics they share; or tower.train 'frozen'"
                )
            compile_model(self.built, of_features=self.cached is not None)

    @torch.no_grad()
    def _set_prior(self) -> None:
        """Fit the prior to the configured mean probability, on a batch of training pictures."""
        self.built.eval()
        batch = next(iter(self.loaders.plain_training(shuffle=True)))
        inputs = batch.image.to(self.device)
        self.built.fit_prior(inputs if inputs.dim() == 3 else self.built.regions(inputs))

    def _start(self) -> None:
        """Write the record of the run, and open its monitor and views."""
        self.record = {
            "status": "running",
            "config": self.sections,
            "seed": self.loop.seed,
            "identity": self.identity,
            "data": self.loaders.summaries,
        }
        self.process = self.world.on_rank_zero(self._write_files)
        self.record |= self.process
        run, watched = self.config.run, self.splits.validation
        first = self.world.rank == 0
        self.monitor = Monitor(
            self.folder if first else None,
            step=self.state.step,
            evaluated="test" if watched is None else "validation",
            tensorboard=run.tensorboard,
            log_every=run.log_every,
            trackers=[*named_trackers(run.trackers), *self.trackers] if first else (),
        )
        self.world.on_rank_zero(
            lambda: self.monitor.trackers.start(self.folder, dict(flat(self.sections)), step=self.state.step)
        )
        if not self.monitor.trackers:
            return
        self.views = Views(
            self.monitor.trackers,
            self.built,
            self.splits.test if watched is None else watched,
            self.transform,
            device=self.device,
            precision=self.loop.precision,
        )
        about = {"configuration": self.sections, "record": {**self.record, "config": "above"}}
        self.views.about(about, self.sections)
        if self.state.step == 0:
            view = None if self.cached is None else min(1, self.config.tower.feature_views - 1)
            self.views.inputs(shown_inputs(self.splits.train, self.transform, seed=self.loop.seed, view=view))

    def _write_files(self) -> dict[str, Any]:
        if isinstance(self.built, PVLR):
            for name, content in texts_of(self.built).items():
                write_atomically(self.folder / name, content)
        write_config(self.folder, self.sections)
        process = started(self.folder, step=self.state.step, last=self.last)
        write_record(self.folder, {**self.record, **process})
        return process

    def _record_end(self, status: str) -> None:
        if self.record and self.world.rank == 0:
            with suppress(OSError):  # The error that ended the run is the one to tell.
                write_record(self.folder, {**self.record, "status": status})

    # --- training: the callbacks of the loop

    def evaluate(self) -> MultiLabelReport:
        """Evaluate the split that is evaluated during training."""
        return self._evaluate(self.loaders.evaluating(shared=True), self._show)

    def save(self) -> object:
        """Save a checkpoint."""
        return self.world.on_rank_zero(lambda: self.checkpoints.save(self._snapshot(), step=self.state.step))

    def keep_best(self, score: float) -> object:
        """Keep the state as the best one, if its score is the highest so far."""
        return self.world.on_rank_zero(
            lambda: self.checkpoints.keep_best(self._snapshot, step=self.state.step, score=score)
        )

    def best(self) -> int | None:
        """Return the step of the best evaluation so far."""

        def step() -> int | None:
            found = self.checkpoints.best()
            return None if found is None else found[0]

        return self.world.on_rank_zero(step)

    def _snapshot(self) -> dict[str, Any]:
        self.monitor.flush()
        return {**self.state.to_dict(), "config": self.sections, "identity": self.identity}

    def _show(self, found: Predictions) -> None:
        if self.views is not None and not self.monitor.has_evaluation(self.state.step):
            self.views.evaluation(self.state.step, found)

    def _evaluate(
        self, batches: Iterator[Batch], seen: Callable[[Predictions], object] = lambda found: None
    ) -> MultiLabelReport:
        watched = self.stop.watch(batches, "evaluation")
        precision = self.loop.precision
        labels, device, world = self.loaders.labels, self.device, self.world
        return evaluate(self.built, watched, labels, device=device, precision=precision, world=world, seen=seen)

    def _fit(self) -> tuple[MultiLabelReport, int, str]:
        """Train; return the last report, the number of steps, and a description of the resulting weights."""
        config = FitConfig(
            loop=self.loop,
            loss=self.config.loss,
            schedule=self.config.schedule,
            clip_norm=self.config.optimizer.clip_norm,
            device=self.device,
        )
        report = fit(self.state, self.loaders, config, self, monitor=self.monitor, stop=self.stop, world=self.world)
        steps, self.seconds = self.state.step, self.state.seconds
        if self.loop.patience and (chosen := self.best()) is not None:
            found = self.world.on_all_ranks(lambda: self.checkpoints.load(chosen))
            if found is not None:
                self.state.load(found[1])
                return report, steps, "best on validation"
        return report, steps, "final epoch"

    # --- after training

    def _calibrate(self, report: MultiLabelReport, steps: int) -> MultiLabelReport:
        """Fit the decision on validation pictures; return the test report, computed anew if there is such a split."""
        with self.state.average.applied():
            self.world.on_rank_zero(lambda: self._fit_decision(steps))
            if isinstance(self.built, PVLR):  # The mixture is part of the evaluated model.
                self.world.broadcast([self.built.mixture.shrinkage])
            if self.splits.validation is not None:
                report = self._evaluate(self.loaders.testing(shared=True))
                self.monitor.result(step=steps, report=report)
        if (board := self.monitor.trackers.board) is not None:
            board.finished(steps)
        return report

    def _fit_decision(self, steps: int) -> None:
        self.recognizer.decision = calibrate_on(
            self.splits.validation,
            self.built,
            self.stop.watch(self.loaders.evaluating(), "the calibration"),
            FitConfig(loop=self.loop, device=self.device),
            self.config.calibration,
            trackers=self.monitor.trackers,
            step=steps,
        )

    def _save_model(self, report: MultiLabelReport) -> None:
        """Save the model with averaged weights."""
        with self.state.average.applied():
            self.recognizer.card = card_of(self.loaders.summaries, report, self.process["versions"])
            self.recognizer.save_pretrained(self.folder)

    def _baselines(self) -> dict[str, Baseline]:
        """Evaluate the baselines, on features that all ranks compute."""
        towers, tower, loaders, world = self.towers, self.config.tower, self.loaders, self.world
        if tower.train != "frozen":  # The tower was trained; the baselines are evaluated on the pre-trained one.
            pretrained = replace(tower, train="frozen", layer_decay=1.0, gradient_checkpointing=False)
            towers = world.on_all_ranks(lambda: build_towers(pretrained))
        towers.image.to(self.device).eval()
        towers.text.to(self.device)
        text = encode_knowledge(PromptBank(loaders.labels, templates=self.config.model.templates), towers.text.encode)

        def encode(batches: Iterator[Batch], image: Callable[[Tensor], ImageFeatures]) -> PooledFeatures:
            watched = self.stop.watch(batches, "the baselines")
            compare = partial(zero_shot_cosines, text=text, regions=zero_shot_regions(towers))
            device, precision = self.device, self.loop.precision
            return pooled_features(image, watched, compare=compare, device=device, precision=precision, world=world)

        if self.cached is None:
            parts = (loaders.plain_training(shared=True), loaders.testing(shared=True))
            train, test = (encode(part, partial(encode_images, towers.image)) for part in parts)
        else:
            share = Share(world.rank, world.size, whole=True)
            # The cache stores the pooled vector first, then the patch vectors.
            train, test = (
                encode(
                    load_batches(
                        part.with_regions("both", shown=1),
                        EpochSampler(len(part), self.loop.eval_batch_size, share=share),
                    ),
                    lambda vectors: ImageFeatures(vectors[:, 1:].float(), vectors[:, 0].float()),
                )
                for part in self.cached[:2]
            )
        return world.on_rank_zero(
            lambda: {
                "linear probe": linear_probe(train, test, loaders.labels, seed=self.loop.seed),
                "zero-shot": zero_shot(train, test, text, loaders.labels, scale=towers.logit_scale),
            }
        )

    def _report(self, results: Results, steps: int) -> Results:
        """Complete the record, and print the results."""
        kind = self.config.baseline.kind
        name = "PVLR" if kind == "none" else kind
        finished = {
            "status": "finished",
            "steps": steps,
            "result_of_step": self.state.step,
            "seconds": results.seconds,
            "results": results.to_json(name),
            "untrained": list(results.untrained),
        }
        self.world.on_rank_zero(lambda: write_record(self.folder, {**self.record, **finished}))
        self.record = {}  # Nothing that fails from here on changes how the run ended.
        show(name, results, tensorboard=self.config.run.tensorboard)
        return results


def _labelled_rows(train: LabelledImages, loss: LossConfig) -> list[int] | None:
    """Return the rows of pictures with a known label, which are trained on; None if that is all of them."""
    known = train.known.any(dim=1)
    if loss.unknown == "negative" or bool(known.all()):
        return None
    if not bool(known.any()):
        raise ConfigError("data: expected training pictures of which a label is known, found none")
    rows: list[int] = known.nonzero().flatten().tolist()
    return rows


def _check_validation(splits: Splits, patience: int) -> None:
    """Refuse an early end, and warn without one, if every ranking of the validation pictures has the same mAP."""
    validation = splits.validation
    if validation is None:
        return
    negative = validation.known & ~validation.present
    if bool((validation.present.any(dim=0) & negative.any(dim=0)).any()):
        return
    found = "found none, so that no mAP of them tells a better model from a worse"
    if patience:
        raise ConfigError(
            "loop.patience: expected validation pictures in which some label is known to be present and known to be "
            f"absent, {found} (data.keep_labels single_positive leaves only positives); name pictures with all labels "
            "by data.val_split, or train without an early end"
        )
    say(f"warning: {validation.name}: expected some label known to be present and known to be absent, {found}")


def _check_labels(splits: Splits, data: DataConfig, folder: Path) -> None:
    """Print the positives of each label and what looks wrong, or refuse that; the whole table is a file."""
    named = {name: part for name, part in splits._asdict().items() if part is not None}
    found = check_labels(named)
    if found.problems and data.on_bad_labels == "refuse":
        others = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise DataError(f"{found.problems[0]}{others}; data.on_bad_labels 'warn' trains on these labels all the same")
    write_atomically(folder / LABELS_NAME, found.to_csv().encode())
    more = f", all in {folder / LABELS_NAME}" if len(found.rows) > MOST_ROWS + 1 else ""
    say(f"positives of each label\n{found.table}{more}")
    for problem in found.problems:
        say(f"warning: {problem}")


def _untrained(splits: Splits) -> tuple[str, ...]:
    """Return the labels that have a known positive in the test split, but none in the training split."""
    train, test = _known_positives(splits.train), _known_positives(splits.test)
    return tuple(name for name, few, some in zip(splits.test.labels, train, test, strict=True) if some and not few)


def _known_positives(train: LabelledImages) -> Tensor:
    """Return the number of known positives of each label."""
    return train.present.sum(dim=0).float()
