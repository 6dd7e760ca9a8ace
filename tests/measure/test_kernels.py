"""Kernels are added up by name; without a GPU none are claimed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from gr00t_trt.measure import sweep
from gr00t_trt.measure.kernels import kernels
from gr00t_trt.measure.roofline import Trace
from gr00t_trt.measure.rows import PLAIN, Row
from gr00t_trt.record.result import Kernel, Work

CUDA, CPU = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU


def event(name: str, us: float, device: Any = CUDA) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: us))


def summary(found: list[Kernel] | None, monkeypatch: pytest.MonkeyPatch) -> Work:
    """What a row of a measuring run says of these kernels."""
    monkeypatch.setattr(sweep, "kernels", lambda call: found)
    monkeypatch.setattr(sweep.Sweep, "_seconds_of_a_call", lambda self: 1.0)
    harness: Any = MagicMock(device=torch.device("cpu"))
    counter: Any = SimpleNamespace(trace=lambda question: Trace())
    return sweep.Sweep(harness, MagicMock(), counter, MagicMock())._work(Row("steps", "", PLAIN, 1), MagicMock())


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_no_kernels_are_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels(lambda: torch.ones(3) + 1) is None
    told = summary(None, monkeypatch)
    assert (told.kernels, told.kernel_ms, told.busiest_kernels) == (None, None, None)


def test_launches_of_one_name_are_added_up_and_copies_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        event("gemm", 40.0), event("norm", 5.0), event("gemm", 20.0), event("Memcpy HtoD", 9.0),
        event("Memset (Device)", 1.0), event("cudaLaunchKernel", 3.0, CPU),
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
    found = kernels(lambda: calls.append(None))
    assert len(calls) == 2  # one to warm up
    assert found == [Kernel("gemm", 2, 0.06), Kernel("norm", 1, 0.005)]
    told = summary(found, monkeypatch)
    assert (told.kernels, told.kernel_ms) == (3, pytest.approx(0.065))
    assert told.busiest_kernels[0] == Kernel("gemm", launches=2, ms=0.06)
    many = summary([Kernel(str(i), 1, 1.0) for i in range(30)], monkeypatch)
    assert len(many.busiest_kernels) == sweep.BUSIEST
