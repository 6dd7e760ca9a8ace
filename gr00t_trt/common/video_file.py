"""Writing H.264 videos, frame by frame, and reading single images. Never imports torch; av is imported here only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from .install import install

_IMAGE_CODECS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8": "mjpeg"}
"""First bytes -> FFmpeg's decoder."""


def pyav() -> Any:
    """The module av. Raises: DatasetError with the install command where it is missing."""
    try:
        import av
    except ImportError as error:
        raise DatasetError(
            "videos are read and written with PyAV, which is not installed", fix=install("av")
        ) from error
    return av


def decode_image(data: bytes, where: str, most_pixels: int) -> np.ndarray:
    """A PNG or JPEG image as uint8 RGB [H, W, 3].

    Args:
        where: What errors call it.
        most_pixels: A larger image is refused before it is decoded.
    Raises: DatasetError for another format, a damaged or a larger image.
    """
    av = pyav()
    codec = next((name for start, name in _IMAGE_CODECS.items() if data.startswith(start)), None)
    if codec is None:
        raise DatasetError(f"{where}: neither a PNG nor a JPEG image: it begins with {data[:8]!r}")
    context = av.CodecContext.create(codec, "r")
    context.options = {"max_pixels": str(most_pixels)}
    try:
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
        return np.asarray(frames[0].to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        what = f"{where}: the image cannot be decoded: {getattr(error, 'strerror', None) or 'it is empty'}"
        known = f"an undamaged image of {most_pixels} pixels, as meta/info.json says"
        raise DatasetError(what, known=known, fix="fetch the file again, or record it again") from error


class VideoWriter:
    """An mp4 file that grows by one frame per `add`; H.264 in yuv420p, which any player shows.

    Args:
        path: Its folder is made.
        options: Of libx264, such as ``{"crf": "22"}``.
    """

    def __init__(self, path: Path, fps: int, options: dict[str, str]):
        self.path, self._fps, self._options, self._av = path, fps, options, pyav()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = self._av.open(str(path), "w")
        self._stream: Any = None

    def add(self, image: np.ndarray) -> None:
        """Append one frame, uint8 RGB [H, W, 3]; H and W even, the same for all."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._fps, options=self._options)
            self._stream.height, self._stream.width, self._stream.pix_fmt = image.shape[0], image.shape[1], "yuv420p"
            self._stream.thread_count = 1
        self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(image, format="rgb24")))

    def close(self) -> None:
        """Finish the file; a second call does nothing."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
            self._stream = None
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
