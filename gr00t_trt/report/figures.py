"""Numbers as text: short on the chart, to the clock's last digit on hover; a dash for what is not known."""

from __future__ import annotations

from ..record import numbers as figures
from .timings import Timing

DASH = "–"


def short(value: float | None, unit: str = "") -> str:
    """Three significant digits: 0.152, 47.9, 5 909."""
    if value is None:
        return DASH
    text = figures.digits(value) if abs(value) < 1000 else f"{value:,.0f}".replace(",", "\u00a0")
    return text.replace("-", "\u2212", 1 if value < 0 else 0) + (f"\u00a0{unit}" if unit else "")


def exact(value: float | None) -> str:
    """To the nanosecond for milliseconds, which is the clock's own step."""
    return DASH if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def cosine(value: float | None, equal: bool | None) -> str:
    """Cut off after six decimals, not rounded: only equal results may read 1."""
    return _dashed(figures.cosine({"cosine": value, "exact": equal}))


def distance(value: float | None) -> str:
    return _dashed(figures.small(value))


def megabytes(size: float | None) -> str:
    return DASH if size is None else short(size / 1e6)


def percent(value: float | None) -> str:
    """Rounded down to a tenth: 99.97 % must not read as everything."""
    return _dashed(figures.percent(value)).replace(" ", "\u00a0")


def share(value: float | None) -> str:
    return DASH if value is None else f"{value:.1f}\u00a0%"


def speedup(ratio: float | None) -> str:
    return DASH if ratio is None else f"{ratio:.2f}×"


def gate(passed: bool | None) -> str:
    return _dashed(figures.gate(passed))


def spelled(timing: Timing) -> str:
    """Everything about a latency, for the reader who points at it."""
    tail = "largest" if timing.p99_is_max else "p99"
    named = (("p50", timing.p50), ("p10", timing.p10), ("p90", timing.p90), (tail, timing.p99))
    listed = ", ".join(f"{name} {exact(value)} ms" for name, value in named if value is not None)
    return f"{listed} ({timing.method})"


def _dashed(text: str) -> str:
    return DASH if text == "-" else text
