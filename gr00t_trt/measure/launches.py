"""A request that is replayed as a graph, taken apart: the host's part, the graph alone, and each stage alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import BackendError
from ..record.result import StageReplay
from ..record.samples import Samples, percentile
from .harness import Harness
from .replays import launching, recorded, split_graphs
from .results import Variant
from .timers import drain
from .workloads import Request


@torch.no_grad()
def replays(harness: Harness, variant: Variant, request: Request, count: int, *, in_calls: bool = False) -> Samples:
    """Replays of the graph of a request that was captured, on the GPU's clock.

    Args:
        in_calls: Right round `replay()` within whole calls, each on an idle GPU; else back to back.
    Raises: BackendError for a variant without graphs.
    """
    if variant.watched is None:
        raise BackendError(f"{variant.candidate.backend}: it is not replayed", fix="capture it as a graph")
    take = variant.watched.around_replay if in_calls else variant.watched.back_to_back
    try:
        return take(harness.call(variant, request), count, harness.device)
    finally:
        harness.restore()


@torch.no_grad()
def host_us(harness: Harness, variant: Variant, request: Request, count: int) -> float:
    """Median microseconds from a call to its launch, each on an idle GPU, after one that is not counted."""
    taken: list[float] = []
    call = launching(harness.call(variant, request), variant.watched, taken)
    try:
        for _ in range(count + 1):
            drain(harness.device)
            call()
    finally:
        harness.restore()
    return percentile(tuple(taken[1:]), 50)


@torch.no_grad()
def stage_replays(harness: Harness, variant: Variant, request: Request, count: int) -> tuple[StageReplay, ...]:
    """Every stage as a graph of its own, on what it is given in a request. Raises: BackendError, as `split_graphs`."""
    table, calls = recorded(variant.table)
    try:
        harness.call(replace(variant, table=table, graphs=None), request)()
    finally:
        harness.restore()
    return split_graphs(variant.table, calls, count, harness.device)
