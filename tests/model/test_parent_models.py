"""Both towers agree with Hugging Face's own implementations, at full width with two layers each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gr00t_trt.model.n1_5.config import TextConfig, VisionConfig
from gr00t_trt.model.n1_5.qwen3 import LanguageModel
from gr00t_trt.model.n1_5.siglip import VisionModel
from gr00t_trt.model.n1_5.synthetic import fill_synthetic

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-4


def build(make: Any) -> Any:
    with torch.device("meta"):
        module = make()
    fill_synthetic(module, dtype=torch.float32, device=torch.device("cpu"))
    return module.eval()


def copy_weights(parent: nn.Module, ours: dict[str, torch.Tensor], unused: str = "\0") -> None:
    report = parent.load_state_dict(ours, strict=False)
    assert report.unexpected_keys == []
    assert [k for k in report.missing_keys if unused not in k and "position_ids" not in k] == []


@torch.no_grad()
def test_vision_tower_matches_siglip() -> None:
    ours = build(lambda: VisionModel(VisionConfig(num_hidden_layers=2)))
    config = transformers.SiglipVisionConfig(
        hidden_size=1152, num_hidden_layers=2, num_attention_heads=16, intermediate_size=4304, patch_size=14,
        image_size=224, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", attn_implementation="eager",
    )  # fmt: skip
    parent = transformers.SiglipVisionModel(config).eval()
    weights = ours.state_dict()
    if not hasattr(parent, "vision_model"):  # transformers 5 dropped the inner level
        weights = {k.removeprefix("vision_model."): v for k, v in weights.items()}
    copy_weights(parent, weights, unused="head.")
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = parent(pixel_values=pixels).last_hidden_state
    assert float((ours(pixels) - expected).abs().max()) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 5])
def test_language_model_matches_qwen3(padding: int) -> None:
    text = TextConfig(vocab_size=64)
    ours = build(lambda: LanguageModel(text, 2))
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    if int(transformers.__version__.split(".")[0]) < 5:
        rope = {"rope_theta": 1e6}  # type: ignore[dict-item]
    config = transformers.Qwen3Config(
        hidden_size=2048, num_hidden_layers=2, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=6144, vocab_size=64, rms_norm_eps=1e-6, attn_implementation="eager", use_cache=False, **rope,
    )  # fmt: skip
    parent = transformers.Qwen3Model(config).eval()
    copy_weights(parent, ours.model.state_dict())
    embeds = torch.randn(2, 40, 2048, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 40, dtype=torch.int64)
    mask[0, :padding] = 0
    positions = torch.arange(40).expand(2, -1)
    expected = parent(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    difference = (ours.decoder()(embeds, mask) - expected).abs().amax(-1)
    assert float(difference[mask == 1].max()) < TOLERANCE
