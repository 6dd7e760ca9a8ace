"""The flow-matching action head: layers per embodiment, encoders, decoder and the Euler loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ActionHeadConfig
from .dit import DiT, SelfAttentionTransformer
from .embedding import Embedding


class CategoryLinear(nn.Module):
    """A linear layer with weights of its own for every embodiment."""

    def __init__(self, categories: int, inputs: int, outputs: int):
        super().__init__()
        self.W = nn.Parameter(torch.zeros(categories, inputs, outputs))
        self.b = nn.Parameter(torch.zeros(categories, outputs))

    def forward(self, x: Tensor, embodiment_id: Tensor) -> Tensor:
        """[B, T, inputs], [B] int64 -> [B, T, outputs]."""
        weight, bias = self.W.index_select(0, embodiment_id), self.b.index_select(0, embodiment_id)
        return torch.bmm(x, weight) + bias.unsqueeze(1)


class CategoryMlp(nn.Module):
    """Two layers per embodiment around a ReLU."""

    def __init__(self, categories: int, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.layer1 = CategoryLinear(categories, inputs, hidden)
        self.layer2 = CategoryLinear(categories, hidden, outputs)

    def _run(self, x: Tensor, embodiment_id: Tensor) -> Tensor:
        return self.layer2(F.relu(self.layer1(x, embodiment_id)), embodiment_id)


class StateEncoder(CategoryMlp):
    """The robot's state as one token: the compile target `state_encoder`."""

    def forward(self, state: Tensor, embodiment_id: Tensor) -> Tensor:
        """[B, 1, 64] normalised, zero padded; [B] int64 -> [B, 1, 1536]."""
        return self._run(state, embodiment_id)


class ActionDecoder(CategoryMlp):
    """Velocities of the actions: the compile target `action_decoder`."""

    def forward(self, model_output: Tensor, embodiment_id: Tensor) -> Tensor:
        """[B, 49, 1024], [B] int64 -> [B, 49, 32]."""
        return self._run(model_output, embodiment_id)


def timestep_encoding(timestep: Tensor, width: int) -> Tensor:
    """[B] int64 bucket -> [B, width] fp32: sines, then cosines, of frequencies from 1 down towards 1/10000.

    Source: Isaac-GR00T, gr00t/model/action_head/action_encoder.py.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep.float()[:, None] * (-index * (math.log(10000.0) / half)).exp()[None, :]
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class ActionEncoder(nn.Module):
    """Noisy actions and their timestep as tokens: the compile target `action_encoder`."""

    def __init__(self, categories: int, action_dim: int, width: int):
        super().__init__()
        self.W1 = CategoryLinear(categories, action_dim, width)
        self.W2 = CategoryLinear(categories, 2 * width, width)
        self.W3 = CategoryLinear(categories, width, width)

    def forward(self, actions: Tensor, timestep: Tensor, embodiment_id: Tensor) -> Tensor:
        """[B, 16, 32], [B] int64 bucket, [B] int64 -> [B, 16, 1536], without positions."""
        a = self.W1(actions, embodiment_id)
        tau = timestep_encoding(timestep, a.shape[-1]).to(a.dtype)
        h = torch.cat((a, tau.unsqueeze(1).expand_as(a)), dim=-1)
        return self.W3(F.silu(self.W2(h, embodiment_id)), embodiment_id)


class VLComponents(nn.Module):
    """LayerNorm and self-attention over the backbone's features: the compile target `vl_components`."""

    def __init__(self, vlln: nn.Module, vl_self_attention: nn.Module):
        super().__init__()
        self.vlln = vlln
        self.vl_self_attention = vl_self_attention

    def forward(self, backbone_features: Tensor) -> Tensor:
        """[B, S, 2048] -> the same."""
        return self.vl_self_attention(self.vlln(backbone_features))


RunStage = Callable[..., Tensor]
"""run(name, *tensors): calls a stage of the model."""


class ActionHead(nn.Module):
    """Turns backbone features and a state into a chunk of actions.

    Attributes:
        steps: Euler steps per chunk. horizon: Actions per chunk.

    Source: Isaac-GR00T, gr00t/model/action_head/flow_matching_action_head.py.
    """

    def __init__(self, config: ActionHeadConfig):
        super().__init__()
        self.config = config
        self.steps, self.horizon = config.num_inference_timesteps, config.action_horizon
        slots, width = config.max_num_embodiments, config.input_embedding_dim
        self.vlln: nn.Module = nn.Identity()
        self.vl_self_attention: nn.Module = nn.Identity()
        if config.use_vlln:
            self.vlln = nn.LayerNorm(config.backbone_embedding_dim)
            self.vl_self_attention = SelfAttentionTransformer(config.vl_self_attention)
        self.state_encoder = StateEncoder(slots, config.max_state_dim, config.hidden_size, width)
        self.action_encoder = ActionEncoder(slots, config.action_dim, width)
        self.position_embedding = Embedding(config.max_seq_len, width) if config.add_pos_embed else None
        self.future_tokens = Embedding(config.num_target_vision_tokens, width)
        self.model = DiT(config.diffusion)
        self.action_decoder = ActionDecoder(slots, config.hidden_size, config.hidden_size, config.action_dim)

    def vl_components(self) -> VLComponents:
        """A module that shares this one's `vlln` and `vl_self_attention`."""
        return VLComponents(self.vlln, self.vl_self_attention)

    def denoise(
        self, run: RunStage, backbone_features: Tensor, state: Tensor, embodiment_id: Tensor, noise: Tensor
    ) -> Tensor:
        """Integrate the flow from noise to actions with Euler's method, in equal steps from 0 to 1.

        Args:
            run: Calls a stage by name.
            backbone_features: [B, S, 2048]. state: [B, 1, 64]. embodiment_id: [B] int64.
            noise: [B, T, 32] fp32, the actions at 0; the network is never evaluated at 1.
        Returns: [B, T, 32] fp32; the running actions stay in fp32 whatever the stages compute in.
        """
        vl_features = run("vl_components", backbone_features)
        state_token = run("state_encoder", state, embodiment_id)
        actions, steps = noise, self.steps
        for step in range(steps):
            bucket = int(step / steps * self.config.num_timestep_buckets)
            timestep = torch.full_like(embodiment_id, bucket)
            tokens = self.tokens(state_token, run("action_encoder", actions, timestep, embodiment_id))
            output = run("dit_model", tokens, vl_features, timestep)
            velocity = run("action_decoder", output, embodiment_id)[:, -actions.shape[1] :]
            actions = actions + velocity.float() * (1.0 / steps)
        return actions

    def tokens(self, state_token: Tensor, action_tokens: Tensor) -> Tensor:
        """State token, future tokens and positioned action tokens along the sequence: [B, 1 + 32 + T, 1536]."""
        future = self.future_tokens.weight
        action_tokens = action_tokens.to(future.dtype)
        if self.position_embedding is not None:
            action_tokens = action_tokens + self.position_embedding.weight[: action_tokens.shape[1]]
        batch = action_tokens.shape[0]
        return torch.cat((state_token.to(future.dtype), future.expand(batch, -1, -1), action_tokens), dim=1)
