"""Where a request spends its time: a clock round each named stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..record.samples import Samples
from .timers import Marks, drain

TOTAL = "request"
REST = "between stages"


@dataclass(frozen=True)
class StageRow:
    """One stage over all timed requests.

    Attributes:
        within: The stage that called it, or None.
        calls_per_request: A float when requests differ.
        latency_ms: One sample per request, all calls of the stage in it added up.
    """

    stage: str
    within: str | None
    calls_per_request: float | None
    latency_ms: Samples


@dataclass
class _Request:
    """Marks of one request: (stage, stage that called it or None, start, end). Marks are events or seconds."""

    start: Any
    end: Any = None
    calls: list[tuple[str, str | None, Any, Any]] = field(default_factory=list)


class StageTimer:
    """Times the callables of a table of stages while requests run, and puts the originals back afterwards.

        with StageTimer((policy.stages, model.stages), device) as timer:
            for _ in range(iterations):
                with timer.request():
                    policy.get_action(observation)
        rows = timer.rows()

    Calls outside `request()` run untimed. A request that raises is dropped. On a GPU each call gets a pair of events
    on the current stream and nothing waits before `rows()`; on a CPU the monotonic clock is read.

    Args:
        tables: Each name -> callable; the entries are replaced for the duration of the `with` block. No name may
            stand in two tables.
        device: Where the stages run.
    """

    def __init__(self, tables: Sequence[MutableMapping[str, Callable[..., Any]]], device: str | torch.device):
        self._tables = tables
        self._device = torch.device(device)
        self._marks = Marks(device)
        self._replaced: list[tuple[dict[str, Callable[..., Any]], dict[str, Callable[..., Any]]]] = []
        self._running: list[str] = []
        self._current: _Request | None = None
        self._requests: list[_Request] = []

    def __enter__(self) -> StageTimer:
        for table in self._tables:
            originals = dict(table)
            wrappers = {name: self._timed(name, call) for name, call in originals.items()}
            table.update(wrappers)
            self._replaced.append((originals, wrappers))
        return self

    def __exit__(self, *_: object) -> None:
        for table, (originals, wrappers) in zip(self._tables, self._replaced, strict=True):
            for name, original in originals.items():
                # A stage swapped meanwhile is someone else's decision, and stays.
                if table.get(name) is wrappers[name]:
                    table[name] = original
        self._replaced.clear()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Everything called inside belongs to one request. Raises: RuntimeError when requests are nested."""
        if self._current is not None:
            raise RuntimeError("StageTimer: a request is already running")
        self._current = request = _Request(self._marks.mark())
        try:
            yield
            request.end = self._marks.mark()
            self._requests.append(request)
        finally:
            self._current = None
            self._running.clear()

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            request = self._current
            if request is None:
                return call(*args, **kwargs)
            within = self._running[-1] if self._running else None
            self._running.append(name)
            start = self._marks.mark()
            try:
                result = call(*args, **kwargs)
            finally:
                self._running.pop()
            request.calls.append((name, within, start, self._marks.mark()))
            return result

        return timed

    def rows(self, warmup: int = 0) -> list[StageRow]:
        """One row per stage that ran, in order of first call, then what lies between stages, then the request.

        Args:
            warmup: Leading requests to leave out.
        Returns: Empty without requests.
        """
        requests = self._requests[warmup:]
        if not requests:
            return []
        drain(self._device)
        order = dict.fromkeys((name, within) for request in requests for name, within, _, _ in request.calls)
        totals = [self._marks.ms(request.start, request.end) for request in requests]
        rest = list(totals)
        rows = []
        for key in order:
            sums, count = [], 0
            for i, request in enumerate(requests):
                own = [self._marks.ms(a, b) for name, within, a, b in request.calls if (name, within) == key]
                sums.append(sum(own))
                count += len(own)
                if key[1] is None:
                    rest[i] -= sums[-1]
            calls = count / len(requests)
            whole = int(calls) if calls.is_integer() else calls
            rows.append(StageRow(*key, whole, self._marks.samples(sums, warmup)))
        rows.append(StageRow(REST, None, None, self._marks.samples(rest, warmup)))
        rows.append(StageRow(TOTAL, None, 1, self._marks.samples(totals, warmup)))
        return rows

    def pop(self) -> dict[str, float]:
        """The last request, and forget all so far: stage -> milliseconds of all its calls, and of what lies between.

        The wait for a GPU is only for its last event, which follows the request's own copy back to the host.

        Returns: Nothing when the request raised.
        """
        requests, self._requests = self._requests, []
        if not requests:
            return {}
        last = requests[-1]
        if self._device.type == "cuda":
            last.end.synchronize()
        out: dict[str, float] = {}
        rest = self._marks.ms(last.start, last.end)
        for name, within, start, end in last.calls:
            took = self._marks.ms(start, end)
            out[name] = out.get(name, 0.0) + took
            rest -= took if within is None else 0.0
        return {**out, REST: rest}


def medians(rows: Sequence[StageRow]) -> dict[str, float]:
    """Stage -> p50 in ms, all its calls in a request added up, and what lies between stages; empty without rows.

    Of a stage that calls others, the plain model's backbone, these others are taken: they are what all models have. The
    rest of it lies between stages.
    """
    if not rows:
        return {}
    outer = {row.within for row in rows if row.within}
    out = {row.stage: row.latency_ms.p50 for row in rows if row.stage not in (*outer, TOTAL, REST)}
    total = next(row.latency_ms.p50 for row in rows if row.stage == TOTAL)
    return {**out, REST: max(total - sum(out.values()), 0.0)}


def loop_samples(rows: Sequence[StageRow], parts: Collection[str]) -> Samples | None:
    """The denoising steps of each timed request: everything that runs once per step, added up.

    Args:
        parts: The stages that a step consists of.
    """
    own = [row.latency_ms for row in rows if row.stage in parts]
    if not own:
        return None
    sums = tuple(sum(values) for values in zip(*(samples.samples for samples in own), strict=True))
    return replace(own[0], samples=sums)
