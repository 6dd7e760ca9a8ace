"""Small submodules of the compilers' tests with their linear layers quantised on the recorded input."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from small_submodules import make_target
from torch import Tensor, nn

from gr00t_trt.model.targets import Target
from gr00t_trt.quantize.layers import with_replaced
from gr00t_trt.quantize.linear import QuantLinear


def quantized(form: str, dtype: torch.dtype = torch.bfloat16, name: str = "head_dim_48") -> Target:
    return quantize(make_target(name, dtype), form)


@torch.no_grad()
def quantize(target: Target, form: str) -> Target:
    seen: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0].float().abs().flatten(0, -2).amax(0)

        return hook

    layers = {name: one for name, one in target.module.named_modules() if isinstance(one, nn.Linear)}
    handles = [one.register_forward_pre_hook(watch(name)) for name, one in layers.items()]
    target.module(*target.inputs)
    for handle in handles:
        handle.remove()
    made = {id(one): QuantLinear(one, form, seen[name]) for name, one in layers.items()}
    return replace(target, module=with_replaced(target.module, made))


def decibels(got: Tensor, want: Tensor) -> float:
    noise = float((got.double() - want.double()).square().sum())
    return math.inf if noise == 0 else 10 * math.log10(float(want.double().square().sum()) / noise)
