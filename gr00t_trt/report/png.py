"""Charts as PNG files that say which record they were drawn from. Never imports torch.

What was not measured is written where its bar would be. Needs matplotlib: pip install 'gr00t_trt[plots]'.
"""

from __future__ import annotations

import hashlib
import textwrap
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.install import install_extra
from ..errors import RecordError
from ..record.files import dumps
from ..record.numbers import digits
from ..record.schema import Record
from . import charts
from .charts import LEAST_DISTANCE, LEAST_MS, Bar, Bars, Chart, Points, Stacks, letter, stage_color
from .placement import stack
from .views import SAME_WORK, Loaded, counted, grouped, rows_of, told

GREY, INK, FAINT = "#8C8C8C", "#222222", "#D9D9D9"
HATCHED = "#BBBBBB"
SAVED, LOST, LEVEL = "#C7E3D8", "#F0B8A8", "#DFE3E8"
"""Between a step of a waterfall and its baseline: faster, slower, and what the spreads of both could explain."""
MOST_ROWS = 60
"""Bars of a picture; beyond, it would be taller than anyone scrolls, and says so."""

DPI = 150
WIDTH_INCHES = 9.0
HEAD_INCHES = 0.62
"""What title and subtitle take."""
LEGEND_INCHES = 0.48
PLANE_POINTS = ((200.0, 190.0), (400.0, 190.0))
"""Width and height of a scatter plot's axes, beside a wide and a narrow legend."""
BEHIND = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
"""Keeps grid lines out of text."""

KEY = "Record"
"""PNG text chunk that holds the digest of the record."""


def charts_of(one: Loaded) -> dict[str, Chart]:
    """Name of a picture -> its chart, for everything that the record has figures for."""
    steps, scatter = rows_of([one], "waterfall"), charts.accuracy_chart([one])
    roofed = [view for view in rows_of([one], *SAME_WORK) if view.share]
    split = rows_of([one], "waterfall", "split")
    wanted: dict[str, tuple[Chart, object]] = {
        "latency": (charts.latency_chart(one), len(one.record.measured) < len(one.record.results)),
        "speed-accuracy": (scatter, scatter.points),
        "waterfall": (charts.waterfall_chart(one), steps),
        "stages": (charts.stage_chart(one, "waterfall", "split"), any(view.result.stages_ms for view in split)),
        "roofline": (charts.roofline_chart(roofed), roofed),
    }
    return {name: chart for name, (chart, has_figures) in wanted.items() if has_figures}


def draw_all(one: Loaded, folder: Path) -> list[Path]:
    """Every picture that the record has figures for, as ``<record>-<chart>.png``; returns their paths.

    Raises: RecordError without matplotlib, or for a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise RecordError(f"{folder}: no pictures can be written there: {why}", fix="change --plots") from error
    written = []
    for name, chart in charts_of(one).items():
        path = folder / f"{one.name}-{name}.png"
        draw(chart, one.record, path)
        written.append(path)
    return written


def draw(chart: Chart, record: Record, path: str | Path) -> None:
    """Write one picture, with the record's digest in it.

    Raises: RecordError without matplotlib, or for a path that cannot be written.
    """
    if isinstance(chart, Bars):
        with _figure(record, path, chart.title, 1.35 + 0.36 * max(len(told_once(chart.bars)[:MOST_ROWS]), 2)) as axes:
            _bars(axes, chart)
    elif isinstance(chart, Stacks):
        height = 1.35 + LEGEND_INCHES + 0.36 * max(len(chart.rows), 2)
        with _figure(record, path, chart.title, height, LEGEND_INCHES) as axes:
            _stacks(axes, chart)
    else:
        with _figure(record, path, chart.title, max(2.6 + 0.3 * len(chart.points), 4.0)) as axes:
            _points(axes, chart)


def digest(record: Record) -> str:
    """What a record says, as 16 hexadecimal digits; the same whether it was read or is about to be written."""
    return hashlib.sha256(dumps(record).encode()).hexdigest()[:16]


def drawn_from(path: str | Path) -> str | None:
    """The digest in a picture that `draw` wrote; None for a file that is no such picture, or is not there."""
    try:
        data = Path(path).read_bytes()
    except OSError:
        return None
    at = 8
    while data[:8] == b"\x89PNG\r\n\x1a\n" and at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body, check = data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        if zlib.crc32(kind + body) != int.from_bytes(check, "big"):
            return None
        if kind == b"tEXt" and body.startswith(KEY.encode() + b"\0"):
            return body.split(b"\0", 1)[1].decode("latin-1")
        at += 12 + size
    return None


@contextmanager
def _figure(record: Record, path: str | Path, title: str, height: float, foot_inches: float = 0.0) -> Iterator[Any]:
    """Axes to draw on, under title and subtitle; the picture is written when the block ends without an error.

    `foot_inches` at the bottom stay free, for a legend. Names are no formulas, whatever dollars they hold, and a letter
    that the font lacks is worth no warning.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise RecordError("plots need matplotlib", fix=install_extra("plots")) from None
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        foot = foot_inches / height
        between = (0.0, foot, 1.0, 1.0 - foot - HEAD_INCHES / height)
        drawing = Figure(figsize=(WIDTH_INCHES, height), dpi=DPI, layout=ConstrainedLayoutEngine(rect=between))
        FigureCanvasAgg(drawing)
        top = 1.0 - 0.12 / height
        drawing.text(0.012, top, title, va="top", fontsize=13, fontweight="bold", color=INK)
        drawing.text(0.012, top - 0.30 / height, subtitle(record), va="top", fontsize=9, color="#555555")
        axes = drawing.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(GREY)
        axes.tick_params(axis="x", colors=INK, labelsize=9)
        axes.tick_params(axis="y", length=0, labelsize=9.5, colors=INK)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=FAINT, linewidth=0.7)
        yield axes
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            drawing.savefig(path, format="png", dpi=DPI, metadata={KEY: digest(record), "Software": None})
        except OSError as error:
            raise RecordError(f"{path}: the picture cannot be written: {error.strerror or error}") from error


