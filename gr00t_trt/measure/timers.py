"""Latency of callables: every sample is kept, and candidates are interleaved on the same inputs, A B A B.

Timers:
    cuda_event    a pair of events round each call on the current stream; the host waits once, after the last call of a
                  round of calls. A sample is the time on the GPU's clock from one event to the other, gaps included.
                  What the host does before the first kernel counts only where the GPU has nothing else to do: see
                  `from_idle`.
    python_timer  the host's monotonic clock, with the GPU drained before and after each call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from ..errors import PlanError
from ..plans.resolve import resolve_timer
from ..record.samples import Samples

FEWEST, MOST = 10, 100
"""Timed calls of each candidate where their number is left to the stopping rule."""
PRECISE = 0.02
"""Half the 95 % confidence interval of a median over the median, from which on further calls would tell little."""

CALLS_TO_ESTIMATE = 5
"""Calls after which it is known how long one takes, and so how many of them a row can have."""

Calls = Mapping[str, Callable[[], object]]


def measure_alternating(
    fns: Calls,
    *,
    timer: str = "cuda_event",
    warmup: int = 5,
    iterations: int | None = None,
    max_seconds: float = math.inf,
    device: str | torch.device = "cuda:0",
    from_idle: bool = False,
) -> dict[str, Samples]:
    """Time candidates interleaved, so that clocks, caches and heat treat them alike.

    Args:
        fns: Name -> callable without arguments; to be comparable, all must hold the same inputs.
        warmup: Untimed rounds first, in the same order.
        iterations: Timed calls of each; None goes on until every median is known to `PRECISE`, within `FEWEST` to
            `MOST` calls.
        max_seconds: No further round starts once this has passed; what was planned and left out is in `note`. One
            timed round always runs, and warm-up takes no more than half. A full-size model on a CPU needs it.
        device: Where the callables run.
        from_idle: The host waits before each call too, so that a call finds an idle GPU, as a robot's does.
    Returns: Name -> samples.
    Raises: PlanError for an unknown timer, fewer than one iteration or a negative warm-up. What a callable raises
        passes through.
    """
    if (iterations is not None and iterations < 1) or warmup < 0:
        what = f"benchmark: {iterations} iterations after {warmup} warm-ups"
        raise PlanError(what, known="at least 1 iteration, 0 warm-ups or more")
    used, note = resolve_timer(timer, str(device))
    device = torch.device(device)
    began = time.perf_counter()
    warmed = 0
    while warmed < warmup and time.perf_counter() - began < max_seconds / 2:
        for fn in fns.values():
            fn()
        warmed += 1
    deadline = began + max_seconds
    take = partial(_with_events, from_idle=from_idle) if used == "cuda_event" else _with_clock
    taken: dict[str, list[float]] = {name: [] for name in fns}
    wanted, most = iterations or FEWEST, iterations or MOST
    while True:
        for name, values in take(fns, wanted, device, deadline).items():
            taken[name] += values
        rounds = len(next(iter(taken.values()), []))
        if rounds >= most or time.perf_counter() >= deadline or not fns or _precise(taken):
            break
        wanted = min(rounds, most - rounds)
    if fns and (warmed < warmup or rounds < (iterations or FEWEST)):
        planned = iterations if iterations is not None else f"at least {FEWEST}"
        cut = f"{rounds} of {planned} iterations after {warmed} of {warmup} warm-ups: {max_seconds:g} s had passed"
        note = cut if note is None else f"{note}; {cut}"
    return {
        name: Samples(tuple(values), timer=used, warmup=warmed, device=str(device), note=note)
        for name, values in taken.items()
    }


def _precise(taken: Mapping[str, list[float]]) -> bool:
    """Whether every median is known well enough."""
    uncertain = [Samples(tuple(values)).median_uncertainty for values in taken.values()]
    return all(value is not None and value <= PRECISE for value in uncertain)


def _with_events(
    fns: Calls, iterations: int, device: torch.device, deadline: float, *, from_idle: bool
) -> dict[str, list[float]]:
    with torch.cuda.device(device):
        event = partial(torch.cuda.Event, enable_timing=True)
        pairs = {name: [(event(), event()) for _ in range(iterations)] for name in fns}
        torch.cuda.synchronize(device)
        rounds = 0
        while rounds < iterations and (rounds == 0 or time.perf_counter() < deadline):
            for name, fn in fns.items():
                start, end = pairs[name][rounds]
                if from_idle:
                    torch.cuda.synchronize(device)
                start.record()
                fn()
                end.record()
            rounds += 1
        torch.cuda.synchronize(device)
        return {name: [start.elapsed_time(end) for start, end in own[:rounds]] for name, own in pairs.items()}


def _with_clock(fns: Calls, iterations: int, device: torch.device, deadline: float) -> dict[str, list[float]]:
    out: dict[str, list[float]] = {name: [] for name in fns}
    for rounds in range(iterations):
        if rounds and time.perf_counter() >= deadline:
            break
        for name, fn in fns.items():
            drain(device)
            start = time.perf_counter()
            fn()
            drain(device)
            out[name].append((time.perf_counter() - start) * 1e3)
    return out


def drain(device: torch.device) -> None:
    """Wait until the GPU has nothing left to do; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Marks:
    """Points in time: events on the current stream of a GPU, else the host's clock."""

    def __init__(self, device: str | torch.device):
        self._device = torch.device(device)
        self.timer = "cuda_event" if self._device.type == "cuda" else "python_timer"

    def mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks; of a GPU, once the host has waited for the second."""
        return float(start.elapsed_time(end) if self._device.type == "cuda" else (end - start) * 1e3)

    def samples(self, values_ms: Iterable[float], warmup: int = 0) -> Samples:
        """Milliseconds between marks, as latencies."""
        return Samples(tuple(values_ms), self.timer, warmup, str(self._device))


def back_to_back(call: Callable[[], object], count: int, device: torch.device) -> Samples:
    """Latencies of calls that follow one another without the host in between, after one that is not timed."""
    marks = Marks(device)
    call()
    points = [marks.mark()]
    for _ in range(count):
        call()
        points.append(marks.mark())
    drain(device)
    return marks.samples((marks.ms(*pair) for pair in pairwise(points)), warmup=1)


def host_adds_us(device: torch.device, count: int = 1000) -> float:
    """Microseconds in which the host launches `count` additions of one number; it waits for none of them."""
    x = torch.zeros(1, device=device)
    for _ in range(2):  # the first ones load the kernel
        drain(device)
        start = time.perf_counter()
        for _ in range(count):
            x.add_(1.0)
        spent = time.perf_counter() - start
    return spent * 1e6


def typical_seconds(call: Callable[[], object], device: torch.device, *, slow_s: float = 1.0) -> float:
    """How long a call takes once what it needs is there: the first ones on a GPU load libraries, for seconds.

    Args:
        slow_s: Two calls that take longer are enough; one that is slow by itself is hardly slower for being the first.
    """
    fastest = math.inf
    for number in range(CALLS_TO_ESTIMATE):
        start = time.perf_counter()
        call()
        drain(device)
        fastest = min(fastest, time.perf_counter() - start)
        if number and fastest > slow_s:
            break
    return fastest
