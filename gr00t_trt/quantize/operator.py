"""The one operator of a quantised linear layer: every backend translates it, and its reference says what it means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .formats import decode, rounded


@torch.library.custom_op("gr00t_trt::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    block_scale: Tensor | None,
    input_scale: Tensor | None,
    smoothing: Tensor | None,
    bias: Tensor | None,
    form: str,
) -> Tensor:
    """x [..., K] times a weight [N, K] in a format, plus a bias [N]: what every engine computes, here in fp32.

    Operands are quantised, products and sums exact, and the result is rounded once, to the dtype of `x`.

    Args:
        codes, scale, block_scale: As `formats.Codes`.
        input_scale: fp32 [], static; None leaves the input in 16 bit, so that only the weight is quantised.
        smoothing: fp32 [K], what the input is multiplied with first; the weight was divided by it.
        form: A name of `formats.FORMATS`.
    """
    values = x.float()
    if smoothing is not None:
        values = values * smoothing
    if input_scale is not None:
        values = rounded(values, input_scale, form)
    weight = decode(codes, scale, block_scale, form)
    return F.linear(values, weight, None if bias is None else bias.float()).to(x.dtype)


@quantized_linear.register_fake
def _(x: Tensor, codes: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))
