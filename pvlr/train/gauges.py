"""Numbers read off a model after a step: gradients by block, scale and bias, the mix of relations, memory."""

import importlib
import sys

import torch
from torch import Tensor, nn

from pvlr.core.model import PVLR

__all__ = ["gauges", "gradient_norms"]


@torch.no_grad()
def gradient_norms(model: nn.Module, total: float) -> dict[str, float]:
    """Length of the gradient of each block, before it was clipped.

    Args:
        model: After a step, its gradients still there; a block is a module right below it.
        total: Length of the whole gradient before it was clipped.

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
    # Clipping shortens all blocks by one factor, so that their share of the whole stays.
    shares = norms / norms.norm().clamp(min=1e-30)
    return dict(zip(blocks, (total * shares).tolist(), strict=True))


@torch.no_grad()
def gauges(model: nn.Module, gradient_norm: float) -> dict[str, float]:
    """What TensorBoard is told of a model after a step, by tag.

    Args:
        model: After the step, its gradients still there.
        gradient_norm: Length of the whole gradient before it was clipped.
    """
    told = {f"gradient/{name}": norm for name, norm in gradient_norms(model, gradient_norm).items()}
    if isinstance(model, PVLR):
        values: dict[str, Tensor] = {"model/bias": model.mixture.bias}
        if model.mixture.weights is not None:
            weights = zip(model.config.parts, model.mixture.weights, strict=True)
            values |= {f"base/{part}": weight for part, weight in weights}
        if model.config.learn:
            values["model/scale"] = model.head.log_scale.exp()
        if model.config.learn and model.fusion.mode == "gate" and model.fusion.maps:
            values |= {f"fusion/mix_head_{number}": share for number, share in enumerate(model.fusion.mix)}
        # All at once: each reading for itself would wait for a GPU.
        told |= dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    return told | _memory()


def _memory() -> dict[str, float]:
    """Most memory that was in use so far, in MiB."""
    told = {}
    if sys.platform != "win32":  # Which has no such module.
        used = importlib.import_module("resource")
        unit = 2**20 if sys.platform == "darwin" else 2**10
        told["memory/process_MiB"] = used.getrusage(used.RUSAGE_SELF).ru_maxrss / unit
    if torch.cuda.is_available():
        told["memory/gpu_MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return told
