"""Requests that wait, and what becomes of those that nobody can answer any more. Never imports torch."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..common.interface import Observation
from .fair_queue import FairQueue
from .metrics import Metrics
from .refusal import Refusal
from .robots import Robot

QUEUE, TOTAL = "queue", "total"
"""Names of the two durations that are no stage of the policy: the wait, and all from arrival to answer."""

SHUTTING_DOWN = "the server is shutting down"

LOOK_UP_S = 0.2
"""How soon a signal is noticed while no request comes: its handler only leaves a note, since it may interrupt
anything, a held lock included."""

_PASSES, _ENOUGH, _KNOWN_S = 16, 8, 10.0
"""No answer is quicker than the quickest of the last so many passes, if enough of them are younger than this."""


@dataclass(frozen=True)
class Answer:
    """What became of a request: actions or an error, and stage -> milliseconds."""

    action: Mapping[str, np.ndarray] | None = None
    error: Exception | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Request:
    """One request for actions.

    Attributes:
        client: Whoever it comes from; waiting requests are served in turn by client.
        finish: Called once with the answer, on any thread; must neither block nor raise.
        samples: Of the observation, 1 without a batch axis.
        timeout_s: How long its client waits; None where it does not say.
        gone: Whether its client is known to have gone.
        robot: The kind that asks; None for the first.
        seed: Of the starting noise. noise: float32 [samples, T, action_dim], the noise itself. Not both.
        arrived: `time.monotonic()` when it came in.
    """

    client: Hashable
    observation: Observation
    finish: Callable[[Answer], None]
    samples: int = 1
    timeout_s: float | None = None
    gone: Callable[[], bool] = lambda: False
    robot: Robot | None = None
    seed: int | None = None
    noise: np.ndarray | None = None
    arrived: float = field(default_factory=time.monotonic)

    @property
    def chosen_noise(self) -> bool:
        """Whether its action must not depend on what else is asked for."""
        return self.seed is not None or self.noise is not None


class Worker(ABC):
    """Answers requests: those that wait, in turn by client, and those that it has taken.

    Args:
        max_queue: Samples that may wait; see `FairQueue` for who has to go beyond it.
        request_timeout_s: A request that has waited this long is refused: its robot has moved on.
    """

    def __init__(self, metrics: Metrics, *, max_queue: int, request_timeout_s: float):
        self._metrics = metrics
        self._queue: FairQueue[Request] = FairQueue(max_queue)
        self.request_timeout_s = request_timeout_s
        self._stopping = False
        self._taken: list[Request] = []
        self._taking = threading.Lock()
        self._passes: deque[tuple[float, float]] = deque(maxlen=_PASSES)  # when each ended, and its seconds
        metrics.gauge("queue_length", "Samples that wait.", lambda: len(self._queue))
        metrics.gauge("in_flight", "Requests being answered.", lambda: len(self._taken))

    @property
    @abstractmethod
    def running_s(self) -> float:
        """For how long the oldest of the current requests has been computed; 0 where none is."""

    @abstractmethod
    def run(self) -> None:
        """Answer requests until `stop`."""

    def submit(self, request: Request) -> None:
        """Have a request answered; from any thread. Its `finish` may be called before this returns."""
        if len(self._queue) + request.samples > self._queue.limit:
            self._refuse_useless()
        for rejected in self._queue.put(request.client, request, request.samples):
            waiting = f"{len(self._queue)} requests wait already, each sample of a batch counted (--max_queue)"
            rejected.finish(unanswered(SHUTTING_DOWN if self._stopping else waiting))

    def stop(self) -> None:
        """Finish the request that runs, refuse those that wait, and let `run` return; from any thread or a signal."""
        self._stopping = True

    def refuse_waiting(self) -> None:
        """`stop`, and tell those that wait at once; from any thread, but not from a signal's handler."""
        self.stop()
        for request in self._queue.close():
            request.finish(unanswered(SHUTTING_DOWN))

    def refuse_running(self) -> None:
        """Tell those whose request is being computed that it ends without an answer; from any thread."""
        with self._taking:
            taken, self._taken = self._taken, []
        for request in taken:
            request.finish(unanswered(SHUTTING_DOWN))

    def _refuse_all(self) -> None:
        self._stopping = True
        self.refuse_running()
        self.refuse_waiting()

    def _refuse_useless(self) -> None:
        for dead in self._queue.sweep(lambda waiting: self._useless(waiting) is not None):
            dead.finish(unanswered(self._useless(dead) or "nobody waits for it"))

    def _refuse_useless_taken(self, taken: Sequence[Request]) -> None:
        for request in taken:
            if (why := self._useless(request)) is not None:
                self._finish(request, unanswered(why))

    def _useless(self, request: Request) -> str | None:
        """Why nobody wants the answer any more; None while somebody does."""
        if request.gone():
            return "its client has gone"
        waited = time.monotonic() - request.arrived
        if request.timeout_s is not None:
            if waited > request.timeout_s:
                return f"it waited {waited:.1f} s, longer than the {request.timeout_s:g} s that its client waits"
            if waited + (least := self._least_s()) > request.timeout_s:
                took = f"it waited {waited:.3f} s and takes {least:.3f} s at least"
                return f"{took}, longer than the {request.timeout_s:g} s that its client waits"
        if waited > self.request_timeout_s:
            return f"it waited {waited:.1f} s, longer than the {self.request_timeout_s:g} s allowed"
        return None

    def _least_s(self) -> float:
        """A lower bound of an answer's latency, so that none is begun that must be late; 0 where none is known."""
        since = time.monotonic() - _KNOWN_S
        recent = [seconds for ended, seconds in list(self._passes) if ended > since]
        return min(recent) if len(recent) >= _ENOUGH else 0.0

    def _finish(self, request: Request, answer: Answer) -> None:
        with self._taking:
            if request not in self._taken:  # told already that the server ends
                return
            self._taken.remove(request)
        request.finish(answer)


def unanswered(why: str) -> Answer:
    """A refusal of a request that nobody has looked at."""
    return Answer(error=Refusal(f"not answered: {why}", http_status=503))
