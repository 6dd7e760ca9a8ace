"""What a calibration saw and what a ranking found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from ...quantize.calibration import Observed
from ...quantize.ranking import decibels

SHOWN_AFTER = (1, 4, 8)
"""Frames after which the share of the final range is shown, where there are more."""


def seen_table(layers: Mapping[str, Observed], frames: int) -> Table:
    """A row per stage: how many layers, the range of their inputs, and how much of it fewer frames would have seen.

    Args:
        layers: As `Calibration.layers`.
    """
    table = _table("stage", "layers", "least amax", "largest amax", "loudest channel")
    after = [count for count in SHOWN_AFTER if count < frames]
    for count in after:
        table.add_column(f"{count} frame{'s' if count > 1 else ''} saw", justify="right")
    for stage in dict.fromkeys(name.partition("/")[0] for name in layers):
        own = [seen for name, seen in layers.items() if name.startswith(f"{stage}/")]
        last = [float(seen.amax[-1]) for seen in own]
        louder = max(float(seen.channels.amax() / seen.channels.median().clamp(min=1e-12)) for seen in own)
        shares = [
            min(float(seen.amax[count - 1]) / max(most, 1e-12) for seen, most in zip(own, last, strict=True))
            for count in after
        ]
        cells = [stage, str(len(own)), f"{min(last):.3g}", f"{max(last):.3g}", f"{louder:.0f} x median"]
        table.add_row(*cells, *(f"{100 * share:.0f} %" for share in shares))
    return table


@dataclass(frozen=True)
class Ranked:
    """A layer among those of its stage, from the noisiest.

    Attributes:
        place: In the order of a request.
        share: Of the stage's output, what becomes noise when it alone is quantised.
        share_below: The same of it and all less noisy ones together. saved, saved_below: Megabytes less than in 16 bit.
    """

    name: str
    place: int
    share: float
    share_below: float
    saved: float
    saved_below: float


def ranked_stages(noise: Mapping[str, float], sizes: Mapping[str, int], bits: float) -> dict[str, list[Ranked]]:
    """Stage -> its layers from the noisiest.

    Args:
        noise: Layer -> share. sizes: Layer -> weights. bits: Of a quantised weight.
    """
    stages: dict[str, list[str]] = {}
    for name in noise:
        stages.setdefault(name.partition("/")[0], []).append(name)
    return {stage: _ranked(names, noise, sizes, bits) for stage, names in stages.items()}


def _ranked(names: Sequence[str], noise: Mapping[str, float], sizes: Mapping[str, int], bits: float) -> list[Ranked]:
    ranked = sorted(names, key=lambda name: noise[name], reverse=True)
    out = []
    for number, name in enumerate(ranked):
        rest = ranked[number:]
        below = sum(noise[other] for other in rest)
        saved = _saved([name], sizes, bits), _saved(rest, sizes, bits)
        out.append(Ranked(name, names.index(name), noise[name], below, *saved))
    return out


def ranking_table(noise: Mapping[str, float], sizes: Mapping[str, int], form: str, bits: float) -> Table:
    """Layers from the noisiest: alone, and the stage with it and all less noisy ones quantised, against bytes saved.

    Args:
        noise: Layer -> share. sizes: Layer -> weights. bits: Of a quantised weight.
    """
    table = _table("layer", f"{form} alone, dB", "with all below, dB", "MB saved", "with all below, MB")
    for layers in ranked_stages(noise, sizes, bits).values():
        for one in layers:
            noises = f"{decibels(one.share):.1f}", f"{decibels(one.share_below):.1f}"
            table.add_row(
                one.name, *noises, f"{one.saved:.2f}", f"{one.saved_below:.2f}", end_section=one is layers[-1]
            )
    return table


def _saved(names: Sequence[str], sizes: Mapping[str, int], bits: float) -> float:
    """Megabytes less than in 16 bit."""
    return sum(sizes[name] for name in names) * (16 - bits) / 8e6


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column(first, overflow="fold")
    for head in numbers:
        table.add_column(head, justify="right")
    return table
