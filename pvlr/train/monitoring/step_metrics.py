"""Metrics of a model after a step: gradient norms by block, scale and bias, the mix of relations, memory."""

import importlib
import sys
from contextlib import suppress

import torch
from torch import Tensor, nn

from pvlr.core.models.network import PVLR

__all__ = ["gradient_norms", "step_metrics"]


@torch.no_grad()
def gradient_norms(model: nn.Module, total: float) -> dict[str, float]:
    """Return the norm of the gradient of each block before clipping.

    Args:
        model: The model after a step, with its gradients; a block is a direct child module.
        total: Norm of the whole gradient before clipping.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> model[0].weight.grad = torch.tensor([[0.3, 0.4]])
        >>> {name: round(norm, 4) for name, norm in gradient_norms(model, total=5.0).items()}
        {'0': 5.0}
    """
    blocks: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            blocks.setdefault(name.partition(".")[0], []).append(parameter.grad)
    if not blocks:
        return {}
    norms = torch.stack([nn.utils.get_total_norm(gradients) for gradients in blocks.values()])
    # Clipping scales all blocks by one factor, which does not change their shares of the whole.
    shares = norms / norms.norm().clamp(min=1e-30)
    return dict(zip(blocks, (total * shares).tolist(), strict=True))


@torch.no_grad()
def step_metrics(model: nn.Module, gradient_norm: float) -> dict[str, float]:
    """Return the TensorBoard scalars of a model after a step, by tag.

    Args:
        model: The model after the step, with its gradients.
        gradient_norm: Norm of the whole gradient before clipping.
    """
    scalars = {f"gradient/{name}": norm for name, norm in gradient_norms(model, gradient_norm).items()}
    if isinstance(model, PVLR):
        values: dict[str, Tensor] = {"model/bias": model.mixture.bias}
        if model.mixture.weights is not None:
            weights = zip(model.config.parts, model.mixture.weights, strict=True)
            values |= {f"base/{part}": weight for part, weight in weights}
        if model.config.learn:
            values["model/scale"] = model.head.log_scale.exp()
        if model.config.learn and model.fusion.fusion == "gate" and model.fusion.maps:
            values |= {f"fusion/mix_head_{number}": share for number, share in enumerate(model.fusion.mix)}
        # All in one transfer: each one would synchronise the GPU.
        scalars |= dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    return scalars | _memory()


def _memory() -> dict[str, float]:
    """Return the peak memory so far, in MiB."""
    peaks = {}
    with suppress(ImportError):  # Windows has no such module.
        used = importlib.import_module("resource")
        unit = 2**20 if sys.platform == "darwin" else 2**10
        peaks["memory/process_MiB"] = used.getrusage(used.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        peaks["memory/gpu_MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks
