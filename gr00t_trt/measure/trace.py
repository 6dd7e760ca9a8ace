"""One request as a timeline that Perfetto and Chrome show: its stages, and every operator and kernel below them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..common.files import write_whole
from ..record.result import REQUEST
from .harness import Harness
from .results import Variant
from .timers import drain
from .workloads import Request


@torch.no_grad()
def write_trace(harness: Harness, variant: Variant, request: Request, path: str | Path) -> Path:
    """Profile one request, from numpy to numpy, and write it as JSON of Chrome's trace format.

    The spans of stages have the names that the record's split has. A request that is replayed as one CUDA graph
    passes through none, and shows its kernels alone. Profiling slows a request down: what its spans last is no latency.

    Args:
        variant: Must be able to run here.
        path: Replaced if there. https://ui.perfetto.dev and chrome://tracing open it.
    Raises: RecordError for a path that cannot be written; whatever the request raises.
    """
    table = {name: _spanned(name, call) for name, call in variant.table.items()}
    call = harness.call(replace(variant, table=table), request, REQUEST)
    activities = [ProfilerActivity.CPU]
    if harness.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    try:
        with _all_spanned(harness.policy.stages):
            call()  # what only the first request does would hide what all do
            drain(harness.device)
            with profile(activities=activities) as seen:
                with record_function("request"):
                    call()
                drain(harness.device)
    finally:
        harness.restore()
    return write_whole(_exported(seen), path, "trace", "--trace")


def _spanned(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def spanned(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return call(*args, **kwargs)

    return spanned


@contextmanager
def _all_spanned(table: MutableMapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, every call through the table is a span of its name."""
    before = dict(table)
    table.update({name: _spanned(name, call) for name, call in before.items()})
    try:
        yield
    finally:
        table.update(before)


def _exported(seen: profile) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "trace.json")
        seen.export_chrome_trace(file)
        return Path(file).read_text(encoding="utf-8")
