"""Charts before they are drawn: what each bar, part and point is, once; `svg` and `png` draw them. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..plans.schema import ARCHITECTURE
from ..record.numbers import digits
from ..record.samples import Samples
from .views import Loaded, View, color, grouped, listed, rivals, rows_of

BASELINE, STEP = "#8C8C8C", "#009E73"
"""Colours of a waterfall: its first bar, and all after it."""

OTHER = "#7fbf7b"
"""Of a stage that the architecture gives none."""

LEAST_MS = 1e-6
LEAST_DISTANCE = 1e-8
"""1 - cosine below which two results are equal as far as fp32, with its 24 bits, can tell."""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        value: Where the bar ends; None draws none.
        shown: The value as text, or why there is none.
        reason: Why there is none, in the words that all bars without one for the same reason share.
        title: The exact figures.
        color: ``#rrggbb``, or ``published`` for figures of others, which are hatched.
        before: Where the baseline of a waterfall's step ended: the difference is drawn.
        doubtful: That difference may be none: their spreads overlap.
        low, high, last: p10, p90 and p99.
        mark: A value to be marked beside the bar, such as a baseline.
    """

    label: str
    value: float | None
    shown: str
    title: str
    color: str
    before: float | None = None
    doubtful: bool = False
    low: float | None = None
    high: float | None = None
    last: float | None = None
    mark: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Bars:
    """Horizontal bars on one axis that begins at zero and ends at `top`, or beyond everything drawn."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    top: float | None = None


Stack = tuple[str, tuple[tuple[str, float], ...]]
"""What a stacked bar is called, and its parts: stages and their ms."""


@dataclass(frozen=True)
class Stacks:
    title: str
    rows: tuple[Stack, ...]


@dataclass(frozen=True)
class Point:
    label: str
    color: str
    ms: float
    distance: float


@dataclass(frozen=True)
class Points:
    """Latency against 1 - cosine; `gates`: (name, 1 - cosine) of accuracy gates."""

    title: str
    points: tuple[Point, ...]
    gates: tuple[tuple[str, float], ...]


Chart = Bars | Stacks | Points


def stage_color(stage: str) -> str:
    return ARCHITECTURE.colors.get(stage, OTHER)


def by_color(rows: Iterable[Stack]) -> dict[str, list[str]]:
    """The stages of stacked bars by their colour, for a legend."""
    return grouped((stage_color(stage), stage) for stage in dict.fromkeys(name for _, own in rows for name, _ in own))


def exact(value: float | None) -> str:
    """To the nanosecond for milliseconds, which is the clock's own step."""
    return "–" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def spelled(latency: Samples) -> str:
    """Everything about a latency, for the reader who points at it."""
    count = len(latency.samples)
    tail = "largest" if latency.p99_is_max else "p99"
    many = count > 1
    spread = [("p10", latency.spread[0]), ("p90", latency.p90)] if many else []
    named = [("p50", latency.p50), *spread, (tail, latency.p99)]
    figures = ", ".join(f"{name} {exact(value)} ms" for name, value in named)
    warm = "1 warm-up" if latency.warmup == 1 else f"{latency.warmup} warm-ups"
    method = f"{count} sample{'s' * many} after {warm} by {latency.timer} on {latency.device}"
    return f"{figures} ({method}{f'; {latency.note}' if latency.note else ''})"


def latency_bar(view: View, label: str, shade: str | None = None) -> Bar:
    """The median as a bar, the spread as a whisker."""
    latency, against = view.latency, view.result.against
    shade = shade or (STEP if view.measured else color(view.result.name))
    if latency is None:
        return Bar(label, None, view.why or "not measured", f"{label}: {view.why}", shade, reason=view.reason)
    many = len(latency.samples) > 1
    # A measurement says how it compares with its baseline; of backends side by side, the bars do.
    times = f" · {view.ratio:.2f}×" if view.measured and view.ratio else ""
    return Bar(
        label,
        latency.p50,
        f"{digits(latency.p50)} ms{times}",
        f"{label}: {spelled(latency)}" + (f". {against.text}" if against and against.text else ""),
        shade,
        low=latency.spread[0] if many else None,
        high=latency.p90 if many else None,
        last=latency.p99,
        mark=view.baseline.p50 if view.measured and view.baseline and view.ratio else None,
    )


def latency_chart(one: Loaded) -> Bars:
    """The whole request and every submodule on every backend."""
    bars = [latency_bar(view, f"{view.what}: {view.label}") for view in listed([one])]
    return Bars("Latency, submodule by submodule", "ms", tuple(bars))


