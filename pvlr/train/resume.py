"""Resuming a run from its checkpoint, after a check that configuration, data and towers are the same."""

from collections.abc import Mapping
from typing import Any

from pvlr.console import say
from pvlr.train.checkpoint import CheckpointError, Checkpoints
from pvlr.train.config import ConfigError, LoopConfig, RunConfig, config_differences

__all__ = ["report_other_length", "require_same", "saved_state"]


def saved_state(
    checkpoints: Checkpoints, run: RunConfig, sections: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the state to resume from, if its configuration allows it; None for a new run.

    Args:
        checkpoints: Checkpoints of the run.
        run: Its folder, and whether it may or must contain a run.
        sections: The configuration, section by section.
        defaults: The default configuration, for fields that an earlier version did not have.

    Raises:
        ConfigError: if the folder contains another run, or its content conflicts with ``run.resume``.
        CheckpointError: if every checkpoint is damaged, or one contains something else.
    """
    if run.resume == "never" and checkpoints.paths():
        raise ConfigError(
            f"run.folder: {run.folder} holds a run already and run.resume is 'never'; choose another folder"
        )
    found = checkpoints.load()
    if found is None:
        if run.resume == "require":
            raise ConfigError(f"run.resume: expected a run to go on with in {run.folder}, found no checkpoint")
        return None
    path, saved = found
    if not {"step", "model", "optimizer", "average", "config", "identity"} <= saved.keys():
        raise CheckpointError(f"{path}: expected the state of a run, found another content")
    differences = config_differences(saved["config"], sections, defaults=defaults)
    if differences:
        raise ConfigError(
            f"run.folder: the run in {run.folder} was started with another configuration ({'; '.join(differences)}); "
            "give it the same, or choose another folder"
        )
    return saved


def require_same(identity: Mapping[str, str], saved: Mapping[str, Any]) -> None:
    """Raise an error if towers, pictures or texts differ from those a run was started with.

    Raises:
        ConfigError: naming the option.
    """
    was = saved["identity"]
    if was["tower"] != identity["tower"]:
        raise ConfigError("tower.name: the run was started on other weights of this tower")
    if was["data"] != identity["data"]:
        raise ConfigError("run.folder: the run in it was started on other pictures or labels; choose another folder")
    if was["texts"] != identity["texts"]:
        raise ConfigError("model.descriptions, model.knowledge: the run was started on files of another content")


def report_other_length(was: LoopConfig, now: LoopConfig) -> None:
    """Print a warning if the number of epochs differs from that at the start of the run."""
    if was.epochs != now.epochs:
        say(
            f"loop.epochs: {was.epochs}, now {now.epochs}: from here on the learning rates are those of a run of "
            f"{now.epochs} epochs, so the result is not that of an uninterrupted run"
        )
