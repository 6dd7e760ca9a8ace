"""Replays of a candidate's graph, apart from what the host does round them; and its stages as graphs of their own."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..compile import capture
from ..errors import BackendError
from ..model.n1_5.fast.captured import Capturer, Graph
from ..model.n1_5.fast.graphs import WARM_CALLS
from ..record.result import StageReplay
from ..record.samples import Samples
from .timers import Marks, back_to_back, drain


class WatchedCapturer:
    """Captures as another does, and knows which of its graphs was replayed last, and when the host had launched it.

    Attributes:
        launched_s: By `time.perf_counter`, when the last `replay()` returned; None before the first.
    """

    def __init__(self, capturer: Capturer, device: torch.device):
        self._capturer, self._marks = capturer, Marks(device)
        self._last: weakref.ref[_WatchedGraph] | None = None
        self._spans: list[tuple[Any, Any]] | None = None
        self.launched_s: float | None = None

    def scope(self) -> AbstractContextManager[None]:
        return self._capturer.scope()

    def turn(self) -> AbstractContextManager[None]:
        return self._capturer.turn()

    def capture(self, call: Callable[[], Tensor]) -> _WatchedGraph:
        return _WatchedGraph(self._capturer.capture(call), self)

    def replay(self, graph: _WatchedGraph) -> None:
        """Replay one of its graphs."""
        self._last = weakref.ref(graph)
        start = None if self._spans is None else self._marks.mark()
        graph.inner.replay()
        self.launched_s = time.perf_counter()
        if self._spans is not None:
            self._spans.append((start, self._marks.mark()))

    @contextmanager
    def spans(self) -> Iterator[list[tuple[Any, Any]]]:
        """A pair of marks for every replay in the block, right before and after it."""
        self._spans = []
        try:
            yield self._spans
        finally:
            self._spans = None

    def around_replay(self, call: Callable[[], object], count: int, device: torch.device) -> Samples:
        """The time on the GPU's clock right round `replay()` within calls, each on an idle GPU."""
        with self.spans() as spans:
            for _ in range(count):
                drain(device)
                call()
            drain(device)
        return self._marks.samples(self._marks.ms(*span) for span in spans)

    def back_to_back(self, call: Callable[[], object], count: int, device: torch.device) -> Samples:
        """Replays of the graph that a call uses, without the host in between. Raises: BackendError if it uses none."""
        self._last = None
        call()
        graph = self._last() if self._last is not None else None
        if graph is None:
            raise BackendError("the call was answered without its graph", fix="capture its request first")
        with self.scope():
            return back_to_back(graph.inner.replay, count, device)


class _WatchedGraph:
    def __init__(self, inner: Graph, owner: WatchedCapturer):
        self.inner, self._owner = inner, owner

    @property
    def output(self) -> Tensor:
        return self.inner.output

    def replay(self) -> None:
        self._owner.replay(self)


def launching(call: Callable[[], object], watched: WatchedCapturer | None, taken: list[float]) -> Callable[[], object]:
    """The same call, which appends the microseconds until its graph, or without one all of it, was launched."""

    def timed() -> object:
        if watched is not None:
            watched.launched_s = None
        start = time.perf_counter()
        result = call()
        launched = watched.launched_s if watched is not None and watched.launched_s else time.perf_counter()
        taken.append((launched - start) * 1e6)
        return result

    return timed


StageCalls = Mapping[str, list[tuple[Tensor, ...]]]
"""Stage -> the arguments of each of its calls in one request, in the order of the first calls."""


def recorded(table: Mapping[str, Callable[..., Tensor]]) -> tuple[dict[str, Callable[..., Tensor]], StageCalls]:
    """A table of stages that notes all arguments, and what it has noted.

    The very tensors: a copy of one may have other strides, and a compiler would take it for another shape.
    """
    noted: dict[str, list[tuple[Tensor, ...]]] = {}

    def noting(name: str, stage: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            noted.setdefault(name, []).append(args)
            return stage(*args)

        return call

    return {name: noting(name, stage) for name, stage in table.items()}, noted


@torch.no_grad()
def split_graphs(
    table: Mapping[str, Callable[..., Tensor]], calls: StageCalls, count: int, device: torch.device
) -> tuple[StageReplay, ...]:
    """Every stage as a graph of its own, all its calls of one request in it, replayed back to back.

    Raises: BackendError where nothing can be captured; what stands in the way of a capture passes through.
    """
    capturer = capture.capturer_for(device)
    if capturer is None:
        raise BackendError("stages as graphs: the model is not on a GPU", fix="measure on a GPU")
    out = []
    for name, given in calls.items():

        def run(stage: Callable[..., Tensor] = table[name], given: list[tuple[Tensor, ...]] = given) -> Tensor:
            results = [stage(*args) for args in given]
            return results[-1]

        with capturer.scope():
            for _ in range(WARM_CALLS):
                run()
            graph = capturer.capture(run)
            out.append(StageReplay(name, len(given), back_to_back(graph.replay, count, device)))
    return tuple(out)


def joined(first: Samples, second: Samples) -> Samples:
    """The samples of two runs of the same thing."""
    return replace(first, samples=first.samples + second.samples)
