"""A picture of one episode: every action dimension as recorded and as predicted. The file that imports matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PlanError, RecordError
from .episodes import Prediction, Recording

ROWS = 8
"""Most subplots in a column; a wider part gets a further column."""
INK, GROUND_TRUTH, STATE, QUERY = "#333333", "#9aa0a6", "#c9a400", "#d62728"
ALONE = {"color": "#1f77b4", "linewidth": 1.2}
OVER = {"color": "#d95f02", "linewidth": 0.8}
UNDER = {"color": "#8fc1ef", "linewidth": 2.8}
"""The first of two predictions: wide and light, so that the second shows on it even where they agree."""


def pyplot_figure() -> Any:
    """matplotlib's `Figure`, drawn without a display. Raises: PlanError with the install command."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        install = "pip install 'gr00t_trt[plots]'"
        raise PlanError("plots need matplotlib, which is not installed", fix=install) from error
    return Figure


def plot_path(given: str, trajectory: int, trajectories: int) -> Path:
    """One file per trajectory: a file name as given for one, ``name-traj3.png`` for several; else within a folder."""
    path = Path(given)
    if path.is_dir() or not path.suffix:
        return path / f"traj{trajectory}.png"
    return path if trajectories == 1 else path.with_name(f"{path.stem}-traj{trajectory}{path.suffix}")


def draw(
    path: Path,
    recording: Recording,
    predictions: Mapping[str, Prediction],
    scores: Mapping[str, float],
    keys: Sequence[str],
    *,
    fps: float,
    with_state: bool,
) -> None:
    """Write one picture: a column per action part, a subplot per dimension, a red dot at each query.

    Args:
        predictions: What to call a policy -> its actions; one or two.
        scores: The same names -> mean squared error, for the title.
        keys: Action keys to draw.
        fps: Rows per second, for the second axis.
        with_state: Draw the state beside the actions where it has the same parts.
    Raises: PlanError without matplotlib, RecordError when the file cannot be written.
    """
    columns = _columns(recording, keys)
    height = max(len(own) for own in columns)
    size = (max(5.2 * len(columns), 8.0), 1.35 * height + 1.9)
    figure = pyplot_figure()(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(height, len(columns), sharex=True, squeeze=False)
    for column, own in enumerate(columns):
        for row in range(height):
            axes = grid[row][column]
            if row >= len(own):
                axes.set_visible(False)
                continue
            key, dimension = own[row]
            _draw_dimension(axes, recording, predictions, key, dimension, with_state=with_state)
            if row == 0:
                axes.set_title(key.partition(".")[2].replace("_", " "), fontsize=11, color=INK, pad=8)
            if row == len(own) - 1:
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("row", fontsize=8, color=INK, labelpad=1)
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid.flat), key=lambda found: len(found[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(_title(recording, scores, fps), fontsize=12, color=INK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib has no writer for
        fix = "name a .png in a folder of yours"
        raise RecordError(f"{path}: the plot cannot be written: {error}", fix=fix) from error


def _columns(recording: Recording, keys: Sequence[str]) -> list[list[tuple[str, int]]]:
    """(key, dimension) of every subplot, column by column; the dimensions of a part are spread evenly."""
    out = []
    for key in keys:
        width = recording.actions[key].shape[1]
        share = math.ceil(width / math.ceil(width / ROWS))
        cells = [(key, dimension) for dimension in range(width)]
        out += [cells[start : start + share] for start in range(0, width, share)]
    return out


def _draw_dimension(
    axes: Any,
    recording: Recording,
    predictions: Mapping[str, Prediction],
    key: str,
    dimension: int,
    *,
    with_state: bool,
) -> None:
    part = key.partition(".")[2]
    recorded = recording.actions[key][:, dimension]
    rows = np.arange(len(recorded))
    state = recording.states.get(f"state.{part}") if with_state else None
    if state is not None:
        axes.plot(rows, state[:, dimension], color=STATE, linewidth=1.0, linestyle=":", label="state")
    axes.plot(rows, recorded, color=GROUND_TRUTH, linewidth=2.4, label="recorded action", solid_capstyle="round")
    queries = list(recording.queries)
    styles = (UNDER, OVER) if len(predictions) > 1 else (ALONE,)
    for (name, prediction), style in zip(predictions.items(), styles, strict=True):
        values = prediction.actions[key][:, dimension]
        # A chunk is a plan of its own: no line leads from its last row to the next one's first.
        broken = np.insert(values.astype(np.float64), queries[1:], np.nan)
        places = np.insert(rows.astype(np.float64), queries[1:], np.nan)
        axes.plot(places, broken, label=f"predicted, {name}", **style)
    first, *others = (own.actions[key][:, dimension] for own in predictions.values())
    axes.plot(queries, first[queries], "o", color=QUERY, markersize=2.8, label="query", zorder=5)
    for second in others:
        gap = f"largest gap {np.abs(second - first).max():.2g}"
        axes.text(1.0, 1.0, gap, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color=INK)
    axes.set_ylabel(f"[{dimension}]", fontsize=8, color=INK, rotation=0, labelpad=10, va="center")
    axes.tick_params(labelsize=7, colors=INK, length=2)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.margins(x=0.01, y=0.12)
    if np.ptp(axes.get_ylim()) < 0.02:  # else the noise of a part that stands still fills the picture
        middle = float(np.mean(axes.get_ylim()))
        axes.set_ylim(middle - 0.01, middle + 0.01)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")


def _title(recording: Recording, scores: Mapping[str, float], fps: float) -> str:
    errors = ", ".join(f"{name} {value:.4g}" for name, value in scores.items())
    instruction = textwrap.shorten(recording.instruction, 90, placeholder=" ...")
    below = f"MSE {errors} in the dataset's units squared, {len(recording)} rows at {fps:g} Hz"
    return f"trajectory {recording.trajectory}: “{instruction}”\n{below}"
