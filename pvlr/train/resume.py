"""Going on with a run: from which checkpoint, and only if it is the same run."""

from collections.abc import Mapping
from typing import Any

from pvlr.train.checkpoint import CheckpointError, Checkpoints
from pvlr.train.config import ConfigError, LoopConfig, RunConfig, config_differences
from pvlr.train.monitor import say

__all__ = ["require_same", "saved_state", "tell_of_other_length"]


def saved_state(
    checkpoints: Checkpoints, run: RunConfig, sections: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The checkpoint to go on from, once it is sure that the run may; None for a new run.

    Args:
        checkpoints: Of the run.
        run: Its folder, and whether it may or must be there.
        sections: The configuration, section by section.
        defaults: The same, if nothing were configured: so are fields that an earlier version did not know.

    Raises:
        ConfigError: where the folder holds another run, or ``run.resume`` does not allow what is there.
        CheckpointError: where every checkpoint is damaged, or holds something else.
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
    """Refuse towers, pictures or texts that are others than those a run was started with.

    Raises:
        ConfigError: naming the option.
    """
    was = saved["identity"]
    if was["tower"] != identity["tower"]:
        raise ConfigError("tower.name: the run was started on other weights of this tower")
    if was["data"] != identity["data"]:
        raise ConfigError("data.root: the run was started on other pictures or labels")
    if was["texts"] != identity["texts"]:
        raise ConfigError("model.descriptions, model.knowledge: the run was started on files of another content")


def tell_of_other_length(was: LoopConfig, now: LoopConfig) -> None:
    """Say what another number of epochs than at first means, if it is another."""
    if was.epochs != now.epochs:
        say(
            f"loop.epochs: {was.epochs}, now {now.epochs}: from here on the learning rates are those of a run of "
            f"{now.epochs} epochs, so the result is not that of an uninterrupted run"
        )
