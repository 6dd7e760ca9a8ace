"""Attention whose query heads share keys and values, as torch.compile has it on a GPU: the same function, no copies."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gr00t_trt.backends.inductor.products import GpuProducts
from gr00t_trt.model.n1_5.fast.backbone import FastLanguageModel, rotation_table
from gr00t_trt.model.n1_5.qwen3 import Qwen3Model
from gr00t_trt.model.n1_5.synthetic import tiny_config

LENGTH = 294


def language_model(dtype: torch.dtype, device: torch.device | str) -> tuple[FastLanguageModel, Tensor, Tensor]:
    """Two layers with heads as wide as the released model's, and what it is asked."""
    torch.manual_seed(0)
    text = replace(
        tiny_config().eagle.text, hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=128
    )
    plain = Qwen3Model(text, 2).to(device, dtype).eval().requires_grad_(False)
    embeds = torch.randn(1, LENGTH, 256).to(device, dtype)
    return FastLanguageModel(plain, fused=True), embeds, rotation_table(text, LENGTH, dtype, torch.device(device))


@pytest.mark.parametrize("without", [(), ("grouped_attention",)], ids=["shared", "repeated"])
@torch.no_grad()
def test_it_is_as_near_to_the_exact_one_as_eager(without: tuple[str, ...], gpu: torch.device) -> None:
    model, *given = language_model(torch.float64, "cpu")
    exact = model(*given)
    model, *given = language_model(torch.bfloat16, gpu)
    eager = float((model(*given).cpu() - exact).abs().max())
    compiled = torch.compile(model, options={"pre_grad_custom_pass": GpuProducts(without)}, fullgraph=True)
    assert float((compiled(*given).cpu() - exact).abs().max()) <= 1.5 * eager


@torch.no_grad()
def test_it_runs_in_one_kernel(gpu: torch.device) -> None:
    """And does not fall back to products with a softmax between them, which would be slower than copying."""
    model, *given = language_model(torch.bfloat16, gpu)
    compiled = torch.compile(model, options={"pre_grad_custom_pass": GpuProducts()}, fullgraph=True)
    compiled(*given)
    with profile(activities=[ProfilerActivity.CUDA]) as taken:
        compiled(*given)
        torch.cuda.synchronize()
    names = [event.key.lower() for event in taken.key_averages()]
    assert any("flash" in name or "cudnn" in name or "sdpa" in name for name in names), names
    assert not any("softmax" in name for name in names), names
