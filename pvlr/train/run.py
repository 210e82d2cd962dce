"""One run from configuration to results: data, towers, model, loop, baselines, files."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvlr.core.baselines import BaselineConfig, BaselineModel
from pvlr.core.files import remove_leftovers, write_atomically
from pvlr.core.model import PVLR, PVLRConfig
from pvlr.core.model_texts import require_same_vectors, text_sources, texts_of, with_copies
from pvlr.core.prompts import PromptBank, encode_knowledge
from pvlr.core.protocols import ImageFeatures
from pvlr.core.report import MultiLabelReport
from pvlr.core.sentence_encoders import SENTENCE_TRANSFORMERS, require_sentence_transformers
from pvlr.core.towers import Towers, build_towers
from pvlr.core.weights import trained_state
from pvlr.core.zero_shot import zero_shot_cosines, zero_shot_regions
from pvlr.data.batch import Batch
from pvlr.data.dataset import LabelledImages
from pvlr.data.features import CachedFeatures
from pvlr.data.sampling import EpochSampler, derive_seed
from pvlr.data.scan import without_bad_images
from pvlr.train.baseline_files import save_baseline
from pvlr.train.baselines import Baseline, PooledFeatures, linear_probe, pooled_features, zero_shot
from pvlr.train.calibrate import calibrate_on
from pvlr.train.checkpoint import Checkpoints
from pvlr.train.config import (
    CalibrationConfig,
    ConfigError,
    LoopConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TowerConfig,
    config_to_json,
)
from pvlr.train.data_config import DataConfig, Splits
from pvlr.train.device import compile_model, determinism, one_core_free, require_compiler
from pvlr.train.distributed import World, join_world
from pvlr.train.evaluate import Predictions, evaluate
from pvlr.train.features import cache_splits
from pvlr.train.feed import Feed, SplitFeed, load_batches, transform_config
from pvlr.train.loop import fit
from pvlr.train.monitor import Monitor, say, scan_progress
from pvlr.train.optim import build_optimizer
from pvlr.train.record import started, write_config, write_record
from pvlr.train.results import Results, card_of, show
from pvlr.train.resume import require_same, saved_state, tell_of_other_length
from pvlr.train.state import TrainingState, WeightAverage
from pvlr.train.stop import StopRequest
from pvlr.train.views import Views, shown_inputs

__all__ = ["Results", "train"]

BY_F1 = CalibrationConfig()

PVLR_ITSELF = BaselineConfig()


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
) -> Results:
    """Train PVLR, or a baseline in its place, on a data set, and report on its test split.

    The result is the final epoch's, with averaged weights (with ``loop.patience``: those of the best evaluation on the
    validation split; the test split chooses nothing). A run that was stopped goes on where it was, with the same
    outcome, unless ``loop.epochs`` is another (see :class:`~pvlr.train.config.LoopConfig`). Processes that torchrun
    started train together, to the same result but for rounding; the first of them writes and prints.

    Args:
        data: The pictures and how they are shown.
        tower: The pre-trained towers.
        model: The model on top of them.
        loss: What is minimised.
        optimizer: How a gradient becomes a step.
        schedule: The learning rate's way.
        loop: How long, how much at once, on what.
        run: What is written, and where.
        calibration: What is fitted after training, where there are validation pictures.
        baseline: A method of others, trained in the place of PVLR; ``model`` is then left at its defaults.

    Raises:
        ConfigError: where the folder holds a run of another configuration, or ``run.resume`` does not allow what is
            there, or the device is not there or cannot compile, or ``model.knowledge`` is a function, or both ``model``
            and ``baseline`` are configured, or ``loop.patience`` has no validation split.
        DataError: where the data cannot be read.
        TowerError: where the towers cannot be loaded, or are to be an open_clip model without weights.
        SentenceEncoderError: where the sentence encoder cannot be loaded.
        PretrainedError: where a file of texts cannot be read, or the sentence encoder makes other vectors than at
            first.
        TrainingError: where loss or gradient is not finite.
        Interrupted: where SIGINT or SIGTERM asked to stop, after saving.
        EndedElsewhere: where another process has refused.
        ProcessLost: where another process has ended without a word.
    """
    world = join_world()
    device = world.device(loop.device, field="loop.device")
    with determinism(loop.deterministic), one_core_free(device):
        return _train(data, tower, model, loss, optimizer, schedule, loop, run, baseline, calibration, world, device)


def _train(
    data: DataConfig,
    tower: TowerConfig,
    model: PVLRConfig,
    loss: LossConfig,
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    loop: LoopConfig,
    run: RunConfig,
    baseline: BaselineConfig,
    calibration: CalibrationConfig,
    world: World,
    device: torch.device,
) -> Results:
    named = {"data": data, "tower": tower, "model": model, "loss": loss, "optimizer": optimizer}
    named |= {"schedule": schedule, "loop": loop, "calibration": calibration, "run": run, "baseline": baseline}
    sections = {name: config_to_json(part) for name, part in named.items()}
    defaults = {name: config_to_json(type(part)()) for name, part in named.items()}
    folder = Path(run.folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.folder: expected a folder, or a place for one, found a file at {folder}")
    if loop.batch_size < world.size:
        raise ConfigError(
            f"loop.batch_size: expected an image for each of {world.size} processes, got {loop.batch_size}"
        )
    if loop.patience and data.val_split is None and data.val_share is None:
        raise ConfigError(
            "loop.patience: expected a validation split with it (data.val_split or data.val_share): the test split may "
            "not decide when training ends"
        )
    checkpoints = Checkpoints(folder / "checkpoints", keep=run.keep)
    world.first(lambda: _remove_leftovers(folder, checkpoints))
    saved = world.together(lambda: saved_state(checkpoints, run, sections, defaults))
    if len(set(world.exchange(-1 if saved is None else saved["step"]))) > 1:
        raise ConfigError(f"run.folder: expected a folder that all processes see, {folder} holds other files for some")
    sources = text_sources(model)
    _require_choice(model, baseline)
    tower.require_weights()
    if loop.compile:
        world.together(lambda: require_compiler(device))

    world.first(data.prepare)
    towers = world.in_turn(lambda: build_towers(tower))
    towers.image.set_gradient_checkpointing(tower.gradient_checkpointing)
    splits = world.first(lambda: _splits(data, loop, folder))
    transform = transform_config(towers.preprocess, data)
    taught = _taught(splits.train, loss)
    shown = splits if taught is None else splits._replace(train=splits.train.select(taught))
    length = len(shown.train)
    was = loop if saved is None else replace(loop, epochs=saved["config"]["loop"]["epochs"])
    was, loop = was.for_pictures(length), loop.for_pictures(length)
    feed = SplitFeed(shown, data, loop=loop, transform=transform, pin_memory=device.type == "cuda", world=world)
    cached: list[CachedFeatures] | None = None
    texts = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in sources.values())).hexdigest()
    identity = {"tower": towers.fingerprint, "data": feed.digest, "texts": texts}
    if saved is not None:
        require_same(identity, saved)
    for line in feed.summaries:
        say(line)

    if tower.features == "cache":
        towers.image.to(device).eval()
        with StopRequest(patient=world.size > 1) as stop:
            cached = world.in_turn(
                lambda: cache_splits(
                    splits,
                    towers,
                    folder,
                    tower=tower,
                    loop=loop,
                    transform=transform,
                    workers=data.workers,
                    device=device,
                    watch=lambda batches: stop.watch(batches, "the features"),
                )
            )
        if taught is not None:
            cached[0] = cached[0].select(taught)
    world.first(lambda: [write_atomically(folder / name, content) for name, content in sources.items()])
    torch.manual_seed(derive_seed(loop.seed))
    built: PVLR | BaselineModel
    if baseline == PVLR_ITSELF:
        built = PVLR.from_towers(with_copies(model, folder), feed.labels, towers).to(device)
    else:
        built = BaselineModel(baseline, feed.labels, towers.text, towers.image, logit_scale=towers.logit_scale).to(
            device
        )
    if cached is not None:
        feed = feed.from_features(*cached, regions=built.sees)
    built.tell_positives(_known_positives(splits.train))
    if saved is None:
        _set_prior(built, feed, device)
    world.equalise(trained_state(built).values())
    # The average starts where the weights do.
    rates = {"tower_lr_factor": tower.lr_factor, "tower_layer_decay": tower.layer_decay}
    state = TrainingState(built, build_optimizer(built, optimizer, **rates), WeightAverage(built, loop.ema))
    if saved is not None:
        if isinstance(built, PVLR):
            require_same_vectors(folder, built)
        state.load(saved)
        say(f"going on from step {state.step} of the run in {folder}")
        tell_of_other_length(was, loop)
    if loop.compile:
        compile_model(built, of_features=cached is not None)

    told = {"status": "running", "config": sections, "seed": loop.seed, "identity": identity, "data": feed.summaries}

    def write_down() -> dict[str, Any]:
        if isinstance(built, PVLR):
            for name, content in texts_of(built).items():
                write_atomically(folder / name, content)
        write_config(folder, sections)
        process = started(folder, step=state.step)
        write_record(folder, {**told, **process})
        return process

    process = world.first(write_down)
    record = {**told, **process}

    monitor = Monitor(
        folder if world.rank == 0 else None,
        step=state.step,
        evaluated="test" if splits.validation is None else "validation",
        tensorboard=run.tensorboard,
        log_every=run.log_every,
    )
    views: Views | None = None
    if monitor.board is not None:
        watched = splits.test if splits.validation is None else splits.validation
        views = Views(monitor.board, built, watched, transform, device=device, precision=loop.precision)
        views.about({"configuration": sections, "record": {**record, "config": "above"}}, sections)
        if state.step == 0:
            view = None if cached is None else min(1, tower.feature_views - 1)
            views.inputs(shown_inputs(splits.train, transform, seed=loop.seed, view=view))

    def show_inside(found: Predictions) -> None:
        if views is not None and not monitor.has_evaluation(state.step):
            views.evaluation(state.step, found)

    def snapshot() -> dict[str, Any]:
        monitor.flush()
        return {**state.to_dict(), "config": sections, "identity": identity}

    def best() -> int | None:
        found = checkpoints.best()
        return None if found is None else found[0]

    def report_on(
        batches: Iterator[Batch], stop: StopRequest, seen: Callable[[Predictions], object] = lambda found: None
    ) -> MultiLabelReport:
        watched = stop.watch(batches, "evaluation")
        return evaluate(built, watched, feed.labels, device=device, precision=loop.precision, world=world, seen=seen)

    with StopRequest(patient=world.size > 1) as stop:
        try:
            report = fit(
                state,
                feed,
                loop=loop,
                loss=loss,
                schedule=schedule,
                evaluate=lambda: report_on(feed.evaluating(shared=True), stop, show_inside),
                save=lambda: world.first(lambda: checkpoints.save(snapshot(), step=state.step)),
                offer=lambda score: world.first(lambda: checkpoints.offer(snapshot, step=state.step, score=score)),
                best=lambda: world.first(best),
                monitor=monitor,
                clip_norm=optimizer.clip_norm,
                device=device,
                stop=stop,
                world=world,
            )
            steps, seconds, of = state.step, state.seconds, "final epoch"
            if loop.patience and (chosen := world.first(best)) is not None:
                found = world.together(lambda: checkpoints.load(chosen))
                if found is not None:
                    state.load(found[1])
                    of = "best on validation"
            with state.average.applied():
                if isinstance(built, PVLR):
                    world.first(
                        lambda: calibrate_on(
                            splits.validation,
                            built,
                            stop.watch(feed.evaluating(), "the calibration"),
                            calibration,
                            device=device,
                            precision=loop.precision,
                            board=monitor.board,
                            step=steps,
                        )
                    )
                    # The mixture is part of the model, and so of what is reported.
                    world.equalise([built.mixture.shrinkage])
                if splits.validation is not None:
                    report = report_on(feed.testing(shared=True), stop)
                    monitor.result(step=steps, report=report)
            if monitor.board is not None:
                monitor.board.finished(steps)
        finally:
            monitor.close()

        def finish() -> dict[str, Baseline]:
            with state.average.applied():
                if isinstance(built, PVLR):
                    built.card = card_of(feed.summaries, report, process["versions"])
                    built.save_pretrained(folder)
                else:
                    save_baseline(folder, built, tower=tower, fingerprint=towers.fingerprint)
            return _baselines(model, tower, towers, feed, loop, device, stop, cached) if run.baselines else {}

        baselines = world.first(finish)
    results = Results(report=report, of=of, baselines=baselines, folder=folder, seconds=seconds)
    name = "PVLR" if baseline.kind == "none" else baseline.kind
    finished = {"steps": steps, "result_of_step": state.step, "seconds": seconds, "results": results.to_json(name)}
    world.first(lambda: write_record(folder, {**record, "status": "finished", **finished}))
    show(name, results, tensorboard=run.tensorboard)
    return results


def _remove_leftovers(folder: Path, checkpoints: Checkpoints) -> None:
    remove_leftovers(folder)
    checkpoints.remove_leftovers()


def _splits(data: DataConfig, loop: LoopConfig, folder: Path) -> Splits:
    """The parts of the data, after a look at every picture."""
    parts = [part for part in data.splits(loop.seed) if part is not None]
    folder.mkdir(parents=True, exist_ok=True)
    return Splits(
        *without_bad_images(parts, data.on_bad_image, folder=folder, workers=data.workers, watch=scan_progress)
    )


def _require_choice(model: PVLRConfig, baseline: BaselineConfig) -> None:
    """Refuse what cannot be had before anything is fetched."""
    if baseline.kind == "none" and baseline != PVLR_ITSELF:
        raise ConfigError("baseline.kind: expected a method where the section is set, got 'none'")
    if baseline.kind != "none" and model != PVLRConfig():
        raise ConfigError(f"model: expected its defaults with baseline.kind '{baseline.kind}', which does not read it")
    if model.knowledge == "encoder":
        raise ConfigError(
            "model.knowledge: 'encoder' is a function, which a configuration cannot hold; name a model "
            f"('{SENTENCE_TRANSFORMERS}NAME') or a .npz file, or build the model in Python"
        )
    if model.knowledge.startswith(SENTENCE_TRANSFORMERS):
        require_sentence_transformers(model.knowledge.removeprefix(SENTENCE_TRANSFORMERS))


def _taught(train: LabelledImages, loss: LossConfig) -> list[int] | None:
    """The pictures that training learns from, where there are others: of which nothing is known."""
    told = train.known.any(dim=1)
    if loss.unknown == "negative" or bool(told.all()):
        return None
    if not bool(told.any()):
        raise ConfigError("data: expected training pictures of which a label is known, found none")
    rows: list[int] = told.nonzero().flatten().tolist()
    return rows


def _known_positives(train: LabelledImages) -> Tensor:
    """How many pictures are known to have each label."""
    return ((train.target > 0) & train.known).sum(dim=0).float()


@torch.no_grad()
def _set_prior(built: PVLR | BaselineModel, feed: Feed, device: torch.device) -> None:
    """Start from the configured mean probability, on a batch of training pictures."""
    built.eval()
    batch = next(iter(feed.plain_training(shuffle=True)))
    inputs = batch.image.to(device)
    built.fit_prior(inputs if inputs.dim() == 3 else built.regions(inputs))


def _baselines(
    model: PVLRConfig,
    tower: TowerConfig,
    towers: Towers,
    feed: SplitFeed,
    loop: LoopConfig,
    device: torch.device,
    stop: StopRequest,
    cached: Sequence[CachedFeatures] | None,
) -> dict[str, Baseline]:
    if tower.train != "frozen":  # The model has trained its tower; the baselines are measured on it as it comes.
        towers = build_towers(replace(tower, train="frozen", layer_decay=1.0, gradient_checkpointing=False))
    towers.image.to(device).eval()
    towers.text.to(device)

    text = encode_knowledge(PromptBank(feed.labels, templates=model.templates), towers.text.encode)

    def encode(batches: Iterator[Batch], see: Callable[[Tensor], ImageFeatures]) -> PooledFeatures:
        watched = stop.watch(batches, "the baselines")
        compare = partial(zero_shot_cosines, text=text, regions=zero_shot_regions(towers))
        return pooled_features(see, watched, compare=compare, device=device, precision=loop.precision)

    if cached is None:
        train, test = (encode(part, towers.image) for part in (feed.plain_training(), feed.testing()))
    else:
        # The cache holds what the tower saw: the pooled vector first.
        train, test = (
            encode(
                load_batches(part.with_regions("both", shown=1), EpochSampler(len(part), loop.eval_batch_size)),
                lambda seen: ImageFeatures(seen[:, 1:].float(), seen[:, 0].float()),
            )
            for part in cached[:2]
        )
    return {
        "linear probe": linear_probe(train, test, feed.labels, seed=loop.seed),
        "zero-shot": zero_shot(train, test, text, feed.labels, scale=towers.logit_scale),
    }
