"""Antialiased resizing on an accelerator, with the bits of PyTorch's operator on a CPU.

Levels are truncated after resizing, and in even areas a sum of weights one rounding below 1 costs a whole level; so an
operator that rounds elsewhere moves pixels by one level (a float64 matrix product: 2 % of a camera frame's, 68 % of an
even picture's). Here the CPU operator's weights are read from it once, and its sum of products is written out tap by
tap in IEEE arithmetic, with the same bits on any device: no kernel library, TF32 or order of reduction is involved.

The operator on x86 with AVX2 or AVX-512, for each output pixel: start with the first product; take the following taps
in fours, each product rounded to float32 before it is added; add the remaining one to three taps with a fused
multiply-add. A fused one is had from float64: the product of two float32 is exact there, so that the sum is rounded
once more only, on the way back to float32. Other CPUs (no fused multiply-add) differ from this by at most one level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """What one axis needs to go from `size` pixels to `out`; K is the largest number of taps of any output pixel.

    Attributes:
        index: int64 [K * out], the input pixel of each tap, taps first.
        rounded: float32 [K, out], weights of products that are rounded before they are added; zero elsewhere.
        fused: float64 [K, out], weights of all others, as float32 numbers.
        steps: Per tap, whether any pixel uses `rounded`, and whether any uses `fused`.
    """

    index: Tensor
    rounded: Tensor
    fused: Tensor
    steps: tuple[tuple[bool, bool], ...]

    @classmethod
    def of(cls, size: int, out: int, mode: str, device: torch.device) -> Taps:
        """Read from the operator of `mode`, ``bilinear`` or ``bicubic``."""
        unit = torch.eye(size)[None, None]
        weights = torch.nn.functional.interpolate(
            unit, size=(out, size), mode=mode, align_corners=False, antialias=True
        )[0, 0]
        first, count = _spans(size, out, radius=2.0 if mode == "bicubic" else 1.0)
        tap = torch.arange(int(count.max()))[:, None]
        used = tap < count
        index = torch.where(used, first + tap, 0)
        weight = torch.where(used, weights.gather(1, index.T.contiguous()).T, 0.0)
        rounds = (tap > 0) & (tap <= 4 * ((count - 1) // 4))
        rounded, fused = torch.where(rounds, weight, 0.0), torch.where(rounds, 0.0, weight)
        return cls(
            index.flatten().to(device),
            rounded.to(device),
            fused.double().to(device),
            tuple((bool(r.any()), bool(f.any())) for r, f in zip(rounded, fused, strict=True)),
        )


def _spans(size: int, out: int, radius: float) -> tuple[Tensor, Tensor]:
    """First tap and number of taps of each output pixel, int64 [out]: the operator's own formula, in float32."""
    one, half = np.float32(1), np.float32(0.5)
    scale = np.float32(size) / np.float32(out)
    support = np.float32(radius) * max(scale, one)
    centre = scale * (np.arange(out, dtype=np.float32) + half)
    first = np.maximum((centre - support + half).astype(np.int64), 0)
    last = np.minimum((centre + support + half).astype(np.int64), size)
    return torch.from_numpy(first), torch.from_numpy(last - first)


def resample(frames: Tensor, columns: Taps, rows: Taps) -> Tensor:
    """float32 [N, C, H, W] -> [N, C, H', W'], first along rows of pixels, then along columns, as the operator does."""
    return _along(_along(frames, columns, -1), rows, -2)


def _along(x: Tensor, taps: Taps, axis: int) -> Tensor:
    count, out = taps.rounded.shape
    gathered = x.index_select(axis, taps.index).unflatten(axis, (count, out))
    total = torch.zeros_like(gathered.select(axis - 1, 0))
    for tap, (rounds, fuses) in enumerate(taps.steps):
        values = gathered.select(axis - 1, tap)
        rounded, fused = taps.rounded[tap], taps.fused[tap]
        if axis == -2:
            rounded, fused = rounded[:, None], fused[:, None]
        # Each pixel has one of its two weights zero, and adding zero changes nothing.
        if rounds:
            total.add_(values * rounded)
        if fuses:
            total.addcmul_(values, fused)
    return total
