"""The DiT's Triton kernels in Triton's interpreter, against fp64: run with TRITON_INTERPRET=1.

Arguments: head width, dtype (fp8: its layers in bf16), samples, keys. Prints the error of the kernels, that of eager
PyTorch in the same dtype, and whether a second pass gave the same bits.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.n1_5.fast.stages import make_stages
from gr00t_trt.model.n1_5.fast.triton_dit import with_kernels
from gr00t_trt.model.n1_5.gr00t import Gr00tN1d5
from gr00t_trt.model.n1_5.synthetic import tiny_config
from gr00t_trt.quantize.layers import with_replaced
from gr00t_trt.quantize.linear import QuantLinear

PREFIX = 33
NARROW = {"bf16": (torch.bfloat16, torch.int16), "fp8e4nv": (torch.float8_e4m3fn, torch.uint8)}


def mend_the_interpreter() -> None:
    """Two faults of it, 3.6 to 3.9: a product multiplies the bits of bf16 as integers, and rounding cuts digits off."""
    dot, convert = interpreter.InterpreterBuilder.create_dot, interpreter._convert_float

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(convert(x.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)

    def to_nearest(data, source, target, mode):
        if source != tl.float32 or target.name not in NARROW:
            return convert(data, source, target, mode)
        dtype, bits = NARROW[target.name]
        return torch.from_numpy(np.ascontiguousarray(data)).to(dtype).view(bits).numpy()

    interpreter.InterpreterBuilder.create_dot = lambda own, a, b, *rest: dot(own, widened(a), widened(b), *rest)
    interpreter._convert_float = to_nearest


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def main(head_width: int, name: str, batch: int, keys: int) -> None:
    """One denoising step of a narrow transformer, two pairs of blocks, with every kind of block that there is."""
    mend_the_interpreter()
    torch.manual_seed(0)
    dtype = getattr(torch, "bfloat16" if name == "fp8" else name)
    config = tiny_config()
    dit = config.action_head.diffusion
    dit = replace(dit, attention_head_dim=head_width, num_attention_heads=96 // head_width)
    model = Gr00tN1d5(replace(config, action_head=replace(config.action_head, diffusion=dit))).eval()
    for weight in model.requires_grad_(False).action_head.model.parameters():
        weight.copy_(torch.randn_like(weight) * (weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.1))

    def stage(computing: torch.dtype) -> torch.nn.Module:
        rounded = copy.deepcopy(model).to(dtype).to(computing)
        return make_stages(rounded, frozenset(N1_5.optimizations))["denoise_step"]

    own = stage(dtype)
    arguments = [each.to(dtype) for each in _arguments(own, batch, keys)]
    arguments[0], arguments[4] = arguments[0].float(), arguments[4].float()  # actions and step size
    exact = stage(torch.float64)(*(each.double() for each in arguments))
    own = quantized(own, arguments) if name == "fp8" else own
    kernels = with_kernels(own, lambda function: function)
    found = kernels(*arguments)
    print(f"{off(found, exact):.3e} {off(own(*arguments), exact):.3e} {torch.equal(found, kernels(*arguments))}")


def quantized(step: torch.nn.Module, arguments: list[torch.Tensor]) -> torch.nn.Module:
    """Every linear layer of the blocks in fp8, calibrated on the very call."""
    largest: dict[int, torch.Tensor] = {}

    def see(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        largest[id(layer)] = inputs[0].float().abs().flatten(0, -2).amax(0)

    layers = [each for each in step.dit.blocks.modules() if isinstance(each, torch.nn.Linear)]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    step(*arguments)
    for hook in hooks:
        hook.remove()
    return with_replaced(step, {id(layer): QuantLinear(layer, "fp8", largest[id(layer)]) for layer in layers})


def _arguments(step: torch.nn.Module, batch: int, keys: int) -> list[torch.Tensor]:
    dit, crossing = step.dit, sum(block.own is None for block in step.dit.blocks)
    width, head = dit.proj_out_2.in_features, dit.blocks[0].head_dim
    inner = dit.proj_out_2.out_features
    modulation = torch.randn(2 * len(dit.blocks) + 2, width) * 0.3
    modulation[::2] += 1
    return [
        torch.randn(batch, 16, 32),
        torch.randn(batch, PREFIX, width),
        torch.randn(2 * crossing, batch, width // head, keys, head),
        modulation,
        torch.full((1,), 0.25),
        torch.randn(batch, 1, width),
        torch.randn(batch, 32, width) * 32**-0.5,
        torch.randn(batch, width, width) * width**-0.5,
        torch.randn(batch, 16, width),
        torch.randn(batch, inner, inner) * inner**-0.5,
        torch.randn(batch, 1, inner),
        torch.randn(batch, inner, 32) * inner**-0.5,
        torch.randn(batch, 1, 32),
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
