"""The control loop: sequential, or with inference overlapping execution.

Rows of a chunk are sent at a fixed rate. A chunk starts where its observation was taken: when actions were sent in
the meantime, that many rows of it are stale and skipped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..common.interface import Observation, refuse_non_finite
from .robots import Robot

Chunk = dict[str, np.ndarray]
Ask = Callable[[Observation], Chunk]
"""Observation -> action chunk, [T, D] per part."""

RECENT = 5
"""So many latencies are remembered to tell when the next answer must be asked for."""


class Clock:
    """The machine's own; tests bring another."""

    def now(self) -> float:
        """Seconds, monotonic."""
        return time.perf_counter()

    def sleep_until(self, when: float) -> None:
        time.sleep(max(0.0, when - self.now()))


@dataclass
class Trace:
    """What happened: times in seconds on the clock, durations in milliseconds.

    Attributes:
        sent: When each action was sent.
        observe_ms: Reading cameras and joints.
        inference_ms: From observation to chunk, resizing included.
        skipped_rows: Rows that were stale on arrival.
    """

    sent: list[float] = field(default_factory=list)
    observe_ms: list[float] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)
    skipped_rows: int = 0


class Loop:
    """One robot, one policy, one rate.

    Args:
        ask: Called from another thread when overlapped, from one at a time.
        horizon: Rows of a chunk that are executed before the next chunk is wanted.
        control_hz: Actions per second.
        progress: Called after each answer with the trace so far.
    """

    def __init__(
        self,
        robot: Robot,
        ask: Ask,
        *,
        horizon: int,
        control_hz: float,
        clock: Clock | None = None,
        progress: Callable[[Trace], None] = lambda trace: None,
    ):
        self.robot, self.ask, self.horizon, self.progress = robot, ask, horizon, progress
        self.period, self.clock = 1.0 / control_hz, clock or Clock()

    def synchronous(self, actions: int) -> Trace:
        """Observe, ask, send `horizon` rows, and again; the robot waits for every answer. Raises: Gr00tError."""
        trace = Trace()
        due = self.clock.now()
        while len(trace.sent) < actions:
            self.clock.sleep_until(due)  # the last row gets its time, too
            chunk = self._infer(self._observe(trace), trace)
            self.progress(trace)
            due = self.clock.now()
            for row in range(min(self.horizon, actions - len(trace.sent))):
                self.clock.sleep_until(due)
                due = self._send(chunk, row, due, trace)
        return trace

    def overlapped(self, actions: int) -> Trace:
        """Send rows without a pause while the next chunk is computed, and go over to it where it is not stale.

        The next answer is asked for so early that, after the longest of the last latencies, it is there when the
        horizon is reached. When it is late, the old chunk's further rows are sent, and when they are used up the
        robot holds its pose.

        Raises: Gr00tError.
        """
        trace = Trace()
        with ThreadPoolExecutor(1, thread_name_prefix="inference") as pool:
            chunk = self._infer(self._observe(trace), trace)
            self.progress(trace)
            row, due = 0, self.clock.now()
            pending: Future[Chunk] | None = None
            asked_at = 0
            while len(trace.sent) < actions:
                self.clock.sleep_until(due)
                if pending is not None and pending.done():
                    chunk, row = pending.result(), len(trace.sent) - asked_at
                    trace.skipped_rows += min(row, _rows(chunk))
                    pending = None
                    self.progress(trace)
                left = max(0, self.horizon - row)
                if pending is None and left <= self._ticks_ahead(trace) and left < actions - len(trace.sent):
                    asked_at = len(trace.sent)
                    pending = pool.submit(self._infer, self._observe(trace), trace)
                if row < _rows(chunk):
                    due = self._send(chunk, row, due, trace)
                    row += 1
                else:
                    due = self.clock.now() + self.period
        return trace

    def _ticks_ahead(self, trace: Trace) -> int:
        return math.ceil(max(trace.inference_ms[-RECENT:]) / 1e3 / self.period)

    def _observe(self, trace: Trace) -> Observation:
        began = self.clock.now()
        observation = self.robot.observe()
        trace.observe_ms.append((self.clock.now() - began) * 1e3)
        return observation

    def _infer(self, observation: Observation, trace: Trace) -> Chunk:
        began = self.clock.now()
        chunk = self.ask(observation)
        trace.inference_ms.append((self.clock.now() - began) * 1e3)
        refuse_non_finite(chunk, "the policy")
        return chunk

    def _send(self, chunk: Chunk, row: int, due: float, trace: Trace) -> float:
        """Send one row; returns when the next one is due, counted from now where this one was late."""
        self.robot.act({key: value[row] for key, value in chunk.items()})
        now = self.clock.now()
        trace.sent.append(now)
        return max(due, now - self.period) + self.period


def _rows(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))
