"""Progress: a live line on a terminal, one plain line per step in a log."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

SLOW_S = 2.0
"""Seconds from which a step's duration is worth a line of its own."""


_interrupted = threading.Event()


@contextmanager
def handling_signals(handler: Callable[..., None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM call `handler` while the block runs, in the main thread: elsewhere they cannot be handled."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, and again at the next step if the first one was swallowed.

    It is when it arrives inside a compiler's callback or a destructor: Python cannot raise out of those.
    """

    def interrupt(*_: object) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    try:
        with handling_signals(interrupt):
            yield
    finally:
        _interrupted.clear()


class Steps:
    """Receives each step as it begins; see `progress`."""

    def __init__(self, console: Console, live: Progress | None):
        self._console, self._live, self._text = console, live, ""
        self._task: TaskID | None = None
        self._began = self._said = time.monotonic()

    def step(self, text: str) -> None:
        """A new step begins, and the one before is done. Raises: KeyboardInterrupt after a swallowed one."""
        if _interrupted.is_set():
            raise KeyboardInterrupt
        self._finish()
        self._text = text
        self._began = self._said = time.monotonic()
        if self._live is None:
            self._print(text)
        else:
            self._task = self._live.add_task(text, total=None)

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` parts of the current step are finished; a log hears of it every few seconds at most."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total)
        elif self._live is None and time.monotonic() - self._said >= SLOW_S:
            self._said = time.monotonic()
            self._print(f"{self._text}: {done} of {total}")

    def _finish(self) -> None:
        elapsed = time.monotonic() - self._began
        if self._text and elapsed >= SLOW_S:
            self._print(f"{self._text}: {elapsed:.1f} s")
        if self._live is not None and self._task is not None:
            self._live.remove_task(self._task)
        self._task, self._text = None, ""

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(console: Console) -> Iterator[Steps]:
    """Show steps while the block runs: spinner, text and elapsed time on a terminal, plain lines elsewhere."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn())
    live = Progress(*columns, console=console, transient=True) if console.is_terminal else None
    with live or nullcontext():
        steps = Steps(console, live)
        yield steps
        steps._finish()
