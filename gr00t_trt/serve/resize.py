"""Camera frames brought to the resolution that a policy was trained with, before they are sent. numpy alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..common.interface import Observation


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average the pixels that fall into each pixel of the result, as a camera of that resolution would.

    The aspect ratio is not kept: nor is it by the model's own resizing.

    Args:
        frames: uint8 [..., H, W, 3].
    Returns: uint8 [..., height, width, 3]; `frames` itself where it has that size already.
    """
    if frames.shape[-3:-1] == (height, width):
        return frames
    rows = _averaged(frames.astype(np.float32), height, axis=frames.ndim - 3)
    return np.rint(_averaged(rows, width, axis=frames.ndim - 2)).astype(np.uint8)


def fit_frames(observation: Observation, sizes: Mapping[str, tuple[int, int]]) -> Observation:
    """The observation with its uint8 frames [..., H, W, 3] resized to `sizes`, video key -> (height, width)."""
    out = dict(observation)
    for key, (height, width) in sizes.items():
        frames = out.get(key)
        if isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim >= 3:
            out[key] = resize_frames(frames, height, width)
    return out


def _averaged(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Means over `size` equal intervals of an axis; a value that two intervals share counts by its part in each."""
    given = values.shape[axis]
    # The running sum is piecewise linear, and the mean over an interval is its rise between the two ends.
    edges = np.linspace(0, given, size + 1)
    below = np.minimum(edges.astype(np.int64), given - 1)
    beyond = (edges - below).astype(np.float32).reshape(-1, *[1] * (values.ndim - axis - 1))
    sums = np.zeros((*values.shape[:axis], given + 1, *values.shape[axis + 1 :]), np.float32)
    np.cumsum(values, axis=axis, out=sums[(slice(None),) * axis + (slice(1, None),)])
    at_edges = np.take(sums, below, axis) + np.take(values, below, axis) * beyond
    return np.diff(at_edges, axis=axis) * np.float32(size / given)
