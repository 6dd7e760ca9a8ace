"""The time that a measuring run may take, and what is told of the rows for which it is too short."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class OutOfTime(BaseException):
    """The budget ended while a row was being measured. Not an Exception: compilers catch those and carry on."""


class Budget:
    """Seconds that may be spent, from now on, by a monotonic clock."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self.seconds = seconds
        self._clock = clock
        self._began = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._began

    @property
    def left(self) -> float:
        return self.seconds - self.spent

    def why_not(self, estimate_s: float) -> str | None:
        """Why something that should take `estimate_s` seconds must be left out; None when there is time for it."""
        if estimate_s <= self.left:
            return None
        return f"no time: about {estimate_s:.0f} s, and {max(self.left, 0):.0f} s of {self.seconds:.0f} s were left"

    def check(self) -> None:
        """Raises: OutOfTime where nothing is left."""
        if self.left <= 0:
            raise OutOfTime

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raise OutOfTime in the block when the budget ends, if estimates were too low.

        Once a second until the block is left: Python cannot raise out of a destructor or a compiler's callback. Only
        where signals can be handled: in the main thread, and where the system has interval timers.
        """
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
            yield
            return

        def end(*_: object) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, end)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(self.left, 0.001), 1.0)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
