"""How much memory is in use at most, and what the GPU does meanwhile."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import psutil
import torch

from ..record.schema import PeakMemory, Telemetry


class MemoryMeter:
    """The most memory in use while a `with` block ran; read the attributes after it. Blocks may be nested.

    On a GPU: PyTorch's allocator, which does not see what TensorRT allocates itself; `device_used_bytes` does, and
    also what other processes hold. On a CPU: this process's resident memory, what it has mapped of files included,
    sampled every few milliseconds, so a shorter peak can be missed.

    Attributes:
        kind: ``cuda allocator`` or ``process resident``.
        start_bytes: In use when the block began.
        peak_bytes: The most in use; None before the block ends.
        peak_reserved_bytes: The most that the allocator held; None on a CPU.
        device_used_bytes: Of the whole GPU, at the end of the block; None on a CPU.
    """

    INTERVAL_S = 0.005

    _open: ClassVar[list[MemoryMeter]] = []  # the GPU's one counter serves all blocks that are inside one another

    def __init__(self, device: str | torch.device):
        self._device = torch.device(device)
        self.kind = "cuda allocator" if self._device.type == "cuda" else "process resident"
        self.start_bytes: int | None = None
        self.peak_bytes: int | None = None
        self.peak_reserved_bytes: int | None = None
        self.device_used_bytes: int | None = None
        self._stop = threading.Event()
        self._sampler: threading.Thread | None = None
        self._highest = self._highest_reserved = 0

    def __enter__(self) -> MemoryMeter:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            for outer in self._open:
                outer._keep_counted()
            torch.cuda.reset_peak_memory_stats(self._device)
            self.start_bytes = torch.cuda.memory_allocated(self._device)
            self._highest = self._highest_reserved = 0
            self._open.append(self)
        else:
            self._process = psutil.Process()
            self._stop.clear()
            self.start_bytes = self._highest = self._process.memory_info().rss
            self._sampler = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._open.remove(self)
            self._keep_counted()
            self.peak_bytes, self.peak_reserved_bytes = self._highest, self._highest_reserved
            free, total = torch.cuda.mem_get_info(self._device)
            self.device_used_bytes = total - free
            return
        self._stop.set()
        if self._sampler is not None:
            self._sampler.join()
        self.peak_bytes = max(self._highest, self._process.memory_info().rss)

    def _keep_counted(self) -> None:
        self._highest = max(self._highest, torch.cuda.max_memory_allocated(self._device))
        self._highest_reserved = max(self._highest_reserved, torch.cuda.max_memory_reserved(self._device))

    @property
    def added_bytes(self) -> int | None:
        """The most in use beyond what was in use when the block began; None before it ends."""
        if self.peak_bytes is None or self.start_bytes is None:
            return None
        return max(0, self.peak_bytes - self.start_bytes)

    def _sample(self) -> None:
        while not self._stop.wait(self.INTERVAL_S):
            self._highest = max(self._highest, self._process.memory_info().rss)

    def result(self) -> PeakMemory:
        """For the record."""
        return PeakMemory(
            self.kind, self.start_bytes, self.peak_bytes, self.peak_reserved_bytes, self.device_used_bytes
        )


class GpuMeter:
    """Clocks, power, temperature and throttling of a GPU while a `with` block runs, by the driver's own counters.

    Needs the package nvidia-ml-py; without it, on a CPU, or where the driver refuses, `result` is None.
    """

    INTERVAL_S = 0.1

    def __init__(self, device: torch.device):
        self._device = device
        self._nvml: Any = None
        self._seen: dict[str, list[float]] = {"clock": [], "power": [], "temperature": []}
        self._reasons: set[str] | None = None
        self._energy: list[float] = []
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GpuMeter:
        if self._device.type == "cuda":
            with contextlib.suppress(Exception):  # no package, no driver, or a GPU that tells nothing
                import pynvml

                pynvml.nvmlInit()
                identity = str(torch.cuda.get_device_properties(self._device).uuid)
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity.removeprefix('GPU-')}")
                self._nvml = pynvml
                self._read_energy()
                self._thread = threading.Thread(target=self._sample, name="gpu-meter", daemon=True)
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._read_energy()

    def _read_energy(self) -> None:
        with contextlib.suppress(Exception):  # older GPUs have no such counter
            self._energy.append(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3)

    def _sample(self) -> None:
        nvml, handle = self._nvml, self._handle
        names = {
            int(value): name.removeprefix("nvmlClocksEventReason")
            for name, value in vars(nvml).items()
            if name.startswith("nvmlClocksEventReason") and not name.endswith(("All", "None", "GpuIdle"))
        }
        reads: dict[str, Callable[[], float]] = {
            "clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        }
        while not self._stop.wait(self.INTERVAL_S):
            for name, read in reads.items():
                with contextlib.suppress(Exception):  # not every GPU has every sensor
                    self._seen[name].append(float(read()))
            with contextlib.suppress(Exception):
                mask = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
                self._reasons = (self._reasons or set()) | {name for bit, name in names.items() if mask & bit}

    def mark(self) -> dict[str, int]:
        """Now, for `since`."""
        return {name: len(values) for name, values in self._seen.items()}

    def since(self, mark: dict[str, int]) -> dict[str, float | None]:
        """Mean clock and power since a mark, as `Card` has them; None for what the driver did not tell."""
        seen = {name: self._seen[name][start:] for name, start in mark.items()}
        means = {name: statistics.fmean(values) if values else None for name, values in seen.items()}
        return {"sm_clock_mhz": means["clock"], "power_w": means["power"]}

    def result(self) -> Telemetry | None:
        """For the record, once the block has ended."""
        if self._nvml is None:
            return None
        clock, power, heat = self._seen["clock"], self._seen["power"], self._seen["temperature"]
        return Telemetry(
            samples=len(clock),
            sm_clock_mhz_min=min(clock, default=None),
            sm_clock_mhz_p50=statistics.median(clock) if clock else None,
            power_w_p50=statistics.median(power) if power else None,
            power_w_max=max(power, default=None),
            temperature_c_max=max(heat, default=None),
            energy_j=self._energy[-1] - self._energy[0] if len(self._energy) == 2 else None,
            throttle_reasons=None if self._reasons is None else tuple(sorted(self._reasons)),
        )
