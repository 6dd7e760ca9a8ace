"""Camera frames from the sensor's size to the model's: crop and resize, in float; crop and colours random in training.

Source: Isaac-GR00T, gr00t/data/transform/video.py, with its torchvision backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ObservationError, PlanError, unknown
from .colors import Jitter, Range
from .device import on_host, unit_interval
from .metadata import DatasetMetadata
from .resampling import Taps, resample
from .transforms import Data, Draw, ModalityTransform, refuse_in_training

INTERPOLATIONS = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic", "nearest_exact": "nearest-exact"}
"""Upstream's name -> torch's. Upstream's area, lanczos4, linear_exact and max have no counterpart for tensors."""


class VideoTransform(ModalityTransform):
    """Applies one function to each listed view that is present.

    Args:
        apply_to: Full keys, such as ``video.ego_view``.
        backend: Only ``torchvision``, whose arithmetic this follows, is accepted.
    """

    def __init__(self, apply_to: Iterable[str], backend: str = "torchvision"):
        super().__init__(apply_to)
        if backend != "torchvision":
            raise unknown(PlanError, f"{type(self).__name__}: backend", backend, ["torchvision"])

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        for key in self.apply_to:
            metadata.view(key)

    def apply(self, data: Data) -> Data:
        return self._each(data, self._frames)

    def _frames(self, key: str, frames: Any) -> Any:
        """One view after this step; augmentations change nothing."""
        return frames


class _Identity(VideoTransform):
    """An augmentation: random in training, where it is refused, nothing in evaluation. Parameters are not looked at."""

    def __init__(self, apply_to: Iterable[str], *parameters: Any, backend: str = "torchvision", **named: Any):
        super().__init__(apply_to, backend)

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        if draw is not None:
            refuse_in_training(self)
        return self.apply(data)


class VideoColorJitter(VideoTransform):
    """Random colours in training, the same for all views of a sample; nothing in evaluation. See `colors.Jitter`.

    Args:
        brightness, contrast, saturation: The factor lies within 1 - x and 1 + x, but not below 0; or (low, high).
        hue: The turn of the colour circle lies within -x and x, at most 0.5; or (low, high).
    Raises: PlanError for a range that is none.
    """

    def __init__(
        self,
        apply_to: Iterable[str],
        brightness: Range = 0.0,
        contrast: Range = 0.0,
        saturation: Range = 0.0,
        hue: Range = 0.0,
        backend: str = "torchvision",
    ):
        super().__init__(apply_to, backend)
        self._jitter = Jitter.of(brightness, contrast, saturation, hue)

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        if draw is None:
            return self.apply(data)
        adjust = self._jitter.drawn(draw("color"))
        return self._each(data, lambda _, frames: adjust(frames))


class VideoRandomRotation(_Identity):
    """Random rotation in training, where it is refused; nothing in evaluation."""


class VideoHorizontalFlip(_Identity):
    """Random flip in training, where it is refused; nothing in evaluation."""


class VideoGrayscale(_Identity):
    """Grayscale in training, where it is refused; nothing in evaluation."""


class VideoRandomGrayscale(_Identity):
    """Random grayscale in training, where it is refused; nothing in evaluation."""


class VideoRandomPosterize(_Identity):
    """Random posterisation in training, where it is refused; nothing in evaluation."""


class VideoToTensor(VideoTransform):
    """uint8 [..., T, H, W, C] to float32 [..., T, C, H, W] in [0, 1].

    Raises: ObservationError for another dtype, rank or resolution than the metadata's.
    """

    def __init__(self, apply_to: Iterable[str], backend: str = "torchvision"):
        super().__init__(apply_to, backend)
        self._resolutions: dict[str, tuple[int, int]] = {}

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        self._resolutions = {key: metadata.view(key).resolution for key in self.apply_to}

    def _frames(self, key: str, frames: Any) -> Tensor:
        if not isinstance(frames, Tensor):
            frames = np.asarray(frames)
        dtype = str(frames.dtype).removeprefix("torch.")
        if dtype != "uint8" or frames.ndim not in (4, 5) or frames.shape[-1] != 3:
            raise ObservationError(
                f"{key} is {dtype} of shape {tuple(frames.shape)}", known="uint8 [T, H, W, 3] or [B, T, H, W, 3]"
            )
        size = (frames.shape[-2], frames.shape[-3])
        if key in self._resolutions and size != self._resolutions[key]:
            width, height = self._resolutions[key]
            raise ObservationError(
                f"{key} is {size[0]} x {size[1]} pixels (width x height)", known=f"{width} x {height} in the metadata"
            )
        # Channels first in memory as well: interpolation is several times faster on contiguous planes.
        if isinstance(frames, Tensor):
            return unit_interval(frames.movedim(-1, -3).contiguous())
        return unit_interval(torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))))


