"""The one thread that runs the policy: takes waiting requests in turn, answers each, and survives all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..common.devices import side_stream
from ..common.interface import Observation
from ..errors import AccuracyError, Gr00tError
from ..measure.stages import StageTimer
from ..measure.timers import drain
from .batching import Batcher
from .fair_queue import FairQueue
from .metrics import Metrics
from .refusal import Refusal

QUEUE, TOTAL = "queue", "total"
"""Names of the two durations that are no stage of the policy: the wait, and all from arrival to answer."""

_LOOK_UP_S = 0.2
"""How soon a signal is noticed while no request comes: its handler only leaves a note, since it may interrupt
anything, a held lock included."""


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
        arrived: `time.monotonic()` when it came in.
    """

    client: Hashable
    observation: Observation
    finish: Callable[[Answer], None]
    arrived: float = field(default_factory=time.monotonic)


class PolicyWorker:
    """Runs a policy for many clients.

    Args:
        policy: Its `get_action(observation)` is called on the thread that calls `run`, and on no other.
        tables: Tables of stages that `StageTimer` takes, so that every answer can say where its time went.
        device: Where the policy computes.
        max_queue: Requests that may wait; see `FairQueue` for who has to go beyond it.
        request_timeout_s: A request that has waited this long is refused: its robot has moved on.
        batcher: Joins waiting requests; None answers each alone.
        max_batch: Most requests that share a pass.
        batch_wait_s: How long the first of them waits for the others.
        report: Told of errors that no request can be blamed for, for the operator to see.
    """

    def __init__(
        self,
        policy: Any,
        metrics: Metrics,
        *,
        tables: Sequence[MutableMapping[str, Callable[..., Any]]] = (),
        device: str | torch.device = "cpu",
        max_queue: int = 64,
        request_timeout_s: float = 15.0,
        batcher: Batcher | None = None,
        max_batch: int = 1,
        batch_wait_s: float = 0.0,
        report: Callable[[Exception], None] = lambda error: None,
    ):
        self._policy, self._metrics = policy, metrics
        self._device = torch.device(device)
        self._timer = StageTimer(tables, self._device)
        self._queue: FairQueue[Request] = FairQueue(max_queue)
        self._request_timeout_s = request_timeout_s
        self._batcher = batcher if max_batch > 1 else None
        self._max_batch, self._batch_wait_s = max_batch, batch_wait_s
        self._report = report
        self._stopping = False
        self._taken: list[Request] = []
        metrics.gauge("queue_length", "Requests that wait.", lambda: len(self._queue))
        metrics.gauge("in_flight", "Requests being answered.", lambda: len(self._taken))

    def submit(self, request: Request) -> None:
        """Have a request answered; from any thread. Its `finish` may be called before this returns."""
        rejected = self._queue.put(request.client, request)
        if rejected is not None:
            text = "the server is shutting down" if self._stopping else f"{len(self._queue)} requests wait already"
            rejected.finish(_unanswered(text))

    def stop(self) -> None:
        """Finish the request that runs, refuse those that wait, and let `run` return; from any thread or a signal."""
        self._stopping = True

    def run(self) -> None:
        """Answer requests until `stop`.

        Raises: Whatever the GPU says once it does not work any more; every request has been answered by then.
        """
        with ExitStack() as stack:
            stack.callback(self._refuse_all)
            stack.enter_context(side_stream(self._device))
            stack.enter_context(self._timer)
            while not self._stopping:
                request = self._queue.take(_LOOK_UP_S)
                if request is None:
                    continue
                self._taken = [request]
                form = self._form(request)
                if form is not None:
                    self._taken += self._queue.take_like(
                        lambda other, form=form: self._form(other) == form,  # type: ignore[misc]
                        self._max_batch - 1,
                        self._batch_wait_s,
                    )
                for request in list(self._taken):
                    self._refuse_expired(request)
                if self._taken:
                    self._answer(list(self._taken))

    def _form(self, request: Request) -> Hashable | None:
        # Here and not where it was received: a tokenizer is not to be used by two threads.
        return self._batcher.form(request.observation) if self._batcher is not None else None

    def _finish(self, request: Request, answer: Answer) -> None:
        self._taken.remove(request)
        request.finish(answer)

    def _refuse_all(self) -> None:
        self._stopping = True
        for request in [*self._taken, *self._queue.close()]:
            request.finish(_unanswered("the server is shutting down"))
        self._taken = []

    def _refuse_expired(self, request: Request) -> None:
        waited = time.monotonic() - request.arrived
        if waited > self._request_timeout_s:
            text = f"it waited {waited:.1f} s, longer than the {self._request_timeout_s:g} s allowed"
            self._finish(request, _unanswered(text))

    def _answer(self, requests: Sequence[Request]) -> None:
        began = time.monotonic()
        try:
            with self._timer.request():
                actions = self._actions(requests)
            stages = self._timer.pop()
            for action in actions:
                _check_finite(action)
        except Exception as error:  # whatever a request sets off, the next one finds the server alive
            if len(requests) > 1:  # one of them may be to blame, and the others shall not suffer for it
                for request in requests:
                    self._answer([request])
                return
            self._finish(requests[0], Answer(error=error))
            if not isinstance(error, Gr00tError):
                self._report(error)
                drain(self._device)  # raises where the error has spoilt the GPU for good: nothing can be answered then
            return
        done = time.monotonic()
        timings = [
            {QUEUE: (began - request.arrived) * 1e3, **stages, TOTAL: (done - request.arrived) * 1e3}
            for request in requests
        ]
        for request, action, own in zip(requests, actions, timings, strict=True):
            self._finish(request, Answer(action, timings_ms=own))
        for own in timings:  # no robot has to wait for this
            self._metrics.timings(own)

    def _actions(self, requests: Sequence[Request]) -> list[Mapping[str, np.ndarray]]:
        if self._batcher is None or len(requests) == 1:
            return [self._policy.get_action(requests[0].observation)]
        action = self._policy.get_action(self._batcher.join([request.observation for request in requests]))
        return [*self._batcher.part(action, len(requests))]


def _unanswered(why: str) -> Answer:
    return Answer(error=Refusal(f"not answered: {why}", http_status=503))


def _check_finite(action: Mapping[str, np.ndarray]) -> None:
    for key, value in action.items():
        if not np.isfinite(value).all():
            what = f"the policy computed {key} with a NaN or an infinity, and no robot shall see it"
            raise AccuracyError(what, fix="serve it with --precision bf16 or fp32: fp16 overflows above 65504")
