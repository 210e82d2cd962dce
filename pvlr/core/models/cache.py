"""A cache of a result computed from tensors, valid until one of them changes."""

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Cache"]

T = TypeVar("T")


class Cache(Generic[T]):
    """Cache of the result of a computation without gradients, valid until one of its source tensors has changed.

    Changes in place raise a tensor's version, and a replaced tensor has another address: the old one is not reused,
    because the sources are stored too. Changes through ``.data``, and those of fused kernels of optimisers, are not
    detected; so any computation with gradients, as before a step, clears the cache too. Neither a copy nor a pickle of
    it contains the result.

    Example:
        >>> cache, weight = Cache(), torch.ones(2)
        >>> with torch.no_grad():
        ...     first = cache.get([weight], lambda: weight * 2)
        ...     second = cache.get([weight], lambda: weight * 2)
        ...     changed = cache.get([weight.add_(1)], lambda: weight * 2)
        >>> first is second, changed
        (True, tensor([4., 4.]))
    """

    def __init__(self) -> None:
        self._held: tuple[tuple[Any, ...], tuple[Tensor, ...], T] | None = None

    def get(self, sources: Iterable[Tensor], compute: Callable[[], T]) -> T:
        """Return the result of ``compute``, computed only if a source has changed or gradients are enabled.

        Args:
            sources: All tensors the result is computed from, at least one.
            compute: The computation.
        """
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            self.clear()
            return compute()
        if torch.compiler.is_compiling():
            # The cached result is outside of any graph: a compiled graph would compute it again for every batch. Not
            # as a decorator, with which importing this package would load the compiler (two seconds).
            disabled: Callable[..., T] = torch.compiler.disable(self._get)  # type: ignore[no-untyped-call]
            return disabled(list(sources), compute)
        return self._get(list(sources), compute)

    def _get(self, sources: list[Tensor], compute: Callable[[], T]) -> T:
        if any(source.is_inference() for source in sources):
            return compute()  # Such tensors have no version, so that changes are not detected.
        # A result computed under autocast is not precise enough to be used without.
        device = sources[0].device.type
        autocasts = device != "meta" and torch.is_autocast_enabled(device)
        try:
            versions = [(source.data_ptr(), source.dtype, source._version) for source in sources]
        except RuntimeError:  # Tensors of a transformation such as vmap have no address.
            return compute()
        state = (torch.get_autocast_dtype(device) if autocasts else None, *versions)
        if self._held is None or self._held[0] != state:
            # As tensors that may be used outside of inference mode too.
            with torch.inference_mode(False), torch.no_grad():
                self._held = state, tuple(source.detach() for source in sources), compute()
        return self._held[2]

    def clear(self) -> None:
        """Remove the result, so that it is computed again the next time."""
        self._held = None

    def __getstate__(self) -> dict[str, None]:
        return {"_held": None}
