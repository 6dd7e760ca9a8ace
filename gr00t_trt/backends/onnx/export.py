"""A compile target written as an ONNX file by torch's dynamo exporter, and checked.

The graph holds standard operators only, attention as matrix products and a softmax. Needs the packages of
``gr00t_trt[onnx]``, imported inside the functions.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.install import install_extra
from ...engines.files import cannot_write, prepare_engine_dir
from ...engines.key import weights_hash
from ...errors import BackendError
from ...model.targets import Target, dynamic_shapes, tracing_example
from ...plans.precisions import precision_of
from ...plans.schema import BuildOptions
from ...quantize.linear import formats_in
from ..guarded import blamed
from ..trt_log import compiler_log
from . import quantized
from .interface import Interface, floating_dtype, interface

OPSET = 20
"""The first with GELU as one operator, and the newest that every TensorRT 10 parses; ONNX Runtime takes it from 1.17.
From 23 on the exporter writes attention as one operator, which the older of both do not know."""

LARGE_BYTES = 256 * 2**20
"""Weights from here on go into a file of their own beside the graph; a protobuf message ends at 2 GB."""

PRODUCTS = ("MatMul", "Gemm")
HALVES = ("FLOAT16", "BFLOAT16")


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file on disk.

    Attributes:
        path: The graph; weights in ``<name>.data`` beside it where they are large.
        interface: Names of its inputs and output, and how a call's arguments become its inputs.
        bytes: Of both files.
        nodes: Operators in the graph.
        metadata: What the file itself carries as metadata_props.
        operators: Operator -> how often the graph has it.
    """

    path: Path
    interface: Interface
    bytes: int
    nodes: int
    metadata: dict[str, str]
    operators: dict[str, int]


def missing() -> str:
    """What is not installed of what exporting needs, as a sentence; empty when all is there."""
    names = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(names)} not installed: {install_extra('onnx')}" if names else ""


