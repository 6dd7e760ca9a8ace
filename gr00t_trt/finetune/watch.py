"""How a training is getting on: one live line on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

EVERY_S = 10.0
"""Between two lines of a log."""


@dataclass(frozen=True)
class Taken:
    """One optimizer step.

    Attributes:
        number: Steps done with it. loss, norm: Of it; the gradients' before clipping. rate: The learning rate.
        samples: In the batch of all processes. seconds: From the end of the step before. wait_s: Of them, for data.
    """

    number: int
    loss: float
    norm: float
    rate: float
    samples: int
    seconds: float
    wait_s: float


class Watch:
    """Receives every step; see `watching`."""

    def __init__(self, console: Console, live: Progress | None, begin: int, end: int):
        self._console, self._live, self._begin, self._end = console, live, begin, end
        self._task = live.add_task("", total=end - begin) if live is not None else None
        self._window: list[Taken] = []
        self._said = time.monotonic()

    def taken(self, step: Taken) -> None:
        """A step is done."""
        self._window.append(step)
        now = time.monotonic()
        last = step.number == self._end
        if self._live is not None and self._task is not None:
            self._window = self._window[-20:]
            self._live.update(self._task, description=self._words(), completed=step.number - self._begin)
        elif now - self._said >= EVERY_S or last or step.number == self._begin + 1:
            self._console.print(self._words(), markup=False, highlight=False, soft_wrap=True)
            self._window, self._said = [], now

    def _words(self) -> str:
        last, seconds = self._window[-1], sum(step.seconds for step in self._window)
        loss = sum(step.loss for step in self._window) / len(self._window)
        speed = sum(step.samples for step in self._window) / max(seconds, 1e-9)
        waited = sum(step.wait_s for step in self._window) / max(seconds, 1e-9)
        left = clock((self._end - last.number) * seconds / len(self._window))
        done = f"step {last.number} of {self._end}"
        return f"{done}: loss {loss:.4f}, {speed:.3g} samples/s, {waited:.0%} waiting for data, {left} left"


def clock(seconds: float) -> str:
    """``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def watching(console: Console, begin: int, end: int) -> Iterator[Watch]:
    """Show steps `begin` to `end` while the block runs."""
    columns = (SpinnerColumn(), BarColumn(20), TextColumn("{task.description}", markup=False))
    live = Progress(*columns, console=console, transient=True) if console.is_terminal else None
    with live or nullcontext():
        yield Watch(console, live, begin, end)
