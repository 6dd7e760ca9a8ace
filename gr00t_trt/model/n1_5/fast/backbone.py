"""Vision tower, language model and vision-language self-attention with fused projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..action_head import ActionHead
from ..config import TextConfig
from ..qwen3 import Qwen3Layer, Qwen3Model, quarter_turn, repeat_heads, rotary_angles, visible_keys
from ..siglip import SiglipEmbeddings, SiglipLayer, VisionModel
from .projections import Projections


class PatchProduct(nn.Module):
    """As `SiglipEmbeddings`: patches do not overlap, so that the convolution is a matrix product over their pixels."""

    def __init__(self, embeddings: SiglipEmbeddings):
        super().__init__()
        self.patch_embedding, self.position_embedding = embeddings.patch_embedding, embeddings.position_embedding
        self.side = embeddings.patch_embedding.kernel_size[0]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, patches, D], patches row by row."""
        x = pixel_values.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        weight = self.patch_embedding.weight.flatten(1)
        return F.linear(x, weight, self.patch_embedding.bias) + self.position_embedding.weight


Attend = Callable[[Tensor, int], Tensor]
"""Queries, keys and values of every head, joined [B, T, 3 heads head_dim], and head_dim -> [B, T, heads head_dim]."""


def full_attention(joined: Tensor, head_dim: int) -> Tensor:
    """Every position attends to every position; as `Attend`."""
    q, k, v = joined.unflatten(-1, (3, -1, head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class FastVisionLayer(nn.Module):
    """As `SiglipLayer`, query, key and value in one product."""

    def __init__(self, layer: SiglipLayer):
        super().__init__()
        attention = layer.self_attn
        self.head_dim = attention.q_proj.out_features // attention.heads
        self.layer_norm1, self.layer_norm2, self.mlp = layer.layer_norm1, layer.layer_norm2, layer.mlp
        self.qkv = Projections((attention.q_proj, attention.k_proj, attention.v_proj))
        self.out_proj = attention.out_proj

    def forward(self, x: Tensor, attend: Attend = full_attention) -> Tensor:
        """[N, patches, D] -> the same."""
        x = x + self.out_proj(attend(self.qkv.product(self.layer_norm1(x)), self.head_dim))
        return x + self.mlp(self.layer_norm2(x))


class FastVisionModel(nn.Module):
    """The compile target `vision_model`, made from the plain one."""

    def __init__(self, plain: VisionModel):
        super().__init__()
        tower: Any = plain.vision_model
        self.embeddings = PatchProduct(tower.embeddings)
        self.post_layernorm = tower.post_layernorm
        self.layers = nn.ModuleList(FastVisionLayer(layer) for layer in tower.encoder.layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, 224, 224] in [-1, 1] -> [N, 256, 1152], as `VisionModel`."""
        x = self.embeddings(pixel_values)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)


def rotation_table(config: TextConfig, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[2, length, head_dim]: cosines and sines of the rotary positions 0 to length - 1, computed in fp32."""
    angle = rotary_angles(config, torch.arange(length, dtype=torch.float32, device=device))
    return torch.stack((angle.cos(), angle.sin())).to(dtype)


def padding_tables(attention_mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What attention needs to know of a padded batch.

    Args:
        attention_mask: [B, S], nonzero marks real tokens.
    Returns: bool [B, 1, S, S], which key a query sees; and [B, 1, S, 1], zero for the queries that would see none.
        Such queries see every key and are set to zero, so that they get the mean of all values.
    """
    position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    key_mask, seeing = visible_keys(position, attention_mask)
    return key_mask, seeing.to(dtype)[:, None]


class FastLanguageLayer(nn.Module):
    """As `Qwen3Layer`, its rotations and its mask computed outside."""

    def __init__(self, layer: Qwen3Layer, *, fused: bool):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.groups = attention.head_dim, attention.groups
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = Projections((attention.q_proj, attention.k_proj, attention.v_proj), fused=fused)
        self.q_norm, self.k_norm, self.o_proj = attention.q_norm, attention.k_norm, attention.o_proj
        self.gate_up = Projections((mlp.gate_proj, mlp.up_proj), fused=fused)
        self.down_proj = mlp.down_proj

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, key_mask: Tensor | None, query_mask: Tensor | None
    ) -> Tensor:
        """[B, S, D], [S, head_dim] twice, and as `padding_tables` or None -> [B, S, D]."""
        # All of it before heads and positions change places: what the export of torch 2.11 makes of arithmetic on
        # transposed tensors holds for one range of lengths only.
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in self.qkv(self.input_layernorm(x)))
        q = _rotate(self.q_norm(q), cos, sin)
        k = repeat_heads(_rotate(self.k_norm(k), cos, sin), self.groups)
        v = repeat_heads(v, self.groups)
        if query_mask is not None:
            q = q * query_mask.transpose(1, 2)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask, is_causal=key_mask is None)
        x = x + self.o_proj(out.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.post_attention_layernorm(x))
        return x + self.down_proj(F.silu(gate) * up)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, S, heads, D], [S, D] twice -> the same as the first."""
    return x * cos.unsqueeze(1) + quarter_turn(x) * sin.unsqueeze(1)


class FastLanguageModel(nn.Module):
    """Causal attention over prompts without padding: the compile target `language_model`."""

    def __init__(self, plain: Qwen3Model, *, fused: bool):
        super().__init__()
        layers: Any = plain.layers
        self.layers = nn.ModuleList(FastLanguageLayer(layer, fused=fused) for layer in layers)
        self.norm = plain.norm

    def forward(self, inputs_embeds: Tensor, rotation: Tensor) -> Tensor:
        """[B, S, 2048], [2, S, 128] -> [B, S, 2048], as `Qwen3Decoder` with a mask of ones."""
        return _decode(self, inputs_embeds, rotation, None, None)


class PaddedLanguageModel(nn.Module):
    """The same layers over prompts of different lengths, padded on the left."""

    def __init__(self, unpadded: FastLanguageModel):
        super().__init__()
        self.layers, self.norm = unpadded.layers, unpadded.norm

    def forward(self, inputs_embeds: Tensor, rotation: Tensor, key_mask: Tensor, query_mask: Tensor) -> Tensor:
        """[B, S, 2048], [2, S, 128], bool [B, 1, S, S], [B, 1, S, 1] -> [B, S, 2048], as `Qwen3Decoder`."""
        return _decode(self, inputs_embeds, rotation, key_mask, query_mask)


def _decode(model: Any, x: Tensor, rotation: Tensor, key_mask: Tensor | None, query_mask: Tensor | None) -> Tensor:
    cos, sin = rotation.unbind(0)
    for layer in model.layers:
        x = layer(x, cos, sin, key_mask, query_mask)
    return model.norm(x)


class FastVLLayer(nn.Module):
    """As `SelfAttentionBlock`, query, key and value in one product."""

    def __init__(self, block: Any):
        super().__init__()
        attention = block.attn1
        self.head_dim = attention.to_q.out_features // attention.heads
        self.norm1, self.norm3, self.ff, self.to_out = block.norm1, block.norm3, block.ff, attention.to_out
        self.qkv = Projections((attention.to_q, attention.to_k, attention.to_v))

    def forward(self, x: Tensor, attend: Attend = full_attention) -> Tensor:
        """[B, S, D] -> the same."""
        x = x + self.to_out(attend(self.qkv.product(self.norm1(x)), self.head_dim))
        return x + self.ff(self.norm3(x))


class FastVLComponents(nn.Module):
    """Vision-language LayerNorm and self-attention, made from the plain action head's parts."""

    def __init__(self, head: ActionHead):
        super().__init__()
        self.vlln = head.vlln
        blocks: Any = getattr(head.vl_self_attention, "transformer_blocks", ())
        self.layers = nn.ModuleList(FastVLLayer(block) for block in blocks)

    def forward(self, backbone_features: Tensor) -> Tensor:
        """[B, S, 2048] -> the same."""
        x = self.vlln(backbone_features)
        for layer in self.layers:
            x = layer(x)
        return x
