"""The peak of a run's memory, and what its GPU did meanwhile."""

import json
import mmap
import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import fake_cuda
import pytest
import torch

from gr00t_trt.measure.memory import GpuMeter, MemoryMeter
from gr00t_trt.record.files import dumps, record_from
from gr00t_trt.record.schema import PeakMemory, Record, Telemetry


def test_peak_memory_sees_what_was_freed_again():
    # Straight from the kernel: an allocator may hand out memory that the process held already.
    with MemoryMeter("cpu") as peak, mmap.mmap(-1, 64 * 2**20) as block:
        block.write(b"x" * len(block))
        time.sleep(0.05)
    out = peak.result()
    assert out.kind == "process resident"
    assert out.peak_bytes - out.start_bytes > 50e6
    assert out.peak_reserved_bytes is None


def test_peak_memory_is_unknown_before_the_end_and_survives_errors():
    peak = MemoryMeter("cpu")
    assert peak.peak_bytes is None
    with pytest.raises(ZeroDivisionError), peak:
        raise ZeroDivisionError
    assert peak.peak_bytes > 0


def test_peak_memory_on_a_gpu_reads_allocator_and_device(monkeypatch):
    fake_cuda.install(monkeypatch)
    for name, value in {
        "reset_peak_memory_stats": None, "memory_allocated": 1, "max_memory_allocated": 5, "max_memory_reserved": 8,
        "mem_get_info": (30, 100),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    with MemoryMeter("cuda:0") as peak:
        pass
    assert peak.result() == PeakMemory("cuda allocator", 1, peak_bytes=5, peak_reserved_bytes=8, device_used_bytes=70)


def test_peak_memory_inside_another_takes_nothing_from_it(monkeypatch):
    """The GPU's counter is one, and the inner block sets it back."""
    fake_cuda.install(monkeypatch)
    now = {"used": 100, "peak": 100}

    def use(amount):
        now["used"] = amount
        now["peak"] = max(now["peak"], amount)

    for name, answer in {
        "reset_peak_memory_stats": lambda *_: now.update(peak=now["used"]),
        "memory_allocated": lambda *_: now["used"],
        "max_memory_allocated": lambda *_: now["peak"],
        "max_memory_reserved": lambda *_: now["peak"] + 1,
        "mem_get_info": lambda *_: (30, 100),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    with MemoryMeter("cuda:0") as outer:
        use(900)
        use(200)
        with MemoryMeter("cuda:0") as inner:
            use(500)
            use(200)
        with MemoryMeter("cuda:0") as nothing:
            pass
        use(300)
    assert (inner.peak_bytes, inner.added_bytes, inner.peak_reserved_bytes) == (500, 300, 501)
    assert (nothing.peak_bytes, nothing.added_bytes) == (200, 0)
    assert (outer.peak_bytes, outer.added_bytes) == (900, 800)
    with MemoryMeter("cuda:0") as later:
        use(250)
    assert later.added_bytes == 0


# --- the driver's own counters

GPU = torch.device("cuda:0")


class Driver(ModuleType):
    """`pynvml` for a GPU that gives one reading after the other, and falls silent after the last.

    Args:
        readings: SM clock in MHz, milliwatts, degrees, and the mask of reasons.
        refuses: What the driver answers with an error.
    """

    class NVMLError(Exception):
        pass

    def __init__(self, *readings, refuses=()):
        super().__init__("pynvml")
        self._readings, self._refuses = readings, refuses
        self.taken = self.energies = 0
        self.NVML_CLOCK_SM, self.NVML_TEMPERATURE_GPU = 1, 0
        for mask, reason in {
            0x0: "None", 0x1: "GpuIdle", 0x4: "SwPowerCap", 0x8: "HwSlowdown", 0x20: "SwThermalSlowdown", 0x2D: "All",
        }.items():  # fmt: skip
            setattr(self, f"nvmlClocksEventReason{reason}", mask)

    def _answer(self, name, place):
        if name in self._refuses or self.taken >= len(self._readings):
            raise self.NVMLError("Not Supported")
        return self._readings[self.taken][place]

    def nvmlInit(self):
        if "init" in self._refuses:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, identity):
        assert identity == "GPU-1234-abcd"
        return "handle"

    def nvmlDeviceGetClockInfo(self, handle, kind):
        assert (handle, kind) == ("handle", self.NVML_CLOCK_SM)
        return self._answer("clock", 0)

    def nvmlDeviceGetPowerUsage(self, handle):
        return self._answer("power", 1)

    def nvmlDeviceGetTemperature(self, handle, kind):
        assert (handle, kind) == ("handle", self.NVML_TEMPERATURE_GPU)
        return self._answer("temperature", 2)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        try:
            return self._answer("reasons", 3)
        finally:
            self.taken += 1

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if "energy" in self._refuses:
            raise self.NVMLError("Not Supported")
        self.energies += 1
        return 10_000 if self.energies == 1 else 52_500


# At idle, at the power limit, and too hot as well.
READINGS = [(1980, 120_000, 40, 0x1), (1400, 700_000, 61, 0x4), (1200, 690_000, 83, 0x4 | 0x20)]


@pytest.fixture
def observed(monkeypatch):
    """observed(driver) -> what a record says of a run that lasted until the driver had given its readings."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234-abcd"))
    monkeypatch.setattr(GpuMeter, "INTERVAL_S", 0.001)

    def observe(driver, device=GPU, readings=3):
        monkeypatch.setitem(sys.modules, "pynvml", driver)  # None: as if it was not installed
        with GpuMeter(device) as meter:
            end = time.monotonic() + 10
            while readings and driver.taken < readings and time.monotonic() < end:
                time.sleep(0.001)
        return record_from(json.loads(dumps(Record(created_utc="now", telemetry=meter.result()))), "x").telemetry

    return observe


def test_what_the_gpu_did_ends_up_in_the_record(observed):
    assert observed(Driver(*READINGS)) == Telemetry(
        samples=3,
        sm_clock_mhz_min=1200.0,
        sm_clock_mhz_p50=1400.0,
        power_w_p50=690.0,
        power_w_max=700.0,
        temperature_c_max=83.0,
        energy_j=42.5,
        throttle_reasons=("SwPowerCap", "SwThermalSlowdown"),  # being idle is no throttling
    )


def test_a_part_of_the_run_has_the_means_of_its_own(observed, monkeypatch):
    driver = Driver(*READINGS)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    with GpuMeter(GPU) as meter:
        end = time.monotonic() + 10
        while driver.taken < len(READINGS) and time.monotonic() < end:
            time.sleep(0.001)
    clocks, watts = [one[0] for one in READINGS], [one[1] / 1e3 for one in READINGS]
    whole = meter.since({"clock": 0, "power": 0, "temperature": 0})
    assert whole == {"sm_clock_mhz": pytest.approx(sum(clocks) / 3), "power_w": pytest.approx(sum(watts) / 3)}
    assert meter.since({"clock": 2, "power": 1, "temperature": 0}) == {
        "sm_clock_mhz": clocks[2], "power_w": pytest.approx(sum(watts[1:]) / 2),
    }  # fmt: skip
    assert meter.since(meter.mark()) == {"sm_clock_mhz": None, "power_w": None}


@pytest.mark.parametrize(
    ("sensor", "fields"),
    {
        "power": ("power_w_p50", "power_w_max"),
        "temperature": ("temperature_c_max",),
        "energy": ("energy_j",),
        "clock": ("sm_clock_mhz_min", "sm_clock_mhz_p50"),
    }.items(),
)
def test_a_sensor_that_the_gpu_lacks_is_null_and_costs_no_other(observed, sensor, fields):
    whole, found = observed(Driver(*READINGS)), observed(Driver(*READINGS, refuses=(sensor,)))
    missing = dict.fromkeys(fields, None)
    assert found == replace(whole, **missing, samples=0 if sensor == "clock" else 3)


def test_a_gpu_that_tells_nothing_leaves_everything_null(observed):
    assert observed(Driver(refuses=("energy",))) == Telemetry()


@pytest.mark.parametrize("driver", [None, Driver(*READINGS, refuses=("init",))], ids=["no package", "no driver"])
def test_without_the_library_or_its_driver_there_is_no_telemetry(observed, driver):
    assert observed(driver, readings=0) is None


def test_a_run_on_the_cpu_has_no_telemetry(observed):
    driver = Driver(*READINGS)
    assert observed(driver, torch.device("cpu"), readings=0) is None
    assert (driver.taken, driver.energies) == (0, 0)


def test_the_sampling_ends_with_the_block(observed, monkeypatch):
    driver = Driver(*READINGS)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    with pytest.raises(ZeroDivisionError), GpuMeter(GPU) as meter:
        raise ZeroDivisionError
    taken = driver.taken
    time.sleep(0.02)
    assert driver.taken == taken
    assert meter.result().energy_j == 42.5
