"""Triton kernels for products of few rows, with what stands before and after them; `attention_kernels` has attention,
and `category_kernels` the layers with weights per embodiment.

A token block of 49 rows leaves a GPU nothing to do but read weights, so every kernel asks for its own weights while the
kernel in front of it still runs (programmatic dependent launch, from compute capability 9.0 on). The order stays
right since every kernel waits for its predecessor before it reads or writes an activation, that one having done the
same. Without it, and in Triton's interpreter, the same code runs one kernel after the other.

Sizes that a layer fixes are compile-time constants. Numbers of rows are not, nor is anything assumed of them: one
compiled kernel serves every batch.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .norm_kernels import CG, leave_moments, normalised, row_moments


@triton.jit
def fetch_early(where):
    """Ask the L2 cache for the lines of 128 bytes that these point into. Constants only: nothing was waited for yet."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [where.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _fetch_rows(rows, WIDTH: tl.constexpr):
    """Ask for WIDTH columns of the rows of a weight that begin there."""
    LINE: tl.constexpr = 1024 // rows.dtype.scalar.element_ty.primitive_bitwidth
    for k in range(0, WIDTH, LINE):
        fetch_early(rows + k)


@triton.jit
def arrived_last(acc, parts, counter, share, size, where, inside, SPLIT: tl.constexpr):
    """Leave a share of a sum in `parts`, fp32 [SPLIT, size]; whether all others are there by now."""
    tl.store(parts + share * size + where, acc, mask=inside)
    tl.debug_barrier()  # all threads have written before one of them says so
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLIT - 1


