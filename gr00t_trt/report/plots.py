"""Pictures of records, as PNG files that say which record they were drawn from. Never imports torch.

Each function takes a plain record, as `records.read_record` gives it, and a path. What was not measured is written
where its bar would be. Needs matplotlib: pip install 'gr00t_trt[plots]'.
"""

from __future__ import annotations

import hashlib
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..record.records import dumps, on_gpu
from .names import in_its_group
from .terminal import digits

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E0B000"
"""Okabe and Ito's colours, which readers of all kinds of colour vision tell apart; the yellow darkened for white."""
LIGHT = (PINK, SKY, YELLOW)
"""Those on which text is dark."""
GREY, INK, FAINT = "#8C8C8C", "#222222", "#D9D9D9"

DPI = 150
WIDTH_INCHES = 9.0
HEAD_INCHES = 0.62
LEGEND_INCHES = 0.30
"""What title and subtitle take."""
BEHIND = {"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"}
"""Keeps grid lines out of text."""

KEY = "Record"
"""PNG text chunk that holds the digest of the record."""

PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "vision tower": (BLUE, ("vision_model",)),
    "language model": (SKY, ("language_model", "language_model_padded")),
    "vl self-attention": (GREEN, ("vl_components",)),
    "denoising": (
        ORANGE,
        ("state_encoder", "action_encoder", "dit_model", "action_decoder", "denoise_step", "denoise_loop"),
    ),
    "pre- and postprocessing": (PINK, ("preprocess", "postprocess")),
    "between stages": (GREY, ("between stages",)),
}
"""Part of a request -> its colour, and the stages that make it up."""


def digest(record: Mapping[str, Any]) -> str:
    """What a record says, as 16 hexadecimal digits; the same whether it was read or is about to be written."""
    return hashlib.sha256(dumps(record).encode()).hexdigest()[:16]


