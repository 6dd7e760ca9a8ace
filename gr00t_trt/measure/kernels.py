"""What a GPU runs in one call, kernel by kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

SHOWN = 12


@dataclass(frozen=True)
class Kernel:
    """All launches of one kernel within a call.

    Attributes:
        ms: Of all of them together, on the GPU's clock, without what lies between them.
    """

    name: str
    launches: int
    ms: float


def kernels(call: Callable[[], object]) -> list[Kernel] | None:
    """The kernels of one call, those inside a CUDA graph included, the one that takes the most time first.

    Copies and fills are none. None without a GPU, or where the profiler sees nothing.
    """
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    launches: dict[str, int] = defaultdict(int)
    spent_us: dict[str, float] = defaultdict(float)
    for event in seen.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset")):
            launches[event.name] += 1
            spent_us[event.name] += event.time_range.elapsed_us()
    found = [Kernel(name, count, spent_us[name] / 1e3) for name, count in launches.items()]
    return sorted(found, key=lambda kernel: -kernel.ms) or None


def summary(found: Sequence[Kernel] | None) -> dict[str, Any]:
    """For the record's `work`: `kernels`, how many were launched; `kernel_ms`, how long they ran; `busiest_kernels`."""
    if found is None:
        return {"kernels": None, "kernel_ms": None, "busiest_kernels": None}
    return {
        "kernels": sum(kernel.launches for kernel in found),
        "kernel_ms": sum(kernel.ms for kernel in found),
        "busiest_kernels": [asdict(kernel) for kernel in found[:SHOWN]],
    }
