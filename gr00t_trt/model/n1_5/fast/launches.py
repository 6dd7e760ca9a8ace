"""Launches the Triton kernels, each after the one before: shapes, strides and tiles are settled here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ....errors import BackendError
from . import attention_kernels, category_kernels, kernels

ROWS = 64
"""Of a program: those of one sample, 49 in the released model, fit."""
FEW_ROWS = 16
"""Of a program where a sample has no more, such as its actions: the least that matrix units take."""
KEYS = 64
"""Keys that attention looks at at once."""
DEPENDENT_LAUNCH = 9
"""Compute capability from which a kernel may start while its predecessor ends."""
PROGRAMS = 96
"""Products cut K until there are about so many programs: fewer leave most of a GPU of 132 multiprocessors idle."""
WIDEST_HEAD = 128
"""Wider ones would not leave room for a second program on a multiprocessor."""
ROTATED_ROWS = 32
"""Positions that one program normalises and turns a head of."""
COUNTERS = 4096
"""Tiles that programs may share in one launch."""


@dataclass(frozen=True)
class Tile:
    """How a product is cut: rows, columns and depth of a program's tile, shares of K, and Triton's own two.

    Two programs fit on a multiprocessor (83 KB of shared memory each for the first), without which the next kernel
    cannot start early.
    """

    rows: int = ROWS
    columns: int = 64
    depth: int = 64
    split: int = 1
    stages: int = 5
    warps: int = 4

    def fitted(self, count: int, outputs: int, inputs: int, dtype: torch.dtype) -> Tile:
        """Cut as finely as the GPU has use for and the sizes allow: every share of K one of whole 16 bytes."""
        if dtype == torch.float32:  # twice the memory for a tile
            return replace(self, columns=32, depth=32, stages=2)
        wide = replace(self, columns=2 * self.columns, stages=4)
        if wide._programs(count, outputs) >= PROGRAMS and count > 2 * self.rows:
            return wide  # rows enough for arithmetic, not the weights' way from memory, to take the time
        programs, split = self._programs(count, outputs), 1
        while split < 8 and programs * split * 2 <= PROGRAMS * 1.5 and _cuts(inputs, split * 2, dtype):
            split *= 2
        return replace(self, split=split)

    def _programs(self, count: int, outputs: int) -> int:
        return math.ceil(outputs / self.columns) * math.ceil(count / self.rows)


GATED = Tile(stages=4)
"""Two products at once, of as many columns each: more would leave no room for a second program."""


class Moments(NamedTuple):
    """What the kernel that wrote some rows left about them, see `norm_kernels`.

    Attributes:
        values: fp32 [2, rows, tiles]. columns: Of a tile.
    """

    values: Tensor
    columns: int


class Norm(NamedTuple):
    """A norm in front of a product.

    Attributes:
        scale, shift: [K], or None for a norm without.
        moments: Of the rows; None: they are read once more for them.
        rms: It divides by the root mean square, and takes no mean away.
    """

    scale: Tensor | None
    shift: Tensor | None
    eps: float
    moments: Moments | None
    rms: bool = False


def can_overlap(device: torch.device) -> bool:
    """Whether kernels can start there while their predecessors end."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= DEPENDENT_LAUNCH


def is_fp8(layer: Any) -> bool:
    """Whether it is a quantised layer in e4m3 with a static scale of its input."""
    known = getattr(layer, "form", None) == "fp8" and layer.smoothing is None
    return known and layer.input_scale is not None


def knows(layer: Any) -> bool:
    """Whether it is a linear layer that the kernels can multiply with."""
    return type(layer) is nn.Linear or is_fp8(layer)


