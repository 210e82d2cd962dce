"""Parameter groups, optimiser and learning rate schedule."""

import math
from typing import Any

import torch
from torch import nn

from pvlr.train.config import OptimizerConfig, ScheduleConfig

__all__ = ["build_optimizer", "learning_rate_factor", "parameter_groups", "set_learning_rates", "trained_parameters"]

PROMPTS = "context"
FEATURES = "residual.source"
FEATURES_WIDTH = 1280
"""Width at which the label vectors of ``residual.source`` have the learning rate of the other layers."""

IMAGE_TOWER = "image."

# Position, class and register embeddings of open_clip's and timm's image towers, which are added, not multiplied.
EMBEDDINGS = ("positional_embedding", "class_embedding", "pos_embed", "cls_token", "reg_token")

# The defaults of torch.optim.lr_scheduler.OneCycleLR.
START_DIVISOR = 25.0
END_DIVISOR = 1e4


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require a gradient, by name, in the order of the model; a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, *, tower_lr_factor: float = 0.1, tower_layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Split the trained parameters by learning rate and weight decay.

    Parameters named ``context`` (learnable prompts), the image tower's embeddings of position and class, and those
    with fewer than two axes (norms, biases, scalars) are not decayed; those below ``image.`` (the image tower) have
    their own learning rate, which may decrease from layer to layer towards the input (discriminative fine-tuning,
    arXiv 1801.06146; the layers are counted as in BEiT, arXiv 2106.08254): with ``n`` blocks ``decay^(n + 1 - i)`` of
    the tower's at depth ``i``, which is 0 before the blocks, the block's number from 1 on, and ``n + 1`` after them.

    The label vectors in the space of the whole image's features (``residual.source``) have 1,280 / width of the rate
    with AdamW, whose step size is the same for every weight: so a step changes a score equally at every tower width.

    Args:
        model: The model; every parameter that requires a gradient is in exactly one group.
        config: Learning rate, weight decay and the factor of the prompts.
        tower_lr_factor: Learning rate of the image tower, as a multiple of ``config.lr``.
        tower_layer_decay: A layer's rate, as a multiple of the next one's; below 1 each depth is a group of its own,
            which the tower provides (:meth:`~pvlr.core.towers.image.tower.OpenClipImageTower.parameter_depths`).

    Returns:
        Parameter groups for torch's optimisers, without empty ones, each with ``name``, ``params``, ``lr``,
        ``base_lr`` (the highest learning rate) and ``weight_decay``.

    Example:
        >>> groups = parameter_groups(nn.Linear(2, 1), OptimizerConfig(lr=0.1, weight_decay=0.5))
        >>> [(group["name"], group["base_lr"], group["weight_decay"]) for group in groups]
        [('layers', 0.1, 0.5), ('layers_undecayed', 0.1, 0.0)]
    """
    rates = {"layers": config.lr, "prompts": config.lr * config.prompt_lr_factor, "tower": config.lr * tower_lr_factor}
    depths: dict[str, int] = {}
    if tower_layer_decay < 1:
        image: Any = model.image
        depths = {f"{IMAGE_TOWER}{name}": depth for name, depth in image.parameter_depths().items()}
        last = max(depths.values())
        rates |= {_at(depth): rates["tower"] * tower_layer_decay ** (last - depth) for depth in range(last + 1)}
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in trained_parameters(model).items():
        tower = name.startswith(IMAGE_TOWER)
        part = "prompts" if name.rsplit(".", 1)[-1] == PROMPTS else "tower" if tower else "layers"
        part = _at(depths[name]) if name in depths else part
        if name == FEATURES:
            part = "features"
            rates[part] = config.lr * (FEATURES_WIDTH / parameter.shape[1] if config.kind == "adamw" else 1.0)
        embedding = tower and name.rsplit(".", 1)[-1] in EMBEDDINGS
        decayed = part != "prompts" and not embedding and parameter.ndim > 1
        key = part if decayed or part == "prompts" else f"{part}_undecayed"
        empty = {
            "name": key,
            "params": [],
            "lr": rates[part],
            "base_lr": rates[part],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        groups.setdefault(key, empty)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, tower_lr_factor: float = 0.1, tower_layer_decay: float = 1.0
) -> torch.optim.Optimizer:
    """Build AdamW or SGD over :func:`parameter_groups`.

    Raises:
        ValueError: if no parameter requires a gradient.
    """
    groups = parameter_groups(model, config, tower_lr_factor=tower_lr_factor, tower_layer_decay=tower_layer_decay)
    if not groups:
        raise ValueError("model: expected at least one parameter that requires a gradient, got none")
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate_factor(step: int, total: int, config: ScheduleConfig) -> float:
    """Return the learning rate of a step as a share of the peak: a function of the step, without state.

    ``one_cycle`` is the cosine form of Smith & Topin, "Super-Convergence", arXiv 1708.07120, as torch's
    ``OneCycleLR`` computes it; ``cosine`` is a linear warm-up and half a cosine (arXiv 1608.03983).

    Args:
        step: In [0, total).
        total: Steps of the whole run, at least 1.
        config: Kind and share of the warm-up.

    Example:
        >>> [round(learning_rate_factor(step, 10, ScheduleConfig(warmup=0.2)), 3) for step in (0, 1, 9)]
        [0.04, 1.0, 0.0]
    """
    if not 0 <= step < total:
        raise ValueError(f"step: expected a number in [0, {total}), got {step}")
    if config.kind == "one_cycle":
        peak = max(config.warmup * total - 1, 0.0)
        start, end = 1 / START_DIVISOR, 1 / (START_DIVISOR * END_DIVISOR)
        if step < peak:
            return _cosine(start, 1.0, step / peak)
        return _cosine(1.0, end, (step - peak) / max(total - 1 - peak, 1e-12))
    rise = config.warmup * total
    if step + 1 <= rise:
        return (step + 1) / rise
    return _cosine(1.0, 0.0, (step - rise) / max(total - rise, 1e-12) if step > rise else 0.0)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's learning rate to ``factor`` times its peak; return them by the group's name."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def _at(depth: int) -> str:
    return f"tower_{depth:02d}"


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
