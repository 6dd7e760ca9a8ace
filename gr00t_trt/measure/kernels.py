"""What a GPU runs in one call, kernel by kernel, and when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..record.result import Kernel


@dataclass(frozen=True)
class Timeline:
    """The kernels of one call, those inside a CUDA graph included; copies and fills are none.

    Attributes:
        kernels: Launches of one name added up, the one that takes the most time first.
        first_ms, last_ms: When the first one started and the last one ended, from the first thing that the call did on
            the GPU or asked of it.
        gaps_ms: Between the two, the time in which no kernel ran. Kernels may overlap.
    """

    kernels: tuple[Kernel, ...]
    first_ms: float
    last_ms: float
    gaps_ms: float

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def kernel_ms(self) -> float:
        """All kernels added up."""
        return sum(kernel.ms for kernel in self.kernels)


def timeline(call: Callable[[], object]) -> Timeline | None:
    """What one call runs, after one that warms up. None without a GPU, or where the profiler sees no kernel."""
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return _told(list(seen.events() or ()))


def _told(events: list[Any]) -> Timeline | None:
    ran = [event for event in events if _is_kernel(event)]
    if not ran:
        return None
    launches: dict[str, int] = defaultdict(int)
    spent_us: dict[str, float] = defaultdict(float)
    for event in ran:
        launches[event.name] += 1
        spent_us[event.name] += event.time_range.elapsed_us()
    added = sorted((Kernel(name, n, spent_us[name] / 1e3) for name, n in launches.items()), key=lambda one: -one.ms)
    began = min(event.time_range.start for event in events if _is_on_gpu(event) or event.name.startswith("cu"))
    spans = sorted((event.time_range.start, event.time_range.end) for event in ran)
    first, last = spans[0][0], max(end for _, end in spans)
    return Timeline(tuple(added), (first - began) / 1e3, (last - began) / 1e3, _idle_us(spans) / 1e3)


def _is_on_gpu(event: Any) -> bool:
    """The others are calls of CUDA, whose names begin so, and the profiler's own work."""
    return bool(event.device_type == torch.autograd.DeviceType.CUDA)


def _is_kernel(event: Any) -> bool:
    return _is_on_gpu(event) and not event.name.startswith(("Memcpy", "Memset"))


def _idle_us(spans: Iterable[tuple[float, float]]) -> float:
    """The time that none of the spans, in order of their starts, covers."""
    idle, until = 0.0, None
    for start, end in spans:
        idle += 0.0 if until is None else max(0.0, start - until)
        until = end if until is None else max(until, end)
    return idle
