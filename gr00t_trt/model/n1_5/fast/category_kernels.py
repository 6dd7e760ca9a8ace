"""Triton kernels of the layers that have weights of their own for every embodiment: a program reads its sample's.

They start early and wait like those in `kernels`, and cut K like `kernels.linear`. Weights lie [samples, K, N].
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import added_up, arrived_last, fetch_early
from .norm_kernels import CG, leave_moments, normalised, row_moments


@triton.jit
def _fetch_share(weight, first, tile, N: tl.constexpr, SHARE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):
    """Ask for a program's part of a weight, of which BN columns are one line of 128 bytes, or less."""
    for k in range(0, SHARE, BK):
        fetch_early(weight + (first + tl.minimum(k + tl.arange(0, BK), SHARE - 1)) * N + tile * BN)


@triton.jit
def _weights(weight, ks, known, cols, N: tl.constexpr):
    return tl.load(weight + ks[:, None] * N + cols[None, :], mask=known[:, None] & (cols < N)[None, :], other=0.0)


@triton.jit
def _token_rows(out, left, values, row, first, all_rows, tile, cols, inside, keep, N: tl.constexpr, BN: tl.constexpr):
    """Write rows of a sample whose tokens begin with row `first` of all, and leave their moments."""
    values = values.to(out.dtype.element_ty)
    tl.store(out + (first + row)[:, None] * N + cols[None, :], values, mask=inside)
    count = tl.minimum(BN, N - tile * BN)
    leave_moments(
        left, values.to(tl.float32), first + row, all_rows, tile, tl.num_programs(0), inside, keep, count
    )  # fmt: skip


