"""The vision tower as a chain of Triton kernels, five a layer; only the patch embedding is PyTorch's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .attention_operators import attend
from .backbone import FastVisionLayer, FastVisionModel
from .launches import WIDEST_HEAD, Launches, Moments, Norm, knows


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
            x, moments = _layer(launch, layer, x, moments)
        return model.post_layernorm(x)


def _layer(launch: Launches, layer: FastVisionLayer, x: Tensor, moments: Moments | None) -> tuple[Tensor, Moments]:
    """[N, patches, D] and its moments, where they are known -> the same."""
    joined = launch.linear(x, layer.qkv.product, norm=_norm(layer.layer_norm1, moments))
    x, moments = launch.added(attend(joined, layer.head_dim), layer.out_proj, x)
    hidden = launch.linear(x, layer.mlp.fc1, norm=_norm(layer.layer_norm2, moments), gelu=True)
    return launch.added(hidden, layer.mlp.fc2, x)


def _norm(norm: Any, moments: Moments | None) -> Norm:
    return Norm(norm.weight, norm.bias, norm.eps, moments)


def can_be_chained(model: FastVisionModel) -> bool:
    """Whether the kernels know all its linear layers, and heads that wide."""
    layers: Any = model.layers
    return all(layer.head_dim <= WIDEST_HEAD for layer in layers) and all(
        knows(part) for part in model.layers.modules() if hasattr(part, "in_features")
    )