def waterfall_chart(one: Loaded) -> Bars:
    """One bar per step from the original to the fastest form of the model.

    Each is held against the original as it was timed in turn with that very step, or where it was not, against the one
    original of the record: a machine whose clock moved between two steps changes both.
    """
    bars = []
    for view in rows_of([one], "waterfall"):
        own, against = view.latency, view.result.against
        base = against.latency_ms if against else view.baseline
        bar = latency_bar(view, view.step, BASELINE if base is None else STEP)
        if own is not None and base is not None:
            # The spread of a single sample is not known.
            unknown = min(len(own.samples), len(base.samples)) < 2
            change = f"{exact(own.p50 - base.p50)} ms against the original's {exact(base.p50)} ms"
            bar = replace(
                bar,
                shown=f"{digits(own.p50)} of {digits(base.p50)} ms",
                title=f"{bar.title}. {change}",
                before=base.p50,
                mark=base.p50,
                doubtful=unknown or own.meets(base),
            )
        bars.append(bar)
    return Bars("One action chunk, step by step", "ms", tuple(bars))


def stage_chart(one: Loaded, *groups: str) -> Stacks:
    """Where a request spends its time, by the run's own split and by the rows of these groups."""
    stages = {row.stage: row for row in one.record.stages}.values()
    within = {row.stage: row.within for row in stages}
    original = {row.stage: row.baseline_ms.p50 for row in stages if row.baseline_ms}
    planned = {row.stage: row.latency_ms.p50 for row in stages if row.latency_ms}
    rows = [("original", parts(original, within)), ("as planned", parts(planned, within))]
    rows += [(view.step, parts(view.result.stages_ms, {})) for view in rows_of([one], *groups)]
    drawn = [(label, tuple(own)) for label, own in rows if sum(value for _, value in own) > 0]
    return Stacks("Where one action chunk spends its time", tuple(drawn))


def parts(values: Mapping[str, float], within: Mapping[str, str | None]) -> list[tuple[str, float]]:
    """The leaves of a tree of stages, so that nothing is counted twice; what lies between stages comes last.

    Args:
        values: Stage -> ms.
        within: Stage -> the stage that calls it, or None.
    Returns: (stage, ms). What a stage does beside calling others is a part of its own.
    """
    rest, total = "between stages", "request"
    parents = {stage: within.get(stage) for stage in values if stage != total}
    for joint, own in ARCHITECTURE.joint.items():
        if joint in values:
            # Where the restructured model stands beside it, `within` is that one's, which has no such stage.
            parents.update({name: joint for name in own if name in values})
    called: dict[str, float] = {}
    for stage, parent in parents.items():
        if parent is not None:
            called[parent] = called.get(parent, 0.0) + values[stage]
    out = [
        (f"{stage}, rest" if stage in called else stage, max(values[stage] - called.get(stage, 0.0), 0.0))
        for stage in parents
        if stage != rest
    ]
    return out + ([(rest, max(values[rest], 0.0))] if rest in values else [])


def roofline_chart(views: Sequence[View], *, tagged: bool = False) -> Bars:
    """How close each measured row comes to what bandwidth and arithmetic allow, in percent."""
    bars = []
    for view in views:
        roof, share, label = view.result.roofline, view.share, view.tagged if tagged else view.step
        if roof is not None and roof.ms is not None and share is not None and view.p50 is not None:
            title = f"{label}: {exact(share)} %, {exact(roof.ms)} ms of {exact(view.p50)} ms"
            bars.append(Bar(label, share, f"{share:.1f} %", title, STEP))
    return Bars("Share of the roofline", "%", tuple(bars), top=100.0)


def accuracy_chart(loaded: Sequence[Loaded]) -> Points:
    """Whole requests: p50 against 1 - cosine of the actions, with the gates as lines."""
    points = []
    gates: dict[float, str] = {}
    for one in loaded:
        for view in rivals(one):
            distance = view.result.accuracy.distance if view.result.accuracy else None
            if view.p50 is not None and view.p50 > 0 and distance is not None:
                shade = STEP if view.measured else color(view.result.name)
                points.append(Point(view.tagged, shade, view.p50, distance))
        known = [result.gate for result in one.record.results if result.gate and result.subject in ("request", "model")]
        for cosine in [gate.cosine for gate in known if gate.cosine is not None][:1]:
            gates.setdefault(1.0 - cosine, f"gate {cosine:g}" + ("" if len(loaded) == 1 else f" ({one.tag})"))
    return Points("Speed against accuracy", tuple(points), tuple((name, value) for value, name in gates.items()))


def round_ticks(top: float) -> list[float]:
    """Four to six round numbers from 0 to `top` or just beyond."""
    top = max(top, LEAST_MS)
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    count = max(1, math.ceil(top / step - 1e-9))
    return [step * i for i in range(count + 1)]


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that all values lie between."""
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values) * 1.0001))


def rounded_time(power: int) -> str:
    """10 to a power, in milliseconds, as short as it can be said: ``10 ms``, ``100 s``."""
    return f"{10.0**power:g} ms" if power < 3 else f"{10 ** (power - 3)} s"


def letter(place: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    before, digit = divmod(place, 26)
    return (letter(before - 1) if before else "") + chr(ord("A") + digit)
