"""A GR00T N1.5 without a checkpoint: reproducible weights, in the full geometry or in a tiny one."""

from __future__ import annotations

import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError, unknown
from ..stored import HALF, remember
from ..weights import set_parameter
from . import config as geometry

TINY, FULL = "synthetic", "synthetic:full"
_SHARED: dict[str, Any] = {"action_dim": 32, "action_horizon": 16, "max_state_dim": 64, "num_inference_timesteps": 4}
_CHUNK = 1 << 15
"""Elements at a time: they stay in the cache, and PyTorch gives so few to one thread."""
_WORKERS = 2


def is_synthetic(name: str) -> bool:
    """Whether `name` asks for synthetic weights; a folder of that name is reached as ``./synthetic``."""
    return name == TINY or name.startswith(TINY + ":")


def synthetic_config(name: str) -> geometry.Gr00tConfig:
    """Geometry of ``synthetic`` (tiny) or ``synthetic:full``. Raises: CheckpointError for any other name."""
    if name == FULL:
        return full_config()
    if name == TINY:
        return tiny_config()
    raise unknown(CheckpointError, "synthetic model", name, (TINY, FULL))


def full_config() -> geometry.Gr00tConfig:
    """The geometry of the public checkpoint, nvidia/GR00T-N1.5-3B."""
    return geometry.Gr00tConfig(
        backbone=geometry.BackboneConfig(select_layer=12),
        action_head=geometry.ActionHeadConfig(
            diffusion=geometry.DiTConfig(
                32, 48, 16, output_dim=1024, cross_attention_dim=2048, interleave_self_attention=True
            ),
            vl_self_attention=geometry.TransformerConfig(32, 64, 4),
            **_SHARED,
            backbone_embedding_dim=2048,
        ),
    )


def tiny_config() -> geometry.Gr00tConfig:
    """Real images, sequence lengths, state and action widths; narrow, shallow layers and a vocabulary of 1024."""
    return geometry.Gr00tConfig(
        backbone=geometry.BackboneConfig(select_layer=2),
        eagle=geometry.EagleConfig(
            vision=geometry.VisionConfig(
                hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192
            ),
            text=geometry.TextConfig(
                hidden_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                intermediate_size=256,
                vocab_size=1024,
            ),
            image_token_index=1021,
            special_tokens=dict(zip(geometry.PUBLIC_SPECIAL_TOKENS, (1021, 1022, 1023, 1018, 1019, 1020), strict=True)),
        ),
        action_head=geometry.ActionHeadConfig(
            diffusion=geometry.DiTConfig(
                8, 12, 4, output_dim=64, cross_attention_dim=128, interleave_self_attention=True
            ),
            vl_self_attention=geometry.TransformerConfig(8, 16, 2),
            **_SHARED,
            backbone_embedding_dim=128,
            input_embedding_dim=96,
            hidden_size=64,
        ),
    )


def fill_synthetic(model: nn.Module, *, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Give every parameter of `model`, which may be on the meta device, its synthetic value.

    A value depends on key and shape alone: it is drawn in fp32 on the host, then cast, so that models in different
    dtypes and on different devices are roundings of the same one.

    Args:
        dtype: Of all parameters; None keeps that of each.
    """

    wanted = sorted(model.named_parameters(), key=lambda item: -item[1].numel())
    # All memory is asked for here: what a thread allocates comes from a heap of its own, which keeps what is freed.
    values = {name: torch.empty(held.shape, dtype=dtype or held.dtype, device=device) for name, held in wanted}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for _ in pool.map(_fill, values, values.values()):
            pass
    for name, value in values.items():
        set_parameter(model, name, value)
    rounded = {name: tuple(held.shape) for name, held in model.named_parameters() if held.dtype in HALF}
    reads = {name: partial(_value, name, shape) for name, shape in rounded.items()}
    remember(model, reads, TINY)


def _value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The value of a parameter, as it is before it is cast."""
    value = torch.empty(shape, dtype=torch.float32)
    _draw(name, value)
    return value


def _fill(name: str, value: torch.Tensor) -> None:
    """Give a tensor the value of the parameter `name`; what goes to a GPU is copied there in one piece."""
    if value.device.type == "cpu":
        _draw(name, value)
    else:
        value.copy_(_value(name, tuple(value.shape)))


def _draw(name: str, value: torch.Tensor) -> None:
    """Draw the value of the parameter `name` into a contiguous tensor on the host."""
    mean, spread = _distribution(name, tuple(value.shape))
    # 16 random bits per element, four elements per draw: three times as fast as torch's own uniform distribution.
    step = torch.tensor(math.sqrt(3.0) * spread / 2**15, dtype=torch.float32)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    flat = value.view(-1)
    bits = torch.empty(min(_CHUNK, flat.numel() + 3) // 4, dtype=torch.int64)
    drawn, exact = bits.view(torch.int16), torch.empty(4 * bits.numel(), dtype=torch.float32)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        bits.random_(-(2**63), None, generator=generator)
        count = part.numel()
        part.copy_(torch.mul(drawn[:count], step, out=exact[:count]).add_(mean))


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a parameter.

    Matrices keep the variance of what passes through them; those that end a residual branch add little to the stream,
    so that it stays far inside fp16's range after any number of layers. Queries and keys are strong enough that
    attention picks some positions over others; without that, one word among 256 image tokens would go unseen.
    """
    parent, _, leaf = name.rpartition(".")
    part = parent.rpartition(".")[2]
    if leaf in ("bias", "b"):
        return 0.0, 0.05
    if "norm" in part or part == "vlln":
        return 1.0, 0.1
    if part in ("embed_tokens", "position_embedding", "future_tokens"):
        return 0.0, 0.5
    if leaf == "W":
        return 0.0, 1.0 / math.sqrt(shape[1])
    spread = 1.0 / math.sqrt(math.prod(shape[1:]))
    if part in ("to_q", "to_k"):
        return 0.0, 1.5 * spread
    ends_branch = part in ("out_proj", "o_proj", "fc2", "down_proj") or parent.endswith(("to_out.0", "net.2"))
    return 0.0, (0.5 if ends_branch else 1.0) * spread
