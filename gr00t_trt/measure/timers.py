"""Latency of callables: every sample is kept, rivals alternate on the same inputs, and doubt is said, not hidden.

Timers:
    cuda_event    a pair of events round each call on the current stream; the host waits once, after the last call.
                  A sample is the time on the GPU's clock from one event to the other, launch gaps included.
    python_timer  the host's monotonic clock, with the GPU drained before and after each call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import PlanError, unknown
from ..plans.schema import TIMERS
from ..record.numbers import digits
from ..record.samples import Samples

MINIMUM_FOR_VERDICT = 5


def resolve_timer(name: str, device: str | torch.device) -> tuple[str, str | None]:
    """The timer to use on a device, and a sentence when it is not the one asked for.

    Raises: PlanError for an unknown name.
    """
    if name not in TIMERS:
        raise unknown(PlanError, "benchmark.timer", name, TIMERS)
    if name == "cuda_event" and torch.device(device).type != "cuda":
        return "python_timer", f"cuda_event needs a CUDA device; {device} was timed with python_timer"
    return name, None


def measure_alternating(
    fns: Mapping[str, Callable[[], object]],
    *,
    timer: str = "cuda_event",
    warmup: int = 5,
    iterations: int = 10,
    max_seconds: float = math.inf,
    device: str | torch.device = "cuda:0",
) -> dict[str, Samples]:
    """Time rivals in turn, A B A B, so that clocks, caches and heat treat them alike.

    Args:
        fns: Name -> callable without arguments; to be comparable, all must hold the same inputs.
        warmup: Untimed rounds first, in the same order.
        iterations: Timed calls of each.
        max_seconds: No further round starts once this has passed; what was planned and left out is in `note`. One
            timed round always runs, and warm-up takes no more than half. A full-size model on a CPU needs it.
        device: Where the callables run.
    Returns: Name -> samples.
    Raises: PlanError for an unknown timer, fewer than one iteration or a negative warm-up. What a callable raises
        passes through.
    """
    if iterations < 1 or warmup < 0:
        raise PlanError(
            f"benchmark: {iterations} iterations after {warmup} warm-ups",
            known="at least 1 iteration, 0 warm-ups or more",
        )
    used, note = resolve_timer(timer, device)
    device = torch.device(device)
    began = time.perf_counter()
    warmed = 0
    while warmed < warmup and time.perf_counter() - began < max_seconds / 2:
        for fn in fns.values():
            fn()
        warmed += 1
    deadline = began + max_seconds
    take = _with_events if used == "cuda_event" else _with_clock
    taken = take(fns, iterations, device, deadline)
    rounds = len(next(iter(taken.values()), []))
    if fns and (warmed, rounds) != (warmup, iterations):
        cut = f"{rounds} of {iterations} iterations after {warmed} of {warmup} warm-ups: {max_seconds:g} s had passed"
        note = cut if note is None else f"{note}; {cut}"
    return {
        name: Samples(tuple(values), timer=used, warmup=warmed, device=str(device), note=note)
        for name, values in taken.items()
    }


def _with_events(
    fns: Mapping[str, Callable[[], object]], iterations: int, device: torch.device, deadline: float
) -> dict[str, list[float]]:
    with torch.cuda.device(device):
        pairs = {
            name: [
                (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(iterations)
            ]
            for name in fns
        }
        torch.cuda.synchronize(device)
        rounds = 0
        while rounds < iterations and (rounds == 0 or time.perf_counter() < deadline):
            for name, fn in fns.items():
                start, end = pairs[name][rounds]
                start.record()
                fn()
                end.record()
            rounds += 1
        torch.cuda.synchronize(device)
        return {name: [start.elapsed_time(end) for start, end in own[:rounds]] for name, own in pairs.items()}


def _with_clock(
    fns: Mapping[str, Callable[[], object]], iterations: int, device: torch.device, deadline: float
) -> dict[str, list[float]]:
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


@dataclass(frozen=True)
class Verdict:
    """Which of two rivals is faster, if the samples allow to say.

    Attributes:
        winner: Its name, or None.
        ratio: Median of the first over median of the second: above 1, the second is faster. None when the second's
            median cannot be told from zero.
        text: One sentence with both medians or the reason for having no winner.
    """

    winner: str | None
    ratio: float | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        return {"winner": self.winner, "ratio": self.ratio, "text": self.text}


def verdict(a: Samples, b: Samples, *, names: tuple[str, str] = ("eager", "compiled")) -> Verdict:
    """Compare two sets of samples of the same work.

    A winner is named only where the spreads, p10 to p90, do not touch: then at least nine in ten calls of the
    winner beat nine in ten of the other, which neither noise nor a drifting clock explains away.
    """
    first, second = names
    for name, own in zip(names, (a, b), strict=True):
        if len(own.samples) < MINIMUM_FOR_VERDICT:
            return Verdict(
                None,
                _ratio(a, b),
                f"no verdict: {len(own.samples)} samples of {name}, {MINIMUM_FOR_VERDICT} are needed",
            )
    if (a.timer, a.device) != (b.timer, b.device):
        return Verdict(
            None,
            None,
            f"no verdict: {first} was timed with {a.timer} on {a.device}, {second} with {b.timer} on {b.device}",
        )
    (a_low, a_high), (b_low, b_high) = a.spread, b.spread
    ratio = _ratio(a, b)
    if a_low <= b_high and b_low <= a_high:
        return Verdict(
            None,
            ratio,
            f"no winner: the spreads overlap ({first} {digits(a_low)} to {digits(a_high)} ms, "
            f"{second} {digits(b_low)} to {digits(b_high)} ms)",
        )
    fast, slow, quick, lame = (second, first, b, a) if b_high < a_low else (first, second, a, b)
    times = f"{lame.p50 / quick.p50:.2f}x" if quick.p50 > 0 else "much"
    return Verdict(
        fast, ratio, f"{fast} is {times} faster than {slow} (p50 {digits(quick.p50)} ms against {digits(lame.p50)} ms)"
    )


def _ratio(a: Samples, b: Samples) -> float | None:
    return a.p50 / b.p50 if b.p50 > 0 else None
