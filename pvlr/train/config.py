"""Configuration of a run: one frozen dataclass per section; every range is checked."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pvlr.core.arguments import ConfigError, require_choices, require_int, require_number
from pvlr.core.metrics.calibration import ThresholdRule
from pvlr.core.towers.spec import TowerSpec
from pvlr.data.features import FeatureDtype

__all__ = [
    "CalibrationConfig",
    "ConfigError",
    "LoopConfig",
    "LossConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "TowerConfig",
    "config_differences",
    "config_from_json",
    "config_to_json",
    "flat",
    "section",
]

T = TypeVar("T")

AUTO_EPOCHS = (500, 40), (1_500, 12), (math.inf, 6)
"""Pairs (pictures, epochs) of ``loop.epochs`` ``auto``: the first with fewer training pictures than its bound."""

# Fields that may change when a run is resumed: they do not affect what a step computes (except for the rounding of
# another device or of compiled code). The exception is loop.epochs: the schedule spans all epochs, so the learning
# rates of the remaining steps change. A finished run can only be prolonged this way; it is allowed, and reported.
# (The folder of the data may change: the data are compared by names and labels, the towers by their fingerprint.)
MAY_CHANGE = (
    "data.root",
    "data.obtain",
    "data.images",
    "data.table",
    "data.max_pixels",
    "data.on_bad_labels",
    "data.workers",
    "data.val_split",
    "calibration.",
    "loop.epochs",
    "loop.eval_batch_size",
    "loop.evaluate_every",
    "loop.deterministic",
    "loop.checkpoint_every",
    "loop.device",
    "loop.compile",
    "tower.activation",
    "tower.cache_dir",
    "tower.name",
    "tower.weights",
    "tower.gradient_checkpointing",
    "tower.feature_folder",
    "run.",
)


@contextmanager
def section(name: str) -> Iterator[None]:
    """Prefix the message of a ValueError with the name of a section, as a ConfigError."""
    try:
        yield
    except ValueError as err:
        raise ConfigError(f"{name}.{err}") from None


@dataclass(frozen=True, kw_only=True)
class TowerConfig(TowerSpec):
    """Pre-trained towers and how they are trained.

    Args:
        lr_factor: Learning rate of the trained part of the image tower, as a multiple of ``optimizer.lr``, above 0.
        layer_decay: Learning rate of a block as a multiple of the next block's, in (0, 1]; the last block has this
            multiple of the tower's rate, the first layers the lowest. 1: one rate for all.
        gradient_checkpointing: Recompute the tower's blocks in the backward pass instead of storing their activations:
            the same gradients from less memory.
        features: ``compute`` (the tower encodes every picture at every epoch) or ``cache`` (a frozen tower encodes it
            once; its patch vectors are stored on the disk).
        feature_views: Views of each training picture that are cached: 1, without augmentation, or more, of which all
            but the first are augmented.
        feature_dtype: Data type of the cached features.
        feature_folder: Folder of the cached features; runs that use the same features may share it, once one of them
            has filled it. Null for ``features`` in the run's folder.
    """

    lr_factor: float = 0.1
    layer_decay: float = 1.0
    gradient_checkpointing: bool = False
    features: Literal["compute", "cache"] = "compute"
    feature_views: int = 1
    feature_dtype: FeatureDtype = "float16"
    feature_folder: str | None = None

    def __post_init__(self) -> None:
        with section("tower"):
            super().__post_init__()
            require_choices(self)
            require_int("feature_views", self.feature_views, least=1)
            if self.features == "cache" and self.train != "frozen":
                raise ValueError(f"features: 'cache' is for a frozen tower, but tower.train is {self.train!r}")
            require_number("lr_factor", self.lr_factor, above=0.0)
            require_number("layer_decay", self.layer_decay, above=0.0)
            if self.layer_decay > 1:
                raise ValueError(f"layer_decay: expected a number in (0, 1], got {self.layer_decay!r}")
            for name, idle in (("layer_decay", 1.0), ("gradient_checkpointing", False)):
                if self.train == "frozen" and getattr(self, name) != idle:
                    raise ValueError(f"{name}: is for a tower that is trained, but tower.train is 'frozen'")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Settings of the asymmetric loss; all 0 is binary cross-entropy.

    Args:
        gamma_pos: Focusing exponent of positives, at least 0; the higher, the less easy positives weigh.
        gamma_neg: Focusing exponent of negatives, at least 0; the higher, the less easy negatives weigh.
        clip: Negatives of a probability up to this have a loss of 0, in [0, 1).
        unknown: Treatment of unknown labels in training: `ignore` them, or take them as `negative`, which is right for
            most of them; if only positives are known (one of each picture), there are no other negatives
            (arXiv 2106.09708).
    """

    gamma_pos: float = 0.0
    gamma_neg: float = 2.0
    clip: float = 0.0
    unknown: Literal["ignore", "negative"] = "ignore"

    def __post_init__(self) -> None:
        with section("loss"):
            require_choices(self)
            require_number("gamma_pos", self.gamma_pos, least=0.0)
            require_number("gamma_neg", self.gamma_neg, least=0.0)
            require_number("clip", self.clip, least=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimiser.

    Args:
        kind: Optimiser: ``adamw`` or ``sgd`` (with Nesterov momentum).
        lr: Peak learning rate of the new layers, above 0.
        weight_decay: Weight decay, at least 0; decoupled for AdamW; none on norms, biases, prompts, scalars and the
            image tower's embeddings of position and class.
        prompt_lr_factor: Learning rate of the learnable context, as a multiple of ``lr``, above 0.
        betas: Decay rates of AdamW's two moments, each in [0, 1).
        momentum: Momentum of SGD, in [0, 1).
        clip_norm: Maximum norm of the gradient, which is clipped to it; 0 is off. With few known labels, gradient
            norms are high: a maximum of 1 cost PVLR six points there (docs/results.md).
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.3
    prompt_lr_factor: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        with section("optimizer"):
            require_choices(self)
            require_number("lr", self.lr, above=0.0)
            require_number("weight_decay", self.weight_decay, least=0.0)
            require_number("prompt_lr_factor", self.prompt_lr_factor, above=0.0)
            for beta in self.betas:
                require_number("betas", beta, least=0.0, below=1.0)
            require_number("momentum", self.momentum, least=0.0, below=1.0)
            require_number("clip_norm", self.clip_norm, least=0.0)


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate schedule over the steps of a run.

    Args:
        kind: Schedule: ``one_cycle`` (cosine from lr/25 to lr and down to lr/250,000) or ``cosine`` (linear from 0 to
            lr, then cosine to 0).
        warmup: Share of all steps in which the learning rate rises, in [0, 1).
    """

    kind: Literal["one_cycle", "cosine"] = "one_cycle"
    warmup: float = 0.2

    def __post_init__(self) -> None:
        with section("schedule"):
            require_choices(self)
            require_number("warmup", self.warmup, least=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Settings of the training loop: epochs, batch sizes, evaluations, device and precision.

    Args:
        epochs: Passes over the training split, at least 1; ``auto`` depends on the number of training pictures with a
            known label, see :meth:`for_pictures`. A run may be resumed with another number, but not to the same result
            as an uninterrupted one: the learning rates of the remaining steps are those of a run of that length.
        batch_size: Images of one forward pass, over all ranks together; at least 1.
        eval_batch_size: Images of one forward pass in evaluation, at least 1.
        accumulate: Batches whose gradients are accumulated for one step; the loss is the mean over all their known
            labels.
        ema: Decay of the moving average of the weights that is evaluated and saved, in [0, 1); 0 is off.
        precision: ``float32``, or ``bf16`` inside autocast (scores, losses and weights stay float32).
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:<number>``.
        seed: Seed of initial weights, sample order and augmentation, at least 0.
        evaluate_every: Epochs between evaluations; 0: only those by steps and at the end.
        evaluate_every_steps: Steps between evaluations, in addition to those by epochs; 0: none.
        patience: Epochs without a better mAP on the validation split (``data.val_split``, ``data.val_share``) after
            which training ends; the averaged weights of the best evaluation are then the result. 0 is off.
        checkpoint_every: Epochs between checkpoints, at least 1; an interrupted run saves another one.
        compile: Compile the model with ``torch.compile``, which rounds differently.
        deterministic: On a GPU, use only deterministic algorithms, which give the same bits at every run, even if
            slower; an operation without one ends the run. A CPU is always deterministic.
    """

    epochs: int | Literal["auto"] = "auto"
    batch_size: int = 32
    eval_batch_size: int = 64
    accumulate: int = 1
    ema: float = 0.98
    precision: Literal["float32", "bf16"] = "float32"
    device: str = "auto"
    seed: int = 0
    evaluate_every: int = 1
    evaluate_every_steps: int = 0
    patience: int = 0
    checkpoint_every: int = 1
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        with section("loop"):
            if self.epochs != "auto":
                require_int("epochs", self.epochs, least=1)
            for name in ("batch_size", "eval_batch_size", "accumulate", "checkpoint_every"):
                require_int(name, getattr(self, name), least=1)
            for name in ("seed", "evaluate_every", "evaluate_every_steps", "patience"):
                require_int(name, getattr(self, name), least=0)
            if self.patience and not (self.evaluate_every or self.evaluate_every_steps):
                raise ValueError("patience: expected evaluations to look at, but evaluate_every is 0")
            require_number("ema", self.ema, least=0.0, below=1.0)
            require_choices(self)

    def for_pictures(self, count: int) -> "LoopConfig":
        """Return a copy with ``auto`` epochs resolved: 40 for fewer than 500 pictures, 12 for fewer than 1,500, else 6.

        Chosen on validation pictures, with 30 to 3,000 for training (docs/results.md). Learning rate and weight decay
        do not depend on the number of pictures: the mixture weights the learned scores of each label by its number of
        positives.

        Args:
            count: Training pictures with a known label.

        Example:
            >>> [LoopConfig().for_pictures(count).epochs for count in (60, 1_012, 5_011)]
            [40, 12, 6]
            >>> LoopConfig(epochs=40).for_pictures(60).epochs
            40
        """
        if self.epochs != "auto":
            return self
        return replace(self, epochs=next(epochs for fewer, epochs in AUTO_EPOCHS if count < fewer))


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Calibration after training on the validation pictures (``data.val_split``, ``data.val_share``), if any.

    Args:
        by: Criterion of each label's threshold: the highest ``f1``, or the highest recall at a ``precision``.
        precision: Target precision for ``by`` ``precision``, in (0, 1).
    """

    by: ThresholdRule = "f1"
    precision: float = 0.9

    def __post_init__(self) -> None:
        with section("calibration"):
            require_choices(self)
            require_number("precision", self.precision, above=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Output of a run and how it is resumed.

    Args:
        folder: Folder of all files of the run.
        resume: ``auto`` resumes a run in the folder if there is one, ``require`` fails if there is none, ``never``
            fails if there is one.
        baselines: Also evaluate zero-shot and a linear probe on the same towers and data.
        tensorboard: Write TensorBoard event files.
        trackers: Other trackers that are told the same numbers and pictures: ``wandb``, ``mlflow``. Their packages have
            to be installed; docs/extending.md has their use without a network.
        keep: Number of newest checkpoints that are kept, at least 1, in addition to that of the best evaluation.
        log_every: Steps between those that TensorBoard and trackers are told of, at least 1; pictures and metrics of
            the test split are written at every evaluation.
    """

    folder: str = "runs/voc"
    resume: Literal["auto", "never", "require"] = "auto"
    baselines: bool = False
    tensorboard: bool = True
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    keep: int = 2
    log_every: int = 10

    def __post_init__(self) -> None:
        with section("run"):
            require_int("keep", self.keep, least=1)
            require_int("log_every", self.log_every, least=1)
            require_choices(self)
        if not self.folder:
            raise ConfigError("run.folder: expected a non-empty path, got ''")


def config_to_json(config: Any) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, lists, strings and numbers.

    Example:
        >>> config_to_json(ScheduleConfig())
        {'kind': 'one_cycle', 'warmup': 0.2}
    """
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def config_from_json(kind: type[T], data: Mapping[str, Any]) -> T:
    """Return the configuration that :func:`config_to_json` was given; lists become tuples.

    Raises:
        ConfigError: naming a field that does not exist.

    Example:
        >>> config_from_json(OptimizerConfig, config_to_json(OptimizerConfig())) == OptimizerConfig()
        True
    """
    known = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise ConfigError(f"{kind.__name__}: expected the fields {', '.join(sorted(known))}, got {name!r}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in data.items()})


def config_differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """List the fields that differ between two configurations of a run, except those that a resumed run may change.

    Args:
        saved: Sections by name, as :func:`config_to_json` returns them, of the saved run.
        now: Those of the present configuration.
        defaults: Default values, for fields that ``saved`` lacks because an earlier version did not have them.

    Returns:
        One string per field, ``section.field: <saved>, now <now>``; empty if the run may be resumed.

    Example:
        >>> config_differences({"loop": {"seed": 0, "epochs": 2}}, {"loop": {"seed": 1, "epochs": 3}})
        ['loop.seed: 0, now 1']
    """
    left, right = {**dict(flat(defaults or {})), **dict(flat(saved))}, dict(flat(now))
    missing = object()
    found = []
    for name in sorted({*left, *right}):
        if name.startswith(MAY_CHANGE):
            continue
        was, is_ = left.get(name, missing), right.get(name, missing)
        if was != is_ and not (_is_nan(was) and _is_nan(is_)):
            shown = ["absent" if value is missing else repr(value) for value in (was, is_)]
            found.append(f"{name}: {shown[0]}, now {shown[1]}")
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``section.field`` and value of each field.

    Args:
        tree: Values or further mappings, by name.
        prefix: Text in front of every name.

    Example:
        >>> dict(flat({"loop": {"seed": 0}}))
        {'loop.seed': 0}
    """
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
