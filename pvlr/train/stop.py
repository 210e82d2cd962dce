"""Being asked to stop: remembered at once, obeyed where nothing is half done."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ["Interrupted", "StopRequest"]

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to stop, and what it has done is saved.

    Attributes:
        signal_number: The signal that asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Remembers SIGINT and SIGTERM during a ``with`` block; a second one is not waited for.

    Outside of the main thread, where Python has no signals, it never fires.

    Args:
        patient: A second one is remembered as well. For processes started by torchrun, which passes on to each of them
            a signal that may have reached them before.

    Attributes:
        requested: The signal that has reached this process, None so far; it may come between any two lines.
        agreed: The signal that all processes of the run know of, as :meth:`~pvlr.train.distributed.World.together`
            found it: what decides whether to go on, since one that stopped alone would leave the others waiting.

    Example:
        >>> with StopRequest() as stop:
        ...     stop.requested is None
        True
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.requested: int | None = None
        self.agreed: int | None = None
        self._patient = patient
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def watch(self, items: Iterable[T], doing: str) -> Iterator[T]:
        """Pass items on until asked to stop.

        Args:
            items: Whatever is gone through while nothing needs saving.
            doing: What is interrupted, for the message.

        Raises:
            Interrupted: once asked to stop.
        """
        for item in items:
            if self.requested is not None:
                name = signal.Signals(self.requested).name
                raise Interrupted(f"{name} during {doing}; the training so far is saved", self.requested)
            yield item

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
