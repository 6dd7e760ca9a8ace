"""Charts as rows of HTML and SVG. Everything along an axis is in percent, so that a chart fits every width and its text
keeps its size; every mark carries its exact figures as a title, which script.js also shows on focus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..plans.backends import BACKENDS
from ..plans.schema import ARCHITECTURE
from ..record.numbers import digits, small
from . import charts
from .charts import LEAST_DISTANCE, LEAST_MS, Bar, Bars, Points, Stacks, exact, letter, stage_color
from .markup import Html, element, join
from .placement import stack
from .views import color

MOST_ROWS = 40
"""Rows that a chart shows; the tables have all of them."""

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def palette() -> str:
    """CSS that gives every colour of a chart a class, since a page allows no style beside its own."""
    known = {color(name) for name in ("original", "mixed", *BACKENDS)} | set(ARCHITECTURE.colors.values())
    known |= {charts.BASELINE, charts.STEP, charts.OTHER}
    return "\n".join(f".{_class(shade)} {{ --shade: {shade}; }}" for shade in sorted(known))


def _class(shade: str) -> str:
    return "c-published" if shade == "published" else f"c-{shade.removeprefix('#').lower()}"


def draw(chart: Bars | Stacks | Points) -> Html:
    """A chart as markup."""
    if isinstance(chart, Bars):
        return _bars(chart)
    return _stacks(chart) if isinstance(chart, Stacks) else _points(chart)


def _bars(chart: Bars) -> Html:
    drawn = chart.bars[:MOST_ROWS]
    ends = [end for row in drawn for end in (row.value, row.high, row.last, row.before, row.mark) if end is not None]
    ticks = charts.round_ticks(max(ends, default=0.0) if chart.top is None else chart.top)
    scale = 100.0 / ticks[-1]
    lines = [_row(row, scale, [tick * scale for tick in ticks]) for row in drawn]
    axis = _axis([(tick * scale, _tick(tick)) for tick in ticks], chart.unit) if ends else None
    return join(element("ul", lines, axis, class_="chart"), more(len(chart.bars), "in the table below"))


def _stacks(chart: Stacks) -> Html:
    drawn = chart.rows[:MOST_ROWS]
    ticks = charts.round_ticks(max((sum(value for _, value in parts) for _, parts in drawn), default=0.0))
    lines = [_stack(label, parts, ticks[-1]) for label, parts in drawn]
    axis = _axis([(100.0 * tick / ticks[-1], _tick(tick)) for tick in ticks], "ms")
    named = charts.by_color(drawn)
    entries = [(shade, ", ".join(own[:6])) for shade, own in named.items()]
    return join(legend(entries), element("ul", lines, axis, class_="chart"), more(len(chart.rows), "in the record"))


def _stack(label: str, parts: Sequence[tuple[str, float]], top: float) -> Html:
    total, at, marks = sum(value for _, value in parts), 0.0, []
    for name, value in parts:
        width = 100.0 * value / top
        share = 100.0 * value / total if total else 0.0
        title = f"{label}, {name}: {exact(value)} ms, {share:.1f} % of {exact(total)} ms"
        shade = f"part {_class(stage_color(name))}"
        marks.append(_mark("rect", title, shade, x=_pc(at), y="15%", width=_pc(width), height="70%"))
        at += width
    track = element("svg", marks, class_="track", role="group", aria_label=label)
    return element("li", _label(label), track, element("span", f"{digits(total)} ms", class_="value"), class_="row")


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Swatches: (colour, what it stands for)."""
    swatches = [element("li", element("i", class_=f"swatch {_class(shade)}"), name) for shade, name in entries]
    return element("ul", swatches, class_="legend")


