"""What a GPU runs in one call, kernel by kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch

from ..record.result import Kernel


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
