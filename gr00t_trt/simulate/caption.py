"""A line of text below a picture, in letters of 3 x 5 pixels. Never imports torch."""

from __future__ import annotations

import numpy as np

SHAPES = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71111",
    "8": "75757", "9": "75717", "C": "74447", "D": "65556", "E": "74747", "I": "72227", "O": "75557", "P": "75744",
    "S": "74717", "T": "72222", "U": "55557", " ": "00000",
}  # fmt: skip
"""Letter -> its five rows from the top; the bits of a digit are the three pixels from the left."""
ADVANCE, LINE = 4, 9
"""Pixels from one letter to the next, and from the picture to the end of the line, before they are enlarged."""
INK, GROUND = (255, 255, 255), (20, 24, 30)


def caption(image: np.ndarray, text: str, ink: tuple[int, int, int] = INK) -> np.ndarray:
    """A picture with a line of text below it, which covers nothing of it.

    Args:
        image: uint8 [H, W, 3].
        text: Of the letters in `SHAPES`; what is wider than the picture is cut off.
    Returns: uint8 [H + n, W, 3]; n is even, and the same for pictures of the same size.
    """
    height, width = image.shape[:2]
    scale = max(2, height // 160 * 2)
    bits = np.zeros((LINE, max(ADVANCE * len(text) + 2, 1)), bool)
    for place, letter in enumerate(text):
        rows = [[int(row) >> (2 - column) & 1 for column in range(3)] for row in SHAPES[letter]]
        bits[2:7, 2 + ADVANCE * place : 5 + ADVANCE * place] = rows
    large = bits.repeat(scale, axis=0).repeat(scale, axis=1)[:, :width]
    band = np.empty((LINE * scale, width, 3), np.uint8)
    band[:] = GROUND
    band[:, : large.shape[1]][large] = ink
    return np.concatenate([image, band])
