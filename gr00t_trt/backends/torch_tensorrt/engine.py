"""Serialised engines from Torch-TensorRT: built from a partition, or extracted from a module compiled on a GPU.

Everything runs inside `cpu_only`; torch_tensorrt is imported inside the functions for that reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ...engines.manifest import Binding
from ...engines.serialized_engine import SerializedEngine, binding, dtype_name
from ...model.targets import Target
from ..trt_layers import network_layers
from .partition import Partition

AHEAD_OF_TIME = {"dryrun": False, "immutable_weights": True}
"""What an engine built without a GPU changes in the dry run's settings: TensorRT-RTX fails to build refittable
attention there, and an engine that goes into a file needs no refitting."""


def build_engine(torch_tensorrt: Any, target: Target, part: Partition) -> SerializedEngine:
    """Build the one engine of a dry run's partition, from the very graph that the dry run left.

    The optimum shapes are the recorded ones, not those that were traced.
    """
    from torch_tensorrt.dynamo.conversion import interpret_module_to_result

    name, submodule = part.engines()[0]
    arguments = _engine_arguments(part.graph, name)
    assert isinstance(submodule, torch.fx.GraphModule)
    names = [node.name for node in submodule.graph.nodes if node.op == "placeholder"]
    inputs = {i: binding(name, target.inputs[i], target.ranges[i]) for name, i in zip(names, arguments, strict=True)}
    specifications = [_input_spec(torch_tensorrt, inputs[i], target.inputs[i]) for i in arguments]
    settings = dataclasses.replace(part.settings, **AHEAD_OF_TIME)
    # The compiler deletes folded constants from the graph that it converted; the dry run's graph still needs them.
    kept = dict(submodule._parameters)
    try:
        with network_layers() as layers:
            result = interpret_module_to_result(submodule, inputs=specifications, settings=settings)
    finally:
        submodule._parameters.update(kept)
    return _in_order(result.serialized_engine, inputs, _outputs(submodule, result.output_names), sum(layers))


def built_engine(target: Target, part: Partition) -> SerializedEngine | None:
    """The bytes of the one engine that a real build left in its graph; None when the release keeps none."""
    name, module = part.engines()[0]
    plan = getattr(module, "serialized_engine", None)
    if not isinstance(plan, bytes):
        return None
    names = list(getattr(module, "input_binding_names", ()))
    arguments = _engine_arguments(part.graph, name)
    if len(names) != len(arguments):
        return None
    inputs = {i: binding(n, target.inputs[i], target.ranges[i]) for n, i in zip(names, arguments, strict=True)}
    outputs = tuple(Binding(n, "", (), (), ()) for n in getattr(module, "output_binding_names", ()))
    return _in_order(plan, inputs, outputs, part.layers)


def _in_order(
    plan: bytes, inputs: dict[int, Binding], outputs: tuple[Binding, ...], layers: int | None
) -> SerializedEngine:
    order = tuple(sorted(inputs))
    return SerializedEngine(plan, tuple(inputs[i] for i in order), outputs, order, layers)


def _engine_arguments(graph: torch.fx.GraphModule, name: str) -> list[int]:
    # The engine may take its inputs in another order than the submodule, and leaves out those it does not use.
    order = [node for node in graph.graph.nodes if node.op == "placeholder"]
    call = next(node for node in graph.graph.nodes if node.op == "call_module" and node.target == name)
    return [order.index(node) for node in call.args]


def _input_spec(torch_tensorrt: Any, binding: Binding, tensor: torch.Tensor) -> Any:
    if binding.minimum == binding.maximum:
        return torch_tensorrt.Input(shape=binding.optimum, dtype=tensor.dtype, name=binding.name)
    shapes = {"min_shape": binding.minimum, "opt_shape": binding.optimum, "max_shape": binding.maximum}
    return torch_tensorrt.Input(**shapes, dtype=tensor.dtype, name=binding.name)


def _outputs(module: Any, names: Sequence[str]) -> tuple[Binding, ...]:
    node = next(n for n in module.graph.nodes if n.op == "output")
    results = [n.meta["val"] for n in node.all_input_nodes]
    shapes = [tuple(size if isinstance(size, int) else -1 for size in value.shape) for value in results]
    return tuple(
        Binding(name, dtype_name(value.dtype), shape, shape, shape)
        for name, value, shape in zip(names, results, shapes, strict=False)
    )
