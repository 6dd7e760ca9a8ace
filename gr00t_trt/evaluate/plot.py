"""A picture of one episode: every action dimension as recorded and as predicted. The file that imports matplotlib.

One column, 1280 pixels wide: on a phone a panel still is as wide as the screen, and its text can be read.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.install import install_extra
from ..errors import PlanError, RecordError
from .episodes import Prediction, Recording

INK, SOFT, FAINT = "#1b1f24", "#57606a", "#d0d7de"
# The dots are wider than a line, so that they show beside it where both agree.
RECORDED = {"color": "#000000", "marker": ".", "linestyle": "", "markersize": 7.5, "markeredgewidth": 0}
ALONE = {"color": "#d55e00", "linewidth": 1.6}
UNDER = {"color": "#0072b2", "linewidth": 2.0}
OVER = {"color": "#d55e00", "linewidth": 2.0, "linestyle": (0, (4, 4))}
"""Of two predictions the second one is dashed, so that both show even where they agree and the picture is small. Both
colours are told apart by people who are colour-blind, too.
"""
QUERY = {"color": SOFT, "linewidth": 0.6, "linestyle": (0, (2, 3)), "zorder": 0}
STATE = {"color": "#7b3294", "linewidth": 1.4, "linestyle": ":"}

WIDTH, DPI = 6.4, 200
MOST_PIXELS = 60_000
"""A PNG may be 65,535 pixels high; a picture of very many joints is drawn smaller."""
LEFT, RIGHT, LINE = 0.8, 0.15, 0.25
HEADING, PANEL, STRIP, GAP, ROWS = 0.28, 1.15, 0.42, 0.14, 0.42
"""Inches: a panel's heading, recorded and predicted, their difference, what lies between panels, numbers of rows."""
LEAST_RANGE = 0.02
"""Of an axis, in the dataset's unit: else the noise of a joint that stands still would fill its panel."""


def pyplot_figure() -> Any:
    """matplotlib's `Figure`, drawn without a display. Raises: PlanError with the install command."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlanError("plots need matplotlib, which is not installed", fix=install_extra("plots")) from error
    return Figure


def plot_path(given: str, trajectory: int, trajectories: int) -> Path:
    """One file per trajectory: a file name as given for one, ``name-traj3.png`` for several; else within a folder."""
    path = Path(given)
    if path.is_dir() or not path.suffix:
        return path / f"traj{trajectory}.png"
    return path if trajectories == 1 else path.with_name(f"{path.stem}-traj{trajectory}{path.suffix}")


@dataclass(frozen=True)
class Panel:
    """One dimension of an action part; the last one of its part has the numbers of the rows below it."""

    key: str
    dimension: int
    label: str
    last: bool

    @property
    def height(self) -> float:
        """Inches."""
        return HEADING + PANEL + STRIP + GAP + ROWS * self.last


def draw(
    path: Path,
    recording: Recording,
    predictions: Mapping[str, Prediction],
    scores: Mapping[str, float],
    labels: Mapping[str, Sequence[str]],
    *,
    fps: float,
    with_state: bool,
) -> None:
    """Write one picture, 1280 pixels wide: a panel per joint, and below it the difference.

    Args:
        predictions: What to call a policy -> its actions; one or two.
        scores: The same names -> mean squared error, for the title.
        labels: Action key to draw -> what to call each of its dimensions.
        fps: Rows per second, for the title.
        with_state: Draw the state beside the actions where it has the same parts.
    Raises: PlanError without matplotlib, RecordError when the file cannot be written.
    """
    panels = [Panel(key, i, text, i == len(own) - 1) for key, own in labels.items() for i, text in enumerate(own)]
    looks = dict(zip(predictions, (UNDER, OVER) if len(predictions) > 1 else (ALONE,), strict=True))
    named = [("recorded", RECORDED), *((f"predicted, {name}", look) for name, look in looks.items())]
    named += [("policy asked", QUERY), *([("state", STATE)] if with_state and recording.states else [])]
    title = _title(recording, scores, fps)
    below = LINE * (title.count("\n") + 1) + 0.15
    head = below + LINE * len(named) + 0.15
    height = head + sum(panel.height for panel in panels)
    figure = pyplot_figure()(figsize=(WIDTH, height), facecolor="white")
    # Names are no formulas, whatever dollars they hold.
    said = {"va": "top", "fontsize": 12, "color": INK, "parse_math": False, "linespacing": 1.25}
    figure.text(0.02, 1 - 0.1 / height, title, **said)
    _legend(figure, named, 1 - below / height)
    for panel in panels:
        _draw_joint(figure, head / height, height, panel, recording, predictions, looks, with_state=with_state)
        head += panel.height
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=min(DPI, MOST_PIXELS / height))
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib has no writer for
        fix = "name a .png in a folder of yours"
        raise RecordError(f"{path}: the plot cannot be written: {error}", fix=fix) from error


def _legend(figure: Any, named: Sequence[tuple[str, Mapping[str, Any]]], top: float) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **look) for _, look in named]
    shown = figure.legend(handles, [name for name, _ in named], loc="upper left", bbox_to_anchor=(0.01, top),
                          frameon=False, fontsize=11, labelcolor=INK, labelspacing=0.35, borderpad=0)  # fmt: skip
    for text in shown.get_texts():
        text.set_parse_math(False)


def _draw_joint(
    figure: Any,
    down: float,
    height: float,
    panel: Panel,
    recording: Recording,
    predictions: Mapping[str, Prediction],
    looks: Mapping[str, Mapping[str, Any]],
    *,
    with_state: bool,
) -> None:
    """One panel and its strip, `down` of the picture from its top; `height` is the picture's in inches."""
    top = _axes(figure, 1 - down - (HEADING + PANEL) / height, PANEL / height)
    strip = _axes(figure, 1 - down - (HEADING + PANEL + STRIP) / height, (STRIP - 0.06) / height)
    key, dimension = panel.key, panel.dimension
    recorded = recording.actions[key][:, dimension]
    rows = np.arange(len(recorded))
    top.plot(rows, recorded, **RECORDED)
    for name, prediction in predictions.items():
        top.plot(*_chunks(rows, prediction.actions[key][:, dimension], recording.queries), **looks[name])
    gaps = _gaps(recording, predictions, key)
    strip.plot(*_chunks(rows, gaps[:, dimension], recording.queries), **ALONE)
    state = recording.states.get(f"state.{key.partition('.')[2]}") if with_state else None
    if state is not None:
        top.plot(rows, state[:, dimension], **STATE)
    for axes in (top, strip):
        axes.set_xlim(-0.5, max(len(rows) - 0.5, 0.5))
        for query in recording.queries:
            axes.axvline(query, **QUERY)
    top.margins(y=0.1)
    if np.ptp(top.get_ylim()) < LEAST_RANGE:
        middle = float(np.mean(top.get_ylim()))
        top.set_ylim(middle - LEAST_RANGE / 2, middle + LEAST_RANGE / 2)
    _scale_strip(strip, float(np.abs(gaps).max()))
    which = "predicted − recorded" if len(predictions) == 1 else "second − first"
    _write(top, strip, panel, f"{which}: at most {np.abs(gaps[:, dimension]).max():.2g}")


