"""Tracing, lowering and partitioning with Torch-TensorRT, and the count of operators that engines take.

Everything runs inside `cpu_only`; torch_tensorrt is imported inside the functions for that reason.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ...engines.manifest import Coverage
from ...errors import BackendError
from ...model.targets import Target, dynamic_shapes, tracing_example
from ..cpu_only import replaced
from ..trt_layers import network_layers
from . import quantized

ENGINE_PREFIX = "_run_on_acc"
"""Children of a partitioned graph that are, or become, engines; the others stay in PyTorch."""


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

    quantized.register()
    trackers: list[Any] = []

    def keep(tracker: Any, *args: Any) -> None:
        trackers.append(tracker)  # in place of a table printed to the terminal

    module = torch_tensorrt.MutableTorchTensorRTModule(target.module, **arguments)
    spec = dynamic_shapes(target.name, target.ranges)
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
            left.update(_calls(child.graph.nodes) if isinstance(child, torch.fx.GraphModule) else [str(node.target)])
        elif engines == 0 or node.op != "call_function" or node.target is not operator.getitem:
            left.update(_calls([node]))
    converted = sum(each.subgraph_op_count for each in tracker.per_subgraph_data) if tracker is not None else 0
    return Coverage(
        operators=converted + left.total(), converted=converted, engines=engines, unsupported=dict(left.most_common())
    )


def _calls(nodes: Iterable[torch.fx.Node]) -> list[str]:
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


def graph_hash(part: Partition) -> str:
    """SHA-256 of the lowered graph of a dry run's one engine: operators, their order, their constant arguments."""
    _, submodule = part.engines()[0]
    assert isinstance(submodule, torch.fx.GraphModule)
    return hashlib.sha256(str(submodule.graph).encode()).hexdigest()