def drawn_from(path: str | Path) -> str | None:
    """The digest in a picture that `figure` wrote; None for a file that is no such picture, or is not there."""
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
def figure(
    record: Mapping[str, Any], path: str | Path, title: str, *, height_inches: float, foot_inches: float = 0.0
) -> Iterator[Any]:
    """Axes to draw on; the picture is written, with the record's digest in it, when the block ends without an error.

    Title and subtitle (model, device, precision, workload) are set; frame and ticks are removed but for the x axis.
    `foot_inches` at the bottom stay free, for a legend.
    Raises: RecordError without matplotlib, or for a path that cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise RecordError("plots need matplotlib", fix="pip install 'gr00t_trt[plots]'") from None
    foot = foot_inches / height_inches
    between = (0.0, foot, 1.0, 1.0 - foot - HEAD_INCHES / height_inches)
    drawing = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI, layout=ConstrainedLayoutEngine(rect=between))
    FigureCanvasAgg(drawing)
    top = 1.0 - 0.12 / height_inches
    drawing.text(0.012, top, title, va="top", fontsize=13, fontweight="bold", color=INK)
    drawing.text(0.012, top - 0.30 / height_inches, subtitle(record), va="top", fontsize=9, color="#555555")
    axes = drawing.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GREY)
    axes.tick_params(axis="x", colors=INK, labelsize=9)
    axes.tick_params(axis="y", length=0, labelsize=10, colors=INK)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    yield axes
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, format="png", dpi=DPI, metadata={KEY: digest(record), "Software": None})
    except OSError as error:
        raise RecordError(f"{path}: the picture cannot be written: {error.strerror or error}") from error


def subtitle(record: Mapping[str, Any]) -> str:
    """Model, device, precision and workload in one line."""
    environment, workload = record["environment"], record["workload"]
    gpu = environment.get("gpu") if on_gpu(record) else None
    parts = [
        str(record["model"].get("path") or "model"),
        gpu or f"CPU, {environment.get('cpu_cores') or '?'} cores",
        str((record.get("plan") or {}).get("precision") or ""),
    ]
    named = (("views", "view"), ("batch_size", "batch"), ("denoising_steps", "steps"), ("sequence_length", "tokens"))
    for key, word in named:
        if workload.get(key) is not None:
            parts.append(f"batch {workload[key]}" if word == "batch" else f"{workload[key]} {word}")
    return " · ".join(part for part in parts if part)


def rows_of(record: Mapping[str, Any], *groups: str) -> list[Mapping[str, Any]]:
    """The record's measurements of these groups, in the record's order."""
    return [row for row in record.get("measurements") or () if row["group"] in groups]


def p50(row: Mapping[str, Any], latency: str = "latency_ms") -> float | None:
    """Median latency of a measurement in ms, or None."""
    return (row.get(latency) or {}).get("p50")


def waterfall(record: Mapping[str, Any], path: str | Path) -> None:
    """One bar per step from eager PyTorch to the fastest form of the model, each with its speed-up.

    A tick marks eager PyTorch as it was timed in turn with the row, against which the speed-up is taken.
    """
    rows = rows_of(record, "waterfall")
    with figure(record, path, "One action chunk, step by step", height_inches=_height(len(rows))) as axes:
        labels, widest = [], max((p50(row) or 0.0 for row in rows), default=0.0)
        for place, row in enumerate(rows):
            labels.append(in_its_group(row))
            value = p50(row)
            if value is None:
                not_measured(axes, place, row.get("why_not"))
                continue
            colour = GREY if place == 0 else BLUE
            axes.barh(place, value, color=colour, height=0.68)
            _spread(axes, place, row)
            eager, ratio = p50(row, "eager_latency_ms"), (row.get("verdict") or {}).get("ratio")
            if eager is not None and place:
                axes.plot([eager, eager], [place - 0.34, place + 0.34], color=GREY, linewidth=1.6)
            end = max(value, _p90(row) or value, eager if place and eager is not None else 0.0)
            label(axes, end, place, f"{digits(value)} ms" + ("" if ratio is None else f"   {ratio:.2f}×"))
            widest = max(widest, end)
        unit = "p50 of one call, ms     thin line: p10 to p90     grey tick: eager PyTorch, timed in turn"
        _finish(axes, labels, widest, unit)


def stage_split(record: Mapping[str, Any], path: str | Path) -> None:
    """Where a request spends its time: one stacked bar per row of the waterfall whose stages were timed."""
    rows = [row for row in rows_of(record, "waterfall") if row.get("stages")]
    title, height = "Where one action chunk spends its time", _height(len(rows), 1.35 + LEGEND_INCHES)
    with figure(record, path, title, height_inches=height, foot_inches=LEGEND_INCHES) as axes:
        totals = [sum(max(value, 0.0) for value in row["stages"].values()) for row in rows]
        widest = max(totals, default=0.0)
        for place, (row, total) in enumerate(zip(rows, totals, strict=True)):
            left = 0.0
            for colour, names in PARTS.values():
                value = sum(max(row["stages"].get(name) or 0.0, 0.0) for name in names)
                if not value:
                    continue
                axes.barh(place, value, left=left, color=colour, height=0.68, edgecolor="white", linewidth=0.8)
                if value > 0.055 * widest:
                    ink = INK if colour in LIGHT else "white"
                    axes.text(left + value / 2, place, digits(value), ha="center", va="center", fontsize=8.5, color=ink)
                left += value
            label(axes, left, place, f"{digits(total)} ms")
        if not rows:
            not_measured(axes, 0, "no row of this record has its stages timed")
        _legend(axes, [(name, colour) for name, (colour, _) in PARTS.items()])
        _finish(axes, [in_its_group(row) for row in rows] or [""], widest, "p50, ms; all calls of a stage added up")


def roofline(record: Mapping[str, Any], path: str | Path) -> None:
    """How close each measured row comes to what bandwidth and arithmetic allow, in percent."""
    rows = [row for row in rows_of(record, "waterfall", "compile") if (row.get("roofline") or {}).get("ms")]
    with figure(record, path, "Share of the roofline", height_inches=_height(len(rows))) as axes:
        for place, row in enumerate(rows):
            share = row["roofline"].get("percent")
            if share is None:
                not_measured(axes, place, row.get("why_not"))
                continue
            axes.barh(place, share, color=BLUE, height=0.68)
            label(axes, share, place, f"{share:.1f} %   {digits(row['roofline']['ms'])} of {digits(p50(row))} ms")
        if not rows:
            not_measured(axes, 0, "no ceilings are known for this device, so there is no roofline to compare with")
        _finish(axes, [in_its_group(row) for row in rows] or [""], 100.0, "roofline time over p50, %", room=1.0)


def label(axes: Any, end: float, place: float, text: str) -> None:
    """Write a value behind the end of its bar."""
    axes.annotate(
        text, (end, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9, color=INK, bbox=BEHIND
    )


def not_measured(axes: Any, place: float, why: str | None) -> None:
    """Say in a bar's place that there is none, and why."""
    text = "not measured" + (f": {why}" if why else "")
    axes.annotate(
        textwrap.shorten(text, 96, placeholder=" …"), (0, place), xytext=(6, 0), textcoords="offset points",
        va="center", fontsize=8.5, color=GREY, style="italic", bbox=BEHIND,
    )  # fmt: skip


def _spread(axes: Any, place: float, row: Mapping[str, Any]) -> None:
    samples = sorted((row.get("latency_ms") or {}).get("samples") or ())
    if len(samples) >= 3:
        low, high = samples[len(samples) // 10], samples[-1 - len(samples) // 10]
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")


def _p90(row: Mapping[str, Any]) -> float | None:
    return (row.get("latency_ms") or {}).get("p90")


def _legend(axes: Any, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    legend = axes.legend(
        handles=[Patch(color=colour, label=name) for name, colour in entries], loc="lower left",
        bbox_to_anchor=(0.0, 0.0), bbox_transform=axes.figure.transFigure, ncols=len(entries), frameon=False,
        fontsize=8.5, handlelength=1.0, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
    legend.set_in_layout(False)  # its place is kept free already


def _finish(axes: Any, labels: Sequence[str], widest: float, unit: str, room: float = 1.22) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, (widest or 1.0) * room)
    axes.set_xlabel(unit, fontsize=9, color="#555555")


def _height(rows: int, room: float = 1.35) -> float:
    return room + 0.36 * max(rows, 2)
