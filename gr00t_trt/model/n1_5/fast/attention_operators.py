"""Attention kernels as operators: torch.compile calls them as they are, and compiles what stands around them.

Opaque to it on purpose: launched by Triton itself they start early like all others, and a CPU can run the compiled
stage with them in Triton's interpreter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launches import Launches

ROWS = 32
"""Of a program: with 16 heads and 256 rows, that makes as many programs as a large GPU has multiprocessors."""


def attend(joined: Tensor, width: int) -> Tensor:
    """Attention of every row to every row. [B, T, 3 heads width], queries, keys, values -> [B, T, heads width]."""
    query, key, value = joined.chunk(3, -1)
    return Launches(joined).attention(query, _heads(key, width), _heads(value, width), width, row_block=ROWS)


def attend_before(
    joined: Tensor, q_weight: Tensor, k_weight: Tensor, rotation: Tensor, heads: int, key_heads: int, eps: float
) -> Tensor:
    """Causal attention with normalised and turned queries and keys, of which several queries share one.

    Args:
        joined: [B, S, (heads + 2 key_heads) D]: queries, keys, values.
        q_weight, k_weight: [D], of the norms, which divide by the root mean square. eps: Of both.
        rotation: [2, S, D], cosines and sines.
    Returns: [B, S, heads D].
    """
    launch, width, both = Launches(joined), q_weight.shape[0], heads + key_heads
    turned = launch.rotated_heads(joined, q_weight, k_weight, rotation, heads, both, eps)
    query, key = turned.split((heads * width, key_heads * width), -1)
    key, value = _heads(key, width), _heads(joined[..., both * width :], width)
    return launch.attention(query, key, value, width, row_block=ROWS, causal=True)


def _heads(x: Tensor, width: int) -> Tensor:
    """[B, T, heads width] -> [B, heads, T, width], a view."""
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


joined_attention = torch.library.custom_op("gr00t_trt::joined_attention", attend, mutates_args=())
rotary_attention = torch.library.custom_op("gr00t_trt::rotary_attention", attend_before, mutates_args=())


@joined_attention.register_fake
def _(joined: Tensor, width: int) -> Tensor:
    return joined.new_empty((*joined.shape[:2], joined.shape[2] // 3))


@rotary_attention.register_fake
def _(joined: Tensor, q_weight: Tensor, k_weight: Tensor, rotation: Tensor, heads: int, *_: object) -> Tensor:
    return joined.new_empty((*joined.shape[:2], heads * q_weight.shape[0]))