def _points(chart: Points) -> Html:
    """Letters stand for the points, and a list beside explains those; below `LEAST_DISTANCE` lies one line for all. A
    letter that would cover another stands above or below its point, with a line to it.
    """
    drawn = chart.points[:MOST_ROWS]
    left, right = charts.decades([max(point.ms, LEAST_MS) for point in drawn])
    known = (*(point.distance for point in drawn), *(value for _, value in chart.gates))
    low, high = charts.decades([value for value in known if value >= LEAST_DISTANCE] or [1e-6, 1e-3])
    floor = 88.0  # percent of the height where the smallest decade lies

    def across(ms: float) -> float:
        # What lies left of it belongs to the numbers of the other axis.
        return 14 + 82 * (math.log10(max(ms, LEAST_MS)) - left) / max(right - left, 1)

    def down(value: float) -> float:
        if value < LEAST_DISTANCE:
            return 96.0
        return 4 + (floor - 4) * (high - math.log10(value)) / max(high - low, 1)

    marks: list[Html] = []
    for power in range(low, high + 1):
        y = down(10.0**power)
        marks += [_line("grid", 0, y, 100, y), _text(f"10{str(power).translate(SUPERSCRIPT)}", 0.5, y, "tick above")]
    marks += [_line("grid", 0, 96, 100, 96), _text("≤ 10⁻⁸", 0.5, 96, "tick above")]
    for power in range(left, right + 1):
        x = across(10.0**power)
        end = "end" if x > 94 else "middle"
        marks += [_line("grid", x, 0, x, 96), _text(charts.rounded_time(power), x, 100, f"tick below {end}")]
    for name, value in chart.gates:
        if value > 0:
            marks += [_line("gate", 0, down(value), 100, down(value)), _text(name, 99.5, down(value), "gate above end")]
    keys, dots, leads = [], [], []
    places = [(across(point.ms), down(point.distance)) for point in drawn]
    moves = stack(places, [(99.5, down(value), 105.0) for _, value in chart.gates if value > 0])
    for place, (point, (x, y), move) in enumerate(zip(drawn, places, moves, strict=True)):
        name, moved = letter(place), {"transform": f"translate(0 {move})"}
        title = f"{name}: {point.label}: p50 {exact(point.ms)} ms, 1 − cosine {point.distance:.3g}"
        shade = _class(point.color)
        if move:
            # A line from a percent to pixels beside it: only an inner picture can be placed so.
            lead = [element("line", class_="lead", x1=0, y1=0, x2=0, y2=move)]
            lead.append(element("rect", class_=f"part {shade}", x=-4, y=-4, width=8, height=8))
            leads.append(element("svg", lead, x=_pc(x), y=_pc(y), width=1, height=1, class_="led"))
        dots.append(_mark("circle", title, f"dot {shade}", cx=_pc(x), cy=_pc(y), r=10, **moved))
        dots.append(_text(name, x, y, "letter", **moved))
        figures = f"{digits(point.ms)} ms, 1 − cosine {small(point.distance)}"
        label = element("b", name, class_=f"swatch {shade}")
        keys.append(element("li", label, point.label, " ", element("small", figures)))
    picture = element("svg", marks, leads, dots, class_="plane", role="group", aria_label="latency against 1 − cosine")
    return element(
        "div",
        element("div", element("p", "1 − cosine to eager fp32, lower is more exact", class_="unit"), picture,
                element("p", "p50 of one request, lower is faster →", class_="unit end")),
        element("ul", keys, class_="keys"),
        more(len(chart.points), "in the table below"),
        class_="scatter",
    )  # fmt: skip


def _row(row: Bar, scale: float, grid: Sequence[float]) -> Html:
    marks = [_line("grid", x, 0, x, 100) for x in grid]
    if row.value is None:
        words = element("span", row.shown, class_="absent")
        return element("li", _label(row.label), words, class_="row missing", tabindex=0, title=row.title)
    end = max(row.value, 0.0) * scale
    bar = end
    if row.before is not None:
        start = max(row.before, 0.0) * scale
        # What noise could explain is neither saved nor lost.
        kind = "level" if row.doubtful else "saved" if start > end else "lost"
        near, width = min(start, end), abs(start - end)
        marks.append(element("rect", class_=kind, x=_pc(near), y="22%", width=_pc(width), height="56%"))
        bar = near
    marks.append(element("rect", class_="bar", x="0", y="22%", width=_pc(bar), height="56%"))
    if row.low is not None and row.high is not None:
        low, high = row.low * scale, row.high * scale
        marks += [_line("whisker", *ends) for ends in ((low, 50, high, 50), (low, 36, low, 64), (high, 36, high, 64))]
    marks.append(_line("median", end, 18, end, 82))
    if row.last is not None:
        marks.append(_line("last", row.last * scale, 30, row.last * scale, 70))
    # The whole row answers the pointer, not the bar alone, which may be a hair wide.
    marks.append(element("rect", class_="target", x="0", y="0", width="100%", height="100%"))
    track = element("svg", element("title", row.title), marks, class_="track", role="img", tabindex=0)
    value = element("span", row.shown, class_="value")
    return element("li", _label(row.label), track, value, class_=f"row {_class(row.color)}")


def _axis(ticks: Sequence[tuple[float, str]], unit: str) -> Html:
    marks = [
        _text(text, x, 0, "tick under " + ("start" if x < 2 else "end" if x > 98 else "middle")) for x, text in ticks
    ]
    parts = (_label(""), element("svg", marks, class_="track"), element("span", unit, class_="value unit"))
    return element("li", *parts, class_="row axis", aria_hidden="true")


def more(count: int, where: str) -> Html | None:
    return element("p", f"{count - MOST_ROWS} more {where}.", class_="more") if count > MOST_ROWS else None


def _tick(value: float) -> str:
    return f"{value:g}" if 1e-4 <= value < 1000 or value == 0 else digits(value)


def _label(text: str) -> Html:
    return element("span", text, class_="label")


def _mark(tag: str, title: str, class_: str, **place: str | float) -> Html:
    return element(tag, element("title", title), class_=class_, tabindex=0, role="img", **place)


def _line(class_: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("line", class_=class_, x1=_pc(x1), y1=_pc(y1), x2=_pc(x2), y2=_pc(y2))


def _text(text: str, x: float, y: float, class_: str, **more: str) -> Html:
    return element("text", text, x=_pc(x), y=_pc(y), class_=class_, **more)


def _pc(value: float) -> str:
    return f"{min(max(value, 0.0), 100.0):.3f}".rstrip("0").rstrip(".") + "%"
