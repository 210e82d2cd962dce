"""Hypothesis strategies: they draw sizes and a seed, never tensor contents, so that failures replay and shrink."""

import copy
import io
import os
import pickle
from dataclasses import dataclass

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

torch.set_num_threads(1)
examples = int(os.environ.get("PVLR_EXAMPLES", "25"))
settings.register_profile("pvlr", max_examples=examples, deadline=None, print_blob=True)
settings.load_profile("pvlr")


class Draw:
    """Tensors as a function of a seed."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=self.dtype)

    def chance(self, p: float, *shape: int) -> Tensor:
        """Bool, True with probability ``p``."""
        return torch.rand(shape, generator=self.generator) < p

    def order(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator)

    def levels(self, count: int, *shape: int) -> Tensor:
        """Scores of few distinct values, so that many tie."""
        return torch.randint(count, shape, generator=self.generator).to(self.dtype) / count


@dataclass(frozen=True)
class Sizes:
    """One size for every axis of the alphabet; ``d = h * e``."""

    b: int
    c: int
    n: int
    h: int
    e: int
    t: int
    m: int
    w: int
    k: int

    @property
    def d(self) -> int:
        return self.h * self.e


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**31 - 1)


def draws() -> st.SearchStrategy[Draw]:
    return st.builds(Draw, seeds())


def sizes() -> st.SearchStrategy[Sizes]:
    small = st.integers(1, 5)
    return st.builds(
        Sizes, b=st.integers(1, 3), c=small, n=small, h=st.integers(1, 3), e=small, t=st.integers(5, 9),
        m=st.integers(1, 4), w=small, k=small,
    )  # fmt: skip


def perturb(module: nn.Module, draw: Draw, size: float = 0.5) -> nn.Module:
    """Move every parameter away from its start: zeros and ones hide mistakes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * draw.normal(*parameter.shape).to(parameter.dtype))
    return module


def missing_gradients(module: nn.Module) -> list[str]:
    """Names of trainable parameters without a gradient, or with one that is zero or not finite everywhere."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.abs().max() > 1e-12)
    ]


def as_lists(module: nn.Module) -> dict[str, list]:
    """The state dictionary as the plain numbers that the reference loops take."""
    return {name: value.tolist() for name, value in module.state_dict().items()}


def survives(module: nn.Module, fresh: nn.Module, *inputs: object) -> None:
    """Save and load into a fresh module, pickle, copy: all give the same module, bit for bit.

    Parameters must have been moved first: two modules that still hold their starting values are always equal.
    """
    wanted = module(*inputs)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    before = fresh(*inputs)
    missing = fresh.load_state_dict(torch.load(file, weights_only=True))
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    if any(True for _ in module.parameters()):
        assert not torch.equal(first(before), first(wanted)), "the fresh module gave the same before loading"
    for other in (fresh, pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):  # noqa: S301
        for a, b in zip(tensors(other(*inputs)), tensors(wanted), strict=True):
            assert torch.equal(a, b)


def tensors(output: object) -> list[Tensor]:
    """All tensors of a nested output, in order."""
    if isinstance(output, Tensor):
        return [output]
    return [] if output is None else [tensor for part in output for tensor in tensors(part)]


def first(output: object) -> Tensor:
    return tensors(output)[0]


def backward(output: object, seed: int = 0) -> None:
    """Backward from every tensor of the output, weighted at random: a plain sum can have a gradient of zero."""
    draw = Draw(seed)
    sum((x * draw.normal(*x.shape).to(x.dtype)).sum() for x in tensors(output) if x.requires_grad).backward()
