"""Where a request spends its time and memory: a clock round each named stage, and the peak while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import psutil
import torch

from .timers import Samples

TOTAL = "request"
REST = "between stages"


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
        self._current = request = _Request(self._mark())
        try:
            yield
            request.end = self._mark()
            self._requests.append(request)
        finally:
            self._current = None
            self._running.clear()

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            request = self._current
            if request is None:
                return call(*args, **kwargs)
            within = self._running[-1] if self._running else None
            self._running.append(name)
            start = self._mark()
            try:
                result = call(*args, **kwargs)
            finally:
                self._running.pop()
            request.calls.append((name, within, start, self._mark()))
            return result

        return timed

    def rows(self, warmup: int = 0) -> list[dict[str, Any]]:
        """One row per stage that ran, in order of first call, then what lies between stages, then the request.

        Args:
            warmup: Leading requests to leave out.
        Returns: Rows of `stage`, `within` (the stage that called it, or None), `calls_per_request` (a float when
            requests differ) and `latency_ms`: Samples, one per request, all calls of the stage in it added up.
            Empty without requests.
        """
        requests = self._requests[warmup:]
        if not requests:
            return []
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        order: dict[tuple[str, str | None], None] = {}
        for request in requests:
            order.update(dict.fromkeys((name, within) for name, within, _, _ in request.calls))
        totals = [self._elapsed(request.start, request.end) for request in requests]
        rest = list(totals)
        rows = []
        for key in order:
            sums, count = [], 0
            for i, request in enumerate(requests):
                own = [self._elapsed(a, b) for name, within, a, b in request.calls if (name, within) == key]
                sums.append(sum(own))
                count += len(own)
                if key[1] is None:
                    rest[i] -= sums[-1]
            calls = count / len(requests)
            rows.append(self._row(key[0], key[1], int(calls) if calls.is_integer() else calls, sums, warmup))
        rows.append(self._row(REST, None, None, rest, warmup))
        rows.append(self._row(TOTAL, None, 1, totals, warmup))
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
        rest = self._elapsed(last.start, last.end)
        for name, within, start, end in last.calls:
            took = self._elapsed(start, end)
            out[name] = out.get(name, 0.0) + took
            rest -= took if within is None else 0.0
        return {**out, REST: rest}

    def _row(
        self, stage: str, within: str | None, calls: float | None, values: list[float], warmup: int
    ) -> dict[str, Any]:
        timer = "cuda_event" if self._device.type == "cuda" else "python_timer"
        samples = Samples(tuple(values), timer=timer, warmup=warmup, device=str(self._device))
        return {"stage": stage, "within": within, "calls_per_request": calls, "latency_ms": samples}

    def _elapsed(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) if self._device.type == "cuda" else (end - start) * 1e3)


class PeakMemory:
    """The most memory in use while a `with` block ran; read the attributes after it. Blocks may be nested.

    On a GPU: PyTorch's allocator, which does not see what TensorRT allocates itself; `device_used_bytes` does, and
    also what other processes hold. On a CPU: this process's resident memory, sampled every few milliseconds, so a
    shorter peak can be missed.

    Attributes:
        kind: ``cuda allocator`` or ``process resident``.
        start_bytes: In use when the block began.
        peak_bytes: The most in use; None before the block ends.
        peak_reserved_bytes: The most that the allocator held; None on a CPU.
        device_used_bytes: Of the whole GPU, at the end of the block; None on a CPU.
    """

    INTERVAL_S = 0.005

    _open: ClassVar[list[PeakMemory]] = []  # the GPU's one counter serves all blocks that are inside one another

    def __init__(self, device: str | torch.device):
        self._device = torch.device(device)
        self.kind = "cuda allocator" if self._device.type == "cuda" else "process resident"
        self.start_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.peak_reserved_bytes: int | None = None
        self.device_used_bytes: int | None = None
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self._highest = self._highest_reserved = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            for outer in self._open:
                outer._keep_counted()
            torch.cuda.reset_peak_memory_stats(self._device)
            self.start_bytes = torch.cuda.memory_allocated(self._device)
            self._highest = self._highest_reserved = 0
            self._open.append(self)
        else:
            self._process = psutil.Process()
            self._stop.clear()
            self.start_bytes = self._highest = self._process.memory_info().rss
            self._sampler = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._open.remove(self)
            self._keep_counted()
            self.peak_bytes, self.peak_reserved_bytes = self._highest, self._highest_reserved
            free, total = torch.cuda.mem_get_info(self._device)
            self.device_used_bytes = total - free
            return
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
        self.peak_bytes = max(self._highest, self._process.memory_info().rss)

    def _keep_counted(self) -> None:
        self._highest = max(self._highest, torch.cuda.max_memory_allocated(self._device))
        self._highest_reserved = max(self._highest_reserved, torch.cuda.max_memory_reserved(self._device))

    @property
    def added_bytes(self) -> int | None:
        """The most in use beyond what was in use when the block began; None before it ends."""
        if self.peak_bytes is None or self.start_bytes is None:
            return None
        return max(0, self.peak_bytes - self.start_bytes)

    def _sample(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def to_dict(self) -> dict[str, Any]:
        """For the record's `peak_memory`."""
        return {
            "kind": self.kind,
            "start_bytes": self.start_bytes,
            "peak_bytes": self.peak_bytes,
            "peak_reserved_bytes": self.peak_reserved_bytes,
            "device_used_bytes": self.device_used_bytes,
        }
