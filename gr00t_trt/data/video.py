"""Frames of an mp4 file by number, and writing one."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..common.video_file import VideoWriter, pyav
from ..errors import DatasetError, refetch

CACHE_BYTES = 64 * 2**20
"""Decoded frames that one reader keeps, in bytes."""


class _Packet(NamedTuple):
    """An encoded frame without its bytes, times in units of the stream."""

    pts: int
    key: bool
    discarded: bool
    duration: int


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
        if not os.path.isfile(path):  # unlike Path.is_file, no error for a name that is too long
            raise DatasetError(
                f"{path}: no such video",
                known="the dataset's meta folder lists this episode",
                fix="download the video, or choose an episode that is present",
            )
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            packets = [
                _Packet(p.pts, p.is_keyframe, p.is_discard, p.duration or 0)
                for p in self._container.demux(self._stream)
                if p.pts is not None and p.size
            ]
        except (av.FFmpegError, IndexError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DatasetError(f"{path}: not a readable video: {reason}", fix=refetch(path)) from error
        self._list(packets)
        self._decoder: Iterator[Any] | None = None
        self._next = 0
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()

    def _list(self, packets: list[_Packet]) -> None:
        """Times of all frames, and which of them are shown.

        A video cut without re-encoding begins with the frames that its first one needs, at times before 0.
        """
        packets.sort()
        self._pts = np.array([p.pts for p in packets], dtype=np.int64)
        self._keys = np.flatnonzero([p.key for p in packets])
        self._shown = np.flatnonzero([p.pts >= 0 and not p.discarded for p in packets])
        if not len(self._shown):
            raise DatasetError(f"{self.path}: a video without a frame", fix=refetch(self.path))
        unit = self._stream.time_base
        assert unit is not None
        self.starts_s: np.ndarray = self._pts[self._shown] * unit.numerator / unit.denominator
        """Float64 [N], seconds at which each frame appears."""
        self.spacing_s = float(np.median(np.diff(self.starts_s))) if len(self.starts_s) > 1 else 0.0
        """Seconds from frame to frame, most of the time."""
        lasts = packets[self._shown[-1]].duration * unit.numerator / unit.denominator
        self.end_s = float(self.starts_s[-1]) + (lasts or self.spacing_s)
        """Seconds at which the last frame disappears."""

    def __len__(self) -> int:
        return len(self._shown)

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

        wanted = int(self._shown[index])
        try:
            earlier = self._keys[self._keys <= wanted]
            key = int(earlier[-1]) if len(earlier) else 0
            if self._decoder is None or not key <= self._next <= wanted:
                self._container.seek(int(self._pts[key]), stream=self._stream, backward=True)
                self._decoder = self._container.decode(self._stream)
            for frame in self._decoder:
                if frame.pts is None:
                    continue
                self._next = int(np.searchsorted(self._pts, frame.pts)) + 1
                if frame.pts >= self._pts[wanted]:
                    if frame.pts > self._pts[wanted]:
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


class EpisodeVideo:
    """The frames of one episode, which may be a part of a file; times count from its beginning.

    Args:
        reader: Of the file.
        begin_s, end_s: The frames that start in this span are the episode's. Spans are added up from rounded numbers,
            so each end counts half a frame early.
    Raises: DatasetError for a span without a frame.
    """

    def __init__(self, reader: VideoReader, begin_s: float, end_s: float):
        self.path, self._reader = reader.path, reader
        edges = np.array([begin_s, end_s]) - reader.spacing_s / 2
        self._first, stop = np.searchsorted(reader.starts_s, edges).tolist()
        if self._first == stop:
            raise DatasetError(
                f"{self.path}: no frame between {begin_s} s and {end_s} s, where meta/episodes says the episode is",
                known=f"the file lasts from {reader.starts_s[0]:.6f} s to {reader.end_s:.6f} s",
                fix="fetch the file again, or correct from_timestamp and to_timestamp",
            )
        ends = np.append(reader.starts_s[1:], reader.end_s)
        self.starts_s = reader.starts_s[self._first : stop] - begin_s
        self.end_s = float(ends[stop - 1]) - begin_s

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """Frames as uint8 RGB [len(indices), H, W, 3]. Raises: DatasetError when a frame cannot be decoded."""
        return self._reader.frames((self._first + indices).tolist())


def write_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write uint8 RGB frames [H, W, 3] as H.264 in an mp4 file; H and W must be even."""
    with VideoWriter(path, fps, {"preset": "veryfast", "crf": "18"}) as video:
        for image in frames:
            video.add(image)
