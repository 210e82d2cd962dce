"""What was computed from tensors, kept until one of them changes."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Kept"]

T = TypeVar("T")


class Kept(Generic[T]):
    """The result of a computation without gradients, which serves until a tensor that it was made of has changed.

    Changes in place raise a tensor's version, and what was replaced is elsewhere: its old place stays taken, because
    the sources are kept too. Changes through ``.data``, and those of fused kernels such as optimisers have, leave no
    trace; so whatever is computed with gradients, as before a step, makes it forget too. Neither a copy nor a file of
    it has the result.

    Example:
        >>> kept, weight = Kept(), torch.ones(2)
        >>> with torch.no_grad():
        ...     first = kept.get([weight], lambda: weight * 2)
        ...     second = kept.get([weight], lambda: weight * 2)
        ...     changed = kept.get([weight.add_(1)], lambda: weight * 2)
        >>> first is second, changed
        (True, tensor([4., 4.]))
    """

    def __init__(self) -> None:
        self._held: tuple[tuple[Any, ...], tuple[Tensor, ...], T] | None = None

    def get(self, sources: Iterable[Tensor], compute: Callable[[], T]) -> T:
        """What ``compute`` gives, computed only if a source has changed, or gradients are asked for.

        Args:
            sources: All tensors it is computed from, at least one.
            compute: The computation.
        """
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            self.forget()
            return compute()
        if torch.compiler.is_compiling():
            # What was kept belongs to no graph: a compiled one would compute it anew for every batch. Not as a
            # decorator, with which importing this package would load the compiler (two seconds).
            disabled: Callable[..., T] = torch.compiler.disable(self._get)  # type: ignore[no-untyped-call]
            return disabled(list(sources), compute)
        return self._get(list(sources), compute)

    def _get(self, sources: list[Tensor], compute: Callable[[], T]) -> T:
        if any(source.is_inference() for source in sources):
            return compute()  # Such tensors do not tell when they change.
        # What was computed under autocast is too coarse to serve without.
        device = sources[0].device.type
        autocasts = device != "meta" and torch.is_autocast_enabled(device)
        try:
            places = [(source.data_ptr(), source.dtype, source._version) for source in sources]
        except RuntimeError:  # Tensors of a transformation such as vmap are nowhere.
            return compute()
        state = (torch.get_autocast_dtype(device) if autocasts else None, *places)
        if self._held is None or self._held[0] != state:
            # As tensors that may serve outside of inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                self._held = state, tuple(source.detach() for source in sources), compute()
        return self._held[2]

    def forget(self) -> None:
        """Compute anew the next time."""
        self._held = None

    def __getstate__(self) -> dict[str, None]:
        return {"_held": None}
