"""Vision tower and language model as chains of Triton kernels, five and six a layer; PyTorch has what stands before and
behind their layers.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .attention_operators import attend, attend_before
from .backbone import FastLanguageLayer, FastLanguageModel, FastVisionLayer, FastVisionModel
from .launches import Launches, Moments, Norm, knows
from .triton_backbone import covers


class VisionChain(nn.Module):
    """The same network as a `FastVisionModel`, on the same weights: same arguments, same result up to rounding."""

    wants_compiler = False

    def __init__(self, model: FastVisionModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """As `FastVisionModel.forward`."""
        model = self.model
        x, moments = model.embeddings(pixel_values), None
        launch = Launches(x)
        layers: Any = model.layers
        for layer in layers:
            x, moments = _vision_layer(launch, layer, x, moments)
        return model.post_layernorm(x)


def _vision_layer(
    launch: Launches, layer: FastVisionLayer, x: Tensor, moments: Moments | None
) -> tuple[Tensor, Moments]:
    """[N, patches, D] and its moments, where they are known -> the same."""
    joined = launch.linear(x, layer.qkv.product, norm=_norm(layer.layer_norm1, moments))
    x, moments = launch.added(attend(joined, layer.head_dim), layer.out_proj, x)
    hidden = launch.linear(x, layer.mlp.fc1, norm=_norm(layer.layer_norm2, moments), gelu=True)
    return launch.added(hidden, layer.mlp.fc2, x)


def _norm(norm: Any, moments: Moments | None) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps, moments)


class LanguageChain(nn.Module):
    """The same network as a `FastLanguageModel`, on the same weights: same arguments, same result up to rounding."""

    wants_compiler = False

    def __init__(self, model: FastLanguageModel):
        super().__init__()
        self.model = model

    def forward(self, inputs_embeds: Tensor, rotation: Tensor) -> Tensor:
        """As `FastLanguageModel.forward`."""
        x, moments = inputs_embeds, None
        launch = Launches(x)
        layers: Any = self.model.layers
        for layer in layers:
            x, moments = _language_layer(launch, layer, x, rotation, moments)
        return F.rms_norm(x, x.shape[-1:], self.model.norm.weight, self.model.norm.eps)


def _language_layer(
    launch: Launches, layer: FastLanguageLayer, x: Tensor, rotation: Tensor, moments: Moments | None
) -> tuple[Tensor, Moments]:
    """[B, S, D] and its moments, where they are known, and [2, S, head_dim] -> the first two."""
    joined = launch.linear(x, layer.qkv.product, norm=_rms_norm(layer.input_layernorm, moments))
    queries, keys = (width // layer.head_dim for width in layer.qkv.widths[:2])
    norms = layer.q_norm.weight, layer.k_norm.weight
    heads = attend_before(joined, *norms, rotation, queries, keys, layer.q_norm.eps)
    x, moments = launch.added(heads, layer.o_proj, x)
    hidden = launch.gated(x, layer.gate_up.product, _rms_norm(layer.post_attention_layernorm, moments))
    return launch.added(hidden, layer.down_proj, x)


def _rms_norm(norm: Any, moments: Moments | None) -> Norm:
    return Norm(norm.weight, None, norm.eps, moments, rms=True)


def can_be_chained(model: FastVisionModel | FastLanguageModel) -> bool:
    """Whether the kernels know all its linear layers, and heads that wide."""
    layers: Any = model.layers
    return covers(model) and all(knows(part) for part in layers.modules() if hasattr(part, "in_features"))
