"""Vision tower, language model and vision-language layers with attention in Triton kernels; their products are left to
torch.compile.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...replaced import with_replaced
from . import attention_operators as operators
from .backbone import (
    FastLanguageLayer,
    FastLanguageModel,
    FastVisionLayer,
    FastVisionModel,
    FastVLComponents,
    FastVLLayer,
)
from .dit import VLWithCrossAttention
from .launches import WIDEST_HEAD


class KernelLayer(nn.Module):
    """A `FastVisionLayer` or `FastVLLayer` with one launch from its joined projections to its heads."""

    def __init__(self, layer: FastVisionLayer | FastVLLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the same."""
        return self.layer(x, operators.joined_attention)


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


def with_attention(stage: nn.Module) -> nn.Module | None:
    """The stage with kernels of attention only, sharing its weights; None for one that they do not fit."""
    model = stage.vl_components if isinstance(stage, VLWithCrossAttention) else stage
    if not isinstance(model, FastVisionModel | FastLanguageModel | FastVLComponents) or not covers(model):
        return None
    if isinstance(model, FastLanguageModel):
        return KernelLanguageModel(model)
    layers: Any = model.layers
    made: Any = with_replaced(stage, {id(layer): KernelLayer(layer) for layer in layers})
    made.wants_compiler = True
    return made


def covers(model: FastVisionModel | FastLanguageModel | FastVLComponents) -> bool:
    """Whether it has layers and the kernels serve them: joined projections, and heads that fit."""
    layers: Any = model.layers
    fit = [layer.qkv.fused and layer.head_dim <= WIDEST_HEAD and layer.head_dim % 2 == 0 for layer in layers]
    return bool(fit) and all(fit)
