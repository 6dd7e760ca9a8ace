"""Timestep encodings against formulas in float64, and the padding rule of the language model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.n1_5.action_head import timestep_encoding
from gr00t_trt.model.n1_5.config import TextConfig
from gr00t_trt.model.n1_5.dit import timestep_features
from gr00t_trt.model.n1_5.qwen3 import Qwen3Attention, Routing

BUCKETS = [0, 1, 250, 500, 750, 999]


def test_timestep_features_are_cosines_then_sines() -> None:
    got = timestep_features(torch.tensor(BUCKETS))
    assert got.dtype == torch.float32
    for row, t in zip(got.double().numpy(), BUCKETS, strict=True):
        angle = [t * math.pow(10000.0, -j / 127) for j in range(128)]
        expected = [math.cos(a) for a in angle] + [math.sin(a) for a in angle]
        np.testing.assert_allclose(row, expected, atol=2e-4)


def test_action_timestep_encoding_is_sines_then_cosines() -> None:
    got = timestep_encoding(torch.tensor(BUCKETS), 1536)
    for row, t in zip(got.double().numpy(), BUCKETS, strict=True):
        angle = [t * math.pow(10000.0, -j / 768) for j in range(768)]
        expected = [math.sin(a) for a in angle] + [math.cos(a) for a in angle]
        np.testing.assert_allclose(row, expected, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_encodings_are_computed_in_fp32_in_half_precision_models(tiny: Gr00tN1d5, dtype: torch.dtype) -> None:
    # In half precision 999 rad would be off by up to half a radian or more.
    seen = []
    embedder = tiny.to(dtype).action_head.model.timestep_encoder.timestep_embedder
    embedder.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        tiny.action_head.model.timestep_encoder(torch.tensor([999]))
    assert seen[0].dtype == dtype
    assert torch.equal(seen[0], timestep_features(torch.tensor([999])).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_rows_without_a_visible_key_average_all_values(dtype: torch.dtype) -> None:
    config = TextConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    torch.manual_seed(0)
    attention = Qwen3Attention(config).to(dtype)
    x = torch.randn(2, 12, 64).to(dtype)
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :5] = 0
    out = attention(x, Routing(config, mask, dtype))
    values = attention.v_proj(x[0]).float().mean(0).view(2, 16).repeat_interleave(2, dim=0).flatten()
    expected = attention.o_proj(values.to(dtype)).float()
    tolerance = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for row in range(5):
        assert float((out[0, row].float() - expected).abs().max()) < tolerance
    assert bool(out.isfinite().all())
    assert float((out[0, 6].float() - expected).abs().max()) > 10 * tolerance


@torch.no_grad()
def test_real_tokens_see_neither_padding_nor_the_future(shared_tiny: Gr00tN1d5) -> None:
    decoder = shared_tiny.eager_stage("language_model")
    g = torch.Generator().manual_seed(0)
    embeds = torch.randn(1, 12, 128, generator=g)
    mask = torch.ones(1, 12, dtype=torch.int64)
    mask[0, :4] = 0
    before = decoder(embeds, mask)
    changed = embeds.clone()
    changed[:, 1] += 1.0
    changed[:, 9] += 1.0
    after = decoder(changed, mask)
    torch.testing.assert_close(after[:, 4:9], before[:, 4:9])
    assert float((after[:, 9:] - before[:, 9:]).abs().amax(-1).min()) > 1e-3
