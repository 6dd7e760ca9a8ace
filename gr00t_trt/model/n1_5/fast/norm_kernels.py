"""Moments of rows, for the norm in front of a Triton product.

Reading every row again for its mean and deviation would cost a program as much as its product twice over. So the kernel
that writes a row leaves the moments of the part that it wrote, and the one that reads it puts these together.

Moments lie fp32 [2, rows, tiles]: means, and sums of squared distances from them.
"""

from __future__ import annotations

import triton
import triton.language as tl

CG = tl.constexpr(".cg")
"""Activations are read from L2: an L1 cache may hold what lay there before a kernel in front wrote."""


@triton.jit
def _read_moments(x, at, keep, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Of each row of x: its mean, and the sum of squared distances from it. fp32, in two passes: nothing cancels."""
    total = tl.zeros((BM,), tl.float32)
    for k in range(0, K, BK):
        cols = k + tl.arange(0, BK)
        inside = keep & (cols < K)[None, :]
        total += tl.sum(tl.load(x + at + cols[None, :], mask=inside, other=0.0, cache_modifier=CG).to(tl.float32), 1)
    mean = total / K
    square = tl.zeros((BM,), tl.float32)
    for k in range(0, K, BK):
        cols = k + tl.arange(0, BK)
        inside = keep & (cols < K)[None, :]
        away = tl.load(x + at + cols[None, :], mask=inside, other=0.0, cache_modifier=CG).to(tl.float32) - mean[:, None]
        square += tl.sum(tl.where(inside, away * away, 0.0), 1)
    return mean, square


@triton.jit
def _merged_moments(
    moments, rows, all_rows, keep, K: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr
):
    """The same from what was left: TILES parts of COLUMNS columns, the last perhaps narrower; they fit in WIDE."""
    tile = tl.arange(0, WIDE)
    there = keep & (tile < TILES)[None, :]
    at = rows[:, None] * TILES + tile[None, :]
    means = tl.load(moments + at, mask=there, other=0.0, cache_modifier=CG)
    squares = tl.load(moments + all_rows * TILES + at, mask=there, other=0.0, cache_modifier=CG)
    count = tl.maximum(tl.minimum(COLUMNS, K - tile * COLUMNS), 0).to(tl.float32)[None, :]
    mean = tl.sum(means * count, 1) / K
    away = means - mean[:, None]
    return mean, tl.sum(tl.where(there, squares + count * away * away, 0.0), 1)


@triton.jit
def row_moments(
    x, at, rows, all_rows, keep, moments, K: tl.constexpr, EPS: tl.constexpr, RMS: tl.constexpr, TILES: tl.constexpr,
    WIDE: tl.constexpr, COLUMNS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """What to take from each row and what to multiply it with: mean and reciprocal deviation, or with RMS nothing and
    the reciprocal root mean square. Without TILES from the rows themselves, which begin `at`.
    """
    if TILES > 0:
        mean, square = _merged_moments(moments, rows, all_rows, keep, K, TILES, WIDE, COLUMNS)
    else:
        mean, square = _read_moments(x, at, keep, K, BM, BK)
    square = square / K
    if RMS:
        square += mean * mean
        mean = tl.zeros_like(mean)
    return mean, 1.0 / tl.sqrt(square + EPS)


@triton.jit
def normalised(a, mean, rstd, scale, shift, ks, known, MODULATED: tl.constexpr, SHIFTED: tl.constexpr):
    """The columns `ks` of rows, by their moments and modulated, rounded as they were."""
    value = (a.to(tl.float32) - mean[:, None]) * rstd[:, None]
    if MODULATED:
        value = value * tl.load(scale + ks, mask=known, other=0.0).to(tl.float32)[None, :]
        if SHIFTED:
            value += tl.load(shift + ks, mask=known, other=0.0).to(tl.float32)[None, :]
    return value.to(a.dtype)


@triton.jit
def leave_moments(moments, values, rows, all_rows, tile, tiles, inside, keep, count):
    """The moments of `count` columns of rows that were just written as `values`, fp32; zero is what is not inside."""
    mean = tl.sum(tl.where(inside, values, 0.0), 1) / count
    away = tl.where(inside, values - mean[:, None], 0.0)
    at = rows * tiles + tile
    tl.store(moments + at, mean, mask=keep)
    tl.store(moments + all_rows * tiles + at, tl.sum(away * away, 1), mask=keep)
