"""Quantised layers in int8 on a CPU: by oneDNN instead of the reference, where it sums up right and is fast."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..common.int8 import Packed, multiply, packed
from ..common.products import speed
from ..model.replaced import with_replaced
from ..model.targets import Target
from ..quantize.linear import QuantLinear

_PACKED: weakref.WeakValueDictionary[int, Packed] = weakref.WeakValueDictionary()
"""By number: a compiler cannot look into a packed weight, and calls the operator with its number."""
_NUMBERS = itertools.count()

FORM = "int8"


class OnednnLinear(nn.Module):
    """In the place of a quantised layer in int8 with a static scale of its input; its own copy of the weight."""

    def __init__(self, layer: QuantLinear):
        super().__init__()
        assert layer.input_scale is not None
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias  # in whose dtype a stage reads what its own is
        self._packed = packed(layer.codes, layer.scale, layer.input_scale, layer.smoothing, layer.bias)
        self._number = next(_NUMBERS)
        _PACKED[self._number] = self._packed

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N] in the dtype of `x`."""
        if torch.compiler.is_compiling():
            result: Tensor = onednn_int8_linear(x, self._number, self.out_features)
            return result
        return multiply(x, self._packed)


@torch.library.custom_op("gr00t_trt::onednn_int8_linear", mutates_args=())
def onednn_int8_linear(x: Tensor, number: int, outputs: int) -> Tensor:
    """`common.int8.multiply` by a weight that was packed in this process."""
    return multiply(x, _PACKED[number])


@onednn_int8_linear.register_fake
def _(x: Tensor, number: int, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def on_this_cpu(target: Target) -> Target:
    """The target, its layers in int8 by oneDNN where that is exact and clearly faster than fp32; else as it is."""
    quantized = [layer for layer in target.module.modules() if isinstance(layer, QuantLinear)]
    layers = [layer for layer in quantized if layer.form == FORM and layer.input_scale is not None]
    if not layers or target.inputs[0].device.type != "cpu" or not speed().int8:
        return target
    return replace(target, module=with_replaced(target.module, {id(layer): OnednnLinear(layer) for layer in layers}))
