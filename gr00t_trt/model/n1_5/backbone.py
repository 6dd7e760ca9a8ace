"""The vision-language backbone: images and prompt to one feature vector per prompt position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import Gr00tConfig
from .qwen3 import LanguageModel
from .siglip import VisionModel


class EagleModel(nn.Module):
    """Vision tower, connector and language model, under the checkpoint's names."""

    def __init__(self, config: Gr00tConfig):
        super().__init__()
        vision, text = config.eagle.vision, config.eagle.text
        self.vision_model = VisionModel(vision)
        self.language_model = LanguageModel(text, config.backbone.select_layer)
        self.mlp1 = nn.Sequential(nn.Linear(vision.hidden_size, text.hidden_size))


class EagleBackbone(nn.Module):
    """The whole backbone as one module: the compile target `eagle_backbone`.

    Source: Isaac-GR00T, gr00t/model/backbone/eagle_backbone.py.
    """

    def __init__(self, config: Gr00tConfig):
        super().__init__()
        text, projected = config.eagle.text, config.backbone.project_to_dim
        self.image_token_index = config.image_token_index
        self.eagle_model = EagleModel(config)
        self.eagle_linear = nn.Identity() if projected is None else nn.Linear(text.hidden_size, projected)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features of every prompt position.

        Args:
            pixel_values: [N, 3, 224, 224] in [-1, 1]; images sample by sample, within a sample in prompt order.
            input_ids: [B, S] int64 with exactly 256 N image tokens in all.
            attention_mask: [B, S] int64, 1 marks real tokens.
        Returns: [B, S, 2048].
        """
        eagle = self.eagle_model
        return self.compose(eagle.vision_model, eagle.language_model, pixel_values, input_ids, attention_mask)

    def compose(
        self,
        vision_model: Callable[[Tensor], Tensor],
        language_model: Callable[[Tensor, Tensor], Tensor],
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
    ) -> Tensor:
        """`forward` around a given vision tower and language model, each of which may run in a dtype of its own."""
        image_features = apply_linear(self.eagle_model.mlp1[0], vision_model(pixel_values))
        embeds = self.eagle_model.language_model.model.embed_tokens(input_ids)
        embeds = self.place_images(embeds, image_features, input_ids)
        features = language_model(embeds, attention_mask)
        return features if isinstance(self.eagle_linear, nn.Identity) else apply_linear(self.eagle_linear, features)

    def place_images(self, embeds: Tensor, image_features: Tensor, input_ids: Tensor) -> Tensor:
        """The n-th image token of the batch, counted sample by sample, gets the n-th row of the image features.

        Args:
            embeds: [B, S, D]. image_features: [N, P, D]. input_ids: [B, S].
        Returns: [B, S, D] in the dtype of `embeds`.
        """
        is_image = input_ids == self.image_token_index
        row = (running_count(is_image) - 1).clamp(min=0).flatten()
        placed = image_features.flatten(0, 1).index_select(0, row).view_as(embeds)
        return torch.where(is_image.unsqueeze(-1), placed.to(embeds.dtype), embeds)


def running_count(marked: Tensor) -> Tensor:
    """How many entries are marked up to and including each, counted through all samples in turn.

    A boolean index would have a shape that depends on the data, and TensorRT-RTX has no cumulative sum; comparisons
    of positions do without either. Counts in fp32 are exact far beyond any prompt.

    Args:
        marked: bool [B, S].
    Returns: int64 [B, S].
    """
    sample = torch.arange(marked.shape[0], device=marked.device)
    position = torch.arange(marked.shape[1], device=marked.device)
    upto = position[None, :] <= position[:, None]
    within = (marked[:, None, :] & upto).float().sum(-1)
    earlier = (sample[None, :] < sample[:, None]).float()
    before = (earlier * within[None, :, -1]).sum(-1, keepdim=True)
    return (within + before).long()


def apply_linear(linear: nn.Module, x: Tensor) -> Tensor:
    """A linear layer in the dtype that its weights have."""
    return linear(x.to(next(linear.parameters()).dtype))
