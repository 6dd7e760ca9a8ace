"""A picture of a ranking: the noise of every layer, and bytes against decibels. The file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.install import install_extra
from ...errors import PlanError, RecordError
from ...plans.schema import ARCHITECTURE
from ...quantize.ranking import decibels
from .tables import Ranked, ranked_stages

WIDTH, PANEL, DPI = 9.0, 3.6, 150
INK, FAINT = "#1b1f24", "#d0d7de"


def draw(
    path: Path, noise: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], bits: Mapping[str, float]
) -> None:
    """Write a picture with a row of two panels per format.

    Left every layer, quantised alone, in the order of a request; right each stage from nothing quantised to all of it,
    the least noisy layers first: megabytes saved against the decibels that are left.

    Args:
        noise: Layer -> format -> share of the stage's output that becomes noise.
        sizes: Layer -> weights. bits: Format -> of a quantised weight.
    Raises: PlanError without matplotlib, RecordError for a path that cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlanError("plots need matplotlib, which is not installed", fix=install_extra("plots")) from error

    figure = Figure((WIDTH, PANEL * len(bits)), layout="constrained")
    rows = figure.subplots(len(bits), 2, squeeze=False)
    for (left, right), (form, width) in zip(rows, bits.items(), strict=True):
        stages = ranked_stages({name: own[form] for name, own in noise.items() if form in own}, sizes, width)
        _layers(left, stages, form)
        _savings(right, stages, form)
    try:
        figure.savefig(path, dpi=DPI)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib has no writer for
        raise RecordError(f"{path}: the picture cannot be written: {error}", fix="--plot ranking.png") from error


def _layers(axes: Any, stages: Mapping[str, list[Ranked]], form: str) -> None:
    start = 0
    for stage, layers in stages.items():
        own = sorted(layers, key=lambda one: one.place)
        places = range(start, start + len(own))
        axes.bar(places, [decibels(one.share) for one in own], color=ARCHITECTURE.colors[stage], label=stage, width=0.9)
        start += len(own)
    axes.set_ylabel("signal over noise, dB")
    axes.set_xlabel("layers, each quantised alone, in the order of a request")
    _finish(axes, f"{form}: noise by layer")


def _savings(axes: Any, stages: Mapping[str, list[Ranked]], form: str) -> None:
    for stage, layers in stages.items():
        points = [(one.saved_below, decibels(one.share_below)) for one in reversed(layers)]
        axes.plot(*zip(*points, strict=True), color=ARCHITECTURE.colors[stage], label=stage, marker=".", linewidth=1.4)
    axes.set_xlabel("MB saved against 16 bit, the least noisy layers first")
    axes.set_ylabel("left of the stage, dB")
    axes.legend(fontsize=8, frameon=False)
    _finish(axes, f"{form}: bytes saved against decibels")


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
