"""Stop requests by signal: stored at once, acted upon between steps."""

import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

__all__ = ["Interrupted", "StopRequest"]

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Error of a run that was stopped by a signal, after its state was saved.

    Attributes:
        signal_number: Number of the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopRequest:
    """Handler of SIGINT and SIGTERM during a ``with`` block: the first is stored, a second has its default effect.

    Outside of the main thread, where Python cannot handle signals, none is ever stored.

    Args:
        patient: Store a second signal as well. For ranks started by torchrun, which forwards to each of them a signal
            that they may have received before.

    Attributes:
        requested: The signal that this process has received, None so far; it may change between any two lines.
        agreed: The signal agreed upon by all ranks in :meth:`~pvlr.train.distributed.World.on_all_ranks`, None so far:
            the loop stops by it, since a rank that stopped alone would leave the others waiting.

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
            self._previous = {number: signal.signal(number, self._store) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def watch(self, items: Iterable[T], doing: str) -> Iterator[T]:
        """Yield items until a stop is requested.

        Args:
            items: The items, of work whose progress needs no saving.
            doing: Name of the work, for the message.

        Raises:
            Interrupted: once a stop is requested.
        """
        for item in items:
            if self.requested is not None:
                name = signal.Signals(self.requested).name
                raise Interrupted(f"{name} during {doing}; the training so far is saved", self.requested)
            yield item

    def _store(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        if not self._patient:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