def _gaps(recording: Recording, predictions: Mapping[str, Prediction], key: str) -> np.ndarray:
    """What the strips show, [N, D]: predicted minus recorded; of two predictions the second minus the first."""
    first, *others = (own.actions[key] for own in predictions.values())
    return others[0] - first if others else first - recording.actions[key]


def _axes(figure: Any, bottom: float, tall: float) -> Any:
    axes = figure.add_axes((LEFT / WIDTH, bottom, (WIDTH - LEFT - RIGHT) / WIDTH, tall))
    axes.tick_params(labelsize=10, colors=SOFT, length=2, labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", linewidth=0.5, color=FAINT)
    axes.locator_params(axis="y", nbins=4)
    return axes


def _chunks(rows: np.ndarray, values: np.ndarray, queries: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A chunk is a plan of its own: no line leads from its last row to the next one's first."""
    places, broken = (np.insert(own.astype(np.float64), list(queries[1:]), np.nan) for own in (rows, values))
    return places, broken


def _scale_strip(strip: Any, largest: float) -> None:
    """The strips of one part have one scale, so that the worst joint shows at a glance."""
    largest = max(largest, 1e-9)
    strip.axhline(0, color=SOFT, linewidth=0.8, zorder=1)
    strip.set_ylim(-1.12 * largest, 1.12 * largest)
    strip.set_yticks([-largest, largest], [f"{-largest:.2g}", f"{largest:.2g}"])


def _write(top: Any, strip: Any, panel: Panel, gap: str) -> None:
    """The heading and how large the difference is; and the numbers of the rows."""
    said = {"transform": top.transAxes, "va": "bottom", "parse_math": False}
    top.text(0.0, 1.03, panel.label, fontsize=12, weight="bold", color=INK, **said)
    top.text(1.0, 1.03, gap, fontsize=10, ha="right", color=SOFT, **said)
    top.ticklabel_format(axis="y", useOffset=False, style="plain")
    if panel.last:
        strip.tick_params(labelbottom=True)
        strip.set_xlabel("row of the episode", fontsize=10, color=SOFT, labelpad=1)


def _title(recording: Recording, scores: Mapping[str, float], fps: float) -> str:
    """The instruction, then the errors, a line each."""
    instruction = textwrap.shorten(f"“{recording.instruction}”", 130, placeholder=" ...”")
    lines = textwrap.wrap(f"trajectory {recording.trajectory}: {instruction}", 62)
    lines.append(f"{len(recording)} rows at {fps:g} Hz; values in the dataset's units")
    lines += [textwrap.shorten(f"mean squared error, {name}: {value:.4g}", 62) for name, value in scores.items()]
    return "\n".join(lines)
