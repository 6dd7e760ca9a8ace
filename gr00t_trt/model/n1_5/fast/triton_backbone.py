"""Vision tower, language model and vision-language layers with attention in Triton kernels; their products are left to
torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from . import attention_operators as operators
from .backbone import (
    FastLanguageLayer,
    FastLanguageModel,
    FastVisionLayer,
    FastVisionModel,
    FastVLComponents,
    FastVLLayer,
)  # fmt: skip
from .dit import VLWithCrossAttention
from .launches import WIDEST_HEAD


class KernelVisionLayer(nn.Module):
    """The same as a `FastVisionLayer`, on the same weights: one launch from its joined projections to its heads."""

    def __init__(self, layer: FastVisionLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[N, patches, D] -> the same."""
        layer = self.layer
        joined = layer.qkv.product(layer.layer_norm1(x))
        x = x + layer.out_proj(operators.joined_attention(joined, layer.head_dim))
        return x + layer.mlp(layer.layer_norm2(x))


class KernelVisionModel(nn.Module):
    """The same as a `FastVisionModel`."""

    wants_compiler = True

    def __init__(self, model: FastVisionModel):
        super().__init__()
        self.embeddings, self.post_layernorm = model.embeddings, model.post_layernorm
        layers: Any = model.layers
        self.layers = nn.ModuleList(KernelVisionLayer(layer) for layer in layers)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As `FastVisionModel.forward`."""
        x = self.embeddings(pixel_values)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x)


class KernelLanguageLayer(nn.Module):
    """The same as a `FastLanguageLayer` without padding: two launches from its joined projections to its heads."""

    def __init__(self, layer: FastLanguageLayer):
        super().__init__()
        self.layer = layer
        queries, keys, _ = layer.qkv.widths
        self.heads, self.key_heads = queries // layer.head_dim, keys // layer.head_dim

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """[B, S, D], [2, S, head_dim] -> [B, S, D]."""
        layer = self.layer
        joined = layer.qkv.product(layer.input_layernorm(x))
        norms = layer.q_norm.weight, layer.k_norm.weight
        out = operators.rotary_attention(joined, *norms, rotation, self.heads, self.key_heads, layer.q_norm.eps)
        x = x + layer.o_proj(out)
        gate, up = layer.gate_up(layer.post_attention_layernorm(x))
        return x + layer.down_proj(F.silu(gate) * up)


class KernelLanguageModel(nn.Module):
    """The same as a `FastLanguageModel`."""

    wants_compiler = True

    def __init__(self, model: FastLanguageModel):
        super().__init__()
        layers: Any = model.layers
        self.layers, self.norm = nn.ModuleList(KernelLanguageLayer(layer) for layer in layers), model.norm

    def forward(self, inputs_embeds: Tensor, rotation: Tensor) -> Tensor:
        """As `FastLanguageModel.forward`."""
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, rotation)
        return self.norm(x)


class KernelVLLayer(nn.Module):
    """The same as a `FastVLLayer`, on the same weights."""

    def __init__(self, layer: FastVLLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> the same."""
        layer = self.layer
        joined = layer.qkv.product(layer.norm1(x))
        x = x + layer.to_out(operators.joined_attention(joined, layer.head_dim))
        return x + layer.ff(layer.norm3(x))


class KernelVLComponents(nn.Module):
    """The same as a `FastVLComponents`."""

    wants_compiler = True

    def __init__(self, plain: FastVLComponents):
        super().__init__()
        layers: Any = plain.layers
        self.vlln, self.layers = plain.vlln, nn.ModuleList(KernelVLLayer(layer) for layer in layers)

    def forward(self, backbone_features: Tensor) -> Tensor:
        """As `FastVLComponents.forward`."""
        x = self.vlln(backbone_features)
        for layer in self.layers:
            x = layer(x)
        return x


class KernelVLWithCrossAttention(VLWithCrossAttention):
    """The same as a `VLWithCrossAttention` around a `FastVLComponents`."""

    wants_compiler = True

    def __init__(self, stage: VLWithCrossAttention):
        inner: Any = stage.vl_components
        super().__init__(KernelVLComponents(inner), stage.context)


def covers(model: FastVisionModel | FastLanguageModel | FastVLComponents) -> bool:
    """Whether the kernels serve its layers: joined projections, and heads that fit."""
    layers: Any = model.layers
    return all(layer.qkv.fused and layer.head_dim <= WIDEST_HEAD and layer.head_dim % 2 == 0 for layer in layers)
