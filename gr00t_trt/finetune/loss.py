"""The flow-matching loss: the squared error of the predicted velocity from noise to the recorded actions.

Source: Isaac-GR00T, gr00t/model/action_head/flow_matching_action_head.py, forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.n1_5.inputs import EMBODIMENT, IDS, MASK, PIXELS, STATE

ACTION, ACTION_MASK = "action", "action_mask"
NEEDED = (PIXELS, IDS, MASK, STATE, EMBODIMENT, ACTION, ACTION_MASK)
"""What the objective reads of a batch."""


class FlowMatching(nn.Module):
    """A model with its training objective: a batch to the squared error of each sample.

    Args:
        model: Its layers per embodiment cut down to the used slots.
        slots: Embodiment id -> slot.
    """

    slot_of: Tensor

    def __init__(self, model: Any, slots: Mapping[int, int]):
        super().__init__()
        self.model = model
        self.buckets = model.config.action_head.num_timestep_buckets
        table = torch.full((max(slots) + 1,), -1)
        for embodiment, slot in slots.items():
            table[embodiment] = slot
        self.register_buffer("slot_of", table, persistent=False)

    def forward(self, inputs: Mapping[str, Tensor], noise: Tensor, time: Tensor, padding: Sequence[int] = ()) -> Tensor:
        """Summed over the valid entries of each sample. All of them over the number of entries are the loss.

        Args:
            inputs: `NEEDED`, on the model's device: ``action`` fp32 [B, T, A] normalised, ``action_mask`` bool
                likewise, true where an entry counts; the rest as `n1_5.inputs.check_inputs` says.
            noise: fp32 [B, T, A], standard normal.
            time: fp32 [B], 0 for noise and 1 for data.
            padding: Of each sample, how many positions on the left the action head is not shown, see `left_padding`;
                without it all of them, as in the original.
        Returns: fp32 [B].
        """
        action, t = inputs[ACTION], time[:, None, None]
        noisy, velocity = (1 - t) * noise + t * action, action - noise
        bucket = (time * self.buckets).long()  # towards zero, as the original's
        predicted = self.velocity(inputs, noisy, bucket, padding)
        return ((predicted.float() - velocity).square() * inputs[ACTION_MASK]).sum((1, 2))

    def velocity(
        self, inputs: Mapping[str, Tensor], noisy: Tensor, bucket: Tensor, padding: Sequence[int] = ()
    ) -> Tensor:
        """The network's prediction.

        Args:
            noisy: fp32 [B, T, A]. bucket: int64 [B]. padding: As in `forward`.
        Returns: [B, T, A].
        """
        features = self.model.backbone(inputs[PIXELS], inputs[IDS], inputs[MASK])
        slot = self.slot_of[inputs[EMBODIMENT]]
        own = (features, inputs[STATE], slot, noisy, bucket)
        different = sorted(set(padding))
        if len(different) < 2:
            return self._head(sum(different), *own)
        out = torch.zeros_like(noisy)
        for start in different:
            rows = torch.tensor([i for i, each in enumerate(padding) if each == start], device=noisy.device)
            part = self._head(start, *(tensor[rows] for tensor in own))
            out = out.index_copy(0, rows, part.to(out.dtype))
        return out

    def _head(self, start: int, features: Tensor, state: Tensor, slot: Tensor, noisy: Tensor, bucket: Tensor) -> Tensor:
        head = self.model.action_head
        vl = head.vl_self_attention(head.vlln(features[:, start:]))
        tokens = head.tokens(head.state_encoder(state, slot), head.action_encoder(noisy, bucket, slot))
        decoded: Tensor = head.action_decoder(head.model(tokens, vl, bucket), slot)
        return decoded[:, -noisy.shape[1] :]


def left_padding(mask: Tensor) -> list[int]:
    """[B, S], 1 for real tokens, in host memory -> how many positions are padding on the left of each sample.

    Left out of the action head, every sample computes what it would alone, as in inference.
    """
    return [int(start) for start in (mask != 0).int().argmax(1)]
