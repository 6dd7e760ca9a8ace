"""Random changes of an image's colours: brightness, contrast, saturation and hue, each by an explicit factor.

Images are float32 [..., 3, H, W] in [0, 1]. Only operations that treat every pixel alike are left to PyTorch, so that
the number of its threads changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import PlanError

Range = float | tuple[float, float]
"""How far from the neutral value, or least and greatest value."""
LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in a pixel's grey."""


def adjust_brightness(image: Tensor, factor: float) -> Tensor:
    """Every level times `factor`, which is at least 0: 0 gives black, 1 the image."""
    return (image * factor).clamp_(0, 1)


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Away from the image's mean grey, or towards it: 0 gives that grey everywhere, 1 the image."""
    grey = _grey(image).numpy()
    mean = np.mean(grey, axis=(-3, -2, -1), keepdims=True, dtype=np.float32)
    return _blend(image, torch.from_numpy(np.asarray(mean)), factor)


def adjust_saturation(image: Tensor, factor: float) -> Tensor:
    """Away from each pixel's grey, or towards it: 0 gives a grey image, 1 the image."""
    return _blend(image, _grey(image), factor)


def adjust_hue(image: Tensor, turn: float) -> Tensor:
    """Colours moved along the colour circle by `turn` of it, in [-0.5, 0.5]; value and saturation stay."""
    red, green, blue = image.unbind(-3)
    high = image.amax(-3)
    span = high - image.amin(-3)
    divisor = torch.where(span == 0, torch.ones_like(span), span)
    # Where each colour lies on the circle of six sectors: red 0, green 2, blue 4.
    near_red, near_green = (green - blue) / divisor, (blue - red) / divisor + 2
    sector = torch.where(high == green, near_green, (red - green) / divisor + 4)
    sector = torch.where(high == red, near_red, sector).add_(6 * turn).remainder_(6)
    channels = []
    for start in (5, 3, 1):
        place = sector + start
        place = torch.where(place >= 6, place - 6, place)
        channels.append(high - span * torch.minimum(place, 4 - place).clamp_(0, 1))
    return torch.stack(channels, dim=-3)


def _grey(image: Tensor) -> Tensor:
    """[..., 1, H, W]."""
    red, green, blue = image.unbind(-3)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).unsqueeze(-3)


def _blend(image: Tensor, other: Tensor, factor: float) -> Tensor:
    # Two products and a sum: one fused operation rounds differently at the ends of what each thread is given.
    return (image * factor).add_(other * (1 - factor)).clamp_(0, 1)


ADJUSTMENTS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_hue,
)


@dataclass(frozen=True)
class Jitter:
    """Ranges of the four factors, in the order of `ADJUSTMENTS`; None for one that is left alone."""

    ranges: tuple[tuple[float, float] | None, ...]

    @classmethod
    def of(cls, brightness: Range, contrast: Range, saturation: Range, hue: Range) -> Jitter:
        """Raises: PlanError for a range that is none."""
        factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        ranges = [_range(name, value, 1.0, 0.0, float("inf")) for name, value in factors.items()]
        return cls((*ranges, _range("hue", hue, 0.0, -0.5, 0.5)))

    def drawn(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """A function of images that applies the four in a random order, with factors drawn evenly from their ranges."""
        order = torch.randperm(len(self.ranges), generator=generator).tolist()
        shares = torch.rand(len(self.ranges), generator=generator, dtype=torch.float64).tolist()

        def adjust(image: Tensor) -> Tensor:
            for index in order:
                span = self.ranges[index]
                if span is not None:
                    image = ADJUSTMENTS[index](image, span[0] + shares[index] * (span[1] - span[0]))
            return image

        return adjust


def _range(name: str, value: Range, neutral: float, least: float, most: float) -> tuple[float, float] | None:
    known = f"a number of at least 0, or two numbers from {least} to {most} in order"
    try:
        pair = isinstance(value, tuple | list)
        low, high = value if pair else (max(neutral - value, least), neutral + value)  # type: ignore[misc, operator]
        low, high = float(low), float(high)
    except (TypeError, ValueError) as error:
        raise PlanError(f"VideoColorJitter: {name} {value!r}", known=known) from error
    if not least <= low <= high <= most:
        raise PlanError(f"VideoColorJitter: {name} {value!r}", known=known)
    return None if low == high == neutral else (low, high)
