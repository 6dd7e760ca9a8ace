"""The operator of quantised linear layers as TensorRT layers, for Torch-TensorRT's conversion of a graph.

    int8, fp8   the input is quantised and dequantised by one scale, the weight dequantised by a scale per row
    nvfp4       the same, the input's block scales made by TensorRT itself from the values of each 16

TensorRT fuses each product with the dequantising of its operands into one in 8 or 4 bits. Codes and scales stand as
constants inside the layers of one operator, so that nothing folds a weight back into 16 bits beforehand.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from ...quantize.formats import BLOCK
from ...quantize.operator import quantized_linear as _defined  # noqa: F401  the operator must exist
from ..tensorrt.network import torch_dtype


@functools.cache
def register() -> None:
    """Teach Torch-TensorRT the operator, once in a process; inside `cpu_only`, since it imports the compiler."""
    from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter

    operator = torch.ops.gr00t_trt.quantized_linear.default
    dynamo_tensorrt_converter(operator, supports_dynamic_shapes=True)(_convert)


def _convert(context: Any, target: Any, args: Sequence[Any], kwargs: Any, name: str) -> Any:
    """The operator's arguments, of which the first is a tensor of the network -> its result in the network."""
    from torch_tensorrt.dynamo.conversion.converter_utils import to_torch

    x, *held, form = args
    codes, scale, block_scale, input_scale, smoothing, bias = (to_torch(each, None) for each in held)
    layers = _Layers(context, name)
    fine = layers.smoothed(x, smoothing) if smoothing is not None else x
    if form == "nvfp4":
        weight = layers.blocks_of_weight(codes, scale, block_scale, x.dtype)
        values = x if input_scale is None else layers.blocks_of_input(fine, input_scale, x.dtype)
    else:
        kind = layers.types[form]
        weight = layers.dequantized(layers.constant(codes, kind), scale, x.dtype, axis=0)
        values = x if input_scale is None else layers.rounded(fine, input_scale, kind, x.dtype)
    product = layers.product(values, weight)
    return product if bias is None else layers.sum(product, bias)


class _Layers:
    """Adds layers to the network of one conversion, named after the operator's node.

    TensorRT reads the constants' memory when it builds: the context, which lives as long, keeps them.
    """

    def __init__(self, context: Any, name: str):
        import tensorrt

        self.trt, self.net, self.name = tensorrt, context.net, name
        self.types = {"int8": tensorrt.DataType.INT8, "fp8": tensorrt.DataType.FP8}
        self._kept = vars(context).setdefault("gr00t_trt_constants", [])

    def constant(self, tensor: torch.Tensor, kind: Any, shape: Sequence[int] | None = None) -> Any:
        """A constant from a tensor's bytes; `shape` where they hold several values each."""
        held = tensor.detach().contiguous()
        self._kept.append(held)
        shape = tuple(held.shape if shape is None else shape)
        weights = self.trt.Weights(kind, held.data_ptr(), math.prod(shape))
        return self._named(self.net.add_constant(shape, weights), f"constant_{len(self._kept)}")

    def number(self, tensor: torch.Tensor) -> Any:
        """An fp32 constant."""
        return self.constant(tensor.float(), self.trt.DataType.FLOAT)

    def smoothed(self, x: Any, factors: torch.Tensor) -> Any:
        """x times fp32 factors of its last axis, in fp32 as the reference has it."""
        wide = self._named(self.net.add_cast(x, self.trt.DataType.FLOAT), "wide")
        by = self.number(factors.reshape(*[1] * (len(x.shape) - 1), -1))
        kind = self.trt.ElementWiseOperation.PROD
        return self._named(self.net.add_elementwise(wide, by, kind), "smoothed")

    def rounded(self, x: Any, scale: torch.Tensor, kind: Any, dtype: Any) -> Any:
        """x as codes at a fixed scale, and back."""
        codes = self._named(self.net.add_quantize(x, self.number(scale), kind), "input_codes")
        return self.dequantized(codes, scale, dtype)

    def dequantized(self, codes: Any, scale: Any, dtype: Any, axis: int | None = None) -> Any:
        """Codes times their scale, which is an fp32 tensor, or one of the network already."""
        by = self.number(scale) if isinstance(scale, torch.Tensor) else scale
        layer = self.net.add_dequantize(codes, by, dtype)
        if axis is not None:
            layer.axis = axis
        return self._named(layer, f"values_of_{codes.name}")

    def blocks_of_weight(self, codes: torch.Tensor, scale: torch.Tensor, block_scale: torch.Tensor, dtype: Any) -> Any:
        kind = self.trt.DataType
        blocks = self.dequantized(self.constant(block_scale, kind.FP8), scale, dtype)
        packed = self.constant(codes, kind.FP4, (codes.shape[0], 2 * codes.shape[1]))
        return self.dequantized(packed, blocks, dtype, axis=1)

    def blocks_of_input(self, x: Any, scale: torch.Tensor, dtype: Any) -> Any:
        kind, last = self.trt.DataType, len(x.shape) - 1
        made = self.net.add_dynamic_quantize(x, last, BLOCK, kind.FP4, kind.FP8)
        made.set_input(1, self.number(scale))
        codes = self._named(made, "input_codes")
        blocks = self.dequantized(made.get_output(1), scale, dtype)
        return self.dequantized(codes, blocks, dtype, axis=last)

    def product(self, x: Any, weight: Any) -> Any:
        """[..., K] times [N, K]; TensorRT multiplies tensors of the same rank."""
        before = len(x.shape) - 2
        if before > 0:
            view = self.net.add_shuffle(weight)
            view.reshape_dims = (*[1] * before, *weight.shape)
            weight = self._named(view, "weight_view")
        kept, turned = self.trt.MatrixOperation.NONE, self.trt.MatrixOperation.TRANSPOSE
        return self._named(self.net.add_matrix_multiply(x, kept, weight, turned), "product")

    def sum(self, product: Any, bias: torch.Tensor) -> Any:
        held = bias.reshape(*[1] * (len(product.shape) - 1), -1)
        by = self.constant(held.to(torch_dtype(self.trt, product.dtype)), product.dtype)
        return self._named(self.net.add_elementwise(product, by, self.trt.ElementWiseOperation.SUM), "sum")

    def _named(self, layer: Any, what: str) -> Any:
        layer.name = f"{self.name}_{what}"
        return layer.get_output(0)