class Launches:
    """Launches kernels for one pass of a network.

    Args:
        like: The pass's input: its device and dtype are those of all that is made, unless said otherwise.
    """

    def __init__(self, like: Tensor):
        self._dtype, self._device, self._dependent = like.dtype, like.device, can_overlap(like.device)
        self._arrivals: Tensor | None = None

    def linear(self, x: Tensor, layer: Any, *, norm: Norm | None = None, gelu: bool = False, skip: int = 0) -> Tensor:
        """[B, T, K] -> [B, T - skip, N].

        Args:
            norm: In front of it. gelu: Behind it, tanh-approximated.
        """
        return self._product(x, layer, norm, None, skip, 0, gelu=gelu)[0]

    def gated(self, x: Tensor, layer: Any, norm: Norm) -> Tensor:
        """SiLU(gate) * up of a layer that is both, gate and up: [B, T, K] -> [B, T, outputs / 2].

        Args:
            norm: In front of it, by the root mean square; it has a scale.
        """
        batch, rows, inputs = x.shape
        outputs, fp8 = layer.out_features // 2, is_fp8(layer)
        weight, scales = _weight(layer, fp8)
        tile = GATED if weight.dtype != torch.float32 else replace(GATED, columns=32, depth=32, stages=2)
        out = self._empty(batch, rows, outputs)
        (scale, _, moments), about = _of_norm(norm, x)
        about.pop("NORM")
        grid = math.ceil(outputs / tile.columns), 1, math.ceil(batch * rows / tile.rows)
        kernels.gated_linear[grid](
            _of(x, batch, rows, inputs), weight, *scales, scale, moments, out, batch * rows,
            FP8=fp8, N=outputs, K=inputs, **about, BM=tile.rows, BN=tile.columns, BK=tile.depth, PDL=self._dependent,
            **self._options(tile.stages, tile.warps),
        )  # fmt: skip
        return out

    def added(self, x: Tensor, layer: Any, residual: Tensor, *, skip: int = 0) -> tuple[Tensor, Moments]:
        """[B, T, K], and [B, skip + T, N] of which the first rows are left out -> their sum, [B, T, N].

        Returns: With it, the moments of its rows, for the norm in front of what comes next.
        """
        out, moments = self._product(x, layer, None, residual, 0, skip, gelu=False)
        assert moments is not None
        return out, moments

    def _product(
        self,
        x: Tensor,
        layer: Any,
        norm: Norm | None,
        residual: Tensor | None,
        skip: int,
        residual_skip: int,
        *,
        gelu: bool,
    ) -> tuple[Tensor, Moments | None]:
        batch, rows, inputs = x.shape
        outputs, take = layer.out_features, rows - skip
        fp8 = is_fp8(layer)
        weight, scales = _weight(layer, fp8)
        tile = Tile().fitted(batch * take, outputs, inputs, weight.dtype)
        out, x = self._empty(batch, take, outputs), _of(x, batch, rows, inputs)
        moments = None if residual is None else self._moments(batch * take, outputs, tile)
        added = x if residual is None else _of(residual, batch, residual_skip + take, outputs)
        read, about = _of_norm(norm, x)
        grid, *shares = self._cut(tile, outputs, math.ceil(batch * take / tile.rows), batch * take)
        kernels.linear[grid](
            x, weight, *scales, layer.bias, *read, added, out, out if moments is None else moments.values, *shares,
            batch * take, take, rows, skip, added.shape[1], residual_skip,
            FP8=fp8, N=outputs, K=inputs, RMS=norm is not None and norm.rms,
            MODULATED=norm is not None and norm.scale is not None,
            SHIFTED=norm is not None and norm.shift is not None, **about, GELU=gelu,
            RESIDUAL=residual is not None, LEAVES=moments is not None,
            SPLIT=tile.split, BM=tile.rows, BN=tile.columns, BK=tile.depth, PDL=self._dependent,
            **self._options(tile.stages, tile.warps),
        )  # fmt: skip
        return out, moments

    def action_tokens(
        self, actions: Tensor, prefix: Tensor, bias_in: Tensor, weight_in: Tensor, weight_out: Tensor, bias_out: Tensor
    ) -> tuple[Tensor, Moments]:
        """The tokens of a step, and their moments: fp32 [B, T, A], [B, P, D], then the weights -> [B, P + T, D].

        Args:
            bias_in: [B, 1, H]. weight_in: [B, A, H]. weight_out: [B, H, D]. bias_out: [B, T or 1, D].
        """
        batch, rows, width = actions.shape
        hidden, outputs = weight_out.shape[1:]
        by_row = bias_out.shape[1] > 1
        given = (
            _of(actions, batch, rows, width), _of(bias_in, batch, 1, hidden), _of(weight_in, batch, width, hidden),
            _of(weight_out, batch, hidden, outputs), _of(bias_out, batch, rows if by_row else 1, outputs),
            _of(prefix, batch, prefix.shape[1], outputs),
        )  # fmt: skip
        tile, high = Tile().fitted(min(rows, ROWS), outputs, hidden, weight_out.dtype), _row_block(rows)
        out = prefix.new_empty(batch, prefix.shape[1] + rows, outputs)
        moments = self._moments(batch * out.shape[1], outputs, tile)
        grid, *shares = self._cut(tile, outputs, batch * math.ceil(rows / high), batch * rows)
        category_kernels.action_tokens[grid](
            *given, out, moments.values, *shares, rows,
            A=width, WIDE_A=_power(width), H=hidden, N=outputs, PREFIX=prefix.shape[1], BY_ROW=by_row,
            SPLIT=tile.split, BM=high, BN=tile.columns, BK=tile.depth, PDL=self._dependent,
            **self._options(tile.stages, tile.warps),
        )  # fmt: skip
        return out, moments

    def category_linear(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        *,
        skip: int = 0,
        norm: Norm | None = None,
        relu: bool = False,
        euler: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """[B, T, K], each sample's weight [B, K, N] and bias [B, 1, N] -> [B, T - skip, N] in the weight's dtype.

        Args:
            norm: In front of it, modulated.
            euler: Actions fp32 [B, T - skip, N] and step size fp32 [1]: the result, fp32, is one step further on.
        """
        batch, rows, inputs = x.shape
        outputs, take = weight.shape[2], rows - skip
        given = _of(x, batch, rows, inputs), _of(weight, batch, inputs, outputs), _of(bias, batch, 1, outputs)
        tile, high = Tile().fitted(min(take, ROWS), outputs, inputs, weight.dtype), _row_block(take)
        actions, step_size = (_of(euler[0], batch, take, outputs), euler[1]) if euler else (x, x)
        out = torch.empty_like(actions) if euler else weight.new_empty(batch, take, outputs)
        read, about = _of_norm(norm, x)
        grid, *shares = self._cut(tile, outputs, batch * math.ceil(take / high), batch * take)
        category_kernels.category_linear[grid](
            *given, *read, actions, step_size, out, *shares, take, rows, skip,
            N=outputs, K=inputs, **about, RELU=relu, EULER=euler is not None,
            SPLIT=tile.split, BM=high, BN=tile.columns, BK=tile.depth, PDL=self._dependent,
            **self._options(tile.stages, tile.warps),
        )  # fmt: skip
        return out

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        width: int,
        *,
        row_block: int = ROWS,
        causal: bool = False,
        early: bool = False,
    ) -> Tensor:
        """[B, T, heads width], twice [B, key heads, S, width] -> [B, T, heads width].

        Args:
            row_block: Rows of a program: fewer make more programs. causal: Row i sees the keys up to i.
            early: Keys and values were there before the pass began.
        """
        batch, rows, inner = query.shape
        heads, keys = inner // width, key.shape[2]
        _check_heads(query, key, value, width)
        low = max(16, 1 << (width.bit_length() - 1))
        out = self._empty(batch, rows, inner)
        attention_kernels.attention[(heads, math.ceil(rows / row_block), batch)](
            query, key, value, out, rows, keys, *query.stride()[:2], *key.stride()[:3], *value.stride()[:3],
            WIDTH=width, LOW=low, HIGH=_power(width - low), TWO=width > low, SCALE=width**-0.5 * math.log2(math.e),
            GROUPS=heads // key.shape[1], CAUSAL=causal, ADJACENT=key.stride(1) == value.stride(1) == width,
            BM=row_block, BS=KEYS, PDL=self._dependent, EARLY=early, **self._options(3, 4),
        )  # fmt: skip
        return out

    def rotated_heads(
        self, joined: Tensor, q_weight: Tensor, k_weight: Tensor, rotation: Tensor, heads: int, both: int, eps: float
    ) -> Tensor:
        """Normalised and turned queries and keys of [B, S, more than both width] -> [B, S, both width].

        Args:
            q_weight, k_weight: [width], of the norms. rotation: [2, S, width]. heads: Of the queries. both: And the
                keys' after them.
        """
        batch, rows, _ = joined.shape
        width = q_weight.shape[0]
        rotation = _of(rotation, 2, rows, width)
        out = self._empty(batch, rows, both * width)
        attention_kernels.rotated_heads[(both, math.ceil(rows / ROTATED_ROWS), batch)](
            joined, q_weight, k_weight, rotation, out, rows, *joined.stride()[:2],
            HEADS=heads, WIDTH=width, HALF=_power(width // 2), EPS=eps, BM=ROTATED_ROWS, PDL=self._dependent,
            **self._options(1, 4),
        )  # fmt: skip
        return out

    def _cut(self, tile: Tile, outputs: int, blocks: int, rows: int) -> tuple[tuple[int, int, int], Tensor, Tensor]:
        """The grid of a product, the memory of its shares, and the counters of those that have arrived."""
        tiles = math.ceil(outputs / tile.columns)
        if tiles * blocks > COUNTERS:
            raise BackendError(f"a batch of {rows} rows is too large for the Triton kernels", fix="use a smaller batch")
        grid = tiles, tile.split, blocks
        if tile.split == 1:
            unused = torch.empty(0, device=self._device)
            return grid, unused, unused
        if self._arrivals is None:
            # On the GPU, and so in a captured graph too, zeroed once a pass: a killed kernel must not spoil the next.
            self._arrivals = torch.zeros(COUNTERS, dtype=torch.int32, device=self._device)
        return grid, torch.empty((tile.split, rows, outputs), device=self._device), self._arrivals

    def _moments(self, rows: int, width: int, tile: Tile) -> Moments:
        return Moments(torch.empty(2, rows, math.ceil(width / tile.columns), device=self._device), tile.columns)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _options(self, stages: int, warps: int) -> dict[str, int | bool]:
        """Triton's own; the interpreter takes them and has no use for them."""
        overlap = {"launch_pdl": True} if self._dependent else {}
        return {"num_stages": stages, "num_warps": warps, **overlap}


def _of_norm(norm: Norm | None, unused: Tensor) -> tuple[tuple[Tensor, ...], dict[str, float]]:
    """Of a product's arguments, those about the norm in front of it: tensors, and compile-time constants."""
    if norm is None:
        return (unused,) * 3, {"NORM": False, "TILES": 0, "WIDE": 16, "COLUMNS": 16, "EPS": 0.0}
    scale = unused if norm.scale is None else norm.scale
    shift = unused if norm.shift is None else norm.shift
    if norm.moments is None:
        return (scale, shift, unused), {"NORM": True, "TILES": 0, "WIDE": 16, "COLUMNS": 16, "EPS": norm.eps}
    values, columns = norm.moments
    tiles = values.shape[2]
    about = {"NORM": True, "TILES": tiles, "WIDE": _power(tiles), "COLUMNS": columns, "EPS": norm.eps}
    return (scale, shift, values), about


def _cuts(inputs: int, split: int, dtype: torch.dtype) -> bool:
    """Whether K can be cut into so many equal shares worth a program, each beginning where wide loads can."""
    return inputs % (split * 16 // dtype.itemsize) == 0 and inputs // split >= 128


def _row_block(rows: int) -> int:
    return FEW_ROWS if rows <= FEW_ROWS else ROWS


def _power(size: int) -> int:
    """The power of two that so many columns fit in, and a matrix unit's least."""
    return max(16, 1 << (size - 1).bit_length()) if size > 0 else 16


def _of(x: Tensor, *shape: int) -> Tensor:
    """As the kernels read it, row after row. Raises: BackendError for another shape: they would read past its end."""
    if tuple(x.shape) != shape:
        raise BackendError(f"a Triton kernel was given a tensor of shape {tuple(x.shape)}", known=str(list(shape)))
    return x.contiguous()


def _whole(weight: Tensor) -> Tensor:
    """Raises: BackendError for a weight that does not lie row after row: copying it would undo the kernel's gain."""
    if not weight.is_contiguous():
        raise BackendError(f"a weight of shape {tuple(weight.shape)} has the strides {weight.stride()}", known="rows")
    return weight


def _weight(layer: Any, fp8: bool) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """A layer's weight as kernels read it, and the scales of its rows and of what it is multiplied with."""
    weight = _whole(layer.codes.view(torch.float8_e4m3fn) if fp8 else layer.weight)
    return weight, (layer.scale, layer.input_scale) if fp8 else (weight, weight)


def _check_heads(query: Tensor, key: Tensor, value: Tensor, width: int) -> None:
    """Raises: BackendError for what the kernel would read wrongly."""
    batch, _, inner = query.shape
    shared = key.shape[1] * width
    same = key.shape == value.shape and key.shape[0] == batch and key.shape[3] == width and key.shape[2] > 0
    if not same or inner % shared or width > WIDEST_HEAD:
        shapes = ", ".join(str(tuple(each.shape)) for each in (query, key, value))
        raise BackendError(f"attention in Triton cannot take {shapes} with heads of {width}", known=f"<= {WIDEST_HEAD}")
    if any(each.stride(-1) != 1 for each in (query, key, value)):
        raise BackendError("attention in Triton reads heads whose numbers lie side by side")
