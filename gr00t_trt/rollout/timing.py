"""Timing of a rollout: latency, loop period, jitter and stalls from its trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from ..record.samples import Samples
from .loop import Trace

LATE = 1.5
"""A pause between two actions of more than this many control periods is a stall."""


@dataclass(frozen=True)
class Timing:
    """How a rollout went, for its record; None where fewer than two actions were sent.

    Attributes:
        seconds: From the first action to the last.
        period_ms: From one action to the next. jitter_ms: How far that is from the nominal period.
        stalls: Periods of more than `LATE` times the nominal one. stalled_s: What they took beyond it, added up.
    """

    actions: int
    queries: int
    seconds: float | None
    actions_per_s: float | None
    inference_ms: Samples | None
    observe_ms: Samples | None
    period_ms: Samples | None
    jitter_ms: Samples | None
    stalls: int | None
    stalled_s: float | None
    skipped_rows: int


def summarise(trace: Trace, *, control_hz: float, device: str) -> Timing:
    """Rates, stalls, and every sample of four durations in milliseconds."""
    nominal = 1e3 / control_hz
    periods = [(b - a) * 1e3 for a, b in zip(trace.sent, trace.sent[1:], strict=False)]
    late = [period for period in periods if period > LATE * nominal]
    seconds = trace.sent[-1] - trace.sent[0] if periods else None

    def samples(values: Sequence[float], where: str) -> Samples | None:
        return Samples(tuple(values), device=where) if values else None

    return Timing(
        actions=len(trace.sent),
        queries=len(trace.inference_ms),
        seconds=seconds,
        actions_per_s=len(periods) / seconds if seconds else None,
        inference_ms=samples(trace.inference_ms, device),
        observe_ms=samples(trace.observe_ms, "robot"),
        period_ms=samples(periods, "robot"),
        jitter_ms=samples([abs(period - nominal) for period in periods], "robot"),
        stalls=len(late) if periods else None,
        stalled_s=sum(period - nominal for period in late) / 1e3 if periods else None,
        skipped_rows=trace.skipped_rows,
    )


def live(trace: Trace) -> str:
    """One line for whoever watches."""
    text = f"inference {trace.inference_ms[-1]:.0f} ms, observing {trace.observe_ms[-1]:.0f} ms"
    recent = trace.sent[-10:]
    if len(recent) > 1:
        period_ms = (recent[-1] - recent[0]) / (len(recent) - 1) * 1e3
        text += f", loop {period_ms:.1f} ms over the last {len(recent)} actions"
    return f"answer {len(trace.inference_ms)}: {text}"


def timing_table(modes: Mapping[str, Timing], control_hz: float) -> Table:
    """One column per way of executing."""
    table = Table(title=f"{control_hz:g} Hz control, {1e3 / control_hz:g} ms per action", title_justify="left")
    table.add_column("")
    for name in modes:
        table.add_column(name, justify="right")

    add = table.add_row
    add("actions, queries", *(f"{m.actions}, {m.queries}" for m in modes.values()))
    add("actions per s", *("-" if m.actions_per_s is None else f"{m.actions_per_s:.1f}" for m in modes.values()))
    add("inference p50 / p99 ms", *(_pair(m.inference_ms) for m in modes.values()))
    add("observing p50 / p99 ms", *(_pair(m.observe_ms) for m in modes.values()))
    add("loop period p50 / p99 ms", *(_pair(m.period_ms) for m in modes.values()))
    add("jitter p50 / p99 ms", *(_pair(m.jitter_ms) for m in modes.values()))
    add("stalls", *("-" if m.stalls is None else f"{m.stalls}, {m.stalled_s:.2f} s" for m in modes.values()))
    add("stale rows skipped", *(str(m.skipped_rows) for m in modes.values()))
    return table


def _pair(samples: Samples | None) -> str:
    if samples is None:
        return "-"
    # Below a hundred samples the largest stands in for the 99th percentile.
    return f"{samples.p50:.1f} / {samples.p99:.1f}{' (max)' if samples.p99_is_max else ''}"
