"""The diffusion transformer as a chain of Triton kernels, five a block: `FastDiT` with other hands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import BackendError
from . import kernels
from .denoise import DenoiseLoop, DenoiseStep
from .dit import FastBlock, FastDiT

ROWS = 64
"""Of a program: those of one sample, 49 in the released model, fit."""
KEYS = 64
"""Keys that attention looks at at once."""
DEPENDENT_LAUNCH = 9
"""Compute capability from which a kernel may start while its predecessor ends."""
PROGRAMS = 96
"""Products cut K until there are about so many programs: fewer leave most of a GPU of 132 multiprocessors idle."""


@dataclass(frozen=True)
class Tile:
    """How a product is cut: columns and depth of a program's tile, shares of K, and Triton's own two.

    Two programs fit on a multiprocessor (83 KB of shared memory each for the first), without which the next kernel
    cannot start early.
    """

    columns: int = 64
    depth: int = 64
    split: int = 1
    stages: int = 5
    warps: int = 4

    def fitted(self, outputs: int, inputs: int, dtype: torch.dtype) -> Tile:
        """Cut as finely as the GPU has use for and the sizes allow: every share of K a multiple of the depth."""
        if dtype == torch.float32:  # twice the memory for a tile
            return replace(self, columns=32, depth=32, stages=2)
        split, tiles = 1, math.ceil(outputs / self.columns)
        while split < 8 and tiles * split * 2 <= PROGRAMS * 1.5 and inputs % (split * 2 * self.depth) == 0:
            split *= 2
        return replace(self, split=split)


class TritonDiT(nn.Module):
    """The same network as a `FastDiT`, on the same weights: same arguments, same result up to rounding.

    Rounds where eager 16-bit PyTorch rounds, but for the normalised rows, which it keeps in the weights' dtype too.

    Args:
        dit: With fused projections; its weights are read where they lie in every call, so that weights that are
            written in place are used.
        dependent: Kernels start while their predecessors end; None: where the GPU can.
    Raises: BackendError for layers that the kernels do not know, such as quantised ones.
    """

    def __init__(self, dit: FastDiT, *, dependent: bool | None = None):
        super().__init__()
        refuse_others(dit)
        self.dit, self._dependent = dit, dependent

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.dit.dtype

    def forward(self, hidden_states: Tensor, context: Tensor, modulation: Tensor) -> Tensor:
        """As `FastDiT.forward`."""
        dit = self.dit
        rows = modulation.unbind(0)
        given = (context if dit.context is None else dit.context(context)).unbind(0)
        launch = _Launches(hidden_states, self._can_overlap(hidden_states.device))
        x = hidden_states.contiguous()
        first, used = dit.first_row, 0
        blocks: Any = dit.blocks
        for i, block in enumerate(blocks):
            crosses = block.own is None
            x = _block(launch, block, x, rows[2 * i], rows[2 * i + 1], given[used : used + 2] if crosses else (), first)
            first, used = 0, used + 2 * crosses
        return launch.linear(x, dit.proj_out_2, norm=(rows[-2], rows[-1]), eps=1e-6)

    def _can_overlap(self, device: torch.device) -> bool:
        if self._dependent is not None:
            return self._dependent
        return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= DEPENDENT_LAUNCH


class KernelStep(DenoiseStep):
    """A `DenoiseStep` around a `TritonDiT`.

    Args:
        compiled: Compiles what stands before and after the transformer: a handful of small operations each.
    """

    def __init__(self, step: DenoiseStep, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]):
        dit: Any = step.dit
        super().__init__(step.encoder, TritonDiT(dit), step.decoder)
        self._tokens, self._advanced = compiled(super().tokens), compiled(super().advanced)

    def tokens(self, *args: Tensor) -> Tensor:
        """As `DenoiseStep.tokens`."""
        return self._tokens(*args)

    def advanced(self, *args: Tensor) -> Tensor:
        """As `DenoiseStep.advanced`."""
        return self._advanced(*args)


def with_kernels(
    stage: nn.Module, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
) -> nn.Module | None:
    """The stage on these kernels, sharing its weights; None for one that they do not serve.

    Args:
        compiled: As for `KernelStep`.
    Raises: BackendError for a transformer that they cannot run.
    """
    if isinstance(stage, FastDiT):
        return TritonDiT(stage)
    if isinstance(stage, DenoiseStep):
        return KernelStep(stage, compiled)
    return DenoiseLoop(KernelStep(stage.step, compiled)) if isinstance(stage, DenoiseLoop) else None


def refuse_others(dit: FastDiT) -> None:
    """Raises: BackendError for a network that the kernels cannot run."""
    parts = (*dit.blocks.named_modules(), ("proj_out_2", dit.proj_out_2))
    odd = next((name for name, part in parts if _is_other_linear(part)), None)
    if odd is not None:
        known = "nn.Linear in 16 or 32 bits, and fp8 with calibrated inputs"
        raise BackendError(f"dit_model: {odd} is no linear layer that its kernels know", known=known)
    blocks: Any = dit.blocks
    if any(block.own is not None and not block.own.fused for block in blocks):
        raise BackendError("dit_model: its kernels want `fused_projections`", fix="switch that optimization on")


def _is_other_linear(part: nn.Module) -> bool:
    return hasattr(part, "in_features") and type(part) is not nn.Linear and not _is_fp8(part)


def _is_fp8(layer: Any) -> bool:
    """Whether it is a quantised layer in e4m3 with a static scale of its input."""
    known = getattr(layer, "form", None) == "fp8" and layer.smoothing is None
    return known and layer.input_scale is not None


def _block(
    launch: _Launches,
    block: FastBlock,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    keys_values: Sequence[Tensor],
    first_row: int,
) -> Tensor:
    """[B, T, D] -> [B, T - rows that are left, D]; `first_row` of the whole network or of the block."""
    skip, width = first_row or block.first_row, block.head_dim
    norm = (scale, shift)
    if block.own is None:
        query = launch.linear(x, block.to_q, norm=norm, skip=skip, eps=block.eps)
        attended = launch.attention(query, keys_values[0], keys_values[1], width, early=True)
    elif block.separate_query:
        query = launch.linear(x, block.to_q, norm=norm, skip=skip, eps=block.eps)
        key, value = _heads(launch.linear(x, block.own.product, norm=norm, eps=block.eps), 2, width)
        attended = launch.attention(query, key, value, width)
    else:
        joined = launch.linear(x, block.own.product, norm=norm, eps=block.eps)
        query, key, value = joined.split(joined.shape[-1] // 3, -1)[0], *_heads(joined, 3, width)[1:]
        attended = launch.attention(query, key, value, width)
    feed_forward: Any = block.ff.net
    to_out: Any = block.to_out[0]
    up, down = feed_forward[0].proj, feed_forward[2]
    x = launch.linear(attended, to_out, residual=x, residual_skip=skip)
    hidden = launch.linear(x, up, norm=(), gelu=True, eps=block.eps)
    return launch.linear(hidden, down, residual=x)


def _heads(joined: Tensor, count: int, width: int) -> list[Tensor]:
    """[B, T, count D] -> so many [B, heads, T, width], none of them copied."""
    batch, rows, _ = joined.shape
    split = joined.view(batch, rows, count, -1, width).permute(2, 0, 3, 1, 4)
    return list(split.unbind(0))


class _Launches:
    """Launches kernels for one pass of the network, each after the one before.

    Args:
        like: The pass's input: its device and dtype are those of all that is made.
        dependent: Let kernels start early.
    """

    def __init__(self, like: Tensor, dependent: bool):
        self._dtype, self._device, self._dependent = like.dtype, like.device, dependent
        # On the GPU, and so in a captured graph too, zeroed once a pass: a killed kernel must not spoil the next pass.
        self._arrivals = torch.zeros(4096, dtype=torch.int32, device=like.device)

    def linear(
        self,
        x: Tensor,
        layer: Any,
        *,
        norm: tuple[Tensor, Tensor] | tuple[()] | None = None,
        gelu: bool = False,
        residual: Tensor | None = None,
        skip: int = 0,
        residual_skip: int = 0,
        eps: float = 1e-5,
    ) -> Tensor:
        """[B, T, K] -> [B, T - skip, N].

        Args:
            norm: Scale and shift [K] of a layer norm in front; empty for one without; None for none.
            gelu: Behind it, tanh-approximated.
            residual: Added behind it, [B, its rows, N], of which the first `residual_skip` are left out.
        """
        batch, rows, inputs = x.shape
        outputs, take = layer.out_features, rows - skip
        fp8 = _is_fp8(layer)
        weight = layer.codes.view(torch.float8_e4m3fn) if fp8 else layer.weight
        scales = (layer.scale, layer.input_scale) if fp8 else (weight, weight)
        tile = Tile().fitted(outputs, inputs, weight.dtype)
        out = self._empty(batch, take, outputs)
        split, count = tile.split, batch * take
        parts = torch.empty((split, count, outputs), device=self._device) if split > 1 else out
        scale, shift = norm or (x, x)
        added = x if residual is None else residual
        blocks, tiles = math.ceil(count / ROWS), math.ceil(outputs / tile.columns)
        if blocks * tiles > len(self._arrivals):
            raise BackendError(f"dit_model: a batch of {batch} is too many for its kernels", fix="use a smaller batch")
        bias = layer.bias
        kernels.linear[(tiles, split, blocks)](
            x, weight, *scales, bias, scale, shift, added, out, parts, self._arrivals,
            count, take, rows, skip, added.shape[1], residual_skip,
            FP8=fp8, N=outputs, K=inputs, NORM=norm is not None, MODULATED=bool(norm), GELU=gelu,
            RESIDUAL=residual is not None, EPS=eps, SPLIT=split, BM=ROWS, BN=tile.columns, BK=tile.depth,
            PDL=self._dependent, **self._options(tile.stages, tile.warps),
        )  # fmt: skip
        return out

    def attention(self, query: Tensor, key: Tensor, value: Tensor, width: int, *, early: bool = False) -> Tensor:
        """[B, T, heads width], twice [B, heads, S, width] -> [B, T, heads width].

        Args:
            early: Keys and values were there before the pass began.
        """
        batch, rows, _ = query.shape
        heads, keys = key.shape[1], key.shape[2]
        low = max(16, 1 << (width.bit_length() - 1))
        high = max(16, 1 << (width - low - 1).bit_length()) if width > low else 16
        out = self._empty(batch, rows, heads * width)
        kernels.attention[(heads, math.ceil(rows / ROWS), batch)](
            query, key, value, out, rows, keys, query.stride(0), query.stride(1), *key.stride()[:3],
            WIDTH=width, LOW=low, HIGH=high, TWO=width > low, SCALE=width**-0.5 * math.log2(math.e),
            BLOCKS=math.ceil(keys / KEYS), BM=ROWS, BS=KEYS, PDL=self._dependent, EARLY=early,
            **self._options(3, 4),
        )  # fmt: skip
        return out

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def _options(self, stages: int, warps: int) -> dict[str, int | bool]:
        """Triton's own; the interpreter takes them and has no use for them."""
        overlap = {"launch_pdl": True} if self._dependent else {}
        return {"num_stages": stages, "num_warps": warps, **overlap}
