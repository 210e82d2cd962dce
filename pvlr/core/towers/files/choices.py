"""Settings that a file of weights leaves open: the activation and the normalisation of images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pvlr.core.towers.errors import TowerError, reason
from pvlr.core.towers.files.states import is_openai

__all__ = [
    "WORDS",
    "Activation",
    "activation_of",
    "require_activation",
    "require_same_activation",
    "usual_activation",
    "usual_preprocess",
]

Activation = Literal["gelu", "quick_gelu"]
WORDS: dict[Activation, str] = {"gelu": "GELU", "quick_gelu": "QuickGELU"}
QUICK_GELU = "-quickgelu"


def activation_of(record: Mapping[str, Any]) -> Activation:
    """Return the activation of a configuration or a published record of open_clip's.

    Example:
        >>> activation_of({"embed_dim": 512})
        'gelu'
    """
    return "quick_gelu" if record.get("quick_gelu", False) else "gelu"


def usual_activation(name: str) -> Activation | None:
    """Return the activation of a name of open_clip's; None where it has no such name."""
    import open_clip

    config = open_clip.get_model_config(name.replace("/", "-"))
    return None if config is None else activation_of(config)


def require_activation(name: str, built: Activation, weights: Path, told: Activation | None) -> None:
    """Raise an error for a file of weights whose training activation is unknown, or another one.

    Args:
        name: open_clip's name of the architecture.
        built: The activation it computes.
        weights: The file.
        told: The activation given by the user; None: none.

    Raises:
        TowerError: with the possible values.
    """
    try:
        is_from_openai = is_openai(weights)
    except Exception as err:  # zip and pickle errors share no base class
        raise TowerError(f"{weights}: expected the weights of '{name}', got {reason(err)}") from err
    if is_from_openai:
        require_same_activation(
            name, built, "quick_gelu", f"weights: '{weights}' is one of OpenAI's, trained with QuickGELU"
        )
        return
    plain = name.removesuffix(QUICK_GELU)
    if told is None and _twin(plain) is not None:
        beside = weights.parent / "open_clip_config.json"
        folder = f" (or name its folder, whose {beside.name} says it: local-dir:)" if beside.is_file() else ""
        raise TowerError(
            f"activation: the file '{weights}' does not say with which it was trained, expected 'quick_gelu' with the "
            f"name '{plain}{QUICK_GELU}' (as OpenAI, MetaCLIP, DFN) or 'gelu' with '{plain}' (as LAION, DataComp): "
            f"--tower.activation{folder}"
        )


def require_same_activation(name: str, built: Activation, trained: Activation | None, says: str) -> None:
    """Raise an error for a name that computes another activation than its weights were trained with.

    open_clip only warns here, and then computes other features than the weights were trained for.

    Args:
        name: The requested name.
        built: The activation it computes.
        trained: The activation its weights were trained with; None where it is not known.
        says: The source of that, for messages.

    Raises:
        TowerError: with the name that fits, where there is one.
    """
    if trained in (built, None):
        return
    other = _twin(name)
    hint = "" if other is None else f"; ask for '{other}'"
    raise TowerError(f"{says}, but '{name}' computes {WORDS[built]}{hint}")


def usual_preprocess(name: str, weights: Path | None, told: Sequence[str]) -> dict[str, Any]:
    """Return the image preprocessing of an architecture's published weights, assumed for a file of such weights.

    open_clip itself would fall back to CLIP's mean and std, which are wrong for SigLIP.

    Args:
        name: open_clip's name of the architecture.
        weights: The file; None for random weights, for which any values are valid.
        told: Those of ``mean`` and ``std`` that the user gives.

    Raises:
        TowerError: where published weights differ and the user does not give both values.
    """
    import open_clip

    keys, built = ("mean", "std", "interpolation"), activation_of(open_clip.get_model_config(name))
    records = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    usual: dict[tuple[Any, ...], str] = {}
    for tag, record in records.items():
        if activation_of(record) == built:
            usual.setdefault(tuple(record[key] for key in keys), tag)
    if len(usual) == 1:
        return dict(zip(keys, next(iter(usual)), strict=True))
    if len(usual) > 1 and weights is not None and not {"mean", "std"} <= set(told):
        ways = " or ".join(f"{list(values[0])} and {list(values[1])} (as '{tag}')" for values, tag in usual.items())
        raise TowerError(
            f"mean, std: the file '{weights}' does not say how images are normalised, and the published weights of "
            f"'{name}' differ, expected {ways}: --tower.mean and --tower.std"
        )
    return {}


def _twin(name: str) -> str | None:
    """Return the name of the same architecture with the other activation; None where there is none."""
    import open_clip

    names = open_clip.list_models()
    other = name.removesuffix(QUICK_GELU) if name.endswith(QUICK_GELU) else f"{name}{QUICK_GELU}"
    return other if {name, other} <= set(names) else None
