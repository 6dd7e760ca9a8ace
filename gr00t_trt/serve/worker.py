"""The one thread that runs the policy: takes waiting requests in turn, answers each, and survives all of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import torch

from ..common.devices import side_stream
from ..common.interface import refuse_non_finite
from ..errors import Gr00tError, ServiceError
from ..measure.stages import StageTimer
from ..measure.timers import drain
from .batching import Batcher
from .limits import Limits
from .metrics import Metrics
from .mixed import mixed_actions
from .robots import Robot
from .waiting import LOOK_UP_S, QUEUE, SHUTTING_DOWN, TOTAL, Answer, Request, Worker

T = TypeVar("T")


class PolicyWorker(Worker):
    """Runs a policy for many clients.

    Args:
        policy: Its `get_action(observation)` is called on the thread that calls `run`, and on no other; with
            ``noise=`` float32 [B, T, action_dim] on `device` for a request that brings some.
        tables: Tables of stages that `StageTimer` takes, so that every answer can say where its time went.
        device: Where the policy computes.
        limits: Prompts beyond them are refused; None for no limits.
        max_queue, request_timeout_s: As for `Worker`.
        batcher: Joins waiting requests; None answers each alone.
        several: Whether requests may name other kinds of robots, whose policies share the model.
        max_batch: Most requests that share a pass. What waits when the device becomes free is taken together.
        buckets: Of how many requests such a pass may be, 1 among them: the largest that wait are taken. None: any.
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
        several: bool = False,
        max_batch: int = 1,
        buckets: Sequence[int] | None = None,
        batch_wait_s: float = 0.0,
        report: Callable[[Exception], None] = lambda error: None,
    ):
        super().__init__(metrics, max_queue=max_queue, request_timeout_s=request_timeout_s)
        self._first = Robot({}, limits, policy, batcher)
        self._several = several
        self._device = torch.device(device)
        self._timer = StageTimer(tables, self._device)
        self._joins = max_batch > 1 and batcher is not None
        self._more = [size - 1 for size in buckets or range(1, max_batch + 1) if size <= max_batch]
        self._batch_wait_s = batch_wait_s
        self._report = report
        self._began: float | None = None
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    @property
    def running_s(self) -> float:
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def run(self) -> None:
        """Answer requests until `stop`.

        Raises: Whatever the GPU says once it does not work any more; every request has been answered by then.
        """
        with ExitStack() as stack:
            stack.callback(self._refuse_jobs)  # last: after this nobody adds one
            stack.callback(self._refuse_all)
            stack.enter_context(side_stream(self._device))
            while not self._stopping:
                with self._timer:
                    while not self._stopping and not self._jobs:
                        if (request := self._queue.take(LOOK_UP_S)) is not None:
                            self._serve(request)
                self._do_jobs()

    def between(self, job: Callable[[], T]) -> T:
        """Do something with the policy between two requests, which wait meanwhile; from any other thread.

        Raises: Whatever `job` raises; ServiceError where the server ends first.
        """
        done: Future[T] = Future()
        self._jobs.append((job, done))
        if self._stopping:
            self._refuse_jobs()
        return done.result()

    def _do_jobs(self) -> None:
        """Here and not inside the timer: what it has put into the policy's tables is not there meanwhile."""
        while self._jobs and not self._stopping:
            job, done = self._jobs.popleft()
            self._began = time.monotonic()
            try:
                done.set_result(job())
            except Exception as error:  # whatever a job sets off, the next request finds the server alive
                done.set_exception(error)
            finally:
                self._began = None

    def _refuse_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()[1].set_exception(ServiceError(SHUTTING_DOWN))

    def _serve(self, request: Request) -> None:
        self._taken = [request]
        self._refuse_useless_taken([request])
        form = self._form(request) if self._taken else None
        if form is not None:
            self._refuse_useless()  # first: what is taken is to be a whole bucket still
            self._taken += self._queue.take_like(
                lambda other: self._form(other) == form, self._more, self._batch_wait_s
            )
            self._refuse_useless_taken(list(self._taken))
        if self._taken:
            self._answer(list(self._taken))

    def _form(self, request: Request) -> Hashable | None:
        # Here and not where it was received: a tokenizer is not to be used by two threads. Alone in its pass, a request
        # whose noise was chosen gets the same bits every time.
        batcher = self._robot(request).batcher
        if not self._joins or request.chosen_noise or batcher is None:
            return None
        return (batcher.shared_form if self._several else batcher.form)(request.observation)

    def _robot(self, request: Request) -> Robot:
        return request.robot or self._first

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
        if len(requests) == 1:  # a batch takes longer, and is more than what any of them needs
            self._passes.append((done, done - began))
        timings = [
            {QUEUE: (began - request.arrived) * 1e3, **stages, TOTAL: (done - request.arrived) * 1e3}
            for request in requests
        ]
        for request, action, own in zip(requests, actions, timings, strict=True):
            self._finish(request, Answer(action, timings_ms=own))
        for own in timings:  # no robot has to wait for this
            self._metrics.timings(own)

    def _actions(self, requests: Sequence[Request]) -> list[Mapping[str, np.ndarray]]:
        for request in requests:
            if (limits := self._robot(request).limits) is not None:
                limits.check_length(request.observation)
        if len(requests) == 1:
            return [self._robot(requests[0]).policy.get_action(requests[0].observation, **self._noise(requests[0]))]
        parts = self._parts(requests)
        if len(parts) == 1:
            ((robot, own),) = parts
            assert robot.batcher is not None
            action = robot.policy.get_action(robot.batcher.join([request.observation for request in own]))
            return [*robot.batcher.part(action, len(own))]
        actions = mixed_actions([(robot, [request.observation for request in own]) for robot, own in parts])
        of = dict(zip([id(request) for _, own in parts for request in own], actions, strict=True))
        return [of[id(request)] for request in requests]

    def _parts(self, requests: Sequence[Request]) -> list[tuple[Robot, list[Request]]]:
        """Those of one kind and form together, since their observations can be stacked."""
        found: dict[Hashable, tuple[Robot, list[Request]]] = {}
        for request in requests:
            robot = self._robot(request)
            assert robot.batcher is not None
            form = robot.batcher.form(request.observation) if self._several else None
            found.setdefault((id(robot), form), (robot, []))[1].append(request)
        return list(found.values())

    def _noise(self, request: Request) -> dict[str, torch.Tensor]:
        if request.noise is not None:
            return {"noise": torch.from_numpy(request.noise).to(self._device)}
        limits = self._robot(request).limits
        if request.seed is None or limits is None or limits.noise_shape is None:
            return {}
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        generator = torch.Generator().manual_seed(request.seed)
        noise = torch.randn((request.samples, *limits.noise_shape), generator=generator)
        return {"noise": noise.to(self._device)}
