"""SigLIP's vision tower: images to one feature vector per patch. The pooling head is left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .embedding import Embedding


class SiglipEmbeddings(nn.Module):
    """Patches as vectors, plus a learned vector per position."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = Embedding(config.tokens_per_image, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, patches, D], patches row by row."""
        return self.patch_embedding(pixel_values).flatten(2).transpose(1, 2) + self.position_embedding.weight


class SiglipAttention(nn.Module):
    """Every patch attends to every patch."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, patches, D] -> the same."""
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SiglipMlp(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SiglipLayer(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        """[N, patches, D] -> the same."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SiglipEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layers = nn.ModuleList(SiglipLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        """[N, patches, D] -> the same."""
        for layer in self.layers:
            x = layer(x)
        return x


class SiglipTransformer(nn.Module):
    """Embeddings, layers and the last LayerNorm."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, patches, D]."""
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))


class VisionModel(nn.Module):
    """The vision tower, under the two equal names that the checkpoint's keys have.

    Source: SigLIP, as in Hugging Face transformers, models/siglip/modeling_siglip.py.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.vision_model = SiglipTransformer(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features of every patch.

        Args:
            pixel_values: [N, 3, 224, 224] in [-1, 1]; N counts the images of all samples.
        Returns: [N, 256, 1152], normalised by the last LayerNorm, patches row by row.
        """
        return self.vision_model(pixel_values)
