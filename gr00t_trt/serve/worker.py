"""The one thread that runs the policy: takes waiting requests in turn, answers each, and survives all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..common.devices import side_stream
from ..common.interface import Observation, refuse_non_finite
from ..errors import Gr00tError
from ..measure.stages import StageTimer
from ..measure.timers import drain
from .batching import Batcher
from .fair_queue import FairQueue
from .limits import Limits
from .metrics import Metrics
from .refusal import Refusal

QUEUE, TOTAL = "queue", "total"
"""Names of the two durations that are no stage of the policy: the wait, and all from arrival to answer."""

SHUTTING_DOWN = "the server is shutting down"

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
        samples: Of the observation, 1 without a batch axis.
        timeout_s: How long its client waits; None where it does not say.
        gone: Whether its client is known to have gone.
        seed: Of the starting noise. noise: float32 [samples, T, action_dim], the noise itself. Not both.
        arrived: `time.monotonic()` when it came in.
    """

    client: Hashable
    observation: Observation
    finish: Callable[[Answer], None]
    samples: int = 1
    timeout_s: float | None = None
    gone: Callable[[], bool] = lambda: False
    seed: int | None = None
    noise: np.ndarray | None = None
    arrived: float = field(default_factory=time.monotonic)

    @property
    def chosen_noise(self) -> bool:
        """Whether its action must not depend on what else is asked for."""
        return self.seed is not None or self.noise is not None


class PolicyWorker:
    """Runs a policy for many clients.

    Args:
        policy: Its `get_action(observation)` is called on the thread that calls `run`, and on no other; with
            ``noise=`` float32 [B, T, action_dim] on `device` for a request that brings some.
        tables: Tables of stages that `StageTimer` takes, so that every answer can say where its time went.
        device: Where the policy computes.
        limits: Prompts beyond them are refused; None for no limits.
        max_queue: Samples that may wait; see `FairQueue` for who has to go beyond it.
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
        limits: Limits | None = None,
        max_queue: int = 64,
        request_timeout_s: float = 15.0,
        batcher: Batcher | None = None,
        max_batch: int = 1,
        batch_wait_s: float = 0.0,
        report: Callable[[Exception], None] = lambda error: None,
    ):
        self._policy, self._metrics, self._limits = policy, metrics, limits
        self._device = torch.device(device)
        self._timer = StageTimer(tables, self._device)
        self._queue: FairQueue[Request] = FairQueue(max_queue)
        self.request_timeout_s = request_timeout_s
        self._batcher = batcher if max_batch > 1 else None
        self._max_batch, self._batch_wait_s = max_batch, batch_wait_s
        self._report = report
        self._stopping = False
        self._taken: list[Request] = []
        self._taking = threading.Lock()
        self._began: float | None = None
        metrics.gauge("queue_length", "Samples that wait.", lambda: len(self._queue))
        metrics.gauge("in_flight", "Requests being answered.", lambda: len(self._taken))

    def submit(self, request: Request) -> None:
        """Have a request answered; from any thread. Its `finish` may be called before this returns."""
        if len(self._queue) + request.samples > self._queue.limit:
            for dead in self._queue.sweep(lambda waiting: self._useless(waiting) is not None):
                dead.finish(_unanswered(self._useless(dead) or "nobody waits for it"))
        for rejected in self._queue.put(request.client, request, request.samples):
            waiting = f"{len(self._queue)} requests wait already, each sample of a batch counted (--max_queue)"
            rejected.finish(_unanswered(SHUTTING_DOWN if self._stopping else waiting))

    @property
    def running_s(self) -> float:
        """For how long the current request has been computed; 0 where none is."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def stop(self) -> None:
        """Finish the request that runs, refuse those that wait, and let `run` return; from any thread or a signal."""
        self._stopping = True

    def refuse_waiting(self) -> None:
        """`stop`, and tell those that wait at once; from any thread, but not from a signal's handler."""
        self.stop()
        for request in self._queue.close():
            request.finish(_unanswered(SHUTTING_DOWN))

    def refuse_running(self) -> None:
        """Tell those whose request is being computed that it ends without an answer; from any thread."""
        with self._taking:
            taken, self._taken = self._taken, []
        for request in taken:
            request.finish(_unanswered(SHUTTING_DOWN))

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
                if request is not None:
                    self._serve(request)

    def _serve(self, request: Request) -> None:
        self._taken = [request]
        form = self._form(request)
        if form is not None:
            self._taken += self._queue.take_like(
                lambda other: self._form(other) == form, self._max_batch - 1, self._batch_wait_s
            )
        for each in list(self._taken):
            why = self._useless(each)
            if why is not None:
                self._finish(each, _unanswered(why))
        if self._taken:
            self._answer(list(self._taken))

    def _form(self, request: Request) -> Hashable | None:
        # Here and not where it was received: a tokenizer is not to be used by two threads. Alone in its pass, a request
        # whose noise was chosen gets the same bits every time.
        alone = self._batcher is None or request.chosen_noise
        return None if alone else self._batcher.form(request.observation)  # type: ignore[union-attr]

    def _useless(self, request: Request) -> str | None:
        """Why nobody wants the answer any more; None while somebody does."""
        if request.gone():
            return "its client has gone"
        waited = time.monotonic() - request.arrived
        if request.timeout_s is not None and waited > request.timeout_s:
            return f"it waited {waited:.1f} s, longer than the {request.timeout_s:g} s that its client waits"
        if waited > self.request_timeout_s:
            return f"it waited {waited:.1f} s, longer than the {self.request_timeout_s:g} s allowed"
        return None

    def _finish(self, request: Request, answer: Answer) -> None:
        with self._taking:
            if request not in self._taken:  # told already that the server ends
                return
            self._taken.remove(request)
        request.finish(answer)

    def _refuse_all(self) -> None:
        self._stopping = True
        self.refuse_running()
        self.refuse_waiting()

    def _answer(self, requests: Sequence[Request]) -> None:
        self._began = began = time.monotonic()
        try:
            with self._timer.request():
                actions = self._actions(requests)
            stages = self._timer.pop()
            for action in actions:
                refuse_non_finite(action, "the policy")
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
        finally:
            self._began = None
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
        if self._limits is not None:
            for request in requests:
                self._limits.check_length(request.observation)
        if self._batcher is None or len(requests) == 1:
            return [self._policy.get_action(requests[0].observation, **self._noise(requests[0]))]
        action = self._policy.get_action(self._batcher.join([request.observation for request in requests]))
        return [*self._batcher.part(action, len(requests))]

    def _noise(self, request: Request) -> dict[str, torch.Tensor]:
        if request.noise is not None:
            return {"noise": torch.from_numpy(request.noise).to(self._device)}
        if request.seed is None or self._limits is None or self._limits.noise_shape is None:
            return {}
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        generator = torch.Generator().manual_seed(request.seed)
        noise = torch.randn((request.samples, *self._limits.noise_shape), generator=generator)
        return {"noise": noise.to(self._device)}


def _unanswered(why: str) -> Answer:
    return Answer(error=Refusal(f"not answered: {why}", http_status=503))
