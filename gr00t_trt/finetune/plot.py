"""A picture of a run's losses. The file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..common.install import install_extra
from ..errors import PlanError, RecordError
from .metrics import series

INK, SOFT, FAINT = "#1b1f24", "#57606a", "#d0d7de"
PARTS, LEAST = 40, 5
"""The mean is over one in so many steps, and over so many at least."""


def draw_losses(path: Path, rows: Sequence[dict[str, float]], title: str) -> None:
    """Write the loss of every step, their running mean and the held-out loss, 1280 pixels wide.

    Args:
        rows: A run's metrics.
    Raises: PlanError without matplotlib, RecordError where the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlanError("plots need matplotlib, which is not installed", fix=install_extra("plots")) from error
    figure = Figure(figsize=(6.4, 4.0), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    steps, losses = series(rows, "loss")
    mean = running_mean(losses, max(LEAST, len(losses) // PARTS))
    axes.plot(steps, losses, label="loss of each step", color="#9ec9e6", linewidth=0.8)
    axes.plot(steps, mean, label="running mean", color="#0072b2", linewidth=2.0)
    held_steps, held = series(rows, "held_out_loss")
    if held:
        axes.plot(held_steps, held, label="held-out loss", color="#d55e00", linewidth=1.6, marker="o", markersize=5)
    axes.set_title(title, fontsize=12, loc="left", color=INK, parse_math=False)
    axes.set_xlabel("step", fontsize=10, color=SOFT)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=10, colors=SOFT, length=2)
    axes.grid(axis="y", linewidth=0.5, color=FAINT)
    axes.legend(frameon=False, fontsize=10, labelcolor=INK)
    try:
        figure.savefig(path, dpi=200)
    except OSError as error:
        raise RecordError(f"{path}: the plot cannot be written: {error}", fix="name another --output_dir") from error


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Of each value and up to `window` - 1 before it."""
    return [sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))]
