"""Trackers of experiments: where the numbers and pictures of a run go, besides TensorBoard."""

import importlib
import json
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from PIL import Image

from pvlr.console import say
from pvlr.core.arguments import ConfigError
from pvlr.files import write_atomically

if TYPE_CHECKING:
    from pvlr.train.monitoring.board import Board

__all__ = ["Tracker", "Trackers", "named_trackers", "require_trackers"]

IDS_NAME = "trackers.json"
"""File in a run's folder with the identifier of the run at each named tracker."""
METRICS_AT_ONCE, SETTINGS_AT_ONCE, SETTING_LENGTH = 1000, 100, 500
"""Limits of MLflow's requests: numbers, settings, and characters of one (those of its older servers)."""


@runtime_checkable
class Tracker(Protocol):
    """Interface of a tracker: an object that receives the numbers and pictures of a run, on its first rank only.

    An error that :meth:`scalars`, :meth:`picture` or :meth:`close` raises does not end the run: it is printed once, and
    the tracker is told nothing more.
    """

    def start(self, folder: Path, settings: Mapping[str, Any], *, step: int) -> None:
        """Begin a run, or go on with the one in the same folder.

        Args:
            folder: The run's folder, which exists.
            settings: Value by field of the configuration, such as ``optimizer.lr``.
            step: Number of steps done; 0: a new run. Values of later steps, which a killed process may have told, are
                told again.
        """
        ...

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Receive finite numbers by tag, such as ``train/loss``."""
        ...

    def picture(self, tag: str, picture: Image.Image, *, step: int) -> None:
        """Receive a picture."""
        ...

    def close(self, *, finished: bool) -> None:
        """End; ``finished`` is False if the run was stopped and may be resumed."""
        ...


class Trackers:
    """TensorBoard and other trackers as one: every number and picture goes to each of them.

    Args:
        board: TensorBoard event files; None if there are none.
        others: Trackers that have not been started.

    Attributes:
        board: TensorBoard event files, for what only they show (curves, histograms, label vectors).

    Example:
        >>> class Printed:
        ...     def start(self, folder, settings, *, step): ...
        ...     def scalars(self, values, *, step):
        ...         print(step, values)
        ...     def picture(self, tag, picture, *, step): ...
        ...     def close(self, *, finished): ...
        >>> Trackers(None, [Printed()]).scalars({"loss": 0.5, "ap/cat": math.nan}, step=3)
        3 {'loss': 0.5}
    """

    def __init__(self, board: "Board | None" = None, others: Sequence[Tracker] = ()) -> None:
        self.board = board
        self._others = list(others)

    def __bool__(self) -> bool:
        """Return True if there is any, so that pictures need to be drawn."""
        return self.board is not None or bool(self._others)

    def start(self, folder: Path, settings: Mapping[str, Any], *, step: int) -> None:
        """Start all trackers; their errors are raised."""
        for other in self._others:
            other.start(folder, settings, step=step)

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Tell numbers, by tag; those that are not finite are left out."""
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        if self.board is not None:
            self.board.scalars(finite, step=step)
        if finite:
            self._tell(lambda other: other.scalars(finite, step=step))

    def picture(self, tag: str, picture: Image.Image, *, step: int, kind: Literal["png", "jpeg"] = "png") -> None:
        """Tell a picture; ``kind`` is TensorBoard's format, see :meth:`pvlr.train.monitoring.board.Board.picture`."""
        if self.board is not None:
            self.board.picture(tag, picture, step=step, kind=kind)
        self._tell(lambda other: other.picture(tag, picture, step=step))

    def flush(self) -> None:
        """Flush TensorBoard's files."""
        if self.board is not None:
            self.board.flush()

    def close(self, *, finished: bool) -> None:
        """Close all."""
        if self.board is not None:
            self.board.close()
        self._tell(lambda other: other.close(finished=finished))
        self._others = []

    def _tell(self, what: Callable[[Tracker], object]) -> None:
        for other in tuple(self._others):
            try:
                what(other)
            except Exception as err:  # A server that is down for a moment must not cost hours of training.
                self._others.remove(other)
                reason = " ".join(f"{type(err).__name__}: {err}".split())[:300]
                say(f"warning: the tracker {type(other).__name__} is told nothing more: {reason}")


