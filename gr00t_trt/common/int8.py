"""Products in 8 bits on a CPU, by oneDNN: codes times codes summed up in 32-bit integers. Imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_ZERO = 128
"""What the code 0 of an input becomes: oneDNN is fast where inputs are unsigned, and very slow where they are not."""
_LARGEST_ERROR = 1e-6
"""Over the largest value: one rounding to fp32, and no sum that was cut off."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight [N, K] in int8 as oneDNN wants to read it, and what turns values into codes and back.

    Attributes:
        weight: Opaque.
        scale: fp32 [N], of the weight's channels; input_scale: of the input.
        factor: fp32 [K] or [], what an input is multiplied with to become a code.
        bias: fp32 [N].
    """

    weight: Tensor
    scale: Tensor
    input_scale: float
    factor: Tensor
    bias: Tensor | None
    zero_points: Tensor


def packed(codes: Tensor, scale: Tensor, input_scale: Tensor, smoothing: Tensor | None, bias: Tensor | None) -> Packed:
    """Pack a weight's codes, int8 [N, K]; the others as the operator of quantised layers has them."""
    factor = (1.0 if smoothing is None else smoothing.float()) / input_scale.float()
    wide = None if bias is None else bias.detach().float()
    weight = torch.ops.onednn.qlinear_prepack(codes, None)
    return Packed(weight, scale.float(), float(input_scale), factor, wide, torch.zeros(len(codes), dtype=torch.int32))


def multiply(x: Tensor, by: Packed) -> Tensor:
    """[..., K] -> [..., N] in the dtype of `x`, bf16 or fp32: quantised, multiplied, and scaled back.

    As the reference of quantised layers; inputs exactly in the middle of two codes may become the other one.
    """
    # Half a step more, and cut off: rounding would be another pass over the values. Codes go from -127 to 127.
    shifted = torch.addcmul(_middle(), x.float(), by.factor)
    codes = shifted.clamp_(1, 255.99).to(torch.uint8).flatten(0, -2)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, by.input_scale, _ZERO, by.weight, by.scale, by.zero_points, by.bias, 1.0, 0, x.dtype, "none", [], ""
    )
    return y.unflatten(0, x.shape[:-1])


@cache
def _middle() -> Tensor:
    return torch.tensor(_ZERO + 0.5)


@cache
@torch.no_grad()
def is_exact() -> bool:
    """Whether this PyTorch has 8-bit products and this CPU computes them exactly, found out by value.

    Without the right instructions (VNNI), sums of two products saturate at 16 bits, which large codes reach.
    """
    codes = (torch.arange(64 * 512).mul_(37) % 255 - 127).to(torch.int8).view(64, 512)
    codes[:8], codes[8:16] = 127, -127
    x = (torch.arange(5 * 512).mul_(101) % 255 - 127).float().view(5, 512)
    x[:2] = 127
    exact = x.double() @ codes.double().T
    one = torch.ones(())
    try:
        got = multiply(x, packed(codes, torch.ones(64), one, None, None))
    except (AttributeError, RuntimeError):  # no such operator, or none for this CPU
        return False
    return bool((got.double() - exact).abs().max() <= _LARGEST_ERROR * exact.abs().max())
