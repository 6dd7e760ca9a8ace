"""Triton kernels for the few rows of the diffusion transformer: products with what stands before and after them, and
attention with heads of any width.

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

CG = tl.constexpr(".cg")
"""Activations are read from L2: an L1 cache may hold what lay there before a kernel in front wrote."""


@triton.jit
def _fetch_early(where):
    """Ask the L2 cache for the lines of 128 bytes that these point into. Constants only: nothing was waited for yet."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [where.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _normed_rows(x, at, keep, K: tl.constexpr, EPS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Mean and reciprocal deviation of each row, fp32: the deviation from the mean, so that nothing cancels."""
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
    return mean, 1.0 / tl.sqrt(square / K + EPS)


@triton.jit
def _finished(
    acc, bias, residual, out, cols, rows, inside, at_residual,
    N: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """What stands behind a product: bias, then GELU (tanh) or the residual, in fp32 and rounded once."""
    acc += tl.load(bias + cols, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        # x/2 (1 + tanh(u)) as x / (1 + exp(-2u)), which neither end of exp's range turns into NaN.
        acc = acc / (1.0 + tl.exp(-1.5957691216057308 * (acc + 0.044715 * acc * acc * acc)))
    if RESIDUAL:
        acc += tl.load(residual + at_residual + cols[None, :], mask=inside, other=0.0, cache_modifier=CG).to(tl.float32)
    tl.store(out + rows[:, None] * N + cols[None, :], acc.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["M", "take", "x_of", "x_skip", "residual_of", "residual_skip"])
def linear(
    x, weight, weight_scale, input_scale, bias, scale, shift, residual, out, parts, arrivals,
    M, take, x_of, x_skip, residual_of, residual_skip,
    FP8: tl.constexpr, N: tl.constexpr, K: tl.constexpr, NORM: tl.constexpr, MODULATED: tl.constexpr,
    GELU: tl.constexpr, RESIDUAL: tl.constexpr, EPS: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [M, N] = act(norm(x) @ weight [N, K]^T + bias) + residual. Grid (ceil(N / BN), SPLIT, ceil(M / BM)).

    Of each sample's `x_of` rows of `x`, the `take` after the first `x_skip` are used, and likewise of `residual`; `out`
    holds those alone. `scale` and `shift` [K] modulate the norm. With SPLIT, each program sums a share of K into
    `parts`, fp32 [SPLIT, M, N]; the one that `arrivals` shows to be the last adds them in fixed order, so that a result
    never depends on which came first, and leaves `arrivals` at zero. SPLIT must divide K into multiples of BK.

    FP8: the weight is e4m3 with `weight_scale` fp32 [N], and what it is multiplied with becomes e4m3 by the static
    `input_scale`, fp32 [], where it is read: no kernel and no memory of its own.
    """
    tile, share, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    SHARE: tl.constexpr = K // SPLIT
    cols = tile * BN + tl.arange(0, BN)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        rows_of_weight = weight + tl.minimum(cols, N - 1) * K + share * SHARE
        LINE: tl.constexpr = 1024 // weight.dtype.element_ty.primitive_bitwidth
        for k in range(0, SHARE, LINE):
            _fetch_early(rows_of_weight + k)
        tl.extra.cuda.gdc_wait()
    rows = block * BM + tl.arange(0, BM)
    keep = (rows < M)[:, None]
    at = ((rows // take) * x_of + x_skip + rows % take)[:, None] * K
    if NORM:
        mean, rstd = _normed_rows(x, at, keep, K, EPS, BM, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for step in range(0, SHARE, BK):
        ks = share * SHARE + step + tl.arange(0, BK)
        known = (step + tl.arange(0, BK)) < SHARE
        tiled = tl.load(weight + cols[None, :] * K + ks[:, None], mask=known[:, None] & (cols < N)[None, :], other=0.0)
        a = tl.load(x + at + ks[None, :], mask=keep & known[None, :], other=0.0, cache_modifier=CG)
        if NORM:
            value = (a.to(tl.float32) - mean[:, None]) * rstd[:, None]
            if MODULATED:
                value = value * tl.load(scale + ks, mask=known, other=0.0).to(tl.float32)[None, :]
                value += tl.load(shift + ks, mask=known, other=0.0).to(tl.float32)[None, :]
            a = value.to(x.dtype.element_ty)
        if FP8:
            # Clamped: e4m3 has no infinity, and beyond its largest number would be NaN.
            a = a.to(tl.float32) / tl.load(input_scale)
            a = tl.clamp(a, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)
        acc = tl.dot(a, tiled, acc, input_precision="ieee")
    inside = keep & (cols < N)[None, :]
    at_residual = ((rows // take) * residual_of + residual_skip + rows % take)[:, None] * N
    if FP8:
        own = tl.load(weight_scale + cols, mask=cols < N, other=0.0)
        acc = acc * (own * tl.load(input_scale))[None, :]
    if SPLIT == 1:
        _finished(acc, bias, residual, out, cols, rows, inside, at_residual, N, GELU, RESIDUAL)
    else:
        where = rows[:, None] * N + cols[None, :]
        tl.store(parts + share * M * N + where, acc, mask=inside)
        tl.debug_barrier()  # all threads have written before one of them says so
        counter = arrivals + block * tl.num_programs(0) + tile
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == SPLIT - 1:
            total = tl.zeros((BM, BN), tl.float32)
            for each in range(SPLIT):
                total += tl.load(parts + each * M * N + where, mask=inside, other=0.0, cache_modifier=CG)
            _finished(total, bias, residual, out, cols, rows, inside, at_residual, N, GELU, RESIDUAL)
            tl.store(counter, 0)


@triton.jit
def _scores(q, k, at_key, seen, cols, width: tl.constexpr, acc):
    key = tl.load(
        k + at_key[None, :] + cols[:, None], mask=seen[None, :] & (cols < width)[:, None], other=0.0, cache_modifier=CG
    )
    return tl.dot(q, key, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["rows", "keys"])
def attention(
    q, k, v, out, rows, keys, q_sample, q_row, k_sample, k_head, k_row,
    WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, TWO: tl.constexpr, SCALE: tl.constexpr,
    BLOCKS: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Softmax attention, a head and BM rows of a sample per program. Grid (heads, ceil(rows / BM), samples).

    Heads of WIDTH are held as LOW columns, with TWO as LOW + HIGH, powers of two: 48 as 32 + 16, and nothing is padded
    to 64. q lies [samples, rows, heads, WIDTH] and k, v as their strides say; out is [samples, rows, heads WIDTH].
    SCALE is that of the softmax times log2(e). BLOCKS of BS keys cover `keys`. EARLY: k and v are no results of the
    kernel in front, so that they may be asked for before it is waited for.
    """
    head, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(0)
    k += sample.to(tl.int64) * k_sample + head * k_head
    v += sample.to(tl.int64) * k_sample + head * k_head
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if EARLY:
            for s in range(0, BLOCKS * BS, BS):
                lines = tl.minimum(s + tl.arange(0, BS), keys - 1) * k_row
                _fetch_early(k + lines)
                _fetch_early(v + lines)
        tl.extra.cuda.gdc_wait()
    at = block * BM + tl.arange(0, BM)
    keep = (at < rows)[:, None]
    low, high = tl.arange(0, LOW), LOW + tl.arange(0, HIGH)
    q += sample.to(tl.int64) * q_sample + head * WIDTH
    q_low = tl.load(
        q + at[:, None] * q_row + low[None, :], mask=keep & (low < WIDTH)[None, :], other=0.0, cache_modifier=CG
    )
    if TWO:
        q_high = tl.load(
            q + at[:, None] * q_row + high[None, :], mask=keep & (high < WIDTH)[None, :], other=0.0, cache_modifier=CG
        )
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    out_low, out_high = tl.zeros((BM, LOW), tl.float32), tl.zeros((BM, HIGH), tl.float32)
    for s in range(0, BLOCKS * BS, BS):
        key = s + tl.arange(0, BS)
        seen = key < keys
        score = _scores(q_low, k, key * k_row, seen, low, WIDTH, tl.zeros((BM, BS), tl.float32))
        if TWO:
            score = _scores(q_high, k, key * k_row, seen, high, WIDTH, score)
        score = tl.where(seen[None, :], score * SCALE, float("-inf"))
        now = tl.maximum(top, tl.max(score, 1))
        weight, fade = tl.exp2(score - now[:, None]), tl.exp2(top - now)
        total, top = total * fade + tl.sum(weight, 1), now
        weight = weight.to(v.dtype.element_ty)
        read = seen[:, None]
        value = tl.load(
            v + (key * k_row)[:, None] + low[None, :], mask=read & (low < WIDTH)[None, :], other=0.0, cache_modifier=CG
        )
        out_low = tl.dot(weight, value, out_low * fade[:, None], input_precision="ieee")
        if TWO:
            value = tl.load(
                v + (key * k_row)[:, None] + high[None, :],
                mask=read & (high < WIDTH)[None, :],
                other=0.0,
                cache_modifier=CG,
            )
            out_high = tl.dot(weight, value, out_high * fade[:, None], input_precision="ieee")
    out += (sample * rows).to(tl.int64) * heads * WIDTH + head * WIDTH
    where = at[:, None] * heads * WIDTH
    narrow = out.dtype.element_ty
    tl.store(out + where + low[None, :], (out_low / total[:, None]).to(narrow), mask=keep & (low < WIDTH)[None, :])
    if TWO:
        tl.store(
            out + where + high[None, :], (out_high / total[:, None]).to(narrow), mask=keep & (high < WIDTH)[None, :]
        )
