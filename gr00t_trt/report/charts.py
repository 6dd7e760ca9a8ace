"""Charts as rows of HTML and SVG. Everything along an axis is in percent, so that a chart fits every width and its
text keeps its size; every mark carries its exact figures as a title, which script.js also shows on focus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .figures import distance, exact, short, speedup, spelled
from .markup import Html, element, join
from .readings import Reading
from .timings import REST

MOST_ROWS = 40
"""Rows that a chart shows; the tables have all of them."""

COLOURED = ("plain", "eager", "inductor", "torch_tensorrt", "tensorrt", "onnxruntime")
"""Backends with a colour of their own; `c-<name>` in style.css."""

SHADES = {
    "preprocess": "s-prepare",
    "vision_model": "s-vision",
    "language_model": "s-language",
    "language_model_padded": "s-language",
    "eagle_backbone, rest": "s-backbone",
    "vl_components": "s-vl",
    "context": "s-context",
    "state_encoder": "s-state",
    "action_encoder": "s-encode",
    "dit_model": "s-denoise",
    "denoise_step": "s-denoise",
    "denoise_loop": "s-denoise",
    "action_decoder": "s-decode",
    "postprocess": "s-finish",
    REST: "s-rest",
}
"""Stage -> the class of its colour, the same on every page; other stages share `s-other`."""

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

LEAST_MS = 1e-6
LEAST_DISTANCE = 1e-8
"""1 - cosine below which two results are equal as far as fp32, with its 24 bits, can tell."""


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        label: What it is.
        value: Where the bar ends; None draws none.
        shown: The value as text, or why there is none.
        title: The exact figures.
        colour: A class of style.css.
        before: Where the bar before ended, for a waterfall: the difference is drawn.
        low, high, last: p10, p90 and p99.
    """

    label: str
    value: float | None
    shown: str
    title: str
    colour: str
    before: float | None = None
    low: float | None = None
    high: float | None = None
    last: float | None = None


def colour(backend: str) -> str:
    return f"c-{backend}" if backend in COLOURED else "c-other"


def latency_bar(reading: Reading, label: str, colour_class: str | None = None) -> Bar:
    """The median as a bar, the spread as a whisker."""
    taken, shade = reading.timing, colour_class or colour(reading.backend)
    if taken is None:
        return Bar(label, None, reading.why_not or "not measured", f"{label}: {reading.why_not}", shade)
    # A measurement says how it compares with eager; of backends side by side, the bars do.
    return Bar(
        label,
        taken.p50,
        short(taken.p50, "ms") + (f" · {speedup(reading.ratio)}" if reading.eager and reading.ratio else ""),
        f"{label}: {spelled(taken)}" + (f". {reading.verdict}" if reading.verdict else ""),
        shade,
        low=taken.p10,
        high=taken.p90,
        last=taken.p99,
    )


def bars(rows: Sequence[Bar], unit: str, *, top: float | None = None) -> Html:
    """Horizontal bars on one axis that begins at zero.

    Args:
        unit: Of the axis: ``ms``, ``%``.
        top: Where the axis ends; by default a round number beyond everything drawn.
    """
    drawn = rows[:MOST_ROWS]
    ends = [end for row in drawn for end in (row.value, row.high, row.last, row.before) if end is not None]
    ticks = round_ticks(max(ends, default=0.0) if top is None else top)
    scale = 100.0 / ticks[-1]
    lines = [_row(row, scale, [tick * scale for tick in ticks]) for row in drawn]
    axis = _axis([(tick * scale, _tick(tick)) for tick in ticks], unit) if ends else None
    return join(element("ul", lines, axis, class_="chart"), _more(len(rows), "in the table below"))


def _stack(label: str, parts: Sequence[tuple[str, float]], top: float) -> Html:
    total, at, marks = sum(value for _, value in parts), 0.0, []
    for name, value in parts:
        width = 100.0 * value / top
        share = 100.0 * value / total if total else 0.0
        title = f"{label}, {name}: {exact(value)} ms, {share:.1f} % of {exact(total)} ms"
        marks.append(_mark("rect", title, f"part {_shade(name)}", x=_pc(at), y="15%", width=_pc(width), height="70%"))
        at += width
    track = element("svg", marks, class_="track", role="group", aria_label=label)
    return element("li", _label(label), track, element("span", short(total, "ms"), class_="value"), class_="row")


