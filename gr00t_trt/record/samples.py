"""Latency samples, their percentiles, and the comparison of two sets. Never imports torch."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from .numbers import digits

MINIMUM_FOR_VERDICT = 5


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
        timer: The timer that was used, which need not be the one asked for: `note` says why.
        warmup: Untimed calls before the first sample.
        device: Where the callable ran, for example ``cuda:0``.
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

    def meets(self, other: Samples) -> bool:
        """Whether the two spreads touch, so that neither is faster beyond doubt."""
        return self.spread[0] <= other.p90 and other.spread[0] <= self.p90

    @property
    def median_uncertainty(self) -> float | None:
        """Half the 95 % confidence interval of the median over the median, from the order of the samples alone; None
        for too few samples to say.
        """
        count, ordered = len(self.samples), sorted(self.samples)
        half = 0.98 * math.sqrt(count)
        low, high = math.floor(count / 2 - half), math.ceil(count / 2 + half)
        if low < 0 or high >= count or self.p50 <= 0:
            return None
        return (ordered[high] - ordered[low]) / 2 / self.p50

    def to_dict(self) -> dict[str, Any]:
        """For the record; all times in milliseconds, `hz` in calls per second."""
        known = {"iterations": len(self.samples), "percentiles": "linear interpolation", "samples": list(self.samples)}
        keys = ("timer", "device", "warmup", "iterations", "p50", "p90", "p99", "p99_is_max", "percentiles", "min",
                "max", "mean", "std", "hz", "note", "samples")  # fmt: skip
        return {key: known[key] if key in known else getattr(self, key) for key in keys}


@dataclass(frozen=True)
class Verdict:
    """Which of two candidates is faster, if the samples allow to say.

    Attributes:
        winner: Its name, or None.
        ratio: Median of the first over median of the second: above 1, the second is faster. None when the second's
            median cannot be told from zero.
        text: One sentence with both medians or the reason for having no winner.
    """

    winner: str | None
    ratio: float | None
    text: str


def verdict(a: Samples, b: Samples, *, names: tuple[str, str] = ("eager", "compiled")) -> Verdict:
    """Compare two sets of samples of the same work.

    A winner is named only where the spreads, p10 to p90, do not touch: then at least nine in ten calls of the
    winner beat nine in ten of the other, which neither noise nor a drifting clock explains away.
    """
    first, second = names
    ratio = a.p50 / b.p50 if b.p50 > 0 else None
    for name, own in zip(names, (a, b), strict=True):
        if len(own.samples) < MINIMUM_FOR_VERDICT:
            text = f"no verdict: {len(own.samples)} samples of {name}, {MINIMUM_FOR_VERDICT} are needed"
            return Verdict(None, ratio, text)
    if (a.timer, a.device) != (b.timer, b.device):
        text = f"no verdict: {first} was timed with {a.timer} on {a.device}, {second} with {b.timer} on {b.device}"
        return Verdict(None, None, text)
    if a.meets(b):
        spreads = (f"{name} {digits(own.spread[0])} to {digits(own.p90)} ms" for name, own in ((first, a), (second, b)))
        return Verdict(None, ratio, f"no winner: the spreads overlap ({', '.join(spreads)})")
    fast, slow, quick, lame = (second, first, b, a) if b.p90 < a.spread[0] else (first, second, a, b)
    times = f"{lame.p50 / quick.p50:.2f}x" if quick.p50 > 0 else "much"
    medians = f"p50 {digits(quick.p50)} ms against {digits(lame.p50)} ms"
    return Verdict(fast, ratio, f"{fast} is {times} faster than {slow} ({medians})")