@triton.jit
def _encoded(
    acc, bias, out, left, row, first, all_rows, tile, cols, inside, keep, known,
    N: tl.constexpr, BN: tl.constexpr, BY_ROW: tl.constexpr, narrow: tl.constexpr,
):  # fmt: skip
    """The sum, its bias that is one for all rows or one for each, as a token behind the prefix."""
    if BY_ROW:
        acc += tl.load(bias + row[:, None] * N + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    else:
        acc += tl.load(bias + cols, mask=known, other=0.0).to(tl.float32)[None, :]
    _token_rows(out, left, acc.to(narrow), row, first, all_rows, tile, cols, inside, keep, N, BN)


@triton.jit(do_not_specialize=["rows"])
def action_tokens(
    actions, bias_in, weight_in, weight_out, bias_out, prefix, out, left, parts, arrivals, rows,
    A: tl.constexpr, WIDE_A: tl.constexpr, H: tl.constexpr, N: tl.constexpr, PREFIX: tl.constexpr,
    BY_ROW: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The tokens of a step: the prefix, then silu(actions @ weight_in + bias_in) @ weight_out + bias_out.

    Grid (ceil(N / BN), SPLIT, samples ceil(rows / BM)). Each program makes as much of the inner layer, H wide and A
    deep, as its share of the outer product reads; WIDE_A is a power of two that A fits in. `actions` fp32
    [samples, rows, A]; `bias_in` [samples, H]; `bias_out` [samples, N], with BY_ROW [samples, rows, N]; `prefix`
    [samples, PREFIX, N]; `out` [samples, PREFIX + rows, N], whose moments are `left`.
    """
    tile, share, each = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks = (rows + BM - 1) // BM
    sample, block = (each // blocks).to(tl.int64), each % blocks
    SHARE: tl.constexpr = H // SPLIT
    cols = tile * BN + tl.arange(0, BN)
    known = cols < N
    weight_in += sample * A * H
    weight_out += sample * H * N
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        _fetch_share(weight_out, share * SHARE, tile, N, SHARE, BK, BN)
        tl.extra.cuda.gdc_wait()
    samples = tl.num_programs(2) // blocks
    first, all_rows = sample * (PREFIX + rows), samples * (PREFIX + rows)
    if share == 0 and block == 0:
        prefix += sample * PREFIX * N
        for start in range(0, PREFIX, 16):
            at = start + tl.arange(0, 16)
            own = (at < PREFIX)[:, None] & known[None, :]
            copied = tl.load(prefix + at[:, None] * N + cols[None, :], mask=own, other=0.0, cache_modifier=CG)
            _token_rows(out, left, copied, at, first, all_rows, tile, cols, own, at < PREFIX, N, BN)
    row = block * BM + tl.arange(0, BM)
    keep = row < rows
    narrow: tl.constexpr = weight_out.dtype.element_ty
    a = tl.arange(0, WIDE_A)
    wanted = keep[:, None] & (a < A)[None, :]
    where = (sample * rows + row)[:, None] * A + a[None, :]
    x = tl.load(actions + where, mask=wanted, other=0.0, cache_modifier=CG).to(narrow)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, SHARE, BK):
        ks = share * SHARE + step + tl.arange(0, BK)
        there = (step + tl.arange(0, BK)) < SHARE
        inner = tl.load(weight_in + a[:, None] * H + ks[None, :], mask=(a < A)[:, None] & there[None, :], other=0.0)
        h = tl.dot(x, inner, tl.zeros((BM, BK), tl.float32), input_precision="ieee")
        h += tl.load(bias_in + sample * H + ks, mask=there, other=0.0).to(tl.float32)[None, :]
        h = h / (1.0 + tl.exp(-h))
        acc = tl.dot(h.to(narrow), _weights(weight_out, ks, there, cols, N), acc, input_precision="ieee")
    inside = keep[:, None] & known[None, :]
    bias_out += sample * N * (rows if BY_ROW else 1)
    last = True
    if SPLIT > 1:
        counter, size = arrivals + each * tl.num_programs(0) + tile, samples * rows * N
        at = (sample * rows + row)[:, None] * N + cols[None, :]
        last = arrived_last(acc, parts, counter, share, size, at, inside, SPLIT)
    if last:
        if SPLIT > 1:
            acc = added_up(parts, counter, size, at, inside, SPLIT, BM, BN)
        _encoded(
            acc, bias_out, out, left, row, first + PREFIX, all_rows, tile, cols, inside, keep, known,
            N, BN, BY_ROW, narrow,
        )  # fmt: skip


@triton.jit
def _decoded(
    acc, bias, actions, step_size, out, at, cols, inside, known, RELU: tl.constexpr, EULER: tl.constexpr,
    narrow: tl.constexpr,
):  # fmt: skip
    acc += tl.load(bias + cols, mask=known, other=0.0).to(tl.float32)[None, :]
    if RELU:
        acc = tl.maximum(acc, 0.0, propagate_nan=tl.PropagateNan.ALL)
    acc = acc.to(narrow)
    if EULER:
        now = tl.load(actions + at, mask=inside, other=0.0, cache_modifier=CG)
        tl.store(out + at, now + acc.to(tl.float32) * tl.load(step_size), mask=inside)
    else:
        tl.store(out + at, acc, mask=inside)


@triton.jit(do_not_specialize=["rows", "x_rows", "x_skip"])
def category_linear(
    x, weight, bias, scale, shift, moments, actions, step_size, out, parts, arrivals, rows, x_rows, x_skip,
    N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
    COLUMNS: tl.constexpr, RELU: tl.constexpr, EULER: tl.constexpr, EPS: tl.constexpr,
    SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [samples, rows, N] = act(norm(x) @ weight [samples, K, N] + bias [samples, N]).

    Grid (ceil(N / BN), SPLIT, samples ceil(rows / BM)). Of each sample's `x_rows` rows of x [samples, x_rows, K], those
    after the first `x_skip` are used. NORM: a layer norm, modulated by `scale` and `shift` [K], for which `moments`
    were left in TILES of COLUMNS columns, or none, zero. EULER: `out` is fp32, `actions` plus the result times
    `step_size`, fp32 [1].
    """
    tile, share, each = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks = (rows + BM - 1) // BM
    sample, block = (each // blocks).to(tl.int64), each % blocks
    SHARE: tl.constexpr = K // SPLIT
    cols = tile * BN + tl.arange(0, BN)
    known = cols < N
    weight += sample * K * N
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        _fetch_share(weight, share * SHARE, tile, N, SHARE, BK, BN)
        tl.extra.cuda.gdc_wait()
    row = block * BM + tl.arange(0, BM)
    keep = (row < rows)[:, None]
    source = sample * x_rows + x_skip + row
    at = source[:, None] * K
    samples = tl.num_programs(2) // blocks
    narrow: tl.constexpr = weight.dtype.element_ty
    if NORM:
        all_rows = samples * x_rows
        mean, rstd = row_moments(x, at, source, all_rows, keep, moments, K, EPS, False, TILES, WIDE, COLUMNS, BM, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, SHARE, BK):
        ks = share * SHARE + step + tl.arange(0, BK)
        there = (step + tl.arange(0, BK)) < SHARE
        a = tl.load(x + at + ks[None, :], mask=keep & there[None, :], other=0.0, cache_modifier=CG)
        if NORM:
            a = normalised(a, mean, rstd, scale, shift, ks, there, True, True)
        acc = tl.dot(a.to(narrow), _weights(weight, ks, there, cols, N), acc, input_precision="ieee")
    inside = keep & known[None, :]
    where = (sample * rows + row)[:, None] * N + cols[None, :]
    bias += sample * N
    last = True
    if SPLIT > 1:
        counter, size = arrivals + each * tl.num_programs(0) + tile, samples * rows * N
        last = arrived_last(acc, parts, counter, share, size, where, inside, SPLIT)
    if last:
        if SPLIT > 1:
            acc = added_up(parts, counter, size, where, inside, SPLIT, BM, BN)
        _decoded(acc, bias, actions, step_size, out, where, cols, inside, known, RELU, EULER, narrow)