@triton.jit
def added_up(parts, counter, size, where, inside, SPLIT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The sum of all shares, in the same order each time, and the counter back at zero."""
    total = tl.zeros((BM, BN), tl.float32)
    for each in range(SPLIT):
        total += tl.load(parts + each * size + where, mask=inside, other=0.0, cache_modifier=CG)
    tl.store(counter, 0)
    return total


@triton.jit
def _finished(
    acc, bias, residual, out, left, cols, rows, M, tile, inside, at_residual,
    N: tl.constexpr, BN: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr, LEAVES: tl.constexpr,
):  # fmt: skip
    """What stands behind a product: bias, then GELU (tanh) or the residual, in fp32 and rounded once."""
    if bias is not None:
        acc += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        # x/2 (1 + tanh(u)) as x / (1 + exp(-2u)), which neither end of exp's range turns into NaN.
        acc = acc / (1.0 + tl.exp(-1.5957691216057308 * (acc + 0.044715 * acc * acc * acc)))
    if RESIDUAL:
        acc += tl.load(residual + at_residual + cols[None, :], mask=inside, other=0.0, cache_modifier=CG).to(tl.float32)
    acc = acc.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * N + cols[None, :], acc, mask=inside)
    if LEAVES:
        count = tl.minimum(BN, N - tile * BN)
        leave_moments(left, acc.to(tl.float32), rows, M, tile, tl.num_programs(0), inside, rows < M, count)


@triton.jit
def _quantised(a, input_scale):
    """As e4m3 by a static scale. Clamped: e4m3 has no infinity, and beyond its largest number would be NaN."""
    a = tl.clamp(a.to(tl.float32) / tl.load(input_scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    return a.to(tl.float8e4nv)


@triton.jit
def _dequantised(acc, weight_scale, input_scale, cols, N: tl.constexpr):
    own = tl.load(weight_scale + cols, mask=cols < N, other=0.0)
    return acc * (own * tl.load(input_scale))[None, :]


@triton.jit(do_not_specialize=["M", "take", "x_of", "x_skip", "residual_of", "residual_skip"])
def linear(
    x, weight, weight_scale, input_scale, bias, scale, shift, moments, residual, out, left, parts, arrivals,
    M, take, x_of, x_skip, residual_of, residual_skip,
    FP8: tl.constexpr, N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, RMS: tl.constexpr,
    MODULATED: tl.constexpr, SHIFTED: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
    LEAVES: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [M, N] = act(norm(x) @ weight [N, K]^T + bias) + residual. Grid (ceil(N / BN), SPLIT, ceil(M / BM)).

    Of each sample's `x_of` rows of `x`, the `take` after the first `x_skip` are used, and likewise of `residual`; `out`
    holds those alone. `scale` and `shift` [K] modulate the norm (RMS: it takes no mean away), for which `moments` were
    left in TILES of COLUMNS columns, or none, zero; LEAVES: the next norm's are `left`. With SPLIT, each program sums a
    share of K into `parts`, fp32 [SPLIT, M, N]; the one that `arrivals` shows to be the last adds them in fixed order,
    so that a result never depends on which came first, and leaves `arrivals` at zero. SPLIT divides K into shares of
    whole 16 bytes.

    FP8: the weight is e4m3 with `weight_scale` fp32 [N], and what it is multiplied with becomes e4m3 by the static
    `input_scale`, fp32 [], where it is read: no kernel and no memory of its own.
    """
    tile, share, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    SHARE: tl.constexpr = K // SPLIT
    cols = tile * BN + tl.arange(0, BN)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if block == 0:  # the others read the same
            _fetch_rows(weight + tl.minimum(cols, N - 1) * K + share * SHARE, SHARE)
        tl.extra.cuda.gdc_wait()
    rows = block * BM + tl.arange(0, BM)
    keep = (rows < M)[:, None]
    source = (rows // take) * x_of + x_skip + rows % take
    at = source[:, None] * K
    if NORM:
        all_rows = (M // take) * x_of
        mean, rstd = row_moments(x, at, source, all_rows, keep, moments, K, EPS, RMS, TILES, WIDE, COLUMNS, BM, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, SHARE, BK):
        ks = share * SHARE + step + tl.arange(0, BK)
        known = (step + tl.arange(0, BK)) < SHARE
        tiled = tl.load(weight + cols[None, :] * K + ks[:, None], mask=known[:, None] & (cols < N)[None, :], other=0.0)
        a = tl.load(x + at + ks[None, :], mask=keep & known[None, :], other=0.0, cache_modifier=CG)
        if NORM:
            a = normalised(a, mean, rstd, scale, shift, ks, known, MODULATED, SHIFTED)
        if FP8:
            a = _quantised(a, input_scale)
        acc = tl.dot(a, tiled, acc, input_precision="ieee")
    inside = keep & (cols < N)[None, :]
    at_residual = ((rows // take) * residual_of + residual_skip + rows % take)[:, None] * N
    if FP8:
        acc = _dequantised(acc, weight_scale, input_scale, cols, N)
    last = True
    if SPLIT > 1:
        where = rows[:, None] * N + cols[None, :]
        counter = arrivals + block * tl.num_programs(0) + tile
        last = arrived_last(acc, parts, counter, share, M * N, where, inside, SPLIT)
    if last:
        if SPLIT > 1:
            acc = added_up(parts, counter, M * N, where, inside, SPLIT, BM, BN)
        _finished(
            acc, bias, residual, out, left, cols, rows, M, tile, inside, at_residual, N, BN, GELU, RESIDUAL, LEAVES
        )


@triton.jit(do_not_specialize=["M"])
def gated_linear(
    x, weight, weight_scale, input_scale, scale, moments, out, M,
    FP8: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TILES: tl.constexpr, WIDE: tl.constexpr,
    COLUMNS: tl.constexpr, EPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [M, N] = SiLU(norm(x) @ gate^T) * (norm(x) @ up^T), `weight` [2 N, K] being gate and up, one after the other.

    The norm divides by the root mean square and multiplies with `scale` [K]. Grid (ceil(N / BN), 1, ceil(M / BM)); the
    rest as for `linear`.
    """
    tile, block = tl.program_id(0), tl.program_id(2)
    cols = tile * BN + tl.arange(0, BN)
    up = weight + N * K
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if block == 0:  # the others read the same
            _fetch_rows(weight + tl.minimum(cols, N - 1) * K, K)
            _fetch_rows(up + tl.minimum(cols, N - 1) * K, K)
        tl.extra.cuda.gdc_wait()
    rows = block * BM + tl.arange(0, BM)
    keep = (rows < M)[:, None]
    at = rows[:, None] * K
    mean, rstd = row_moments(x, at, rows, M, keep, moments, K, EPS, True, TILES, WIDE, COLUMNS, BM, BK)
    gates, values = tl.zeros((BM, BN), tl.float32), tl.zeros((BM, BN), tl.float32)
    for step in range(0, K, BK):
        ks = step + tl.arange(0, BK)
        known = ks < K
        where, there = cols[None, :] * K + ks[:, None], known[:, None] & (cols < N)[None, :]
        a = tl.load(x + at + ks[None, :], mask=keep & known[None, :], other=0.0, cache_modifier=CG)
        a = normalised(a, mean, rstd, scale, scale, ks, known, True, False)
        if FP8:
            a = _quantised(a, input_scale)
        gates = tl.dot(a, tl.load(weight + where, mask=there, other=0.0), gates, input_precision="ieee")
        values = tl.dot(a, tl.load(up + where, mask=there, other=0.0), values, input_precision="ieee")
    if FP8:
        gates = _dequantised(gates, weight_scale, input_scale, cols, N)
        values = _dequantised(values, weight_scale + N, input_scale, cols, N)
    gates = gates / (1.0 + tl.exp(-gates))
    acc = (gates * values).to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * N + cols[None, :], acc, mask=keep & (cols < N)[None, :])
