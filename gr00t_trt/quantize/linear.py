"""A linear layer whose weight is stored in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .formats import BLOCK, FORMATS, encode, scale_of
from .operator import quantized_linear

_LEAST_SHARE = 1e-3
"""Of the largest channel: what a channel that calibration hardly saw counts as, lest smoothing blow it up."""


def can_be_quantized(layer: nn.Linear) -> bool:
    """Whether both sides of the weight are multiples of 16; others stay as they are."""
    return layer.in_features % BLOCK == 0 and layer.out_features % BLOCK == 0


class QuantLinear(nn.Module):
    """In a linear layer's place. No cast reaches codes and scales; the bias has the dtype of the layer and follows it.

    Args:
        layer: Both sides of its weight are multiples of 16, see `can_be_quantized`.
        form: A name of `FORMATS`.
        channels: fp32 [K], the largest magnitude of every input channel, from a calibration; None quantises the weight
            alone.
        smoothing: In place of the format's own exponent.
    """

    codes: Tensor
    scale: Tensor
    block_scale: Tensor | None
    input_scale: Tensor | None
    smoothing: Tensor | None

    @torch.no_grad()
    def __init__(self, layer: nn.Linear, form: str, channels: Tensor | None, *, smoothing: float | None = None):
        super().__init__()
        self.in_features, self.out_features, self.form = layer.in_features, layer.out_features, form
        made, weight = FORMATS[form], layer.weight.detach().float()
        factors, input_scale = None, None
        if channels is not None:
            channels = channels.to(weight.device, torch.float32)
            factors = smoothing_factors(channels, weight, made.smoothing if smoothing is None else smoothing)
            seen = channels if factors is None else channels * factors
            input_scale = scale_of(seen.amax() * made.headroom, made)
            weight = weight if factors is None else weight / factors
        held = {**vars(encode(weight, made)), "input_scale": input_scale, "smoothing": factors}
        for name, value in held.items():
            self.register_buffer(name, value)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in the dtype of `x`."""
        stored = self.codes, self.scale, self.block_scale
        result: Tensor = quantized_linear(x, *stored, self.input_scale, self.smoothing, self.bias, self.form)
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        """As `nn.Module._apply`; buffers are moved and never cast."""
        held = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in held.items():
            now = self._buffers[name]
            if before is not None and now is not None and now.dtype != before.dtype:
                self._buffers[name] = before.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, form={self.form}"


def formats_in(module: nn.Module) -> tuple[str, ...]:
    """The formats of a module's quantised layers, each once; empty for a module without such layers."""
    return tuple(dict.fromkeys(layer.form for layer in module.modules() if isinstance(layer, QuantLinear)))


def smoothing_factors(channels: Tensor, weight: Tensor, exponent: float) -> Tensor | None:
    """What the input channels are multiplied with, and the weight's columns divided by: fp32 [K]; None for exponent 0.

    Loud input channels become quieter and their columns louder, so that one scale serves all channels. The factors'
    geometric mean is 1.

    Args:
        channels: [K], largest magnitudes of the input. weight: [N, K].
        exponent: 0 leaves all to the input, 1 moves all into the weight.
    """
    if exponent == 0:
        return None
    columns = weight.abs().amax(dim=0)
    seen, stored = (x.clamp(min=max(float(x.amax()) * _LEAST_SHARE, 1e-12)) for x in (channels, columns))
    factors = stored ** (1 - exponent) / seen**exponent
    return factors / factors.log().mean().exp()