@contextlib.contextmanager
def folder_for(keep: Path | None) -> Iterator[Path]:
    """The folder that ONNX files go to: the one to keep them in, or one that is gone after the scope."""
    if keep is not None:
        yield prepare_engine_dir(keep)
        return
    # A session holds the weights' file mapped, which Windows will not delete under it.
    with tempfile.TemporaryDirectory(prefix="gr00t_trt-onnx-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def export(target: Target, folder: Path, options: BuildOptions, progress: Callable[[str], None]) -> OnnxFile:
    """Write a target as an ONNX file below `folder`, whole or not at all, and check it.

    Args:
        folder: The file goes where `Interface.onnx_file` says; an older one of that name is replaced.
        options: Of these, `use_fp32_acc` changes the graph: matrix products of half precision compute in fp32
            between two casts, which TensorRT builds as half-precision products with fp32 accumulation.
        progress: Told of each phase.
    Raises: BackendError naming the submodule and the phase; RecordError when the folder cannot be written.
    """
    if reason := missing():
        raise BackendError(f"{target.name}: {reason}")
    quantized.refuse_unknown(target)
    form = interface(target)
    path = folder / form.onnx_file
    prepare_engine_dir(path.parent)
    with compiler_log(options.debug):
        with _phase(target, "exporting to ONNX", progress):
            program = _program(form)
            if options.use_fp32_acc:
                _accumulate_in_fp32(program.model.graph)
            # After that: casts around a quantised product would hide its operands' scales from what fuses them.
            quantized.expand(program.model)
            facts = metadata(target)
            program.model.metadata_props.update(facts)
            operators = _operators(target, program.model)
        with _phase(target, "writing the ONNX file", progress):
            size = write(program.model, path)
    del program
    gc.collect()  # the exporter's graphs refer to each other in circles, and hold on to the weights
    with _phase(target, "checking the ONNX file", progress):
        check(path, form)
    return OnnxFile(path, form, size, sum(operators.values()), facts, operators)


def metadata(target: Target) -> dict[str, str]:
    """What an exported file says of itself."""
    return {
        "project": "gr00t_trt",
        "submodule": target.name,
        "dtype": precision_of(floating_dtype(target)),
        **({"formats": ", ".join(formats)} if (formats := formats_in(target.module)) else {}),
        "opset": str(OPSET),
        "torch": str(torch.__version__),
        "weights_sha256": weights_hash(target.module),
    }


@contextlib.contextmanager
def _phase(target: Target, what: str, progress: Callable[[str], None]) -> Iterator[None]:
    progress(what)
    with blamed(target, what):
        try:
            yield
        except OSError as e:
            raise cannot_write(Path(e.filename or what), e) from e


def _program(form: Interface) -> Any:
    seen = form.target
    example, dynamic = tracing_example(seen.inputs, seen.ranges), dynamic_shapes(seen.name, seen.ranges)
    with torch.no_grad():
        # Traced here: left to the exporter, torch 2.9 finds batches of one outside the range.
        program = torch.export.export(seen.module, example, dynamic_shapes=dynamic, strict=False)
        return torch.onnx.export(
            program,
            example,
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=list(seen.argument_names),
            output_names=[form.output],
            opset_version=OPSET,
            verbose=False,
            custom_translation_table=quantized.translation(),
        )


def _split_gemms(graph: Any) -> None:
    """Make every Gemm of a layer on a 2-d input a product and a sum.

    TensorRT recognises casts around a MatMul; around a Gemm it would keep the weights in fp32, at twice the size.
    """
    import onnx_ir as ir

    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    for node in list(graph):
        if node.op_type != "Gemm" or len(node.inputs) != 3 or node.outputs[0].is_graph_output():
            continue
        given = {name: attribute.value for name, attribute in node.attributes.items()}
        rows, weight, bias = node.inputs
        if {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, **given} != plain or weight.const_value is None:
            continue
        tensor = ir.Tensor(weight.const_value.numpy().T, dtype=weight.dtype, name=f"{weight.name}.T")
        turned = ir.Value(name=tensor.name, type=weight.type, shape=tensor.shape, const_value=tensor)
        graph.initializers[turned.name] = turned
        product = ir.node("MatMul", [rows, turned])
        total = ir.node("Add", [product.outputs[0], bias])
        result = node.outputs[0]
        for new in (product, total):
            graph.insert_before(node, new)
            new.outputs[0].shape, new.outputs[0].type = result.shape, result.type
        ir.convenience.replace_all_uses_with(result, total.outputs[0])
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[weight.name]


def _accumulate_in_fp32(graph: Any) -> None:
    """Put every half-precision product between casts to fp32 and back."""
    import onnx_ir as ir

    _split_gemms(graph)
    for node in list(graph):
        kind = node.outputs[0].dtype
        if node.op_type not in PRODUCTS or kind is None or kind.name not in HALVES:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None:
                wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
                graph.insert_before(node, wide)
                node.replace_input_with(index, wide.outputs[0])
        result = node.outputs[0]
        narrow = ir.node("Cast", [result], {"to": kind})
        graph.insert_after(node, narrow)
        quantized.substitute(graph, result, narrow.outputs[0])
        narrow.replace_input_with(0, result)
        narrow.outputs[0].shape, narrow.outputs[0].type = result.shape, result.type
        result.type = ir.TensorType(ir.DataType.FLOAT)


def _operators(target: Target, model: Any) -> dict[str, int]:
    strange = sorted({f"{n.domain}::{n.op_type}" for n in model.graph if n.domain not in ("", "ai.onnx")})
    if strange or model.functions:
        raise BackendError(
            f"{target.name}: the exporter left operators that no ONNX runtime knows: {', '.join(strange)}",
            fix="export with the torch release that constraints.txt names",
        )
    return dict(Counter(node.op_type for node in model.graph).most_common())


def _in_row_order(graph: Any) -> None:
    """Weights that the exporter transposed are views, and a view is written one number at a time: a minute per GB.

    Each becomes a copy that is made when it is written and dropped afterwards.
    """
    import numpy as np
    import onnx_ir as ir

    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(getattr(tensor, "raw", None), np.ndarray) and not tensor.raw.flags.c_contiguous:

            def copy(view: Any = tensor) -> Any:
                # PyTorch transposes four times as fast as NumPy; it takes bf16 from NumPy as integers only.
                numbers = torch.from_numpy(view.raw.view(f"i{view.raw.itemsize}")).contiguous().numpy()
                return ir.Tensor(numbers.view(view.raw.dtype), dtype=view.dtype, name=view.name)

            value.const_value = ir.LazyTensor(copy, tensor.dtype, tensor.shape, name=tensor.name)


def write(model: Any, path: Path) -> int:
    """Write an `onnx_ir.Model`, whole or not at all; its bytes, with those of the weights beside it."""
    import onnx_ir as ir

    _in_row_order(model.graph)
    data = path.with_name(f"{path.name}.data")
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        written = Path(scratch) / path.name
        ir.save(model, written, external_data=f"{path.name}.data" if weights >= LARGE_BYTES else None)
        parts = sorted(Path(scratch).iterdir(), key=lambda part: part == written)
        size = sum(part.stat().st_size for part in parts)
        if len(parts) == 1:
            data.unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # an old graph must not read new weights
        for part in parts:
            part.replace(path.parent / part.name)
    return size


def check(path: Path, form: Interface) -> None:
    """Raises: BackendError for a file with other inputs and outputs than asked for, and what onnx raises."""
    import onnx

    # By path: a model with its weights may be larger than the 2 GB that one message holds.
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(str(path), load_external_data=False).graph
    found = {v.name: [dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in graph.input}
    seen = form.target
    expected = {}
    for name, tensor, ranges in zip(seen.argument_names, seen.inputs, seen.ranges, strict=True):
        dims: list[int | str] = list(tensor.shape)
        for axis, dim in ranges.items():
            if not dim.static:
                dims[axis] = dim.name
        expected[name] = dims
    if found != expected or [value.name for value in graph.output] != [form.output]:
        raise BackendError(f"{seen.name}: the ONNX file has the inputs {found}", known=f"expected {expected}")
