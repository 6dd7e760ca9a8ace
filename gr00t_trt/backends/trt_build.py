"""The steps of a Torch-TensorRT build: trace and partition, count what was taken, make the engine's bytes.

Everything runs inside `cpu_only`; torch_tensorrt is imported inside the functions for that reason.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import BackendError, PlanError, unknown
from ..shapes import ArgumentRange, tracing_example
from .base import Coverage, Target
from .cpu_only import replaced
from .engine_files import Binding
from .trt_layers import network_layers

ENGINE_PREFIX = "_run_on_acc"
"""Children of a partitioned graph that are, or become, engines; the others stay in PyTorch."""

PORTABLE_TARGETS = "8.0, 8.6, 8.9, 12.0 and newer (not for Orin, Hopper or Thor)"
"""What TensorRT-RTX builds for on a machine without a GPU when it is asked for nothing else."""


def dynamic_shapes(target: Target) -> tuple[dict[int, Any], ...] | None:
    """One torch.export spec per argument, or None when all shapes are static; equal names share one Dim.

    Raises: BackendError when one name is used with two ranges.
    """
    dims: dict[str, Any] = {}
    bounds: dict[str, tuple[int, int]] = {}
    spec: list[dict[int, Any]] = []
    for ranges in target.ranges:
        spec.append({})
        for axis, dim in ranges.items():
            if bounds.setdefault(dim.name, (dim.minimum, dim.maximum)) != (dim.minimum, dim.maximum):
                raise BackendError(
                    f"{target.name}: {dim.name} has the ranges {bounds[dim.name]} and {(dim.minimum, dim.maximum)}"
                )
            if not dim.static:
                if dim.name not in dims:
                    dims[dim.name] = torch.export.Dim(dim.name, min=dim.minimum, max=dim.maximum)
                spec[-1][axis] = dims[dim.name]
    return tuple(spec) if dims else None


AHEAD_OF_TIME = {"dryrun": False, "immutable_weights": True}
"""What an engine built without a GPU changes in the dry run's settings: TensorRT-RTX fails to build refittable
attention there, and an engine that goes into a file needs no refitting."""


@dataclass
class Partition:
    """What the compiler made of a graph.

    Attributes:
        module: The MutableTorchTensorRTModule, compiled (or, in a dry run, ready to run its graph in PyTorch).
        graph: Its partitioned graph module.
        settings: The CompilationSettings in force; None when no operator could be converted.
        coverage: How much of the graph went into engines.
        layers: Of the networks that its engines were built from, added up; None when none was built.
    """

    module: Any
    graph: torch.fx.GraphModule
    settings: Any
    coverage: Coverage
    layers: int | None

    def engines(self) -> list[tuple[str, torch.nn.Module]]:
        return [(name, child) for name, child in self.graph.named_children() if name.startswith(ENGINE_PREFIX)]


def partition(torch_tensorrt: Any, target: Target, arguments: Mapping[str, Any], *, dryrun: bool) -> Partition:
    """Export, lower and partition the module; unless `dryrun`, build its engines as well.

    Raises: whatever the compiler raises; BackendError when it dropped the dynamic shapes on the way.
    """
    from torch_tensorrt.dynamo import _compiler

    trackers: list[Any] = []

    def keep(tracker: Any, *args: Any) -> None:
        trackers.append(tracker)  # in place of a table printed to the terminal

    module = torch_tensorrt.MutableTorchTensorRTModule(target.module, **arguments)
    spec = dynamic_shapes(target)
    if spec is not None:
        module.set_expected_dynamic_shape_range(spec, {})
    example = tracing_example(target.inputs, target.ranges)
    with (
        torch.no_grad(),
        replaced(_compiler, "dryrun_stats_display", keep),
        _attention_kept_whole(),
        _sums_of_products(),
        network_layers() as layers,
    ):
        if dryrun:
            _first_call_without_running(module, example)
        else:
            module(*example)
    if spec is not None and module.arg_dynamic_shapes is None:
        raise BackendError(f"{target.name}: the compiler dropped the dynamic shapes and built for one size only")
    tracker = trackers[-1] if trackers else None
    return Partition(
        module=module,
        graph=module.gm,
        settings=tracker.compilation_settings if tracker is not None else None,
        coverage=_coverage(module.gm, tracker),
        layers=sum(layers) if layers else None,
    )


@contextmanager
def _attention_kept_whole() -> Iterator[None]:
    # With deferred assertions the mutable module exports below the dispatcher, where attention has become a kernel
    # of the tracing device: one without a converter on a CPU, one that pads dynamic masks on a GPU. Exported above
    # it, as torch.export does by default, the graph is the same on both and holds one attention operator.
    from torch_tensorrt.dynamo.runtime import _MutableTorchTensorRTModule as mutable

    if not hasattr(mutable, "_export"):
        yield  # then it calls torch.export itself
        return
    with replaced(mutable, "_export", functools.partial(mutable._export, pre_dispatch=True)):
        yield


def _product_and_sum(
    summand: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    # PyTorch's own decomposition computes half precision in fp32; use_fp32_acc is there for whoever wants that.
    product = torch.bmm(left, right)
    return (product if alpha == 1 else product * alpha) + (summand if beta == 1 else summand * beta)


@contextmanager
def _sums_of_products() -> Iterator[None]:
    # Neither flavour converts baddbmm, only the two operators that it consists of.
    from torch_tensorrt.dynamo import lowering

    baddbmm, known = torch.ops.aten.baddbmm.default, getattr(lowering, "TORCH_TRT_DECOMPOSITIONS", None)
    if known is None or baddbmm in known:
        yield
        return
    known[baddbmm] = _product_and_sum
    try:
        yield
    finally:
        del known[baddbmm]


def _first_call_without_running(module: Any, example: tuple[torch.Tensor, ...]) -> None:
    # What a first call does, less running the graph at the tracing size: on a CPU in half precision that takes
    # longer than everything else together.
    from torch_tensorrt.dynamo.runtime._MutableTorchTensorRTModule import RefitFlag

    module._validate_inputs(*example)
    module.compile()
    module.refit_state.set_state(RefitFlag.LIVE)
    module.exp_program = None  # only a refit needs it, and it would keep a second graph alive


def _coverage(graph: torch.fx.GraphModule, tracker: Any) -> Coverage:
    left: Counter[str] = Counter()
    engines = 0
    for node in graph.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith(ENGINE_PREFIX):
            engines += 1
        elif node.op == "call_module":
            child = graph.get_submodule(str(node.target))
            left.update(_operators(child.graph) if isinstance(child, torch.fx.GraphModule) else [str(node.target)])
        elif engines == 0 or node.op != "call_function" or node.target is not operator.getitem:
            left.update(_operators([node]))
    converted = sum(each.subgraph_op_count for each in tracker.per_subgraph_data) if tracker is not None else 0
    return Coverage(
        operators=converted + left.total(), converted=converted, engines=engines, unsupported=dict(left.most_common())
    )


def _operators(nodes: Any) -> list[str]:
    nodes = getattr(nodes, "nodes", nodes)
    calls = [n for n in nodes if n.op in ("call_function", "call_method") and n.target is not operator.getitem]
    return [str(n.target) for n in calls]


def incomplete(target: Target, coverage: Coverage) -> str | None:
    """Why a submodule did not become exactly one engine, or None when it did."""
    if coverage.engines == 1 and not coverage.unsupported:
        return None
    left = ", ".join(f"{name} x{count}" for name, count in coverage.unsupported.items()) or "none"
    return (
        f"{target.name}: {coverage.converted} of {coverage.operators} operators went into {coverage.engines} engines; "
        f"left to PyTorch: {left}"
    )


@dataclass(frozen=True)
class SerializedEngine:
    """An engine's bytes and its bindings, in the order of the submodule's arguments and results.

    Attributes:
        arguments: For each of `inputs`, which argument of the submodule it is.
        layers: Of the network definition that it was built from; None where nobody counted them.
    """

    plan: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    arguments: tuple[int, ...]
    layers: int | None


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
    return SerializedEngine(
        plan=result.serialized_engine,
        inputs=tuple(inputs[i] for i in sorted(inputs)),
        outputs=_outputs(submodule, result.output_names),
        arguments=tuple(sorted(inputs)),
        layers=sum(layers),
    )


def graph_hash(part: Partition) -> str:
    """SHA-256 of the lowered graph of a dry run's one engine: operators, their order, their constant arguments."""
    _, submodule = part.engines()[0]
    assert isinstance(submodule, torch.fx.GraphModule)
    return hashlib.sha256(str(submodule.graph).encode()).hexdigest()


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
    order = tuple(sorted(inputs))
    return SerializedEngine(
        plan=plan,
        inputs=tuple(inputs[i] for i in order),
        outputs=outputs,
        arguments=order,
        layers=part.layers,
    )


