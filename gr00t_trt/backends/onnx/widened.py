"""An ONNX file of quantised products with fp32 in the place of bf16, for ONNX Runtime on a CPU.

There it multiplies no bf16. What is quantised stays as it is, bit by bit; what lies between the products becomes more
exact than on a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from .export import OnnxFile, check, write


def widen(file: OnnxFile, folder: Path) -> OnnxFile:
    """Write the fp32 twin of a file into a folder, and check it. Raises: BackendError."""
    import onnx_ir as ir

    model = ir.load(file.path)
    graph = model.graph
    for value in (*graph.inputs, *(out for node in graph for out in node.outputs)):
        if value.dtype == ir.DataType.BFLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.BFLOAT16:
            value.const_value, value.type = _tensor(value.const_value), ir.TensorType(ir.DataType.FLOAT)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            node.attributes[name] = _attribute(attribute)
    path = folder / f"{file.path.stem}.fp32.onnx"
    size = write(model, path)
    check(path, file.interface)
    return dataclasses.replace(file, path=path, bytes=size)


def _tensor(tensor: Any) -> Any:
    """Its fp32 values, made when they are written."""
    import numpy as np
    import onnx_ir as ir

    make = functools.partial(lambda held: ir.Tensor(held.numpy().astype(np.float32), name=held.name), tensor)
    return ir.LazyTensor(make, ir.DataType.FLOAT, tensor.shape, name=tensor.name)


def _attribute(attribute: Any) -> Any:
    """A cast to bf16 becomes one to fp32, a constant in bf16 one in fp32."""
    import onnx_ir as ir

    if attribute.name == "to" and attribute.value == ir.DataType.BFLOAT16:
        return ir.AttrInt64("to", ir.DataType.FLOAT)
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.BFLOAT16:
        return ir.AttrTensor(attribute.name, _tensor(attribute.value))
    return attribute