class VideoCrop(VideoTransform):
    """Crop to int(scale * size) on both axes, of float [..., C, H, W]: the centre, in training a random place.

    The place is the same for all views of a sample that have the same size.

    Args:
        scale: Fraction of height and width that stays.
        height, width: Size that `scale` refers to; the frame's own (which is the metadata's) when None.
    """

    def __init__(
        self,
        apply_to: Iterable[str],
        scale: float,
        height: int | None = None,
        width: int | None = None,
        backend: str = "torchvision",
    ):
        super().__init__(apply_to, backend)
        if not 0 < scale <= 1:
            raise PlanError(f"VideoCrop: scale {scale}", known="0 < scale <= 1")
        self.scale, self.height, self.width = scale, height, width

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        if draw is None:
            return self.apply(data)
        down, across = torch.rand(2, generator=draw("crop"), dtype=torch.float64).tolist()

        def cut(key: str, frames: Tensor) -> Tensor:
            height, width = self._cropped(key, frames)
            rows, columns = frames.shape[-2] - height + 1, frames.shape[-1] - width + 1
            return _cut(frames, int(down * rows), int(across * columns), height, width)

        return self._each(data, cut)

    def _frames(self, key: str, frames: Tensor) -> Tensor:
        height, width = self._cropped(key, frames)
        # round() halves to even, which decides the offset of odd margins.
        top, left = round((frames.shape[-2] - height) / 2), round((frames.shape[-1] - width) / 2)
        return _cut(frames, top, left, height, width)

    def _cropped(self, key: str, frames: Tensor) -> tuple[int, int]:
        """Height and width of what stays."""
        height, width = frames.shape[-2:]
        new_height, new_width = int((self.height or height) * self.scale), int((self.width or width) * self.scale)
        if new_height > height or new_width > width:
            raise ObservationError(f"{key} is {width} x {height}, smaller than the crop {new_width} x {new_height}")
        return new_height, new_width


def _cut(frames: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return frames[..., top : top + height, left : left + width]


class VideoResize(VideoTransform):
    """Resize float [..., C, H, W] to height x width; the aspect ratio is not kept.

    Antialiased float32 frames get the same bits on an accelerator as on a CPU, see `resampling`.
    """

    def __init__(
        self,
        apply_to: Iterable[str],
        height: int,
        width: int,
        interpolation: str = "linear",
        antialias: bool = True,
        backend: str = "torchvision",
    ):
        super().__init__(apply_to, backend)
        if interpolation not in INTERPOLATIONS:
            raise unknown(PlanError, "VideoResize: interpolation", interpolation, INTERPOLATIONS)
        self.height, self.width = height, width
        self.interpolation, self.antialias = interpolation, antialias
        self._taps: dict[tuple[int, int, torch.device], Taps] = {}

    def _frames(self, key: str, frames: Tensor) -> Tensor:
        if tuple(frames.shape[-2:]) == (self.height, self.width):
            return frames
        smooth = self.interpolation in ("linear", "cubic")
        flat = frames.reshape(-1, *frames.shape[-3:])
        if smooth and self.antialias and frames.dtype == torch.float32 and not on_host(frames):
            columns = self._taps_of(frames.shape[-1], self.width, frames.device)
            resized = resample(flat, columns, self._taps_of(frames.shape[-2], self.height, frames.device))
        else:
            resized = torch.nn.functional.interpolate(
                flat,
                size=(self.height, self.width),
                mode=INTERPOLATIONS[self.interpolation],
                align_corners=False if smooth else None,
                antialias=self.antialias and smooth,
            )
        return resized.reshape(*frames.shape[:-2], self.height, self.width)

    def _taps_of(self, size: int, out: int, device: torch.device) -> Taps:
        key = (size, out, device)
        if key not in self._taps:
            self._taps[key] = Taps.of(size, out, INTERPOLATIONS[self.interpolation], device)
        return self._taps[key]


class VideoToNumpy(VideoTransform):
    """float [..., T, C, H, W] in [0, 1] to uint8 [..., T, H, W, C], truncating x * 255.

    Frames on an accelerator stay there, as a tensor.
    """

    def _frames(self, key: str, frames: Tensor) -> np.ndarray | Tensor:
        # Cubic interpolation overshoots; without the clamp the cast would wrap round.
        # By way of int16, which truncates as well: the cast from float to uint8 is not vectorised on a CPU.
        levels = frames.clamp(0, 1).mul_(255).to(torch.int16).to(torch.uint8).movedim(-3, -1)
        return levels.numpy() if on_host(levels) else levels
