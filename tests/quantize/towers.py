"""A few layers at the released width, with outliers that do not change what they compute."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from gr00t_trt.model.n1_5.fast.backbone import FastLanguageLayer, FastVisionLayer, rotation_table
from gr00t_trt.model.n1_5.qwen3 import Qwen3Layer, RMSNorm
from gr00t_trt.model.n1_5.siglip import SiglipLayer
from gr00t_trt.model.n1_5.synthetic import full_config
from gr00t_trt.quantize.layers import with_replaced
from gr00t_trt.quantize.linear import QuantLinear

CONFIG = full_config()


class Vision(nn.Module):
    def __init__(self, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(FastVisionLayer(SiglipLayer(CONFIG.eagle.vision)) for _ in range(depth))
        self.norm = nn.LayerNorm(1152)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def pairs(self, number: int) -> list[tuple[nn.Module, nn.Linear]]:
        """Each norm of a layer, and the linear layer behind it."""
        layer = self.layers[number]
        return [(layer.layer_norm1, layer.qkv.product), (layer.layer_norm2, layer.mlp.fc1)]


class Language(nn.Module):
    def __init__(self, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(FastLanguageLayer(Qwen3Layer(CONFIG.eagle.text), fused=True) for _ in range(depth))
        self.norm = RMSNorm(2048, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        cos, sin = rotation_table(CONFIG.eagle.text, x.shape[1], x.dtype, x.device).unbind(0)
        for layer in self.layers:
            x = layer(x, cos, sin, None, None)
        return self.norm(x)

    def pairs(self, number: int) -> list[tuple[nn.Module, nn.Linear]]:
        layer = self.layers[number]
        return [
            (layer.input_layernorm, layer.qkv.product),
            (layer.post_attention_layernorm, layer.gate_up.product),
        ]


@torch.no_grad()
def inject(tower: Vision | Language, where: Collection[tuple[int, int]], by: float = 30.0) -> None:
    """One channel in a hundred of a norm becomes `by` times as large, and the next weights' columns as much smaller.

    Args:
        where: Layer, and 0 or 1 for its first or second norm.
    """
    for number, half in where:
        norm, linear = tower.pairs(number)[half]
        chosen = torch.randperm(norm.weight.numel())[: norm.weight.numel() // 100]
        for parameter in norm.parameters():
            parameter[chosen] *= by
        linear.weight[:, chosen] /= by


@torch.no_grad()
def loudest(tower: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Largest magnitude of every input channel of every linear layer."""
    seen: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            now = args[0].abs().flatten(0, -2).amax(0)
            seen[name] = torch.maximum(seen[name], now) if name in seen else now

        return hook

    linears = {name: one for name, one in tower.named_modules() if isinstance(one, nn.Linear)}
    handles = [one.register_forward_pre_hook(watch(name)) for name, one in linears.items()]
    for x in inputs:
        tower(x)
    for handle in handles:
        handle.remove()
    return seen


@torch.no_grad()
def quantized(
    tower: nn.Module, seen: dict[str, Tensor], form: str, names: Collection[str] | None = None, **how: float
) -> nn.Module:
    """The tower with these of its linear layers quantised; all where None."""
    wanted = seen if names is None else names
    found = {name: tower.get_submodule(name) for name in wanted}
    return with_replaced(tower, {id(one): QuantLinear(one, form, seen[name], **how) for name, one in found.items()})
