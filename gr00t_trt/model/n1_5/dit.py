"""The diffusion transformer, and the self-attention over vision-language features that is built from the same parts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import DiTConfig, TransformerConfig

_TIMESTEP_WIDTH = 256


class Attention(nn.Module):
    """Multi-head attention without mask and without positions."""

    def __init__(self, config: TransformerConfig, context_width: int):
        super().__init__()
        width, bias = config.width, config.attention_bias
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width, width, bias=bias)
        self.to_v = nn.Linear(context_width, width, bias=bias)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """[B, T, D], [B, S, C] -> [B, T, D]."""
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GeluProjection(nn.Module):
    """A linear layer and a tanh-approximated GELU."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., inner]."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times as wide inside. The middle entry is where training has its dropout; it keeps the numbering."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GeluProjection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same."""
        return self.net(x)


class SelfAttentionBlock(nn.Module):
    """A block over the vision-language features. The norms are numbered as upstream, where a second one is unused."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn1 = Attention(config, config.width)
        self.norm3 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> the same."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        return x + self.ff(self.norm3(x))


class SelfAttentionTransformer(nn.Module):
    """Every position attends to every position, padded ones included."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(SelfAttentionBlock(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> the same."""
        for block in self.transformer_blocks:
            x = block(x)
        return x


class AdaLayerNorm(nn.Module):
    """LayerNorm whose scale and shift follow from the timestep."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.linear = nn.Linear(config.width, 2 * config.width)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """[B, T, D], [B, D] -> [B, T, D]. The scale is the first half, unlike in the output layer."""
        scale, shift = self.linear(F.silu(temb)).unsqueeze(1).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class DiTBlock(nn.Module):
    """Attention after a modulated norm, feed-forward after a plain one; no gates."""

    def __init__(self, config: DiTConfig, context_width: int):
        super().__init__()
        self.eps = config.norm_eps
        self.norm1 = AdaLayerNorm(config)
        self.attn1 = Attention(config, context_width)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor | None) -> Tensor:
        """[B, T, D], [B, D], [B, S, C] or None for self-attention -> [B, T, D]."""
        normed = self.norm1(x, temb)
        x = x + self.attn1(normed, normed if context is None else context)
        return x + self.ff(F.layer_norm(x, x.shape[-1:], eps=self.eps))


def timestep_features(timestep: Tensor) -> Tensor:
    """[B] int64 bucket -> [B, 256] fp32: cosines, then sines, of frequencies from 1 down to 1/10000, both included.

    Angles reach 999 rad, so anything short of fp32 would lose the phase.
    Source: diffusers, models/embeddings.py, with flip_sin_to_cos and downscale_freq_shift 1.
    """
    half = _TIMESTEP_WIDTH // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep.float()[:, None] * (index * -math.log(10000) / (half - 1)).exp()[None, :]
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers over the features of a timestep."""

    def __init__(self, width: int):
        super().__init__()
        self.linear_1 = nn.Linear(_TIMESTEP_WIDTH, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[B, 256] -> [B, D]."""
        return self.linear_2(F.silu(self.linear_1(features)))


class TimestepEncoder(nn.Module):
    """Timestep buckets as vectors."""

    def __init__(self, width: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(width)

    def forward(self, timestep: Tensor) -> Tensor:
        """[B] int64 -> [B, D] in the dtype of the weights."""
        return self.timestep_embedder(timestep_features(timestep).to(self.timestep_embedder.linear_1.weight.dtype))


class DiT(nn.Module):
    """The diffusion transformer over state, future and action tokens: the compile target `dit_model`.

    Source: Isaac-GR00T, gr00t/model/action_head/cross_attention_dit.py.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.interleave = config.interleave_self_attention
        self.timestep_encoder = TimestepEncoder(config.width)
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(config, config.width if self.attends_itself(i) else config.cross_attention_dim)
            for i in range(config.num_layers)
        )
        self.proj_out_1 = nn.Linear(config.width, 2 * config.width)
        self.proj_out_2 = nn.Linear(config.width, config.output_dim)

    def attends_itself(self, index: int) -> bool:
        """Whether a block is self-attention: the odd ones, if they are interleaved."""
        return self.interleave and index % 2 == 1

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor) -> Tensor:
        """One evaluation of the velocity network.

        Args:
            hidden_states: [B, 49, 1536]: one state token, 32 future tokens, 16 action tokens.
            encoder_hidden_states: [B, S, 2048], vision-language features; no position is masked.
            timestep: [B] int64 bucket in [0, 1000), not seconds; 0 is pure noise.
        Returns: [B, 49, 1024].
        """
        temb = self.timestep_encoder(timestep)
        x = hidden_states
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, temb, None if self.attends_itself(index) else encoder_hidden_states)
        shift, scale = self.proj_out_1(F.silu(temb)).unsqueeze(1).chunk(2, dim=-1)
        return self.proj_out_2(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
