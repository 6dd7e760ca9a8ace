"""Timers and memory counters against quantities that are known beforehand."""

from __future__ import annotations

import time

import pytest
import torch

from gr00t_trt.measure.kernels import timeline
from gr00t_trt.measure.memory import GpuMeter, MemoryMeter
from gr00t_trt.measure.roofline import ceilings
from gr00t_trt.measure.stages import REST, TOTAL, StageTimer
from gr00t_trt.measure.timers import measure_alternating
from gr00t_trt.record.samples import verdict


@pytest.fixture(scope="module")
def cycles_per_ms(gpu: torch.device) -> float:
    """Of `torch.cuda._sleep`, by the host's clock and long enough that launching does not matter."""
    torch.cuda._sleep(10_000_000)
    torch.cuda.synchronize()
    start = time.perf_counter()
    torch.cuda._sleep(100_000_000)
    torch.cuda.synchronize()
    return 100_000_000 / ((time.perf_counter() - start) * 1e3)


def test_both_timers_see_how_long_the_gpu_was_busy(cycles_per_ms: float) -> None:
    for timer in ("cuda_event", "python_timer"):
        taken = measure_alternating(
            {name: lambda ms=ms: torch.cuda._sleep(int(ms * cycles_per_ms)) for name, ms in (("two", 2), ("five", 5))},
            timer=timer,
            warmup=2,
            iterations=10,
        )
        assert taken["two"].p50 == pytest.approx(2, rel=0.2)
        assert taken["five"].p50 == pytest.approx(5, rel=0.2)
        assert taken["two"].timer == timer
        assert verdict(taken["five"], taken["two"], names=("five", "two")).winner == "two"


def test_stages_add_up_to_the_request(cycles_per_ms: float, gpu: torch.device) -> None:
    table = {
        "short": lambda: torch.cuda._sleep(int(1 * cycles_per_ms)),
        "long": lambda: torch.cuda._sleep(int(4 * cycles_per_ms)),
    }
    with StageTimer((table,), gpu) as timer:
        for _ in range(5):
            with timer.request():
                table["short"]()
                table["long"]()
                table["short"]()
                torch.cuda._sleep(int(2 * cycles_per_ms))
        rows = {row.stage: row.latency_ms.p50 for row in timer.rows()}
    assert rows["short"] == pytest.approx(2, rel=0.2)
    assert rows["long"] == pytest.approx(4, rel=0.2)
    assert rows[REST] == pytest.approx(2, rel=0.3)
    assert rows[TOTAL] == pytest.approx(rows["short"] + rows["long"] + rows[REST], rel=1e-3)


def test_peak_memory_sees_what_was_given_back(gpu: torch.device) -> None:
    with MemoryMeter(gpu) as outer, MemoryMeter(gpu) as memory:
        torch.empty(256 << 20, dtype=torch.uint8, device=gpu)
    for each in (memory, outer):
        assert 256 << 20 <= (each.added_bytes or 0) < 300 << 20
    assert (memory.result().device_used_bytes or 0) > 256 << 20


def test_the_stopping_rule_ends_on_a_steady_gpu(cycles_per_ms: float) -> None:
    taken = measure_alternating({"two": lambda: torch.cuda._sleep(int(2 * cycles_per_ms))})["two"]
    assert 10 <= len(taken.samples) <= 100
    assert len(taken.samples) == 100 or (taken.median_uncertainty or 1) <= 0.02
    assert taken.p50 == pytest.approx(2, rel=0.2)


def test_the_driver_tells_what_the_gpu_did(gpu: torch.device) -> None:
    pytest.importorskip("pynvml")
    a = torch.randn(4096, 4096, dtype=torch.bfloat16, device=gpu)
    with GpuMeter(gpu) as meter:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            a @ a
            torch.cuda.synchronize()
    found = meter.result()
    if found is None:
        pytest.skip("the driver tells nothing of this GPU")
    assert found.samples > 1
    assert 100 < (found.sm_clock_mhz_min or 0) <= (found.sm_clock_mhz_p50 or 0) < 5000
    assert 0 < (found.power_w_p50 or 0) <= (found.power_w_max or 0) < 3000
    assert 0 < (found.temperature_c_max or 0) < 120
    assert found.energy_j is None or 0 < found.energy_j < 3000


def test_kernels_are_counted(gpu: torch.device) -> None:
    x = torch.rand(64, 64, device=gpu)
    found = timeline(lambda: x.sin().cos().exp())
    assert found is not None
    assert found.launches == 3


def test_the_ceilings_of_a_known_gpu_are_not_far_from_what_it_does(gpu: torch.device) -> None:
    known = ceilings(torch.cuda.get_device_name(gpu))
    if known is None:
        pytest.skip(f"no ceilings are known of {torch.cuda.get_device_name(gpu)}")
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device=gpu) for _ in range(2))
    source, sink = (torch.empty(1 << 30, dtype=torch.uint8, device=gpu) for _ in range(2))
    taken = measure_alternating({"product": lambda: a @ b, "copy": lambda: sink.copy_(source)}, iterations=10)
    assert 2 * 8192**3 / (taken["product"].p50 * 1e-3) == pytest.approx(known.arithmetic, rel=0.2)
    assert 2 * (1 << 30) / (taken["copy"].p50 * 1e-3) == pytest.approx(known.bandwidth, rel=0.2)