def subtitle(record: Record) -> str:
    """Model, device, precision and workload in one line."""
    environment, given = record.environment, record.inputs
    parts = (
        str(record.model.path or "model"),
        (environment.gpu if record.on_gpu else None) or f"CPU, {environment.cpu_cores or '?'} cores",
        str(record.setting("precision") or ""),
        counted(given.views, "view"),
        told("batch {}", given.batch_size),
        counted(given.denoising_steps, "step"),
        counted(given.sequence_length, "token"),
    )
    return " · ".join(part for part in parts if part)


def _bars(axes: Any, chart: Bars) -> None:
    bars = told_once(chart.bars)
    drawn = bars[:MOST_ROWS]
    widest = max((end for row in drawn for end in (row.value, row.high, row.mark) if end is not None), default=0.0)
    for place, row in enumerate(drawn):
        if row.value is None:
            _not_measured(axes, place, row.shown)
            continue
        hatch = {"hatch": "///", "edgecolor": GREY} if row.color == "published" else {}
        if row.before is not None:
            shade = LEVEL if row.doubtful else SAVED if row.before > row.value else LOST
            left, right = sorted((row.before, row.value))
            axes.barh(place, right - left, left=left, color=shade, height=0.68)
        filled = row.value if row.before is None else min(row.value, row.before)
        axes.barh(place, filled, color=HATCHED if hatch else row.color, height=0.68, **hatch)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
        if row.mark is not None:
            axes.plot([row.mark, row.mark], [place - 0.34, place + 0.34], color=GREY, linewidth=1.6)
        _label(axes, max(row.value, row.high or 0.0, row.mark or 0.0), place, row.shown)
    if not drawn:
        _not_measured(axes, 0, "nothing of this kind was measured")
    more = f"; {len(bars) - len(drawn)} more are not drawn" if len(bars) > len(drawn) else ""
    unit = "roofline time over p50, %" if chart.unit == "%" else "p50 of one call, ms; thin line: p10 to p90"
    tick = "; grey tick: the baseline" if any(row.mark is not None for row in drawn) else ""
    room = (chart.top or 0.0) or max(widest, LEAST_MS) * 1.22
    _finish(axes, [row.label for row in drawn] or [""], room, f"{unit}{tick}{more}")


def told_once(bars: Sequence[Bar]) -> list[Bar]:
    """Bars with a value, then one row for each reason why others have none."""
    reasons = grouped((row.reason or row.shown, row) for row in bars if row.value is None)
    told = [
        own[0] if len(own) == 1 else replace(own[0], label=f"{len(own)} others", shown=reason)
        for reason, own in reasons.items()
    ]
    return [row for row in bars if row.value is not None] + told


