"""The diffusion transformer as a chain of Triton kernels, five a block: the computation of `FastDiT`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ....errors import BackendError
from .dit import OUTPUT_EPS, FastBlock, FastDiT
from .launches import WIDEST_HEAD, Launches, Moments, Norm, knows


class TritonDiT(nn.Module):
    """The same network as a `FastDiT`, on the same weights: same arguments, same result up to rounding.

    Rounds where eager 16-bit PyTorch rounds, but for the normalised rows, which it keeps in the weights' dtype too.

    Args:
        dit: With fused projections; its weights are read where they lie in every call, so that weights that are
            written in place are used.
    Raises: BackendError for layers that the kernels do not know, such as quantised ones.
    """

    wants_compiler = False

    def __init__(self, dit: FastDiT):
        super().__init__()
        refuse_others(dit)
        self.dit = dit

    def forward(self, hidden_states: Tensor, context: Tensor, modulation: Tensor) -> Tensor:
        """As `FastDiT.forward`."""
        launch = Launches(hidden_states)
        x, norm = self.blocks(launch, hidden_states, None, context, modulation)
        return launch.linear(x, self.dit.proj_out_2, norm=norm)

    def blocks(
        self, launch: Launches, x: Tensor, moments: Moments | None, context: Tensor, modulation: Tensor
    ) -> tuple[Tensor, Norm]:
        """As `FastDiT.features`, before the last norm, which is returned too.

        Args:
            moments: Of x, where they are known.
        """
        dit = self.dit
        rows = modulation.unbind(0)
        given = (context if dit.context is None else dit.context(context)).unbind(0)
        first, used = dit.first_row, 0
        blocks: Any = dit.blocks
        for i, block in enumerate(blocks):
            crosses = block.own is None
            norm = Norm(rows[2 * i], rows[2 * i + 1], block.eps, moments)
            x, moments = _block(launch, block, x, norm, given[used : used + 2] if crosses else (), first)
            first, used = 0, used + 2 * crosses
        return x, Norm(rows[-2], rows[-1], OUTPUT_EPS, moments)


def refuse_others(dit: FastDiT) -> None:
    """Raises: BackendError for a network that the kernels cannot run."""
    parts = (*dit.blocks.named_modules(), ("proj_out_2", dit.proj_out_2))
    odd = next((name for name, part in parts if hasattr(part, "in_features") and not knows(part)), None)
    if odd is not None:
        known = "nn.Linear in 16 or 32 bits, and fp8 with calibrated inputs"
        raise BackendError(f"dit_model: {odd} is no linear layer that its kernels know", known=known)
    blocks: Any = dit.blocks
    if blocks[0].head_dim > WIDEST_HEAD:
        raise BackendError(f"dit_model: heads of {blocks[0].head_dim}", known=f"up to {WIDEST_HEAD} in its kernels")
    if any(block.own is not None and not block.own.fused for block in blocks):
        raise BackendError("dit_model: its kernels want `fused_projections`", fix="switch that optimization on")


def _block(
    launch: Launches, block: FastBlock, x: Tensor, norm: Norm, keys_values: Sequence[Tensor], first_row: int
) -> tuple[Tensor, Moments]:
    """[B, T, D] -> [B, T - rows that are left, D] and its moments; `first_row` of the whole network or of the block."""
    skip, width = first_row or block.first_row, block.head_dim
    if block.own is None:
        query = launch.linear(x, block.to_q, norm=norm, skip=skip)
        attended = launch.attention(query, keys_values[0], keys_values[1], width, early=True)
    elif block.separate_query:
        query = launch.linear(x, block.to_q, norm=norm, skip=skip)
        key, value = _heads(launch.linear(x, block.own.product, norm=norm), 2, width)
        attended = launch.attention(query, key, value, width)
    else:
        joined = launch.linear(x, block.own.product, norm=norm)
        query, key, value = joined.split(joined.shape[-1] // 3, -1)[0], *_heads(joined, 3, width)[1:]
        attended = launch.attention(query, key, value, width)
    feed_forward: Any = block.ff.net
    to_out: Any = block.to_out[0]
    x, moments = launch.added(attended, to_out, x, skip=skip)
    hidden = launch.linear(x, feed_forward[0].proj, norm=Norm(None, None, block.eps, moments), gelu=True)
    return launch.added(hidden, feed_forward[2], x)


def _heads(joined: Tensor, count: int, width: int) -> list[Tensor]:
    """[B, T, count D] -> so many [B, heads, T, width], none of them copied."""
    batch, rows, _ = joined.shape
    split = joined.view(batch, rows, count, -1, width).permute(2, 0, 3, 1, 4)
    return list(split.unbind(0))
