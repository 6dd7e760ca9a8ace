"""The page's charts as PNG, one record each: what `plots` draws of a measuring run, and two of any record."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..record.numbers import digits
from . import plots
from .charts import LEAST_DISTANCE, LEAST_MS, letter
from .figures import short
from .intake import Loaded
from .readings import Reading, measurements, readings, rivals

MOST_ROWS = 60
"""Bars of a picture; beyond, it would be taller than anyone scrolls, and says so."""

COLOURS = {
    "plain": "#5c6670",
    "eager": plots.GREY,
    "inductor": plots.YELLOW,
    "torch_tensorrt": plots.GREEN,
    "tensorrt": plots.BLUE,
    "onnxruntime": plots.PINK,
}
"""As in style.css."""


def draw(one: Loaded, folder: Path) -> list[Path]:
    """Every picture that the record has figures for, as ``<record>-<chart>.png``; returns their paths.

    Raises: RecordError without matplotlib, or for a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
        raise RecordError(f"{folder}: no pictures can be written there: {why}", fix="change --plots") from error
    run = measurements([one])
    wanted = [
        ("latency", latency_bars, bool(readings([one]))),
        ("speed-accuracy", speed_accuracy, bool(_points(one))),
        ("waterfall", _of_run(plots.waterfall), any(row.subject == "waterfall" for row in run)),
        ("stages", _of_run(plots.stage_split), any(row.stages and row.subject == "waterfall" for row in run)),
        ("roofline", _of_run(plots.roofline), any(row.roofline_percent is not None for row in run)),
    ]
    written = []
    with _plain_text():
        for name, drawing, has_figures in wanted:
            if has_figures:
                path = folder / f"{one.name}-{name}.png"
                drawing(one, path)
                written.append(path)
    return written


@contextmanager
def _plain_text() -> Iterator[None]:
    """Names are no formulas, whatever dollars they hold, and a letter that the font lacks is worth no warning."""
    try:
        import matplotlib
    except ImportError:
        raise RecordError("--plots needs matplotlib", fix="pip install 'gr00t_trt[plots]'") from None
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def latency_bars(one: Loaded, path: Path) -> None:
    """The whole request and every submodule on every backend: p50, with p10 to p90 as a whisker."""
    every = readings([one])
    rows = every[:MOST_ROWS]
    height = 1.4 + 0.34 * max(len(rows), 2)
    with plots.figure(one.record, path, "Latency, submodule by submodule", height_inches=height) as axes:
        widest = max((row.timing.highest for row in rows if row.timing), default=1.0)
        for place, row in enumerate(rows):
            if row.timing is None:
                plots.not_measured(axes, place, row.why_not)
                continue
            taken, end = row.timing, row.timing.p50
            axes.barh(place, end, color=COLOURS.get(row.backend, plots.SKY), height=0.68)
            if taken.p10 is not None and taken.p90 is not None:
                axes.plot([taken.p10, taken.p90], [place, place], color=plots.INK, linewidth=1.2)
            axes.annotate(
                f"{short(end)} ms", (max(end, taken.p90 or end), place), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        axes.set_xlim(0, max(widest, LEAST_MS) * 1.2)
        axes.set_yticks(range(len(rows)), [f"{row.subject}: {row.label}" for row in rows], fontsize=8.5)
        axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
        more = f"; {len(every) - len(rows)} more rows are not drawn" if len(every) > len(rows) else ""
        axes.set_xlabel(f"p50 of one call, ms; whisker: p10 to p90{more}", fontsize=9, color="#555555")


def speed_accuracy(one: Loaded, path: Path) -> None:
    """Whole requests: p50 against 1 - cosine of the actions, both logarithmic, with the gate as a line."""
    rows = _points(one)
    height = 2.6 + 0.3 * len(rows)
    with plots.figure(one.record, path, "Speed against accuracy", height_inches=max(height, 4.0)) as axes:
        for place, row in enumerate(rows):
            if row.timing is None or row.distance is None:
                continue
            x, y, name = row.timing.p50, max(row.distance, LEAST_DISTANCE), letter(place)
            shade = COLOURS.get(row.backend, plots.SKY)
            axes.scatter([x], [y], s=190, color=shade, edgecolor="white", zorder=3,
                         label=f"{name}  {row.label}: {digits(x)} ms")  # fmt: skip
            axes.annotate(name, (x, y), ha="center", va="center_baseline", fontsize=8.5, fontweight="bold", zorder=4)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9, markerscale=0.6)
        gate = (one.record["accuracy"]["gate"] or {}).get("cosine")
        if gate is not None and 1 - gate > LEAST_DISTANCE:
            axes.axhline(1 - gate, color=plots.ORANGE, linestyle="--", linewidth=1.2)
            axes.annotate(
                f"gate {gate:g}", (1.0, 1 - gate), xycoords=("axes fraction", "data"), xytext=(0, 4),
                textcoords="offset points", ha="right", fontsize=9, color=plots.ORANGE,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log")
        latencies = [row.timing.p50 for row in rows if row.timing]
        axes.set_xlim(
            10.0 ** math.floor(math.log10(min(latencies))), 10.0 ** math.ceil(math.log10(max(latencies) * 1.0001))
        )
        distances = [max(row.distance, LEAST_DISTANCE) for row in rows if row.distance is not None]
        distances += [1 - gate] if gate is not None and 1 - gate > LEAST_DISTANCE else []
        # Whole decades: a smaller range would have no label at all.
        axes.set_ylim(
            10.0 ** math.floor(math.log10(min(distances))) / 1.6,
            10.0 ** math.ceil(math.log10(max(distances) * 1.0001)) * 1.6,
        )
        axes.xaxis.set_major_formatter(lambda value, _: digits(value))
        # Formulas are switched off, and the usual labels are formulas.
        axes.yaxis.set_major_formatter(lambda value, _: "≤ 1e-8" if value <= LEAST_DISTANCE else f"{value:.0e}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(lambda value, _: "")
        axes.set_xlabel("p50 of one request, ms", fontsize=9, color="#555555")
        axes.set_ylabel("1 − cosine to eager fp32", fontsize=9, color="#555555")


def _points(one: Loaded) -> Sequence[Reading]:
    tried = rivals(readings([one]), measurements([one]))
    return [row for row in tried if row.timing and row.timing.p50 > 0 and row.distance is not None][:MOST_ROWS]


def _of_run(drawing: Any) -> Any:
    return lambda one, path: drawing(one.record, path)