def _engine_arguments(graph: torch.fx.GraphModule, name: str) -> list[int]:
    # The engine may take its inputs in another order than the submodule, and leaves out those it does not use.
    order = [node for node in graph.graph.nodes if node.op == "placeholder"]
    call = next(node for node in graph.graph.nodes if node.op == "call_module" and node.target == name)
    return [order.index(node) for node in call.args]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def binding(name: str, tensor: torch.Tensor, ranges: ArgumentRange) -> Binding:
    def shape(pick: str) -> tuple[int, ...]:
        return tuple(getattr(ranges[a], pick) if a in ranges else size for a, size in enumerate(tensor.shape))

    return Binding(name, dtype_name(tensor.dtype), shape("minimum"), tuple(tensor.shape), shape("maximum"))


def _input_spec(torch_tensorrt: Any, binding: Binding, tensor: torch.Tensor) -> Any:
    if binding.minimum == binding.maximum:
        return torch_tensorrt.Input(shape=binding.optimum, dtype=tensor.dtype, name=binding.name)
    return torch_tensorrt.Input(
        min_shape=binding.minimum,
        opt_shape=binding.optimum,
        max_shape=binding.maximum,
        dtype=tensor.dtype,
        name=binding.name,
    )


def _outputs(module: Any, names: Sequence[str]) -> tuple[Binding, ...]:
    node = next(n for n in module.graph.nodes if n.op == "output")
    results = [n.meta["val"] for n in node.all_input_nodes]
    shapes = [tuple(size if isinstance(size, int) else -1 for size in value.shape) for value in results]
    return tuple(
        Binding(name, dtype_name(value.dtype), shape, shape, shape)
        for name, value, shape in zip(names, results, shapes, strict=False)
    )