class WandbTracker:
    """Weights & Biases: one run, also if the training is stopped and resumed.

    Its environment variables apply: ``WANDB_MODE=offline`` writes into the run's folder only, for ``wandb sync``;
    ``WANDB_PROJECT`` (by default ``pvlr``) and ``WANDB_ENTITY`` name the place.
    """

    def __init__(self) -> None:
        self._package: Any = importlib.import_module("wandb")
        self._run: Any = None

    def start(self, folder: Path, settings: Mapping[str, Any], *, step: int) -> None:
        """Begin or go on with a run, whose identifier is stored in the run's folder."""
        known = _identifier(folder, "wandb", step)
        identifier = known or secrets.token_hex(4)
        _keep_identifier(folder, "wandb", identifier)
        hint = "WANDB_MODE=offline needs no network and no account"
        with _refusing("wandb", hint):
            self._run = self._package.init(
                project=os.environ.get("WANDB_PROJECT", "pvlr"),
                name=folder.resolve().name,
                id=identifier,
                resume="allow",
                dir=str(folder),
                config=dict(settings),
                settings=self._package.Settings(console="off", silent=True),
            )

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Log numbers."""
        self._run.log(dict(values), step=step)

    def picture(self, tag: str, picture: Image.Image, *, step: int) -> None:
        """Log a picture."""
        self._run.log({tag: self._package.Image(picture)}, step=step)

    def close(self, *, finished: bool) -> None:
        """Finish the run; a stopped one is marked as failed until it is resumed."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflowTracker:
    """MLflow: one run, also if the training is stopped and resumed.

    Without ``MLFLOW_TRACKING_URI`` it is stored in the run's folder (``mlflow.db``, and pictures in ``mlflow``);
    ``MLFLOW_EXPERIMENT_NAME`` (by default ``pvlr``) names the experiment.
    """

    def __init__(self) -> None:
        self._package: Any = importlib.import_module("mlflow")
        self._client: Any = None
        self._id = ""

    def start(self, folder: Path, settings: Mapping[str, Any], *, step: int) -> None:
        """Begin or go on with a run, whose identifier is stored in the run's folder."""
        here = folder.resolve()
        local = "MLFLOW_TRACKING_URI" not in os.environ
        place = f"sqlite:///{here.as_posix()}/mlflow.db" if local else os.environ["MLFLOW_TRACKING_URI"]
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pvlr")
        with _refusing("mlflow", "without MLFLOW_TRACKING_URI it writes into the run's folder"):
            self._client = client = self._package.MlflowClient(tracking_uri=place)
            known = _identifier(folder, "mlflow", step)
            if known is not None:
                self._id = known
                client.update_run(known, status="RUNNING")
                return
            found = client.get_experiment_by_name(name)
            pictures = {"artifact_location": (here / "mlflow").as_uri()} if local else {}
            experiment = client.create_experiment(name, **pictures) if found is None else found.experiment_id
            self._id = client.create_run(experiment, run_name=here.name).info.run_id
            _keep_identifier(folder, "mlflow", self._id)
            # They cannot be changed later: a resumed run keeps those that it was started with.
            param = self._package.entities.Param
            params = [param(key, str(value)[:SETTING_LENGTH]) for key, value in settings.items()]
            for start in range(0, len(params), SETTINGS_AT_ONCE):
                client.log_batch(self._id, params=params[start : start + SETTINGS_AT_ONCE])

    def scalars(self, values: Mapping[str, float], *, step: int) -> None:
        """Log numbers."""
        metric, now = self._package.entities.Metric, int(time.time() * 1000)
        metrics = [metric(_plain(tag), value, now, step) for tag, value in values.items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[start : start + METRICS_AT_ONCE])

    def picture(self, tag: str, picture: Image.Image, *, step: int) -> None:
        """Log a picture."""
        self._client.log_image(self._id, picture, artifact_file=f"{_plain(tag)}/step-{step:08d}.png")

    def close(self, *, finished: bool) -> None:
        """End the run; a stopped one is marked as killed until it is resumed."""
        self._client.set_terminated(self._id, status="FINISHED" if finished else "KILLED")


KINDS: dict[str, Callable[[], Tracker]] = {"wandb": WandbTracker, "mlflow": MLflowTracker}


def require_trackers(names: Sequence[str]) -> None:
    """Check that the package of every named tracker is installed.

    Raises:
        ConfigError: naming the package that is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(f"run.trackers: expected the package {name}, found none; pip install {name}")


def named_trackers(names: Sequence[str]) -> list[Tracker]:
    """Return a tracker for each name, ``wandb`` or ``mlflow``; its package is loaded."""
    return [KINDS[name]() for name in names]


@contextmanager
def _refusing(name: str, hint: str) -> Iterator[None]:
    """Turn an error of a package at its start, such as a server that does not answer, into one sentence."""
    try:
        yield
    except Exception as err:
        reason = " ".join(str(err).split())[:300] or type(err).__name__
        raise ConfigError(f"run.trackers: expected {name} to start, found: {reason}; {hint}") from err


def _identifier(folder: Path, name: str, step: int) -> str | None:
    """Return the identifier of the run to go on with; None for a new run, or if its file is missing or damaged."""
    try:
        known = json.loads((folder / IDS_NAME).read_text(encoding="utf-8"))
        return str(known[name]) if step > 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_identifier(folder: Path, name: str, identifier: str) -> None:
    try:
        known = dict(json.loads((folder / IDS_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    write_atomically(folder / IDS_NAME, f"{json.dumps({**known, name: identifier})}\n".encode())


def _plain(tag: str) -> str:
    """Return a tag with only those characters that MLflow allows; others as their numbers, so that no two tags merge.

    Example:
        >>> _plain("ap/tv (old), café")
        'ap/tv _28_old_29__2c_ caf_e9_'
    """
    return re.sub(r"[^A-Za-z0-9_\-. /]", lambda one: f"_{ord(one[0]):x}_", tag)