def stacks(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> Html:
    """Stacked bars on one axis, and the legend of their stages."""
    drawn = rows[:MOST_ROWS]
    ticks = round_ticks(max((sum(value for _, value in parts) for _, parts in drawn), default=0.0))
    names = list(dict.fromkeys(name for _, parts in drawn for name, _ in parts))
    lines = [_stack(label, parts, ticks[-1]) for label, parts in drawn]
    axis = _axis([(100.0 * tick / ticks[-1], _tick(tick)) for tick in ticks], "ms")
    named: dict[str, list[str]] = {}
    for name in names:
        named.setdefault(_shade(name), []).append(name)
    entries = [(shade, ", ".join(own[:6])) for shade, own in named.items()]
    return join(legend(entries), element("ul", lines, axis, class_="chart"), _more(len(rows), "in the record"))


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Swatches: (class of the colour, what it stands for)."""
    swatches = [element("li", element("i", class_=f"swatch {shade}"), name) for shade, name in entries]
    return element("ul", swatches, class_="legend")


def points(rows: Sequence[tuple[str, Reading]], gates: Sequence[tuple[str, float]]) -> Html:
    """Latency against 1 - cosine, both on logarithmic axes; below `LEAST_DISTANCE` lies one line for all.

    Args:
        rows: (label, reading with a latency and a cosine). Letters stand for them, and a list beside explains those.
        gates: (name, 1 - cosine) of the accuracy gates, drawn as lines.
    """
    drawn = rows[:MOST_ROWS]
    latencies = [max(reading.timing.p50, LEAST_MS) for _, reading in drawn if reading.timing]
    distances = [reading.distance for _, reading in drawn if reading.distance is not None]
    left, right = math.floor(math.log10(min(latencies))), math.ceil(math.log10(max(latencies) * 1.0001))
    shown = [value for value in (*distances, *(value for _, value in gates)) if value >= LEAST_DISTANCE]
    low = math.floor(math.log10(min(shown, default=1e-6)))
    high = math.ceil(math.log10(max(shown, default=1e-3) * 1.0001))
    floor = 88.0  # percent of the height where the smallest decade lies

    def across(ms: float) -> float:
        return 4 + 92 * (math.log10(max(ms, LEAST_MS)) - left) / max(right - left, 1)

    def down(value: float) -> float:
        if value < LEAST_DISTANCE:
            return 96.0
        return 4 + (floor - 4) * (high - math.log10(value)) / max(high - low, 1)

    marks: list[Html] = []
    for power in range(low, high + 1):
        y = down(10.0**power)
        marks += [_line("grid", 0, y, 100, y), _text(f"10{str(power).translate(SUPERSCRIPT)}", 0.5, y, "tick above")]
    marks += [_line("grid", 0, 96, 100, 96), _text("equal in fp32", 0.5, 96, "tick above")]
    for power in range(left, right + 1):
        x = across(10.0**power)
        end = "start" if x < 6 else "end" if x > 94 else "middle"
        marks += [_line("grid", x, 0, x, 96), _text(short(10.0**power, "ms"), x, 100, f"tick below {end}")]
    for name, value in gates:
        if value > 0:
            marks += [_line("gate", 0, down(value), 100, down(value)), _text(name, 99.5, down(value), "gate above end")]
    keys = []
    for place, (label, reading) in enumerate(drawn):
        if reading.timing is None or reading.distance is None:
            continue
        name = letter(place)
        x, y = across(reading.timing.p50), down(reading.distance)
        title = f"{name}: {label}: p50 {exact(reading.timing.p50)} ms, 1 − cosine {reading.distance:.3g}"
        shade = colour(reading.backend)
        marks.append(_mark("circle", title, f"dot {shade}", cx=_pc(x), cy=_pc(y), r=10))
        marks.append(_text(name, x, y, "letter"))
        figures = f"{short(reading.timing.p50, 'ms')}, 1 − cosine {distance(reading.distance)}"
        keys.append(element("li", element("b", name, class_=f"swatch {shade}"), label, " ", element("small", figures)))
    picture = element("svg", marks, class_="plane", role="group", aria_label="latency against 1 − cosine")
    return element(
        "div",
        element("div", element("p", "1 − cosine to eager fp32, lower is more exact", class_="unit"), picture,
                element("p", "p50 of one request, lower is faster →", class_="unit end")),
        element("ul", keys, class_="keys"),
        _more(len(rows), "in the table below"),
        class_="scatter",
    )  # fmt: skip


def round_ticks(top: float) -> list[float]:
    """Four to six round numbers from 0 to `top` or just beyond."""
    top = max(top, LEAST_MS)
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    count = max(1, math.ceil(top / step - 1e-9))
    return [step * i for i in range(count + 1)]


def _row(row: Bar, scale: float, grid: Sequence[float]) -> Html:
    marks = [_line("grid", x, 0, x, 100) for x in grid]
    if row.value is None:
        words = element("span", row.shown, class_="absent")
        return element("li", _label(row.label), words, class_="row missing", tabindex=0, title=row.title)
    end = max(row.value, 0.0) * scale
    if row.before is not None:
        start = max(row.before, 0.0) * scale
        kind = "saved" if start > end else "lost"
        near, width = min(start, end), abs(start - end)
        marks.append(element("rect", class_=kind, x=_pc(near), y="22%", width=_pc(width), height="56%"))
    bar = min(end, row.before * scale) if row.before is not None else end
    marks.append(element("rect", class_="bar", x="0", y="22%", width=_pc(bar), height="56%"))
    if row.low is not None and row.high is not None:
        low, high = row.low * scale, row.high * scale
        marks.append(_line("whisker", low, 50, high, 50))
        marks += [_line("whisker", x, 36, x, 64) for x in (low, high)]
    marks.append(_line("median", end, 18, end, 82))
    if row.last is not None:
        marks.append(_line("last", row.last * scale, 30, row.last * scale, 70))
    # The whole row answers the pointer, not the bar alone, which may be a hair wide.
    marks.append(element("rect", class_="target", x="0", y="0", width="100%", height="100%"))
    title = element("title", row.title)
    track = element("svg", title, marks, class_="track", role="img", tabindex=0)
    value = element("span", row.shown, class_="value")
    return element("li", _label(row.label), track, value, class_=f"row {row.colour}")


def _axis(ticks: Sequence[tuple[float, str]], unit: str) -> Html:
    marks = [
        _text(text, x, 0, "tick under " + ("start" if x < 2 else "end" if x > 98 else "middle")) for x, text in ticks
    ]
    track = element("svg", marks, class_="track")
    return element(
        "li", element("span", class_="label"), track, element("span", unit, class_="value unit"), class_="row axis",
        aria_hidden="true",
    )  # fmt: skip


def _more(count: int, where: str) -> Html | None:
    return element("p", f"{count - MOST_ROWS} more {where}.", class_="more") if count > MOST_ROWS else None


def _shade(stage: str) -> str:
    return SHADES.get(stage, "s-other")


def _tick(value: float) -> str:
    return f"{value:g}" if 1e-4 <= value < 1000 or value == 0 else short(value)


def _label(text: str) -> Html:
    return element("span", text, class_="label")


def _mark(tag: str, title: str, class_: str, **place: str | float) -> Html:
    return element(tag, element("title", title), class_=class_, tabindex=0, role="img", **place)


def _line(class_: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    return element("line", class_=class_, x1=_pc(x1), y1=_pc(y1), x2=_pc(x2), y2=_pc(y2))


def _text(text: str, x: float, y: float, class_: str) -> Html:
    return element("text", text, x=_pc(x), y=_pc(y), class_=class_)


def _pc(value: float) -> str:
    return f"{min(max(value, 0.0), 100.0):.3f}".rstrip("0").rstrip(".") + "%"


def letter(place: int) -> str:
    """A, B, ... Z, AA, AB, ..."""
    text = ""
    place += 1
    while place:
        place, digit = divmod(place - 1, 26)
        text = chr(ord("A") + digit) + text
    return text
