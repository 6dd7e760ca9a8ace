"""The names under which NVIDIA's deployment scripts keep the plain model's submodules, as ONNX files and as engines.

Source: Isaac-GR00T, deployment_scripts/export_onnx.py and build_engine.sh.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from ..targets import Published, Target
from .siglip import VisionModel

POSITION_IDS = "position_ids"
"""The published vision tower looks its position embedding up by these, int64 [images, patches]."""


class PositionedVision(nn.Module):
    """The plain vision tower with its positions as an input. Shares the tower's parameters."""

    def __init__(self, plain: VisionModel):
        super().__init__()
        self.tower = plain.vision_model

    def forward(self, pixel_values: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Features of every patch.

        Args:
            pixel_values: [N, 3, 224, 224] in [-1, 1].
            position_ids: int64 [N, 256], the row of the position table that each patch gets: 0 to 255 in order.
        Returns: [N, 256, 1152], as `VisionModel`.
        """
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        return self.tower.post_layernorm(self.tower.encoder(patches + embeddings.position_embedding(position_ids)))


def _with_positions(target: Target) -> tuple[Target, torch.Tensor]:
    plain = cast(VisionModel, target.module)
    pixels, ranges = target.inputs[0], target.ranges[0]
    most = ranges[0].maximum if 0 in ranges else pixels.shape[0]
    patches = plain.vision_model.embeddings.position_embedding.num_embeddings
    positions = torch.arange(patches, device=pixels.device).repeat(most, 1)
    wrapped = replace(
        target,
        module=PositionedVision(plain).eval(),
        inputs=(pixels, positions[: pixels.shape[0]]),
        argument_names=(*target.argument_names, POSITION_IDS),
        ranges=(ranges, ranges),
    )
    return wrapped, positions


PUBLISHED: Mapping[str, Published] = {
    "vision_model": Published("eagle2/vit_{dtype}.onnx", ("pixel_values",), "vit_embeds", _with_positions),
    "language_model": Published("eagle2/llm_{dtype}.onnx", ("inputs_embeds", "attention_mask"), "embeddings"),
    "vl_components": Published("action_head/vlln_vl_self_attention.onnx", ("backbone_features",)),
    "state_encoder": Published("action_head/state_encoder.onnx", ("state", "embodiment_id")),
    "action_encoder": Published("action_head/action_encoder.onnx", ("actions", "timesteps_tensor", "embodiment_id")),
    "dit_model": Published("action_head/DiT_{dtype}.onnx", ("sa_embs", "vl_embs", "timesteps_tensor")),
    "action_decoder": Published("action_head/action_decoder.onnx", ("model_output", "embodiment_id")),
}
