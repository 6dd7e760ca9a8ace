"""Quantised linear layers in ONNX: QuantizeLinear and DequantizeLinear around a product, which runtimes fuse.

The exporter leaves each operator as one node of our own, which `expand` replaces: by then its codes are initializers,
whose bytes can be given ONNX's 8-bit types. Scales stay in fp32 between casts: rounded to half precision, small ones of
weights would lose their digits, or become zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import BackendError
from ...model.targets import Target
from ...quantize.linear import formats_in
from ...quantize.operator import quantized_linear as _defined  # noqa: F401  the operator must exist

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, NODE = "gr00t_trt", "QuantizedLinear"
UNKNOWN_TO_ONNX = "nvfp4"
"""Whose inputs are quantised by a scale per 16 values: no operator of ONNX makes those."""


def translation() -> dict[Any, Callable[..., Any]]:
    """The exporter's `custom_translation_table`: the operator becomes one node."""
    from onnxscript.values import Op, Opset

    operator = Op(Opset(DOMAIN, 1), NODE, _schema())

    def linear(
        x: Any,
        codes: Any,
        scale: Any,
        block_scale: Any = None,
        input_scale: Any = None,
        smoothing: Any = None,
        bias: Any = None,
        form: str = "",
    ) -> Any:
        return operator(x, codes, scale, block_scale, input_scale, smoothing, bias, form=form)

    return {torch.ops.gr00t_trt.quantized_linear.default: linear}


def _schema() -> Any:
    """The node's declaration, which the exporter reads; no file keeps such a node."""
    from onnx.defs import OpSchema

    option, floats = OpSchema.FormalParameterOption, ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    bytes_ = ["tensor(int8)", "tensor(uint8)"]

    def optional(name: str, kind: str) -> Any:
        return OpSchema.FormalParameter(name, kind, param_option=option.Optional)

    return OpSchema(
        NODE,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter("x", "T"),
            OpSchema.FormalParameter("codes", "C"),
            OpSchema.FormalParameter("scale", "tensor(float)"),
            optional("block_scale", "C"),
            optional("input_scale", "tensor(float)"),
            optional("smoothing", "tensor(float)"),
            optional("bias", "T"),
        ],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", floats, "activations"), ("C", bytes_, "codes")],
        attributes=[OpSchema.Attribute("form", OpSchema.AttrType.STRING, "a name of `formats.FORMATS`")],
    )


def refuse_unknown(target: Target) -> None:
    """Raises: BackendError for a format that ONNX cannot express."""
    if UNKNOWN_TO_ONNX in formats_in(target.module):
        raise BackendError(
            f"{target.name}: {UNKNOWN_TO_ONNX}: ONNX has no operator that quantises an input by blocks",
            fix="use --backend torch_tensorrt, or fp8 or int8",
        )


def expand(model: Any) -> None:
    """Replace the nodes by standard operators, and their codes by tensors of ONNX's 8-bit types.

    A weight that several nodes use, as the steps of a loop do, is stored and dequantised once.

    Args:
        model: An `onnx_ir.Model`.
    """
    graph = model.graph
    nodes = [node for node in graph if (node.domain, node.op_type) == (DOMAIN, NODE)]
    weights: dict[str, ir.Value] = {}
    for node in nodes:
        _Expanded(graph, node, node.attributes["form"].value, weights).replace()
    if nodes:
        _drop_unused(graph)
        model.opset_imports.pop(DOMAIN, None)


class _Expanded:
    """One node as standard operators, each put before it in the graph."""

    def __init__(self, graph: Any, node: Any, form: str, weights: dict[str, ir.Value]):
        import onnx_ir as ir

        self.ir, self.graph, self.node, self.weights = ir, graph, node, weights
        self.kind = ir.DataType.INT8 if form == "int8" else ir.DataType.FLOAT8E4M3FN
        self.carrier = node.inputs[0].dtype
        self.result = node.outputs[0]

    def replace(self) -> None:
        given = [*self.node.inputs, *[None] * 4]  # absent ones at the end are left out
        x, codes, scale, _, input_scale, smoothing, bias = given[:7]
        if codes.name not in self.weights:
            self.weights[codes.name] = self._narrow(self._weight(codes, scale))
        values = x if input_scale is None else self._rounded(x, input_scale, smoothing)
        total = self._add("MatMul", [values, self.weights[codes.name]])
        if bias is not None:
            total = self._add("Add", [total, bias])
        total.shape, total.type = self.result.shape, self.result.type
        substitute(self.graph, self.result, total)
        self.graph.remove(self.node, safe=True)

    def _weight(self, codes: Any, scale: Any) -> Any:
        """fp32 [K, N] from codes that are stored so: a product takes them as they lie."""
        turned = self._constant(f"{codes.name}.T", codes.const_value.numpy().T)
        return self._add("DequantizeLinear", [turned, scale], {"axis": 1})

    def _rounded(self, x: Any, scale: Any, smoothing: Any) -> Any:
        """x in the carrier's type, on the grid of the input's scale."""
        wide = x if self.carrier == self.ir.DataType.FLOAT else self._add("Cast", [x], {"to": self.ir.DataType.FLOAT})
        if smoothing is not None:
            wide = self._add("Mul", [wide, smoothing])
        zero = self._constant(f"zero_{self.kind.name.lower()}", np.zeros((), "int8"))
        codes = self._add("QuantizeLinear", [wide, scale, zero])
        return self._narrow(self._add("DequantizeLinear", [codes, scale, zero]))

    def _narrow(self, value: Any) -> Any:
        if self.carrier == self.ir.DataType.FLOAT:
            return value
        return self._add("Cast", [value], {"to": self.carrier})

    def _constant(self, name: str, codes: Any) -> Any:
        """An initializer of the format's type from its codes' bytes."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        tensor = self.ir.Tensor(codes.view(self.kind.numpy()), dtype=self.kind, name=name)
        kind = self.ir.TensorType(self.kind)
        value = self.ir.Value(name=name, type=kind, shape=tensor.shape, const_value=tensor)
        self.graph.initializers[name] = value
        return value

    def _add(self, operator: str, inputs: list[Any], attributes: dict[str, int] | None = None) -> Any:
        new = self.ir.node(operator, inputs, attributes or {})
        self.graph.insert_before(self.node, new)
        return new.outputs[0]


def substitute(graph: Any, old: Any, new: Any) -> None:
    """Let all that reads a value read another one, which takes over its name where it is an output of the graph."""
    import onnx_ir as ir

    ir.convenience.replace_all_uses_with(old, new)
    for index, output in enumerate(graph.outputs):
        if output is old:
            graph.outputs[index] = new
            new.name, old.name = old.name, f"{old.name}_replaced"


def _drop_unused(graph: Any) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
