"""Numbers as people read them, in tables and in plan files; what is not known is a dash."""

from __future__ import annotations

import math
from typing import Any


def digits(value: float | None) -> str:
    """Three significant digits without an exponent where that is readable: 0.152, 2.77, 47.9, 1210."""
    if value is None:
        return "-"
    if value == 0 or float(value).is_integer():
        return f"{value:.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 3)}f}"


def p50(latency: Any) -> str:
    """The median of `samples.Samples`, or a dash for None."""
    return digits(None if latency is None else latency.p50)


def percent(value: float | None) -> str:
    if value is None:
        return "-"
    # Rounded down: 99.97 % must not read as everything.
    return "100 %" if value >= 100 else f"{math.floor(value * 10) / 10:.1f} %"


def cosine(agreement: Any) -> str:
    """Of a `schema.Agreement`, cut off after six decimals, not rounded: only equal results may read 1."""
    if agreement is None or agreement.cosine is None:
        return "-"
    return "1" if agreement.exact else f"{math.floor(agreement.cosine * 1e6) / 1e6:.6f}"


def small(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def gate(passed: bool | None) -> str:
    return "-" if passed is None else "pass" if passed else "FAIL"
