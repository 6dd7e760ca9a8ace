"""Latencies of records, and the parts that a request's is made of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..plans.schema import GROUPS
from .intake import Loaded

REST = "between stages"
TOTAL = "request"


@dataclass(frozen=True)
class Timing:
    """A latency in milliseconds.

    Attributes:
        p10: None when the record kept no samples, or one.
        p99: The largest sample where `p99_is_max`: below 100 samples none marks the last hundredth.
        count: Samples kept.
        method: Timer, device and warm-up as a sentence.
    """

    p10: float | None
    p50: float
    p90: float | None
    p99: float | None
    p99_is_max: bool
    count: int
    method: str

    @property
    def highest(self) -> float:
        return max(value for value in (self.p50, self.p90, self.p99) if value is not None)

    @property
    def hz(self) -> float | None:
        return 1000.0 / self.p50 if self.p50 > 0 else None


def timing(latency: Mapping[str, Any] | None) -> Timing | None:
    """A latency as `Samples.to_dict` wrote it; None without a median."""
    if latency is None or latency["p50"] is None:
        return None
    samples = latency["samples"]
    warm = latency["warmup"]
    parts = [
        f"{len(samples)} samples" if len(samples) != 1 else "1 sample",
        None if warm is None else f"after {warm} warm-ups" if warm != 1 else "after 1 warm-up",
        None if latency["timer"] is None else f"by {latency['timer']}",
        None if latency["device"] is None else f"on {latency['device']}",
    ]
    return Timing(
        # The same interpolation that the other percentiles were taken with.
        p10=statistics.quantiles(samples, n=10, method="inclusive")[0] if len(samples) > 1 else None,
        p50=latency["p50"],
        p90=latency["p90"] if len(samples) > 1 else None,
        p99=latency["p99"],
        p99_is_max=bool(latency["p99_is_max"]),
        count=len(samples),
        method=" ".join(part for part in parts if part) + (f"; {latency['note']}" if latency["note"] else ""),
    )


def split(one: Loaded, column: str) -> list[tuple[str, float]]:
    """The parts that make up a request, in milliseconds; see `parts`. The medians of a part's calls, added up.

    Args:
        column: ``latency_ms`` or ``eager_latency_ms``.
    """
    values, within = {}, {}
    for row in one.record["stages"]:
        taken = timing(row[column])
        if taken:
            values[row["stage"]], within[row["stage"]] = taken.p50, row["within"]
    return parts(values, within)


def parts(values: Mapping[str, float], within: Mapping[str, str | None]) -> list[tuple[str, float]]:
    """The leaves of a tree of stages, so that nothing is counted twice; what lies between stages comes last.

    Args:
        values: Stage -> ms.
        within: Stage -> the stage that calls it, or None.
    Returns: (stage, ms). What a stage does beside calling others is a part of its own.
    """
    parents = {stage: within.get(stage) for stage in values if stage != TOTAL}
    if "eagle_backbone" in values:
        # Where the restructured model stands beside it, `within` is that one's, which has no such stage.
        parents.update({name: "eagle_backbone" for name in GROUPS["eagle_backbone"] if name in values})
    called: dict[str, float] = {}
    for stage, parent in parents.items():
        if parent is not None:
            called[parent] = called.get(parent, 0.0) + values[stage]
    out = [
        (f"{stage}, rest" if stage in called else stage, max(values[stage] - called.get(stage, 0.0), 0.0))
        for stage in parents
        if stage != REST
    ]
    return out + ([(REST, max(values[REST], 0.0))] if REST in values else [])
