"""The first layers of Qwen3 as an encoder of prompt and image features. There is no vocabulary head and no cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TextConfig
from .embedding import Embedding


class RMSNorm(nn.Module):
    """Division by the root mean square, computed in fp32: the square of a half precision 256 is already infinite."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same shape and dtype."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Routing:
    """What all layers share: which key a query may see, and the rotations by position.

    A query without any allowed key (left padding) gets the mean of all values. Such rows see every key here, and
    their rotation is zero, which makes the query zero and every score equal: no infinite score in any dtype.

    Args:
        attention_mask: [B, S], nonzero marks real tokens.
        dtype: Dtype of the activations.
    """

    def __init__(self, config: TextConfig, attention_mask: Tensor, dtype: torch.dtype):
        position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        self.mask, seeing = visible_keys(position, attention_mask)
        angle = rotary_angles(config, position.float())[:, None]  # the same for every head
        self._cos, self._sin = angle.cos().to(dtype), angle.sin().to(dtype)
        row = seeing.to(dtype)[..., None]
        self._query_cos, self._query_sin = self._cos * row, self._sin * row

    def rotate_query(self, q: Tensor) -> Tensor:
        """[B, S, heads, D] -> the same."""
        return q * self._query_cos + quarter_turn(q) * self._query_sin

    def rotate_key(self, k: Tensor) -> Tensor:
        """[B, S, heads, D] -> the same."""
        return k * self._cos + quarter_turn(k) * self._sin


def visible_keys(position: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """[S], [B, S] -> bool [B, 1, S, S], which key a query sees; fp32 [B, S, 1], zero where it would see none."""
    allowed = (position[:, None] >= position[None, :]) & (attention_mask != 0)[:, None, :]
    seeing = allowed.float().amax(-1, keepdim=True)
    return (allowed | (seeing == 0))[:, None], seeing


def rotary_angles(config: TextConfig, position: Tensor) -> Tensor:
    """fp32 [S] -> [S, head_dim]."""
    exponent = torch.arange(config.head_dim // 2, dtype=torch.float32, device=position.device) * 2 / config.head_dim
    angle = position[:, None] * (1.0 / config.rope_theta**exponent)[None, :]
    return torch.cat((angle, angle), dim=-1)


def quarter_turn(x: Tensor) -> Tensor:
    """Pairs (i, i + D/2) turned by 90 degrees."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class Qwen3Attention(nn.Module):
    """Causal attention in which groups of consecutive query heads share one key and value head."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """[B, S, D] -> the same."""
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        # All of it before heads and positions change places: what the export of torch 2.11 makes of arithmetic on
        # transposed tensors holds for one range of lengths only.
        q = routing.rotate_query(self.q_norm(q))
        k = repeat_heads(routing.rotate_key(self.k_norm(k)), self.groups)
        q, k, v = (x.transpose(1, 2) for x in (q, k, repeat_heads(v, self.groups)))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=routing.mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


def repeat_heads(x: Tensor, groups: int) -> Tensor:
    """[B, S, key heads, D] -> [B, S, query heads, D]; TensorRT's attention wants equal head counts."""
    return x.unsqueeze(3).expand(-1, -1, -1, groups, -1).flatten(2, 3)


class Qwen3Mlp(nn.Module):
    """Gated linear unit with SiLU."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Qwen3Layer(nn.Module):
    """Attention and MLP, each after an RMSNorm and added to its input."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Qwen3Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Qwen3Mlp(config)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """[B, S, D] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), routing)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Decoder(nn.Module):
    """The layers and the last norm, without the embedding table: the compile target `language_model`.

    Source: Qwen3, as in Hugging Face transformers, models/qwen3/modeling_qwen3.py, with eager attention.
    """

    def __init__(self, config: TextConfig, layers: nn.ModuleList, norm: RMSNorm):
        super().__init__()
        self.config = config
        self.layers = layers
        self.norm = norm

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """Features of every position, normalised by the last RMSNorm.

        Args:
            inputs_embeds: [B, S, 2048]; positions count from 0, padding included.
            attention_mask: [B, S] int64, 1 marks real tokens.
        Returns: [B, S, 2048]; padded positions carry values too, and they reach the actions.
        """
        routing = Routing(self.config, attention_mask, inputs_embeds.dtype)
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, routing)
        return self.norm(x)


class Qwen3Model(Qwen3Decoder):
    """The decoder and its embedding table, under the checkpoint's names."""

    def __init__(self, config: TextConfig, num_layers: int):
        super().__init__(
            config,
            nn.ModuleList(Qwen3Layer(config) for _ in range(num_layers)),
            RMSNorm(config.hidden_size, config.rms_norm_eps),
        )
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)


class LanguageModel(nn.Module):
    """Holds the model under the level `model` that the checkpoint's keys have."""

    def __init__(self, config: TextConfig, num_layers: int):
        super().__init__()
        self.model = Qwen3Model(config, num_layers)

    def decoder(self) -> Qwen3Decoder:
        """A module without the embedding table that shares this one's layers and norm."""
        return Qwen3Decoder(self.model.config, self.model.layers, self.model.norm)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        """As `Qwen3Decoder.forward`."""
        return self.model(inputs_embeds, attention_mask)