def _stacks(axes: Any, chart: Stacks) -> None:
    totals = [sum(value for _, value in parts) for _, parts in chart.rows]
    widest = max(totals, default=0.0)
    for place, ((_, parts), total) in enumerate(zip(chart.rows, totals, strict=True)):
        left = 0.0
        for name, value in parts:
            shade = stage_color(name)
            axes.barh(place, value, left=left, color=shade, height=0.68, edgecolor="white", linewidth=0.8)
            if value > 0.055 * widest:
                middle = left + value / 2
                axes.text(middle, place, digits(value), ha="center", va="center", fontsize=8.5, color=_ink(shade))
            left += value
        _label(axes, left, place, f"{digits(total)} ms")
    if not chart.rows:
        _not_measured(axes, 0, "no row of this record has its stages timed")
    from matplotlib.patches import Patch

    named = charts.by_color(chart.rows)
    entries = ((shade, names[0] + ("" if len(names) == 1 else " and others")) for shade, names in named.items())
    legend = axes.legend(
        handles=[Patch(color=shade, label=label) for shade, label in entries], loc="lower left",
        bbox_to_anchor=(0.0, 0.0), bbox_transform=axes.figure.transFigure, ncols=max(1, min(len(named), 5)),
        frameon=False, fontsize=8, handlelength=1.0, columnspacing=1.2, borderaxespad=0.2,
    )  # fmt: skip
    legend.set_in_layout(False)  # its place is kept free already
    labels = [label for label, _ in chart.rows] or [""]
    _finish(axes, labels, max(widest, LEAST_MS) * 1.15, "p50, ms; all calls of a stage added up")


def _ink(shade: str) -> str:
    """Dark on a light colour, white on a dark one."""
    red, green, blue = (int(shade[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"


def _points(axes: Any, chart: Points) -> None:
    drawn = chart.points[:MOST_ROWS]
    gates = [(name, value) for name, value in chart.gates if value > LEAST_DISTANCE]
    places = [(point.ms, max(point.distance, LEAST_DISTANCE)) for point in drawn]
    axes.set(xscale="log", yscale="log")
    # Whole decades: a smaller range would have no label at all.
    left, right = charts.decades([x for x, _ in places])
    low, high = charts.decades([*(y for _, y in places), *(value for _, value in gates)])
    axes.set_xlim(10.0**left, 10.0**right)
    axes.set_ylim(10.0**low / 1.6, 10.0**high * 1.6)
    shares = [100 * axes.transLimits.transform(axes.transScale.transform(place)) for place in places]
    moves = stack([(x, 100 - y) for x, y in shares], sizes=PLANE_POINTS)
    for place, (point, (x, y), move) in enumerate(zip(drawn, places, moves, strict=True)):
        name = letter(place)
        axes.scatter([x], [y], s=45, color=point.color, edgecolor="white", zorder=3,
                     label=f"{name}  {point.label}: {digits(x)} ms")  # fmt: skip
        axes.annotate(name, (x, y), xytext=(0, -move), textcoords="offset points", ha="center", va="center", zorder=4,
                      fontsize=8.5, fontweight="bold", arrowprops={"arrowstyle": "-", "color": GREY} if move else None,
                      bbox={"boxstyle": "circle,pad=0.25", "facecolor": point.color, "edgecolor": "white"})  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    for name, value in gates:
        axes.axhline(value, color="#D55E00", linestyle="--", linewidth=1.2)
        axes.annotate(name, (1.0, value), xycoords=("axes fraction", "data"), xytext=(0, 4), ha="right", fontsize=9,
                      textcoords="offset points", color="#D55E00")  # fmt: skip
    axes.xaxis.set_major_formatter(lambda value, _: digits(value))
    # Formulas are switched off, and the usual labels are formulas.
    axes.yaxis.set_major_formatter(lambda value, _: "≤ 1e-8" if value <= LEAST_DISTANCE else f"{value:.0e}")
    axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_minor_formatter("")
    axes.set_xlabel("p50 of one request, ms", fontsize=9, color="#555555")
    axes.set_ylabel("1 − cosine to eager fp32", fontsize=9, color="#555555")


def _label(axes: Any, end: float, place: float, text: str, **look: Any) -> None:
    """Write a value behind the end of its bar."""
    look = {"fontsize": 9, "color": INK, **look}
    axes.annotate(text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", bbox=BEHIND, **look)


def _not_measured(axes: Any, place: float, why: str) -> None:
    """Say in a bar's place that there is none, and why."""
    text = textwrap.shorten(f"not measured: {why}" if why != "not measured" else why, 96, placeholder=" …")
    _label(axes, 0, place, text, fontsize=8.5, color=GREY, style="italic")


def _finish(axes: Any, labels: Sequence[str], right: float, unit: str) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, right)
    axes.set_xlabel(unit, fontsize=9, color="#555555")
