"""Kernels are added up by name; without a GPU none are claimed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from gr00t_trt.measure import sweep
from gr00t_trt.measure.kernels import Timeline, timeline
from gr00t_trt.measure.roofline import Trace
from gr00t_trt.measure.rows import PLAIN, Row
from gr00t_trt.record.result import Kernel, Work

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def event(name: str, start: float, us: float, device: Any = CUDA) -> SimpleNamespace:
    span = SimpleNamespace(start=start, end=start + us, elapsed_us=lambda: us)
    return SimpleNamespace(name=name, device_type=device, time_range=span)


def summary(found: Timeline | None, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What a row of a measuring run says of these kernels."""
    monkeypatch.setattr(sweep, "timeline", lambda call: found)
    monkeypatch.setattr(sweep.Sweep, "_seconds_of_a_call", lambda self: 1.0)
    harness: Any = MagicMock(device=torch.device("cpu"))
    counter: Any = SimpleNamespace(trace=lambda question: Trace())
    return sweep.Sweep(harness, MagicMock(), counter, MagicMock())._work(Row("steps", "", PLAIN, 1), MagicMock())


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_no_kernels_are_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timeline(lambda: torch.ones(3) + 1) is None
    told = summary(None, monkeypatch)
    assert (told.kernels, told.kernel_ms, told.busiest_kernels, told.gaps_ms) == (None, None, None, None)


def test_launches_of_one_name_are_added_up_and_copies_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        event("gemm", 100.0, 40.0), event("norm", 150.0, 5.0), event("gemm", 152.0, 20.0),
        event("Memcpy HtoD", 30.0, 9.0), event("Memset (Device)", 141.0, 1.0),
        event("cudaLaunchKernel", 20.0, 3.0, CPU),
    ]  # fmt: skip

    class Profile:
        def __init__(self, activities: Any):
            pass

        def __enter__(self) -> Profile:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def events(self) -> list[Any]:
            return events

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    calls: list[None] = []
    found = timeline(lambda: calls.append(None))
    assert len(calls) == 2  # one to warm up
    assert found.kernels == (Kernel("gemm", 2, 0.06), Kernel("norm", 1, 0.005))
    # The norm begins before the second product and ends within it.
    assert (found.first_ms, found.last_ms, found.gaps_ms) == pytest.approx((0.08, 0.152, 0.01))
    told = summary(found, monkeypatch)
    assert (told.first_kernel_ms, told.last_kernel_ms, told.gaps_ms) == pytest.approx((0.08, 0.152, 0.01))
    assert (told.kernels, told.kernel_ms) == (3, pytest.approx(0.065))
    assert told.busiest_kernels[0] == Kernel("gemm", launches=2, ms=0.06)
    many = summary(Timeline(tuple(Kernel(str(i), 1, 1.0) for i in range(30)), 0.0, 1.0, 0.0), monkeypatch)
    assert len(many.busiest_kernels) == sweep.BUSIEST
