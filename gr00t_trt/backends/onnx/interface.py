"""How a compile target looks as an ONNX file or a ready-made engine: file names, and names of inputs and output.

The plain model's seven submodules carry the names that NVIDIA's deployment scripts give them, so that either side's
files serve the other. Every other target keeps its own argument names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...model.n1_5.action_head import ActionDecoder, ActionEncoder, StateEncoder, VLComponents
from ...model.n1_5.dit import DiT
from ...model.n1_5.qwen3 import Qwen3Decoder
from ...model.n1_5.siglip import VisionModel
from ...model.targets import Target
from ...plans.precisions import precision_of

POSITION_IDS = "position_ids"
"""The published vision tower looks its position embedding up by these, int64 [images, patches]."""


@dataclass(frozen=True)
class _Published:
    """Published names of one submodule.

    Attributes:
        module: The plain model's class: a restructured submodule of the same name may take and give something else.
        inputs: Our argument name -> theirs, in the order of `forward`.
    """

    module: type[nn.Module]
    onnx_file: str
    engine_file: str
    inputs: Mapping[str, str]
    output: str = "output"


PUBLISHED: Mapping[str, _Published] = {
    "vision_model": _Published(
        VisionModel,
        "eagle2/vit_{dtype}.onnx",
        "vit_{dtype}.engine",
        {"pixel_values": "pixel_values"},
        "vit_embeds",
    ),
    "language_model": _Published(
        Qwen3Decoder,
        "eagle2/llm_{dtype}.onnx",
        "llm_{dtype}.engine",
        {"inputs_embeds": "inputs_embeds", "attention_mask": "attention_mask"},
        "embeddings",
    ),
    "vl_components": _Published(
        VLComponents,
        "action_head/vlln_vl_self_attention.onnx",
        "vlln_vl_self_attention.engine",
        {"backbone_features": "backbone_features"},
    ),
    "state_encoder": _Published(
        StateEncoder,
        "action_head/state_encoder.onnx",
        "state_encoder.engine",
        {"state": "state", "embodiment_id": "embodiment_id"},
    ),
    "action_encoder": _Published(
        ActionEncoder,
        "action_head/action_encoder.onnx",
        "action_encoder.engine",
        {"actions": "actions", "timestep": "timesteps_tensor", "embodiment_id": "embodiment_id"},
    ),
    "dit_model": _Published(
        DiT,
        "action_head/DiT_{dtype}.onnx",
        "DiT_{dtype}.engine",
        {"hidden_states": "sa_embs", "encoder_hidden_states": "vl_embs", "timestep": "timesteps_tensor"},
    ),
    "action_decoder": _Published(
        ActionDecoder,
        "action_head/action_decoder.onnx",
        "action_decoder.engine",
        {"model_output": "model_output", "embodiment_id": "embodiment_id"},
    ),
}


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


@dataclass(frozen=True)
class Interface:
    """A target under the names that its files use.

    Attributes:
        target: As the file sees it: module, inputs and ranges include `POSITION_IDS` where the file has them.
        output: Name of the one output.
        onnx_file: Path below the folder of ONNX files.
        engine_file: File name of a ready-made engine of the same interface.
        published: The names are those of NVIDIA's deployment scripts.
        positions: int64 [most images, patches] on the target's device, or None without `POSITION_IDS`.
    """

    target: Target
    output: str
    onnx_file: str
    engine_file: str
    published: bool
    positions: torch.Tensor | None = None

    def arguments(self, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The file's inputs for the submodule's own arguments."""
        return args if self.positions is None else (*args, self.positions[: args[0].shape[0]])


def interface(target: Target) -> Interface:
    """The published interface of a target that has one, else its own."""
    known = PUBLISHED.get(target.name)
    dtype = precision_of(floating_dtype(target))
    if known is None or not isinstance(target.module, known.module):
        stem = f"{target.name}_{dtype}"
        return Interface(target, "output", f"{stem}.onnx", f"{stem}.engine", published=False)
    positions = None
    renamed = replace(target, argument_names=tuple(known.inputs.values()))
    if isinstance(target.module, VisionModel):
        renamed, positions = _with_positions(renamed, target.module)
    files = (known.onnx_file.format(dtype=dtype), known.engine_file.format(dtype=dtype))
    return Interface(renamed, known.output, *files, published=True, positions=positions)


def floating_dtype(target: Target) -> torch.dtype:
    """The dtype of a target's weights, or of its first floating input where it has none of its own."""
    tensors = (*target.module.parameters(), *target.inputs)
    return next(t.dtype for t in tensors if t.is_floating_point())


def _with_positions(target: Target, plain: VisionModel) -> tuple[Target, torch.Tensor]:
    pixels, ranges = target.inputs[0], target.ranges[0]
    most = ranges[0].maximum if 0 in ranges else pixels.shape[0]
    patches = plain.vision_model.embeddings.position_embedding.num_embeddings
    positions = torch.arange(patches, device=pixels.device).repeat(most, 1)
    wrapped = Target(
        target.name,
        PositionedVision(plain).eval(),
        (pixels, positions[: pixels.shape[0]]),
        (*target.argument_names, POSITION_IDS),
        (ranges, ranges),
    )
    return wrapped, positions
