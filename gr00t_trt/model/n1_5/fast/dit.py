"""The diffusion transformer with its constants as inputs: keys, values and modulations come from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dit import DiT, DiTBlock
from .projections import Projections

OUTPUT_EPS = 1e-6
"""Of the norm behind the last block."""


class CrossAttentionKV(nn.Module):
    """Keys and values of all cross-attention blocks from the vision-language features."""

    def __init__(self, dit: DiT, *, fused: bool):
        super().__init__()
        blocks: list[Any] = [block for i, block in enumerate(dit.transformer_blocks) if not dit.attends_itself(i)]
        attention = blocks[0].attn1
        self.head_dim = attention.to_q.out_features // attention.heads
        self.projections = Projections([p for b in blocks for p in (b.attn1.to_k, b.attn1.to_v)], fused=fused)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, which are the DiT's."""
        return next(self.parameters()).dtype

    def forward(self, vl_features: Tensor) -> Tensor:
        """[B, S, 2048] -> [16, B, 32, S, 48]: keys and values in turn, block by block.

        One copy makes them contiguous, which every step then reads; the product itself leaves them 24,576 wide.
        """
        if not self.projections.fused:
            return torch.stack(self.projections.heads(vl_features, self.head_dim))
        return self.projections.by_layer(vl_features, self.head_dim).permute(2, 0, 3, 1, 4).contiguous()


class VLWithCrossAttention(nn.Module):
    """The compile target `vl_components` with `kv_cache`: the vision-language part, and `CrossAttentionKV` at its end.

    Each half computes in the dtype of its own weights: the keys and values are the DiT's.
    """

    def __init__(self, vl_components: nn.Module, context: CrossAttentionKV):
        super().__init__()
        self.vl_components, self.context = vl_components, context

    def forward(self, backbone_features: Tensor) -> Tensor:
        """[B, S, 2048] -> [16, B, 32, S, 48] in the dtype of the DiT."""
        features = self.vl_components(backbone_features)
        dtype = self.context.dtype
        return self.context(features if features.dtype == dtype else features.to(dtype))


class FastBlock(nn.Module):
    """As `DiTBlock`; the modulation is the norm's own scale and shift, since all samples share the timestep.

    Args:
        block: The plain block.
        crosses: Keys and values are given; otherwise they are made from the block's input.
        first_row: Rows before it are read as keys and values, but not computed any further.
    """

    def __init__(self, block: DiTBlock, *, crosses: bool, fused: bool, first_row: int = 0):
        super().__init__()
        attention = block.attn1
        self.head_dim = attention.to_q.out_features // attention.heads
        self.eps, self.first_row = block.eps, first_row
        self.to_out, self.ff = attention.to_out, block.ff
        self.separate_query = crosses or first_row > 0
        self.own: Projections | None = None
        if self.separate_query:
            self.to_q = attention.to_q
            if not crosses:
                self.own = Projections((attention.to_k, attention.to_v), fused=fused)
        else:
            self.own = Projections((attention.to_q, attention.to_k, attention.to_v), fused=fused)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, keys_values: Sequence[Tensor]) -> Tensor:
        """[B, T, D], [D], [D], key and value [B, heads, S, head_dim] or nothing -> [B, T - first_row, D]."""
        normed = F.layer_norm(x, x.shape[-1:], scale, shift, self.eps)
        given = keys_values if self.own is None else self.own.heads(normed, self.head_dim)
        if self.separate_query:
            if self.first_row:
                x, normed = x[:, self.first_row :], normed[:, self.first_row :]
            query = self.to_q(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            given = (query, *given)
        out = F.scaled_dot_product_attention(given[0], given[1], given[2])
        x = x + self.to_out(out.transpose(1, 2).flatten(2))
        return x + self.ff(F.layer_norm(x, x.shape[-1:], eps=self.eps))


class FastDiT(nn.Module):
    """The compile target `dit_model`.

    Args:
        dit: The plain transformer.
        context: Makes the keys and values in every call; None when they are given.
        prefix_rows: State and future tokens in front of the actions.
        token_pruning: Leave them as soon as no later block attends to them.
    """

    def __init__(
        self, dit: DiT, context: CrossAttentionKV | None, *, prefix_rows: int, token_pruning: bool, fused: bool
    ):
        super().__init__()
        self.context = context
        plain: list[Any] = list(dit.transformer_blocks)
        crosses = [not dit.attends_itself(i) for i in range(len(plain))]
        last_self = max((i for i, c in enumerate(crosses) if not c), default=-1)
        # Where every block looks at the context only, the prefix never matters and is cut off at once.
        self.first_row = prefix_rows if token_pruning and last_self < 0 else 0
        self.blocks = nn.ModuleList(
            FastBlock(
                block, crosses=cross, fused=fused, first_row=prefix_rows if token_pruning and i == last_self else 0
            )
            for i, (block, cross) in enumerate(zip(plain, crosses, strict=True))
        )
        self.proj_out_2 = dit.proj_out_2

    def forward(self, hidden_states: Tensor, context: Tensor, modulation: Tensor) -> Tensor:
        """One evaluation of the velocity network.

        Args:
            hidden_states: [B, 49, 1536]: one state token, 32 future tokens, 16 action tokens.
            context: [16, B, 32, S, 48] from `CrossAttentionKV`; without `kv_cache` the features [B, S, 2048].
            modulation: [34, 1536]: 1 + scale and shift of every block and of the output, for one timestep.
        Returns: [B, 16, 1024], without `token_pruning` [B, 49, 1024].
        """
        return self.proj_out_2(self.features(hidden_states, context, modulation))

    def features(self, hidden_states: Tensor, context: Tensor, modulation: Tensor) -> Tensor:
        """As `forward`, without the last layer: [B, 16 or 49, 1536], normalised."""
        rows = modulation.unbind(0)
        given = (context if self.context is None else self.context(context)).unbind(0)
        x = hidden_states[:, self.first_row :] if self.first_row else hidden_states
        used = 0
        for i, block in enumerate(self.blocks):
            crosses = block.own is None
            x = block(x, rows[2 * i], rows[2 * i + 1], given[used : used + 2] if crosses else ())
            used += 2 * crosses
        return F.layer_norm(x, x.shape[-1:], rows[-2], rows[-1], OUTPUT_EPS)


def modulation_rows(dit: DiT, timestep: Tensor) -> Tensor:
    """What the timestep does to every norm, computed as the plain model does.

    Args:
        timestep: [N] int64 buckets.
    Returns: [N, 2 (blocks + 1), D] in the dtype of the weights: 1 + scale and shift of each block, then the output's.
    """
    features = F.silu(dit.timestep_encoder(timestep))
    rows: list[Tensor] = []
    blocks: Any = dit.transformer_blocks
    for block in blocks:
        scale, shift = block.norm1.linear(features).chunk(2, dim=-1)
        rows += (1 + scale, shift)
    shift, scale = dit.proj_out_1(features).chunk(2, dim=-1)
    rows += (1 + scale, shift)
    return torch.stack(rows, dim=1)
