"""Which frame of a camera belongs to each row of an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from ..errors import DatasetError

FRAME_LOOKUPS = ("index", "nearest", "on_screen")
TOLERANCE_S = 1e-4
"""How far a timestamp may lie beside its frame; LeRobot's own tolerance."""


class Timed(Protocol):
    """Frames with their times in seconds since the episode began; `starts_s` is float64 [N], ascending."""

    path: Path
    starts_s: np.ndarray
    end_s: float


def by_number(rows: np.ndarray, frames: Timed) -> np.ndarray:
    """Frame i for row i. Raises: DatasetError for a row that has no frame."""
    count = len(frames.starts_s)
    if (rows >= count).any():
        raise DatasetError(
            f"{frames.path}: no frame for row {rows[rows >= count][0]}",
            known=f"{count} frames in the video",
            fix="the video is cut short: fetch it again, or leave these rows out",
        )
    return rows


def by_time(rule: str, rows: np.ndarray, timestamps: np.ndarray, frames: Timed) -> np.ndarray:
    """The frames whose times belong to the rows' timestamps.

    A frame that starts up to `TOLERANCE_S` after a timestamp counts as on screen, because LeRobot's float32
    timestamps often lie a hair before their frame. It does not count where reading the timestamps exactly gives the
    episode's rows more different frames: there, as in GR00T's demo data, every row means the frame before.

    Args:
        rule: ``nearest``: the frame that starts nearest to the timestamp (decord's rule). ``on_screen``: the last
            frame that has started by then (torchcodec, torchvision_av).
        rows: int64 [T], row numbers.
        timestamps: float64 [rows of the episode], seconds, increasing.
    Returns: int64 [T], frame numbers.
    Raises: DatasetError for a row whose timestamp lies outside the video.
    """
    _refuse_outside(rows, timestamps, frames)
    if rule == "nearest":
        return np.abs(frames.starts_s[None, :] - timestamps[rows, None]).argmin(axis=1)
    exact, tolerant = (_started_by(timestamps + slack, frames.starts_s) for slack in (0.0, TOLERANCE_S))
    return (exact if len(np.unique(exact)) > len(np.unique(tolerant)) else tolerant)[rows]


def refuse_other_rate(timestamps: np.ndarray, frames: Timed) -> None:
    """Refuse frames by number where they cover the rows' time in another number: frame i is not row i's.

    Args:
        timestamps: float64 [rows of the episode], seconds, increasing.
    Raises: DatasetError.
    """
    if len(timestamps) < 2:
        return
    count = len(frames.starts_s)
    covered = timestamps[-1] - timestamps[0] + float(np.median(np.diff(timestamps)))
    filmed = frames.end_s - frames.starts_s[0]
    if abs(covered - filmed) < 0.1 * filmed and not 0.8 < count / len(timestamps) < 1.25:
        raise DatasetError(
            f"{frames.path}: {count} frames in {filmed:.3f} s, and {len(timestamps)} rows in {covered:.3f} s",
            known="as many frames as rows, for frame i to be that of row i",
            fix="take frames by their time: --frame_lookup on_screen",
        )


def _started_by(times: np.ndarray, starts_s: np.ndarray) -> np.ndarray:
    return np.clip(np.searchsorted(starts_s, times, side="right") - 1, 0, len(starts_s) - 1)


def _refuse_outside(rows: np.ndarray, timestamps: np.ndarray, frames: Timed) -> None:
    first, last = frames.starts_s[0] - TOLERANCE_S, frames.end_s + TOLERANCE_S
    outside = rows[~((timestamps[rows] >= first) & (timestamps[rows] <= last))]
    if len(outside):
        raise DatasetError(
            f"{frames.path}: row {outside[0]} has timestamp {timestamps[outside[0]]:.6f} s",
            known=f"the video lasts from {frames.starts_s[0]:.6f} s to {frames.end_s:.6f} s",
            fix="take frames by number: --frame_lookup index; or correct the timestamps, 0 at each first row",
        )