def set_compute_capabilities(tensorrt: Any, config: Any, names: Sequence[str]) -> None:
    """Tell a builder's configuration for which GPUs to build, such as ``("8.9", "12.0")``.

    Args:
        tensorrt: The module of TensorRT or TensorRT-RTX that the configuration belongs to.
    Raises: PlanError for one that it does not know, listing those it does; BackendError for one that it refuses.
    """
    members = resolve_compute_capabilities(tensorrt, names)
    config.num_compute_capabilities = len(members)
    for index, member in enumerate(members):
        if not config.set_compute_capability(member, index):
            raise BackendError(f"compute_capabilities: TensorRT-RTX refused {names[index]}")


def resolve_compute_capabilities(tensorrt: Any, names: Sequence[str]) -> list[Any]:
    """``("8.9", "12.0")`` -> the constants of a TensorRT-RTX module.

    Raises: PlanError for one that it does not know, listing those it does.
    """
    if not hasattr(tensorrt, "ComputeCapability"):
        raise PlanError("compute_capabilities: the installed TensorRT cannot build for other GPUs")
    members = tensorrt.ComputeCapability.__members__
    known = {f"{m[1]}.{m[2]}": members[name] for name in members if (m := re.fullmatch(r"SM(\d+)(\d)", name))}
    for name in names:
        if name not in known:
            raise unknown(PlanError, "compute_capabilities", name, known)
    return [known[name] for name in names]


def check_this_gpu(capabilities: Sequence[str]) -> None:
    """Refuse an engine that is to run here and is asked for other GPUs only; an empty list asks for none.

    Raises: PlanError.
    """
    here = "{}.{}".format(*torch.cuda.get_device_capability())
    if capabilities and here not in capabilities:
        raise PlanError(
            f"compute_capabilities: {list(capabilities)} leaves out this GPU, {here}, where the engine is to run",
            fix=f"add {here}, or build for the others on a machine without a GPU",
        )


@contextmanager
def compute_capabilities(names: Sequence[str]) -> Iterator[None]:
    """Builds inside the scope are for these GPUs. Torch-TensorRT makes the builder's configuration out of reach."""
    if not names:
        yield
        return
    import tensorrt
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    resolve_compute_capabilities(tensorrt, names)  # before anything is built
    populate = inspect.getattr_static(TRTInterpreter, "_populate_trt_builder_config")

    def with_targets(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = populate(self, *args, **kwargs)
        set_compute_capabilities(tensorrt, config, names)
        return config

    with replaced(TRTInterpreter, "_populate_trt_builder_config", with_targets):
        yield
