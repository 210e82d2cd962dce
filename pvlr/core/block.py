"""The base class of all blocks: a module that stores its constructor's arguments."""

from typing import Any

from torch import nn

__all__ = ["Block"]


class Block(nn.Module):
    """A module configured by its constructor's arguments: ``type(block)(**block.config)`` is an untrained copy.

    Its ``repr`` is that call. Trained values are in the parameters.

    Args:
        **config: The constructor's arguments, by name: numbers, texts, booleans and None, so that JSON holds them.

    Example:
        >>> class Scale(Block):
        ...     def __init__(self, *, by: float = 1.0) -> None:
        ...         super().__init__(by=by)
        >>> Scale(by=2.0), Scale(**Scale(by=3.0).config)
        (Scale(by=2.0), Scale(by=3.0))
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self._config = config

    @property
    def config(self) -> dict[str, Any]:
        """A copy of the constructor's arguments."""
        return dict(self._config)

    def extra_repr(self) -> str:
        """Return the constructor's arguments as they are written in a call."""
        return ", ".join(f"{name}={value!r}" for name, value in self._config.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
