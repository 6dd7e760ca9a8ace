"""Triton kernels of attention: heads of any width, shared keys, causal or not; and what a language model does to its
queries and keys beforehand.

They start early and wait like those in `kernels`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import CG, fetch_early


@triton.jit
def _scores(q, k, at_key, seen, cols, width: tl.constexpr, acc):
    key = tl.load(
        k + at_key[None, :] + cols[:, None], mask=seen[None, :] & (cols < width)[:, None], other=0.0, cache_modifier=CG
    )
    return tl.dot(q, key, acc, input_precision="ieee")


@triton.jit
def _values(weight, v, at_key, seen, cols, width: tl.constexpr, acc):
    value = tl.load(
        v + at_key[:, None] + cols[None, :], mask=seen[:, None] & (cols < width)[None, :], other=0.0, cache_modifier=CG
    )
    return tl.dot(weight, value, acc, input_precision="ieee")


@triton.jit
def _queries(q, at, keep, cols, width: tl.constexpr):
    return tl.load(q + at[:, None] + cols[None, :], mask=keep & (cols < width)[None, :], other=0.0, cache_modifier=CG)


@triton.jit(do_not_specialize=["rows", "keys"])
def attention(
    q, k, v, out, rows, keys, q_sample, q_row, k_sample, k_head, k_row, v_sample, v_head, v_row,
    WIDTH: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, TWO: tl.constexpr, SCALE: tl.constexpr,
    GROUPS: tl.constexpr, CAUSAL: tl.constexpr, ADJACENT: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr,
    PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Softmax attention, a head and BM rows of a sample per program. Grid (heads, ceil(rows / BM), samples).

    Heads of WIDTH are held as LOW columns, with TWO as LOW + HIGH, powers of two: 48 as 32 + 16, 72 as 64 + 16, and
    nothing is padded to the next power. q lies [samples, rows, heads, WIDTH] and k, v as their strides say, their heads
    one after the other with ADJACENT (a distance that is known is what wide loads of an odd WIDTH need); GROUPS
    query heads in a row share a head of theirs. `out` is [samples, rows, heads WIDTH].

    SCALE is that of the softmax times log2(e). CAUSAL: row i sees the keys up to i. EARLY: k and v are no results of
    the kernel in front, so that they may be asked for before it is waited for.
    """
    head, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(0)
    shared = head // GROUPS
    if ADJACENT:
        k += sample.to(tl.int64) * k_sample + shared * WIDTH
        v += sample.to(tl.int64) * v_sample + shared * WIDTH
    else:
        k += sample.to(tl.int64) * k_sample + shared * k_head
        v += sample.to(tl.int64) * v_sample + shared * v_head
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, (block + 1) * BM)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        if EARLY:
            for s in range(0, end, BS):
                key = tl.minimum(s + tl.arange(0, BS), keys - 1)
                fetch_early(k + key * k_row)
                fetch_early(v + key * v_row)
        tl.extra.cuda.gdc_wait()
    at = block * BM + tl.arange(0, BM)
    keep = (at < rows)[:, None]
    low, high = tl.arange(0, LOW), LOW + tl.arange(0, HIGH)
    q += sample.to(tl.int64) * q_sample + head * WIDTH
    q_low = _queries(q, at * q_row, keep, low, WIDTH)
    if TWO:
        q_high = _queries(q, at * q_row, keep, high, WIDTH)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    out_low, out_high = tl.zeros((BM, LOW), tl.float32), tl.zeros((BM, HIGH), tl.float32)
    for s in range(0, end, BS):
        key = s + tl.arange(0, BS)
        seen = key < keys
        score = _scores(q_low, k, key * k_row, seen, low, WIDTH, tl.zeros((BM, BS), tl.float32))
        if TWO:
            score = _scores(q_high, k, key * k_row, seen, high, WIDTH, score)
        visible = seen[None, :]
        if CAUSAL:
            visible = visible & (key[None, :] <= at[:, None])
        score = tl.where(visible, score * SCALE, float("-inf"))
        # The first keys are seen by every row, so that no row is without a largest score.
        now = tl.maximum(top, tl.max(score, 1))
        weight, fade = tl.exp2(score - now[:, None]), tl.exp2(top - now)
        total, top = total * fade + tl.sum(weight, 1), now
        weight = weight.to(v.dtype.element_ty)
        out_low = _values(weight, v, key * v_row, seen, low, WIDTH, out_low * fade[:, None])
        if TWO:
            out_high = _values(weight, v, key * v_row, seen, high, WIDTH, out_high * fade[:, None])
    out += (sample * rows).to(tl.int64) * heads * WIDTH + head * WIDTH
    where = at[:, None] * heads * WIDTH
    narrow = out.dtype.element_ty
    tl.store(out + where + low[None, :], (out_low / total[:, None]).to(narrow), mask=keep & (low < WIDTH)[None, :])
    if TWO:
        tl.store(
            out + where + high[None, :], (out_high / total[:, None]).to(narrow), mask=keep & (high < WIDTH)[None, :]
        )


@triton.jit
def _rounded(x, rms, weight, at, inside, narrow: tl.constexpr):
    """Normalised and weighted, rounded like the layer's own dtype in between."""
    return (x * rms).to(narrow).to(tl.float32) * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def rotated_heads(
    joined, q_weight, k_weight, rotation, out, rows, sample_stride, row_stride,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, EPS: tl.constexpr, BM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Queries and keys, each head normalised by its root mean square and turned by its position.

    Grid (query heads and key heads, ceil(rows / BM), samples). `joined` starts with the HEADS query heads, then the key
    heads, WIDTH each; `rotation` [2, rows, WIDTH] has cosines and sines; `out` is [samples, rows, all heads, WIDTH].
    HALF: a power of two that half a head fits in.
    """
    head, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    at = block * BM + tl.arange(0, BM)
    col = tl.arange(0, HALF)
    known = col < WIDTH // 2
    inside = (at < rows)[:, None] & known[None, :]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    joined += sample.to(tl.int64) * sample_stride + head * WIDTH
    first_at = at[:, None] * row_stride + col[None, :]
    first = tl.load(joined + first_at, mask=inside, other=0.0, cache_modifier=CG).to(tl.float32)
    second = tl.load(joined + first_at + WIDTH // 2, mask=inside, other=0.0, cache_modifier=CG).to(tl.float32)
    rms = 1.0 / tl.sqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / WIDTH + EPS)
    narrow: tl.constexpr = out.dtype.element_ty
    weight = q_weight if head < HEADS else k_weight
    first = _rounded(first, rms[:, None], weight, col[None, :], known[None, :], narrow)
    second = _rounded(second, rms[:, None], weight, WIDTH // 2 + col[None, :], known[None, :], narrow)
    turn = at[:, None] * WIDTH + col[None, :]
    cos_first = tl.load(rotation + turn, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(rotation + turn + WIDTH // 2, mask=inside, other=0.0).to(tl.float32)
    rotation += rows * WIDTH
    sin_first = tl.load(rotation + turn, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(rotation + turn + WIDTH // 2, mask=inside, other=0.0).to(tl.float32)
    heads = tl.num_programs(0)
    out += (sample * rows).to(tl.int64) * heads * WIDTH + head * WIDTH
    where = at[:, None] * heads * WIDTH + col[None, :]
    tl.store(out + where, (first * cos_first - second * sin_first).to(narrow), mask=inside)
    tl.store(out + where + WIDTH // 2, (second * cos_second + first * sin_second).to(narrow), mask=inside)
