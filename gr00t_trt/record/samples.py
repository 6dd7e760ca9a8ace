"""Latencies of one thing, every sample kept, and their percentiles. Never imports torch."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any


def percentile(samples: tuple[float, ...], percent: float) -> float:
    """Linear interpolation between the two nearest samples in order, as NumPy's default.

    Raises: ValueError without samples.
    """
    if not samples:
        raise ValueError("no samples, no percentile")
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100.0
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True)
class Samples:
    """All latencies of one callable, in milliseconds, in the order in which they were taken; at least one.

    Attributes:
        samples: Milliseconds.
        timer: The timer that was used, which need not be the one asked for: `note` says why.
        warmup: Untimed calls before the first sample.
        device: Where the callable ran, for example ``cuda:0``.
        note: A sentence for the user, or None.
    """

    samples: tuple[float, ...]
    timer: str = "python_timer"
    warmup: int = 0
    device: str = "cpu"
    note: str | None = None

    @property
    def p50(self) -> float:
        return percentile(self.samples, 50)

    @property
    def p90(self) -> float:
        return percentile(self.samples, 90)

    @property
    def p99(self) -> float:
        """The 99th percentile; below 100 samples none marks the last hundredth, and the maximum stands in."""
        return self.max if self.p99_is_max else percentile(self.samples, 99)

    @property
    def p99_is_max(self) -> bool:
        return len(self.samples) < 100

    @property
    def min(self) -> float:
        return min(self.samples)

    @property
    def max(self) -> float:
        return max(self.samples)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)

    @property
    def std(self) -> float | None:
        """Standard deviation of the sample (n - 1); None for a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else None

    @property
    def hz(self) -> float | None:
        """Calls per second at the median latency; None when the clock could not tell it from zero."""
        return 1000.0 / self.p50 if self.p50 > 0 else None

    @property
    def spread(self) -> tuple[float, float]:
        """p10 and p90: where the middle four fifths of the samples lie."""
        return percentile(self.samples, 10), self.p90

    def to_dict(self) -> dict[str, Any]:
        """For the record; all times in milliseconds, `hz` in calls per second."""
        return {
            "timer": self.timer,
            "device": self.device,
            "warmup": self.warmup,
            "iterations": len(self.samples),
            "p50": self.p50,
            "p90": self.p90,
            "p99": self.p99,
            "p99_is_max": self.p99_is_max,
            "percentiles": "linear interpolation",
            "min": self.min,
            "max": self.max,
            "mean": self.mean,
            "std": self.std,
            "hz": self.hz,
            "note": self.note,
            "samples": list(self.samples),
        }
