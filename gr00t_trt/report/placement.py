"""Where the letters of a scatter plot stand, so that none covers another, or a label. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence

SIZES = ((330.0, 320.0), (820.0, 380.0))
"""Pixels of the plane on a phone and at a desk: what does not touch in either touches in none between."""
APART = 21.0
"""Pixels between the middles of two letters."""


def stack(
    places: Sequence[tuple[float, float]],
    labels: Sequence[tuple[float, float, float]] = (),
    sizes: Sequence[tuple[float, float]] = SIZES,
) -> list[int]:
    """How many pixels each letter is moved up (negative) or down from its point, one after another.

    Args:
        places: Percent across and down of each point.
        labels: Text that must stay readable: percent across and down of its lower right corner, and its width in
            pixels.
        sizes: Width and height of the plane, in pixels, everywhere that it is shown.
    """
    out: list[int] = []
    for place in places:
        tries = sorted((step * int(APART + 1) for step in range(-16, 17)), key=lambda move: (abs(move), move))
        out.append(next((move for move in tries if _free(place, move, places, out, labels, sizes)), 0))
    return out


def _free(
    place: tuple[float, float],
    move: int,
    places: Sequence[tuple[float, float]],
    taken: Sequence[int],
    labels: Sequence[tuple[float, float, float]],
    sizes: Sequence[tuple[float, float]],
) -> bool:
    for width, height in sizes:
        x, y = place[0] * width / 100, place[1] * height / 100 + move
        if not 0 <= y <= height:
            return False
        for (across, down), moved in zip(places, taken, strict=False):
            if abs(x - across * width / 100) < APART and abs(y - down * height / 100 - moved) < APART:
                return False
        for right, bottom, length in labels:
            end, low = right * width / 100, bottom * height / 100
            if end - length - 10 < x < end + 10 and low - 28 < y < low + 8:
                return False
    return True
