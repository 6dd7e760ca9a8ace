"""Frames of an mp4 file by number, and writing one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..common.video_file import VideoWriter, pyav
from ..errors import DatasetError, refetch

CACHE_BYTES = 64 * 2**20
"""Decoded frames that one reader keeps, in bytes."""


class VideoReader:
    """Random access to the frames of one file, numbered in display order.

    Listing the packets gives every frame's start time and the key frames without decoding. A request continues
    the running decoder when it lies ahead within the same group of pictures, and otherwise seeks to the key frame
    before it. Keeping whole decoded episodes would be simpler, but a minute of one 640 x 480 view is over a
    gigabyte; this way memory is bounded and walking forward, the usual order, decodes each frame once.

    Args:
        path: An mp4 file.
    Raises: DatasetError when it is missing, corrupt or without a video stream.
    """

    def __init__(self, path: Path):
        av = pyav()

        self.path = path
        if not path.is_file():
            raise DatasetError(
                f"{path}: no such video",
                known="meta/episodes.jsonl lists this episode",
                fix="download the video, or choose an episode that is present",
            )
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            packets = [
                (p.pts, p.is_keyframe) for p in self._container.demux(self._stream) if p.pts is not None and p.size
            ]
        except (av.FFmpegError, IndexError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DatasetError(f"{path}: not a readable video: {reason}", fix=refetch(path)) from error
        packets.sort()
        self._pts = np.array([pts for pts, _ in packets], dtype=np.int64)
        self._keys = np.flatnonzero([key for _, key in packets])
        time_base = self._stream.time_base
        assert time_base is not None
        self.start_times: np.ndarray = self._pts * time_base.numerator / time_base.denominator
        """Float64 [N], seconds at which each frame appears."""
        self._decoder: Iterator[Any] | None = None
        self._next = 0
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pts)

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Frames as uint8 RGB [len(indices), H, W, 3]. Raises: DatasetError when a frame cannot be decoded."""
        return np.stack([self._frame(int(i)) for i in indices])

    def close(self) -> None:
        self._decoder = None
        self._container.close()

    def _frame(self, index: int) -> np.ndarray:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        image = self._decode(index)
        self._cache[index] = image
        while len(self._cache) > max(1, CACHE_BYTES // image.nbytes):
            self._cache.popitem(last=False)
        return image

    def _decode(self, index: int) -> np.ndarray:
        av = pyav()

        try:
            key = self._keys[np.searchsorted(self._keys, index, side="right") - 1] if len(self._keys) else 0
            if self._decoder is None or not key <= self._next <= index:
                self._container.seek(int(self._pts[key]), stream=self._stream, backward=True)
                self._decoder = self._container.decode(self._stream)
            for frame in self._decoder:
                if frame.pts is None:
                    continue
                self._next = int(np.searchsorted(self._pts, frame.pts)) + 1
                if frame.pts >= self._pts[index]:
                    if frame.pts > self._pts[index]:
                        break
                    return frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:
            self._decoder = None
            raise DatasetError(f"{self.path}: frame {index}: {error}", fix="fetch the file again") from error
        self._decoder = None
        raise DatasetError(
            f"{self.path}: frame {index} cannot be decoded",
            known=f"the file announces {len(self)} frames",
            fix="the file is damaged: fetch it again",
        )


def look_up(rule: str, rows: np.ndarray, timestamps: np.ndarray, start_times: np.ndarray) -> np.ndarray:
    """Which frame belongs to each row.

    Args:
        rule: ``index``: frame i for row i. ``nearest``: the frame that starts nearest to the row's timestamp
            (decord's rule). ``on_screen``: the last frame that has started by then (torchcodec, torchvision_av).
        rows: int64 [T], row numbers.
        timestamps: float64 [T], seconds, of those rows.
        start_times: float64 [N], seconds, ascending.
    Returns: int64 [T], in [0, N).
    """
    last = len(start_times) - 1
    if rule == "index":
        return np.clip(rows, 0, last)
    if rule == "on_screen":
        return np.clip(np.searchsorted(start_times, timestamps, side="right") - 1, 0, last)
    return np.abs(start_times[None, :] - timestamps[:, None]).argmin(axis=1)


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write uint8 RGB frames [H, W, 3] as H.264 in an mp4 file; H and W must be even."""
    with VideoWriter(path, fps, {"preset": "veryfast", "crf": "18"}) as video:
        for image in frames:
            video.add(image)
